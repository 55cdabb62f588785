// SPDX-License-Identifier: GPL-3.0-or-later
//! Command and status wrappers (Bulk-Only Transport 1.0, 5.1 and 5.2).

/// Bytes of a command block wrapper.
pub(super) const CBW_BYTES: usize = 31;
/// Bytes of a command status wrapper.
pub(super) const CSW_BYTES: usize = 13;

const CBW_SIGNATURE: u32 = 0x4342_5355;
const CSW_SIGNATURE: u32 = 0x5342_5355;

/// The bytes of a command block wrapper. `command` is 1 to 16 bytes.
pub(super) fn command_wrapper(
    tag: u32,
    data_len: u32,
    data_in: bool,
    command: &[u8],
) -> [u8; CBW_BYTES] {
    let mut bytes = [0; CBW_BYTES];
    bytes[0..4].copy_from_slice(&CBW_SIGNATURE.to_le_bytes());
    bytes[4..8].copy_from_slice(&tag.to_le_bytes());
    bytes[8..12].copy_from_slice(&data_len.to_le_bytes());
    bytes[12] = if data_in { 0x80 } else { 0 };
    bytes[14] = command.len() as u8;
    bytes[15..15 + command.len()].copy_from_slice(command);
    bytes
}

/// How a command went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommandStatus {
    Passed,
    Failed,
    PhaseError,
}

/// A command status wrapper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StatusWrapper {
    pub(super) status: CommandStatus,
    /// Bytes of the data phase that were not processed.
    pub(super) residue: u32,
}

impl StatusWrapper {
    /// `None` when it is not valid and meaningful for this command (6.3).
    pub(super) fn parse(bytes: &[u8], tag: u32, data_len: u32) -> Option<Self> {
        let bytes: &[u8; CSW_BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if word(0) != CSW_SIGNATURE || word(4) != tag {
            return None;
        }
        let residue = word(8);
        let status = match bytes[12] {
            0 => CommandStatus::Passed,
            1 => CommandStatus::Failed,
            2 => {
                return Some(Self {
                    status: CommandStatus::PhaseError,
                    residue,
                });
            }
            _ => return None,
        };
        (residue <= data_len).then_some(Self { status, residue })
    }
}
