// SPDX-License-Identifier: GPL-3.0-or-later
//! A device that is slow to answer, or does not answer at all.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::urb::Submit;

/// What a device is slow to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// SET_INTERFACE.
    SetInterface,
    /// CLEAR_FEATURE(ENDPOINT_HALT).
    ClearHalt,
    /// SET_CONFIGURATION.
    SetConfiguration,
    /// GET_DESCRIPTOR, which also makes a reset slow: the host reads the descriptors after it.
    GetDescriptor,
    /// Every transfer of every endpoint.
    Everything,
}

impl Slow {
    /// Every one.
    pub const ALL: [Self; 5] = [
        Self::SetInterface,
        Self::ClearHalt,
        Self::SetConfiguration,
        Self::GetDescriptor,
        Self::Everything,
    ];

    /// `bmRequestType` and `bRequest` (USB 2.0, tables 9-3 and 9-4) of a request to endpoint 0.
    fn request(self) -> Option<[u8; 2]> {
        match self {
            Self::SetInterface => Some([0x01, 11]),
            Self::ClearHalt => Some([0x02, 1]),
            Self::SetConfiguration => Some([0x00, 9]),
            Self::GetDescriptor => Some([0x80, 6]),
            Self::Everything => None,
        }
    }

    fn matches(self, submit: &Submit<'_>) -> bool {
        match self.request() {
            Some(request) => submit.endpoint == 0 && submit.setup[..2] == request,
            None => true,
        }
    }
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SetInterface => "set-interface",
            Self::ClearHalt => "clear-halt",
            Self::SetConfiguration => "set-configuration",
            Self::GetDescriptor => "get-descriptor",
            Self::Everything => "everything",
        })
    }
}

impl FromStr for Slow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|slow| slow.to_string() == text)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(Self::to_string).collect();
                format!("nothing to hold: '{text}'; there are {}", names.join(", "))
            })
    }
}

/// How long a transfer is held; `None`: until the client takes it back.
pub type Delay = Option<Duration>;

/// Commands that the device has not looked at yet.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    rules: Vec<(Slow, Delay)>,
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    sequence: u32,
    /// When the device gets it; `None` for never.
    due: Option<Duration>,
    /// The command as it came.
    bytes: Vec<u8>,
}

impl Holds {
    /// From now on these are held so long; with `None` no longer. What is held stays held.
    pub fn set(&mut self, slow: Slow, delay: Option<Delay>) {
        self.rules.retain(|(one, _)| *one != slow);
        self.rules.extend(delay.map(|delay| (slow, delay)));
    }

    /// Holds a command that a rule is about. False: the device gets it now.
    pub fn hold(&mut self, submit: &Submit<'_>, bytes: &[u8], now: Duration) -> bool {
        let rule = self.rules.iter().find(|(slow, _)| slow.matches(submit));
        let Some((_, delay)) = rule else {
            return false;
        };
        self.held.push(Held {
            sequence: submit.sequence,
            due: delay.map(|delay| now + delay),
            bytes: bytes.to_vec(),
        });
        true
    }

    /// The client takes one back. False: it is not held.
    pub fn take_back(&mut self, sequence: u32) -> bool {
        let count = self.held.len();
        self.held.retain(|held| held.sequence != sequence);
        self.held.len() != count
    }

    /// How many are held, and the bytes of all.
    pub fn load(&self) -> (u64, u64) {
        let bytes = self.held.iter().map(|held| held.bytes.len() as u64).sum();
        (self.held.len() as u64, bytes)
    }

    /// A command that the device gets now, in the order in which they came.
    pub fn due(&mut self, now: Duration) -> Option<Vec<u8>> {
        let is_due = |held: &Held| held.due.is_some_and(|due| due <= now);
        let at = self.held.iter().position(is_due)?;
        Some(self.held.remove(at).bytes)
    }

    /// When the next one is due.
    pub fn next_event(&self) -> Option<Duration> {
        self.held.iter().filter_map(|held| held.due).min()
    }
}
