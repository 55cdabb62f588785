// SPDX-License-Identifier: GPL-3.0-or-later
//! Identifiers: plain numbers that must not be mixed up.

use std::fmt;

/// Bytes in a page of guest memory. Fixed by the ring ABI on x86 and arm64.
pub const PAGE_SIZE: usize = 4096;

/// A domain's number on one host, 0 to 32,751 (`DOMID_FIRST_RESERVED` - 1). It changes when the
/// domain is migrated, saved or rebooted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomId(pub u16);

/// A grant reference: an index into the granting domain's grant table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrantRef(pub u32);

/// An event-channel port: a number in the space of the domain that owns the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EvtchnPort(pub u32);

macro_rules! display_as_number {
    ($($t:ty),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_as_number!(DomId, GrantRef, EvtchnPort);
