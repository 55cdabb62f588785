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
        limits.keeps = limits.restarts > 0;
        limits
    }
}

const fn suite(name: &'static str, what: &'static str, change: fn(&mut Limits)) -> Suite {
    Suite { name, what, change }
}

/// Part of the ordinary tests.
pub const SMALL: [Suite; 12] = [
    suite("migration", "1 transfer, 1 migration", |l| {
        (l.transfers, l.migrations) = (1, 1)
    }),
    suite("cut", "2 transfers, 1 connection cut", |l| {
        (l.transfers, l.cuts) = (2, 1)
    }),
    suite(
        "unlink-reload",
        "1 transfer, unlinked, 1 reload of the driver",
        |l| (l.transfers, l.unlinks, l.reloads) = (1, 1, 1),
    ),
    suite(
        "abort",
        "1 transfer, 1 migration that fails before go",
        |l| (l.transfers, l.migrations, l.aborts) = (1, 1, 1),
    ),
    suite(
        "exporter-crash",
        "1 transfer, 1 crash of the exporter",
        |l| (l.transfers, l.exporter_crashes) = (1, 1),
    ),
    suite("host-crash", "1 transfer, 1 crash of a host", |l| {
        (l.transfers, l.host_crashes) = (1, 1)
    }),
    suite(
        "refused",
        "1 transfer, 1 migration of a guest that cannot resume",
        |l| (l.transfers, l.migrations, l.resumes) = (1, 1, false),
    ),
    suite(
        "restart",
        "1 transfer, 1 end of a vusbd between two steps",
        |l| (l.transfers, l.restarts) = (1, 1),
    ),
    suite("store-loss", "1 migration, 1 loss of xenstored", |l| {
        (l.migrations, l.store_losses) = (1, 1)
    }),
    suite("hold", "1 migration, the hold time is over", |l| {
        (l.migrations, l.holds) = (1, 1)
    }),
    suite(
        "recall",
        "1 transfer that the driver does not take back, 1 migration",
        |l| (l.transfers, l.migrations, l.recalls) = (1, 1, true),
    ),
    suite(
        "recall-abort",
        "the same, and the migration fails before go",
        |l| (l.transfers, l.migrations, l.aborts, l.recalls) = (1, 1, 1, true),
    ),
];

/// By command only.
pub const LARGE: [Suite; 18] = [
    suite("migration-2", "2 transfers, 1 migration", |l| {
        (l.transfers, l.migrations) = (2, 1)
    }),
    suite("two-migrations", "1 transfer, 2 migrations", |l| {
        (l.transfers, l.migrations) = (1, 2)
    }),
    suite(
        "cut-migration-1",
        "1 transfer, 1 migration, 1 connection cut",
        |l| (l.transfers, l.migrations, l.cuts) = (1, 1, 1),
    ),
    suite(
        "abort-1",
        "1 transfer, 2 migrations, 1 of them fails before go",
        |l| (l.transfers, l.migrations, l.aborts) = (1, 2, 1),
    ),
    suite(
        "exporter-crash-1",
        "1 transfer, 1 migration, 1 crash of the exporter",
        |l| (l.transfers, l.migrations, l.exporter_crashes) = (1, 1, 1),
    ),
    suite(
        "host-crash-1",
        "1 transfer, 1 migration, 1 crash of a host",
        |l| (l.transfers, l.migrations, l.host_crashes) = (1, 1, 1),
    ),
    suite(
        "refused-cut",
        "1 transfer, 1 migration of a guest that cannot resume, 1 cut",
        |l| (l.transfers, l.migrations, l.cuts, l.resumes) = (1, 1, 1, false),
    ),
    suite("two-cuts", "2 transfers, 2 connections cut", |l| {
        (l.transfers, l.cuts) = (2, 2)
    }),
    suite(
        "spurious",
        "1 transfer, 1 migration, 1 event that means nothing",
        |l| (l.transfers, l.migrations, l.spurious) = (1, 1, 1),
    ),
    suite(
        "restart-anywhere",
        "1 transfer, 1 end of a vusbd at any of 60 stores",
        |l| (l.transfers, l.restarts, l.stores) = (1, 1, 60),
    ),
    suite(
        "restart-1",
        "1 transfer, 1 migration, 1 end of a vusbd between two steps",
        |l| (l.transfers, l.migrations, l.restarts) = (1, 1, 1),
    ),
    suite(
        "restart-cut",
        "1 transfer, 1 end of a vusbd between two steps, 1 connection cut",
        |l| (l.transfers, l.restarts, l.cuts) = (1, 1, 1),
    ),
    suite(
        "store-loss-1",
        "1 transfer, 1 migration, 1 loss of xenstored",
        |l| (l.transfers, l.migrations, l.store_losses) = (1, 1, 1),
    ),
    suite(
        "hold-1",
        "1 transfer, 1 migration, the hold time is over",
        |l| (l.transfers, l.migrations, l.holds) = (1, 1, 1),
    ),
    suite(
        "recall-2",
        "2 transfers that the driver does not take back, 1 migration",
        |l| (l.transfers, l.migrations, l.recalls) = (2, 1, true),
    ),
    suite(
        "recall-cut",
        "1 transfer that the driver does not take back, 1 migration, 1 connection cut",
        |l| (l.transfers, l.migrations, l.cuts, l.recalls) = (1, 1, 1, true),
    ),
    suite(
        "restart-migration",
        "1 migration, 1 end of a vusbd between two steps",
        |l| (l.migrations, l.restarts) = (1, 1),
    ),
    suite("cut-migration", "1 migration, 1 connection cut", |l| {
        (l.migrations, l.cuts) = (1, 1)
    }),
];
