// SPDX-License-Identifier: GPL-3.0-or-later
//! Rules that attach devices by themselves (`[[attach]]`): whenever a VM and a device are both there.
//!
//! A rule makes a persistent lease without a holder, which the VM's domain claims as it does after it was
//! off. A rule says what is wanted, and the policy what is allowed: nothing is attached that the policy
//! does not allow.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::policy::class;
use super::{DeviceMatch, LeaseTable, MAX_PORT, VmMatch};
use crate::control::Acquire;
use crate::{
    DeviceId, DeviceInfo, DeviceSelector, DeviceState, Exchange, LeasePhase, OnExchange, OnMigrate,
    OwnController, Persistence, VmUuid,
};

/// Ports of a controller that a rule has made, and the most that a rule without a port uses: as many as a
/// controller of `xl` has by default.
const PORTS: u8 = 8;

/// `[[attach]]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "Written")]
pub struct AttachRule {
    /// By place (whatever is plugged in there), by what it is, or by class.
    pub device: DeviceMatch,
    /// By uuid or by name.
    pub vm: VmMatch,
    /// The PV USB controller; from 64 on `vusbd` makes it.
    pub controller: u16,
    /// Its port; without it, the first that is free, of ports 1 to 8.
    pub port: Option<u8>,
    /// What to do at a migration if the frontend cannot resume; without it, the device's default.
    pub on_migrate: Option<OnMigrate>,
}

/// An [`AttachRule`] as it is written in the configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    device: Option<String>,
    class: Option<String>,
    vm: Option<String>,
    vm_name: Option<String>,
    #[serde(default)]
    controller: u16,
    port: Option<u8>,
    on_migrate: Option<OnMigrate>,
}

impl TryFrom<Written> for AttachRule {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let device = match (written.device, written.class) {
            (Some(device), None) => {
                let selector = device.parse().map_err(|e| format!("device: {e}"))?;
                DeviceMatch::Device(selector)
            }
            (None, Some(text)) => DeviceMatch::Class(class(&text)?),
            _ => return Err("one of device and class is needed, and only one".to_owned()),
        };
        let vm = match (written.vm, written.vm_name) {
            (Some(vm), None) => {
                let vm = vm.parse().map_err(|e| format!("vm: '{vm}': {e}"))?;
                VmMatch::Uuid(vm)
            }
            (None, Some(name)) if !name.is_empty() => VmMatch::Name(name),
            _ => return Err("one of vm and vm_name is needed, and only one".to_owned()),
        };
        Ok(Self {
            device,
            vm,
            controller: written.controller,
            port: written.port,
            on_migrate: written.on_migrate,
        })
    }
}

impl AttachRule {
    /// How messages call it: by its device and VM.
    fn name(&self) -> String {
        format!("of {} to {}", self.device, self.vm)
    }

    /// Whether two rules can be about one VM.
    fn shares_vm(&self, other: &Self) -> bool {
        match (&self.vm, &other.vm) {
            (VmMatch::Uuid(a), VmMatch::Uuid(b)) => a == b,
            (VmMatch::Name(a), VmMatch::Name(b)) => a == b,
            // A VM that is named here may be the one whose uuid stands there.
            _ => true,
        }
    }
}

/// What is wrong with a set of rules by itself, a line each: ports that there are not, and rules that want one
/// device, or one port of one VM.
pub fn conflicts(rules: &[AttachRule]) -> Vec<String> {
    let mut lines = Vec::new();
    for (n, rule) in rules.iter().enumerate() {
        if rule
            .port
            .is_some_and(|port| !(1..=MAX_PORT).contains(&port))
        {
            lines.push(format!(
                "the rule {}: there is no port {}; ports are 1 to {MAX_PORT}",
                rule.name(),
                rule.port.unwrap_or_default()
            ));
        }
        for other in &rules[n + 1..] {
            if rule.device == other.device {
                lines.push(format!(
                    "the rules {} and {} want one device; remove one",
                    rule.name(),
                    other.name()
                ));
            } else if rule.port.is_some()
                && (rule.controller, rule.port) == (other.controller, other.port)
                && rule.vm == other.vm
            {
                lines.push(format!(
                    "the rules {} and {} want one port, {} of controller {}; give one another port",
                    rule.name(),
                    other.name(),
                    rule.port.unwrap_or_default(),
                    rule.controller
                ));
            }
        }
    }
    lines
}

/// What came of the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Devices that are lent now.
    pub lent: Vec<DeviceId>,
    /// Why a rule was not executed, a line each.
    pub refused: Vec<String>,
}

impl LeaseTable {
    /// Executes these rules from now on. Leases of rules that are no more lose what made them persistent.
    pub fn set_rules(&mut self, rules: Vec<AttachRule>, now_ms: u64) {
        self.rules = rules;
        let (rules, hold) = (&self.rules, &self.hold);
        for entry in self.entries.values_mut() {
            let lease = &mut entry.lease;
            let is_wanted = |r: &AttachRule| {
                r.device.matches(&lease.device) && r.vm.matches(lease.vm, &lease.vm_name)
            };
            if lease.persistence == Persistence::Rule && !rules.iter().any(is_wanted) {
                lease.persistence = Persistence::Temporary;
                entry.deadline_ms = hold.deadline_ms(lease, lease.phase, now_ms);
            }
        }
    }

