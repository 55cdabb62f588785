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
    /// Another domain with the VM's uuid may be running with it, and nothing says that the guest comes from
    /// there: the port stays empty until the exporter admits the claim.
    Elsewhere,
}

/// Decides for one lease, at the host and domain `me`. `arrives`: the toolstack says that the guest
/// is on its way here.
///
/// A guest that does not arrive was booted, or restored from a file; or it is a copy of one that runs.
///
/// Only a guest that is on its way can be refused: one whose lease somebody else serves or has
/// just frozen, or has lost its connection to. Where the holder is gone (a restored, rebooted or
/// restarted VM) there is nothing to go back to.
pub fn verdict(lease: &Lease, me: &Holder, arrives: bool) -> Incoming {
    let is_holder = lease.holder == *me;
    // A guest that is suspended there and made here arrives, whatever the toolstack says.
    let arrives = arrives || lease.phase == LeasePhase::Frozen;
    let knows_its_device = match lease.phase {
        _ if is_holder || arrives => true,
        LeasePhase::Serving | LeasePhase::Disconnected => return Incoming::Elsewhere,
        LeasePhase::Saved | LeasePhase::Absent | LeasePhase::Frozen => true,
        // It ran after whatever file this guest was restored from, so the guest must not go on with what
        // it remembers of a disk. One that boots does not mind.
        LeasePhase::Orphaned => false,
    };
    if knows_its_device && (lease.frontend_resumes || lease.on_migrate == OnMigrate::Risk) {
        return Incoming::Seamless;
    }
    let has_source = match lease.phase {
        LeasePhase::Serving | LeasePhase::Frozen => true,
        // A host that died looks the same, and one whose device was pulled out.
        LeasePhase::Disconnected | LeasePhase::Absent => arrives,
        LeasePhase::Orphaned | LeasePhase::Saved => false,
    };
    let on_its_way = !is_holder && has_source;
    match lease.on_migrate {
        OnMigrate::Refuse if on_its_way => Incoming::Refuse,
        _ => Incoming::Replug,
    }
}

/// Whether the lease may say something else when the guest runs here, and is to be looked at once more then:
/// its VM still runs in another domain, which goes on with the device, or it is not known whether it will.
///
/// `suspended`: the toolstack has made the controller when the guest was suspended, as libxl does, and says that it
/// arrives. A guest that was only asked to suspend may do something once more.
pub fn may_change(lease: &Lease, me: &Holder, suspended: bool) -> bool {
    let runs = match lease.phase {
        LeasePhase::Serving | LeasePhase::Disconnected => true,
        LeasePhase::Frozen => !suspended,
        LeasePhase::Saved | LeasePhase::Orphaned | LeasePhase::Absent => false,
    };
    runs && lease.holder != *me
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
            own_controller: None,
            descriptors: None,
            configured: session::Configured::default(),
            persistence: Default::default(),
            silent_seconds: None,
        }
    }

    const ALL: [OnMigrate; 3] = [OnMigrate::Refuse, OnMigrate::Replug, OnMigrate::Risk];

    #[test]
    fn a_frontend_that_resumes_is_seamless_where_its_guest_arrives() {
        for (on_migrate, phase) in ALL.into_iter().flat_map(|on_migrate| {
            [
                LeasePhase::Serving,
                LeasePhase::Frozen,
                LeasePhase::Disconnected,
                LeasePhase::Orphaned,
                LeasePhase::Saved,
            ]
            .map(|phase| (on_migrate, phase))
        }) {
            let lease = lease(on_migrate, phase, true);
            assert_eq!(verdict(&lease, &holder("b", 1), true), Incoming::Seamless);
            assert_eq!(verdict(&lease, &holder("a", 7), false), Incoming::Seamless);
        }
    }

    #[test]
    fn what_another_domain_may_still_do_is_looked_at_once_more() {
        for (phase, arriving, otherwise) in [
            (LeasePhase::Serving, true, true),
            (LeasePhase::Disconnected, true, true),
            (LeasePhase::Frozen, false, true),
            (LeasePhase::Saved, false, false),
            (LeasePhase::Orphaned, false, false),
        ] {
            let lease = lease(OnMigrate::Refuse, phase, true);
            assert_eq!(may_change(&lease, &holder("b", 1), true), arriving);
            assert_eq!(may_change(&lease, &holder("b", 1), false), otherwise);
            assert!(!may_change(&lease, &holder("a", 7), true));
        }
    }

    /// A restored file, or a clone, on another host or this one.
    #[test]
    fn a_second_domain_with_the_uuid_of_a_vm_that_may_run_is_given_nothing() {
        for resumes in [false, true] {
            for on_migrate in ALL {
                for phase in [LeasePhase::Serving, LeasePhase::Disconnected] {
                    let lease = lease(on_migrate, phase, resumes);
                    for me in [holder("b", 1), holder("a", 8)] {
                        assert_eq!(verdict(&lease, &me, false), Incoming::Elsewhere);
                    }
                }
            }
        }
    }

    /// Without a sign of the toolstack: suspended there, made here.
    #[test]
    fn a_guest_that_is_suspended_elsewhere_arrives() {
        let frozen = lease(OnMigrate::Refuse, LeasePhase::Frozen, true);
        assert_eq!(verdict(&frozen, &holder("b", 1), false), Incoming::Seamless);
        let saved = lease(OnMigrate::Refuse, LeasePhase::Saved, true);
        assert_eq!(verdict(&saved, &holder("b", 1), false), Incoming::Seamless);
    }

    /// The VM ran until it was destroyed. A file that it was saved to before is older than its disk.
    #[test]
    fn who_was_not_suspended_last_begins_anew() {
        for on_migrate in ALL {
            let gone = lease(on_migrate, LeasePhase::Orphaned, true);
            assert_eq!(verdict(&gone, &holder("b", 1), false), Incoming::Replug);
        }
    }

    #[test]
    fn storage_of_a_stock_guest_is_refused_while_it_is_still_served_elsewhere() {
        for (phase, arrives) in [
            (LeasePhase::Serving, true),
            (LeasePhase::Frozen, true),
            (LeasePhase::Frozen, false),
        ] {
            let lease = lease(OnMigrate::Refuse, phase, false);
            assert_eq!(verdict(&lease, &holder("b", 1), arrives), Incoming::Refuse);
            assert_eq!(
                verdict(&lease, &holder("a", 8), arrives),
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
        for phase in [LeasePhase::Orphaned, LeasePhase::Saved] {
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
