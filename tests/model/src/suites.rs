// SPDX-License-Identifier: GPL-3.0-or-later
//! What is checked, and its bounds.

use crate::{Dialect, Limits};

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

/// A row is a name, the bounds for people, and the bounds that are not those of [`Limits::calm`].
macro_rules! suites {
    ($($name:literal: $what:literal, $($bound:ident = $value:expr),+;)+) => {
        [$(Suite {
            name: $name,
            what: $what,
            change: |limits| {
                $(limits.$bound = $value;)+
            },
        }),+]
    };
}

/// Part of the ordinary tests.
pub const SMALL: [Suite; 15] = suites! {
    "migration": "1 transfer, 1 migration", transfers = 1, migrations = 1;
    "cut": "2 transfers, 1 connection cut", transfers = 2, cuts = 1;
    "unlink-reload": "1 transfer, unlinked, 1 reload of the driver", transfers = 1, unlinks = 1, reloads = 1;
    "abort": "1 transfer, 1 migration that fails before go", transfers = 1, migrations = 1, aborts = 1;
    "exporter-crash": "1 transfer, 1 crash of the exporter", transfers = 1, exporter_crashes = 1;
    "host-crash": "1 transfer, 1 crash of a host", transfers = 1, host_crashes = 1;
    "refused": "1 transfer, 1 migration of a guest that cannot resume", transfers = 1, migrations = 1, resumes = false;
    "restart": "1 transfer, 1 end of a vusbd between two steps", transfers = 1, restarts = 1;
    "store-loss": "1 migration, 1 loss of xenstored", migrations = 1, store_losses = 1;
    "hold": "1 migration, the hold time is over", migrations = 1, holds = 1;
    "recall": "1 transfer that the driver does not take back, 1 migration", transfers = 1, migrations = 1, recalls = true;
    "copy": "a second domain with the same uuid, whose claim is tried twice", copies = 1, retries = 1;
    "recall-abort": "the same as recall, and the migration fails before go", transfers = 1, migrations = 1, aborts = 1, recalls = true;
    "xenopsd": "1 migration by xenopsd", migrations = 1, dialect = Dialect::Xenopsd;
    "libvirt": "1 migration by libvirt", migrations = 1, dialect = Dialect::Libvirt;
};

/// By command only.
pub const LARGE: [Suite; 33] = suites! {
    "migration-2": "2 transfers, 1 migration", transfers = 2, migrations = 1;
    "two-migrations": "1 transfer, 2 migrations", transfers = 1, migrations = 2;
    "cut-migration-1": "1 transfer, 1 migration, 1 connection cut", transfers = 1, migrations = 1, cuts = 1;
    "abort-1": "1 transfer, 2 migrations, 1 of them fails before go", transfers = 1, migrations = 2, aborts = 1;
    "exporter-crash-1": "1 transfer, 1 migration, 1 crash of the exporter", transfers = 1, migrations = 1, exporter_crashes = 1;
    "host-crash-1": "1 transfer, 1 migration, 1 crash of a host", transfers = 1, migrations = 1, host_crashes = 1;
    "refused-cut": "1 transfer, 1 migration of a guest that cannot resume, 1 cut", transfers = 1, migrations = 1, cuts = 1, resumes = false;
    "two-cuts": "2 transfers, 2 connections cut", transfers = 2, cuts = 2;
    "spurious": "1 transfer, 1 migration, 1 event that means nothing", transfers = 1, migrations = 1, spurious = 1;
    "restart-anywhere": "1 transfer, 1 end of a vusbd at any of 60 stores", transfers = 1, restarts = 1, stores = 60;
    "restart-1": "1 transfer, 1 migration, 1 end of a vusbd between two steps", transfers = 1, migrations = 1, restarts = 1;
    "restart-cut": "1 transfer, 1 end of a vusbd between two steps, 1 connection cut", transfers = 1, restarts = 1, cuts = 1;
    "store-loss-1": "1 transfer, 1 migration, 1 loss of xenstored", transfers = 1, migrations = 1, store_losses = 1;
    "hold-1": "1 transfer, 1 migration, the hold time is over", transfers = 1, migrations = 1, holds = 1;
    "recall-2": "2 transfers that the driver does not take back, 1 migration", transfers = 2, migrations = 1, recalls = true;
    "recall-cut": "1 transfer that the driver does not take back, 1 migration, 1 connection cut", transfers = 1, migrations = 1, cuts = 1, recalls = true;
    "restart-migration": "1 migration, 1 end of a vusbd between two steps", migrations = 1, restarts = 1;
    "copy-restart": "a second domain with the same uuid, whose claim is tried twice, and 1 end of a vusbd between two steps", copies = 1, retries = 1, restarts = 1;
    "copy-reload": "the same, and 1 reload of the VM's driver", copies = 1, retries = 1, reloads = 1;
    "copy-migration": "the same, and 1 migration", copies = 1, retries = 1, migrations = 1;
    "copy-host-crash": "the same, and 1 crash of a host", copies = 1, retries = 1, host_crashes = 1;
    "copy-exporter-crash": "the same, and 1 crash of the exporter", copies = 1, retries = 1, exporter_crashes = 1;
    "cut-migration": "1 migration, 1 connection cut", migrations = 1, cuts = 1;
    "copy-abort": "a second domain with the same uuid, 1 migration that fails before go", copies = 1, retries = 1, migrations = 1, aborts = 1;
    "xenopsd-transfer": "1 transfer, 1 migration by xenopsd", transfers = 1, migrations = 1, dialect = Dialect::Xenopsd;
    "libvirt-transfer": "1 transfer, 1 migration by libvirt", transfers = 1, migrations = 1, dialect = Dialect::Libvirt;
    "xenopsd-restart": "1 migration by xenopsd, 1 end of a vusbd between two steps", migrations = 1, restarts = 1, dialect = Dialect::Xenopsd;
    "libvirt-restart": "1 migration by libvirt, 1 end of a vusbd between two steps", migrations = 1, restarts = 1, dialect = Dialect::Libvirt;
    "xenopsd-abort": "1 migration by xenopsd that fails before go", migrations = 1, aborts = 1, dialect = Dialect::Xenopsd;
    "libvirt-abort": "1 migration by libvirt that fails before go", migrations = 1, aborts = 1, dialect = Dialect::Libvirt;
    "xenopsd-host-crash": "1 migration by xenopsd, 1 crash of a host", migrations = 1, host_crashes = 1, dialect = Dialect::Xenopsd;
    "libvirt-host-crash": "1 migration by libvirt, 1 crash of a host", migrations = 1, host_crashes = 1, dialect = Dialect::Libvirt;
    "libvirt-copy": "a second domain with the same uuid, 1 migration by libvirt", copies = 1, retries = 1, migrations = 1, dialect = Dialect::Libvirt;
};
