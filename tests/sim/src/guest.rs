// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest's process: a kernel with a frontend, a disk driver and a workload on the disk.
//!
//! The process that starts it talks to it in lines of JSON: [`Told`] on its standard input,
//! [`Said`] on its standard output.
//!
//! Scenarios with other devices have their guest's [`Kernel`] in their own process, and may let
//! drivers work there as a [`Workload`].

mod audio;
mod driver;
mod kernel;
mod keyboard;
mod machine;
mod meter;
mod model;
mod patience;
mod serial;
mod workload;

use serde::{Deserialize, Serialize};

pub use audio::{Played, Player, Recorded, Recorder};
pub use kernel::{Kernel, Wrongs};
pub use keyboard::{Keyboard, Typed};
pub use machine::{Machine, Options};
pub use serial::{Serial, Streamed};
pub use workload::{Driver, Shared, UnlinkedData, Workload};

/// What a guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// Say [`Said::Progress`] now.
    Report,
    /// Finish the command in flight, sync the disk, say [`Said::Stopped`] and end.
    Stop,
}

/// What a guest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// The controller is connected.
    Connected,
    /// The disk was found and read from end to end; the workload starts.
    Ready {
        /// Its size.
        len_bytes: u64,
    },
    /// A suspend is over, and the workload has been going again for a moment.
    Resumed {
        /// Whether it was cancelled: same domain, same host.
        cancelled: bool,
        /// The domid now.
        domid: u16,
        /// Longest time without a completed transfer, from before the suspend until now, in µs.
        blackout_us: u64,
    },
    /// The disk was pulled out.
    Unplugged,
    /// What happened so far, a few times a second and when told.
    Progress(Report),
    /// The last word, after [`Told::Stop`].
    Stopped(Report),
    /// It cannot go on.
    Failed {
        /// Why.
        reason: String,
        /// Until then.
        report: Report,
    },
}

/// What a guest has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// URBs submitted.
    pub urbs: u64,
    /// URBs never answered.
    pub lost: u64,
    /// Answers to URBs that were answered before, or never submitted.
    pub duplicated: u64,
    /// Times the disk was pulled out.
    pub disconnects: u64,
    /// Times that something else was read than was written.
    pub mismatches: u64,
    /// URBs that failed, other than by being unlinked.
    pub errors: u64,
    /// URBs taken back at a suspend.
    pub unlinked: u64,
    /// Commands carried out.
    pub commands: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes read and compared.
    pub bytes_read: u64,
    /// What else the backend did wrong.
    pub violations: Vec<String>,
    /// SHA-256 of what the disk must hold, in hexadecimal; at the end only.
    pub sha256: Option<String>,
}