    /// Whether there is nothing to execute.
    pub fn has_no_rules(&self) -> bool {
        self.rules.is_empty()
    }

    /// A VM runs on `host`, or a device was plugged in while it does: executes its rules. `others` are the VMs
    /// that run with the same name.
    pub fn apply_rules(
        &mut self,
        (vm, name): (VmUuid, &str),
        host: &str,
        others: &BTreeSet<VmUuid>,
        devices: &[DeviceInfo],
    ) -> Applied {
        let mut applied = Applied::default();
        let rules = self.rules.clone();
        for rule in rules.iter().filter(|r| r.vm.matches(vm, name)) {
            let matching = devices.iter().filter(|d| rule.device.matches(d));
            for device in matching {
                self.make_room(device, rule, (vm, name), others);
                let is_lent = self.get(&device.id).or_else(|| self.reserved(device));
                if is_lent.is_some() || self.is_missing(&device.id, vm) {
                    continue;
                }
                if device.state != DeviceState::Free {
                    continue;
                }
                match self.attach(rule, &rules, device, (vm, name), host, others) {
                    Ok(()) => applied.lent.push(device.id.clone()),
                    Err(why) => applied.refused.push(format!(
                        "device {} is not attached to VM {name} ({vm}) by the rule {}: {why}",
                        device.id,
                        rule.name()
                    )),
                }
            }
        }
        applied
    }

    /// `xl create` gives a VM without `uuid=` another uuid each time: what the rule has attached to the one
    /// before goes to this one.
    fn make_room(
        &mut self,
        device: &DeviceInfo,
        rule: &AttachRule,
        (vm, name): (VmUuid, &str),
        others: &BTreeSet<VmUuid>,
    ) {
        let is_left = self.get(&device.id).is_some_and(|l| {
            l.persistence == Persistence::Rule
                && l.phase == LeasePhase::Orphaned
                && l.vm != vm
                && l.vm_name == name
                && !others.contains(&l.vm)
        });
        if is_left && matches!(rule.vm, VmMatch::Name(_)) {
            self.remove(&device.id);
        }
    }

    fn attach(
        &mut self,
        rule: &AttachRule,
        rules: &[AttachRule],
        device: &DeviceInfo,
        (vm, name): (VmUuid, &str),
        host: &str,
        others: &BTreeSet<VmUuid>,
    ) -> Result<(), String> {
        if let (VmMatch::Name(_), Some(other)) = (&rule.vm, others.first()) {
            return Err(format!(
                "VM {other} runs with the same name; write the uuid into the rule"
            ));
        }
        let twin = |r: &&AttachRule| **r != *rule && r.device.matches(device);
        if let Some(twin) = rules.iter().find(twin) {
            return Err(format!("the rule {} wants it, too", twin.name()));
        }
        if !self.policy.allows(device, vm, name, host) {
            return Err(format!(
                "no [[allow]] allows it to this VM on host {host}; add one"
            ));
        }
        let taken: BTreeSet<u8> = self
            .leases()
            .filter(|l| l.vm == vm && l.controller == rule.controller)
            .map(|l| l.port)
            .collect();
        let wanted_by_other = |port: &u8| {
            let wants = |r: &&AttachRule| {
                **r != *rule
                    && r.shares_vm(rule)
                    && r.vm.matches(vm, name)
                    && (r.controller, r.port) == (rule.controller, Some(*port))
            };
            rules.iter().find(wants)
        };
        let port = match rule.port {
            Some(port) if taken.contains(&port) => {
                return Err(format!(
                    "port {port} of controller {} has another device",
                    rule.controller
                ));
            }
            Some(port) => match wanted_by_other(&port) {
                Some(other) => {
                    return Err(format!(
                        "the rule {} wants port {port}, too; give one another port",
                        other.name()
                    ));
                }
                None => port,
            },
            None => (1..=PORTS)
                .find(|port| !taken.contains(port) && wanted_by_other(port).is_none())
                .ok_or_else(|| format!("controller {} has no free port", rule.controller))?,
        };
        let own_controller =
            (rule.controller >= OwnController::FIRST_DEVID).then_some(OwnController {
                ports: PORTS.max(port),
                usb_version: 2,
            });
        let wanted = Acquire {
            device: DeviceSelector::Place(device.id.clone()),
            vm,
            vm_name: name.to_owned(),
            domid: 0,
            controller: rule.controller,
            port,
            on_migrate: rule.on_migrate,
            exchange: Some(Exchange {
                on: OnExchange::Replug,
                seconds: Exchange::MAX_SECONDS,
                at_place: matches!(rule.device, DeviceMatch::Device(DeviceSelector::Place(_))),
            }),
            own_controller,
            persistence: Persistence::Rule,
            returns: None,
        };
        self.lend(device, &wanted, host);
        if let Some(entry) = self.entries.get_mut(&device.id) {
            entry.lease.phase = LeasePhase::Orphaned;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
