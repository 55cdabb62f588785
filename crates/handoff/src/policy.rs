// SPDX-License-Identifier: GPL-3.0-or-later
//! What a guest gets at a migration, lease by lease (`docs/architecture.md`, "Hand-off").

use session::{Holder, Lease, LeasePhase, OnMigrate};

/// What a target does with a lease of a guest that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Incoming {
    /// Claim it; the guest sees no change.
    Seamless,
    /// Claim it, and let the guest see a disconnect and a connect.
    Replug,
    /// The guest must not arrive.
    Refuse,
}

/// Decides for one lease, at the host and domain `me`. `arrives`: the toolstack says that the guest
/// is on its way here.
///
/// Only a guest that is on its way can be refused: one whose lease somebody else serves or has
/// just frozen, or has lost its connection to. Where the holder is gone (a restored, rebooted or
/// restarted VM) there is nothing to go back to.
pub fn verdict(lease: &Lease, me: &Holder, arrives: bool) -> Incoming {
    if lease.frontend_resumes || lease.on_migrate == OnMigrate::Risk {
        return Incoming::Seamless;
    }
    let has_source = match lease.phase {
        LeasePhase::Serving | LeasePhase::Frozen => true,
        // A host that died looks the same, and one whose device was pulled out.
        LeasePhase::Disconnected | LeasePhase::Absent => arrives,
        LeasePhase::Orphaned | LeasePhase::Saved => false,
    };
    let on_its_way = lease.holder != *me && has_source;
    match lease.on_migrate {
        OnMigrate::Refuse if on_its_way => Incoming::Refuse,
        _ => Incoming::Replug,
    }
}

#[cfg(test)]
mod tests {
    use session::{DeviceId, DeviceInfo, DeviceState, Epoch, Speed, VmUuid};

    use super::*;

    fn holder(host: &str, domid: u16) -> Holder {
        Holder {
            host: host.into(),
            domid,
        }
    }

    fn lease(on_migrate: OnMigrate, phase: LeasePhase, frontend_resumes: bool) -> Lease {
        Lease {
            device: DeviceInfo {
                id: DeviceId("1-2".into()),
                vendor: 1,
                product: 2,
                serial: None,
                name: String::new(),
                speed: Speed::High,
                classes: vec![8],
                state: DeviceState::Free,
            },
            vm: VmUuid(Default::default()),
            vm_name: "vm".into(),
            controller: 0,
            port: 1,
            epoch: Epoch(3),
            holder: holder("a", 7),
            phase,
            on_migrate,
            frontend_resumes,
            cookie: vec![],
            note: None,
            stash: Default::default(),
            exchange: None,
            descriptors: None,
            configured: session::Configured::default(),
        }
    }

    #[test]
    fn a_frontend_that_resumes_is_always_seamless() {
        for on_migrate in [OnMigrate::Refuse, OnMigrate::Replug, OnMigrate::Risk] {
            let lease = lease(on_migrate, LeasePhase::Serving, true);
            assert_eq!(verdict(&lease, &holder("b", 1), false), Incoming::Seamless);
        }
    }

    #[test]
    fn storage_of_a_stock_guest_is_refused_while_it_is_still_served_elsewhere() {
        for phase in [LeasePhase::Serving, LeasePhase::Frozen] {
            let lease = lease(OnMigrate::Refuse, phase, false);
            assert_eq!(verdict(&lease, &holder("b", 1), false), Incoming::Refuse);
            assert_eq!(
                verdict(&lease, &holder("a", 8), false),
                Incoming::Refuse,
                "to localhost"
            );
            assert_eq!(
                verdict(&lease, &holder("a", 7), false),
                Incoming::Replug,
                "the holder itself"
            );
        }
    }

    #[test]
    fn a_restored_guest_is_not_refused() {
        for phase in [
            LeasePhase::Orphaned,
            LeasePhase::Saved,
            LeasePhase::Disconnected,
        ] {
            let lease = lease(OnMigrate::Refuse, phase, false);
            assert_eq!(verdict(&lease, &holder("b", 1), false), Incoming::Replug);
        }
    }

    #[test]
    fn replug_and_risk_are_what_they_say() {
        let replug = lease(OnMigrate::Replug, LeasePhase::Frozen, false);
        assert_eq!(verdict(&replug, &holder("b", 1), false), Incoming::Replug);
        let risk = lease(OnMigrate::Risk, LeasePhase::Frozen, false);
        assert_eq!(verdict(&risk, &holder("b", 1), false), Incoming::Seamless);
    }

    /// Found by the model: a connection that was lost for a moment made a replug of it.
    #[test]
    fn a_guest_that_arrives_is_refused_also_when_its_source_has_lost_the_exporter() {
        let lost = lease(OnMigrate::Refuse, LeasePhase::Disconnected, false);
        assert_eq!(verdict(&lost, &holder("b", 1), true), Incoming::Refuse);
        assert_eq!(verdict(&lost, &holder("a", 7), true), Incoming::Replug);
        let gone = lease(OnMigrate::Refuse, LeasePhase::Orphaned, false);
        assert_eq!(verdict(&gone, &holder("b", 1), true), Incoming::Replug);
    }
}
