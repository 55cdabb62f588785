// SPDX-License-Identifier: GPL-3.0-or-later
//! The controllers of this host.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use session::VmUuid;
use xen::DomId;

use super::Refused;
use crate::controller::{Handle, RingDetails};
use crate::domain::Domain;
use crate::xenbus::{Key, XenbusState};

/// A controller of this host.
pub struct Entry {
    /// Its thread.
    pub handle: Handle,
    /// Its domain.
    pub domain: Domain,
    /// Whether the toolstack said that the VM arrives in this domain from another one.
    pub arrives: bool,
    /// The frontend's state as last seen.
    pub frontend: Cell<XenbusState>,
    /// The rings that the controller was last told to use.
    pub rings: Cell<Option<RingDetails>>,
    /// Whether its leases were asked for.
    pub decided: Cell<bool>,
    /// Whether they are asked for once more when the frontend connects for the first time: another domain
    /// still had one, and may have gone on with it.
    pub look_again: Cell<bool>,
    /// The rings of a frontend that waits for the answers.
    pub waiting: Cell<Option<RingDetails>>,
    /// Names of exporters that did not answer then.
    pub silent: RefCell<Vec<String>>,
}

impl Entry {
    /// A controller whose frontend was not seen yet.
    pub fn new(handle: Handle, domain: Domain, arrives: bool) -> Self {
        let frontend = Cell::new(XenbusState::Unknown);
        Self {
            handle,
            domain,
            arrives,
            frontend,
            rings: Cell::new(None),
            decided: Cell::new(false),
            look_again: Cell::new(false),
            waiting: Cell::new(None),
            silent: RefCell::default(),
        }
    }
}

/// Every controller, by its key.
#[derive(Default)]
pub struct Controllers(RefCell<BTreeMap<Key, Rc<Entry>>>);

impl Controllers {
    /// Every controller's key, sorted.
    pub fn keys(&self) -> Vec<Key> {
        self.0.borrow().keys().copied().collect()
    }

    /// One controller.
    pub fn get(&self, key: Key) -> Option<Rc<Entry>> {
        self.0.borrow().get(&key).cloned()
    }

    /// The controllers of a domain, by devid.
    pub fn of(&self, domid: DomId) -> Vec<(Key, Rc<Entry>)> {
        self.those(|k, _| k.domid == domid)
    }

    /// The controllers of a VM: also one that it is just leaving, or coming to.
    pub fn of_vm(&self, vm: VmUuid) -> Vec<(Key, Rc<Entry>)> {
        self.those(|_, e| e.domain.vm == vm)
    }

    fn those(&self, which: impl Fn(Key, &Entry) -> bool) -> Vec<(Key, Rc<Entry>)> {
        let all = self.0.borrow();
        all.iter()
            .filter(|(k, e)| which(**k, e))
            .map(|(k, e)| (*k, e.clone()))
            .collect()
    }

    /// Adds a controller.
    pub fn insert(&self, key: Key, entry: Entry) {
        self.0.borrow_mut().insert(key, Rc::new(entry));
    }

    /// Takes a controller out.
    pub fn remove(&self, key: Key) -> Option<Rc<Entry>> {
        self.0.borrow_mut().remove(&key)
    }

    /// The controllers of a domain that an administrator means: all, or the one with this devid. At
    /// least one.
    pub(super) fn find(
        &self,
        domain: &Domain,
        devid: Option<u16>,
    ) -> Result<Vec<(Key, Rc<Entry>)>, Refused> {
        let mut all = self.of(domain.domid);
        if all.is_empty() {
            return Err(format!(
                "domain {} has no PV USB controller; add\n    \
                 usbctrl=['type=pv,version=2,ports=4']\nto its configuration, or run `xl \
                 usbctrl-attach {} type=pv version=2 ports=4`, or `xl-vusb controller add {}`",
                domain.name, domain.name, domain.name
            ));
        }
        if let Some(devid) = devid {
            let known: Vec<_> = all.iter().map(|(k, _)| k.devid.to_string()).collect();
            all.retain(|(k, _)| k.devid == devid);
            if all.is_empty() {
                return Err(format!(
                    "domain {} has no PV USB controller {devid}; it has {}",
                    domain.name,
                    known.join(", ")
                ));
            }
        }
        Ok(all)
    }
}
