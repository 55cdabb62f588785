// SPDX-License-Identifier: GPL-3.0-or-later
//! What is checked, and its bounds.

use crate::Limits;

/// Bounds with a name.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// Its name.
    pub name: &'static str,
    /// Its bounds, for people.
    pub what: &'static str,
    change: fn(&mut Limits),
}

impl Suite {
    /// Its bounds.
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::calm(0, 0);
        (self.change)(&mut limits);
        limits
    }
}

/// Part of the ordinary tests.
pub const SMALL: [Suite; 10] = [
    Suite {
        name: "migration",
        what: "1 transfer, 1 migration",
        change: |l| (l.transfers, l.migrations) = (1, 1),
    },
    Suite {
        name: "cut",
        what: "2 transfers, 1 connection cut",
        change: |l| (l.transfers, l.cuts) = (2, 1),
    },
    Suite {
        name: "unlink-reload",
        what: "1 transfer, unlinked, 1 reload of the driver",
        change: |l| (l.transfers, l.unlinks, l.reloads) = (1, 1, 1),
    },
    Suite {
        name: "cut-migration",
        what: "1 migration, 1 connection cut",
        change: |l| (l.migrations, l.cuts) = (1, 1),
    },
    Suite {
        name: "abort",
        what: "1 transfer, 1 migration that fails before go",
        change: |l| (l.transfers, l.migrations, l.aborts) = (1, 1, 1),
    },
    Suite {
        name: "exporter-crash",
        what: "1 transfer, 1 crash of the exporter",
        change: |l| (l.transfers, l.exporter_crashes) = (1, 1),
    },
    Suite {
        name: "host-crash",
        what: "1 transfer, 1 crash of a host",
        change: |l| (l.transfers, l.host_crashes) = (1, 1),
    },
    Suite {
        name: "refused",
        what: "1 transfer, 1 migration of a guest that cannot resume",
        change: |l| (l.transfers, l.migrations, l.resumes) = (1, 1, false),
    },
    Suite {
        name: "recall",
        what: "1 transfer that the driver does not take back, 1 migration",
        change: |l| (l.transfers, l.migrations, l.recalls) = (1, 1, true),
    },
    Suite {
        name: "recall-abort",
        what: "the same, and the migration fails before go",
        change: |l| (l.transfers, l.migrations, l.aborts, l.recalls) = (1, 1, 1, true),
    },
];

/// By command only.
pub const LARGE: [Suite; 11] = [
    Suite {
        name: "migration-2",
        what: "2 transfers, 1 migration",
        change: |l| (l.transfers, l.migrations) = (2, 1),
    },
    Suite {
        name: "two-migrations",
        what: "1 transfer, 2 migrations",
        change: |l| (l.transfers, l.migrations) = (1, 2),
    },
    Suite {
        name: "cut-migration-1",
        what: "1 transfer, 1 migration, 1 connection cut",
        change: |l| (l.transfers, l.migrations, l.cuts) = (1, 1, 1),
    },
    Suite {
        name: "abort-1",
        what: "1 transfer, 2 migrations, 1 of them fails before go",
        change: |l| (l.transfers, l.migrations, l.aborts) = (1, 2, 1),
    },
    Suite {
        name: "exporter-crash-1",
        what: "1 transfer, 1 migration, 1 crash of the exporter",
        change: |l| (l.transfers, l.migrations, l.exporter_crashes) = (1, 1, 1),
    },
    Suite {
        name: "host-crash-1",
        what: "1 transfer, 1 migration, 1 crash of a host",
        change: |l| (l.transfers, l.migrations, l.host_crashes) = (1, 1, 1),
    },
    Suite {
        name: "refused-cut",
        what: "1 transfer, 1 migration of a guest that cannot resume, 1 cut",
        change: |l| (l.transfers, l.migrations, l.cuts, l.resumes) = (1, 1, 1, false),
    },
    Suite {
        name: "two-cuts",
        what: "2 transfers, 2 connections cut",
        change: |l| (l.transfers, l.cuts) = (2, 2),
    },
    Suite {
        name: "spurious",
        what: "1 transfer, 1 migration, 1 event that means nothing",
        change: |l| (l.transfers, l.migrations, l.spurious) = (1, 1, 1),
    },
    Suite {
        name: "recall-2",
        what: "2 transfers that the driver does not take back, 1 migration",
        change: |l| (l.transfers, l.migrations, l.recalls) = (2, 1, true),
    },
    Suite {
        name: "recall-cut",
        what: "1 transfer that the driver does not take back, 1 migration, 1 connection cut",
        change: |l| (l.transfers, l.migrations, l.cuts, l.recalls) = (1, 1, 1, true),
    },
];
