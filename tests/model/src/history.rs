// SPDX-License-Identifier: GPL-3.0-or-later
//! What was asked, what the device did and what was answered: the judge.

use usbif::UrbStatus;

/// One transfer of the guest. Its index is its value: what an OUT transfer writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Operation {
    pub(crate) is_in: bool,
    executed: bool,
    answered: bool,
    /// The guest wanted it cancelled, or forgot it: it may have been executed or not.
    given_up: bool,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default, Hash)]
pub struct History {
    pub(crate) operations: Vec<Operation>,
    last_executed: Option<usize>,
    /// What an IN transfer brought last; the device counts.
    last_in: u16,
    /// The guest saw its device go.
    pub(crate) disconnects: u16,
    /// Transfers answered with an error that nobody asked for.
    pub(crate) errors: u16,
    /// The exporter has crashed, and its lease is not claimed again: what becomes of transfers in
    /// flight is unknown.
    pub(crate) excused: bool,
    /// The hold time is over: the guest has lost its device.
    pub(crate) released: bool,
    /// A claim of the guest was refused because another domain held its lease.
    pub(crate) waited: bool,
    /// The guest was moved by a toolstack that gives no sign, and its source did not hear of the suspend: it is
    /// taken for a copy, and sees its device go and come.
    pub(crate) unsaid: bool,
    /// The first thing that must not happen.
    pub(crate) violation: Option<String>,
}

impl History {
    /// The lease has ended because its hold time was over.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }

    /// A lease was claimed. If that was after a crash of the exporter, whoever has no answer yet may
    /// be told that nobody knows.
    pub(crate) fn excuse_claim(&mut self) {
        if !std::mem::take(&mut self.excused) {
            return;
        }
        for operation in self.operations.iter_mut().filter(|o| !o.answered) {
            operation.given_up = true;
        }
    }

    /// What must not happen has happened.
    pub(crate) fn violate(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert(what.into());
    }

    pub(crate) fn asked(&mut self, is_in: bool) -> usize {
        self.operations.push(Operation {
            is_in,
            ..Operation::default()
        });
        self.operations.len() - 1
    }

    pub(crate) fn given_up(&mut self, value: usize) {
        self.operations[value].given_up = true;
    }

    /// The device carried out an OUT transfer of this value.
    pub(crate) fn executed(&mut self, value: usize) {
        let Some(operation) = self.operations.get_mut(value) else {
            return self.violate(format!("the device got {value}, which nobody sent"));
        };
        if std::mem::replace(&mut operation.executed, true) {
            return self.violate(format!("transfer {value} was executed twice"));
        }
        if self.last_executed.is_some_and(|last| last > value) {
            return self.violate(format!(
                "transfer {value} was executed after {:?}",
                self.last_executed
            ));
        }
        self.last_executed = Some(value);
    }

    /// The guest has its answer: `data` of an IN transfer.
    pub(crate) fn answered(&mut self, value: usize, status: UrbStatus, data: u16) {
        let operation = &mut self.operations[value];
        let Operation {
            is_in,
            executed,
            given_up,
            ..
        } = *operation;
        if std::mem::replace(&mut operation.answered, true) {
            return self.violate(format!("transfer {value} was answered twice"));
        }
        match (status.is_ok(), is_in) {
            (true, false) if !executed => {
                self.violate(format!(
                    "transfer {value} was lost and answered with success"
                ));
            }
            // What an unlinked URB brought is not looked at (`usb_hcd_giveback_urb`).
            (true, true) if given_up => {}
            (true, true) if data <= self.last_in => self.violate(format!(
                "IN transfer {value} brought {data} after {}",
                self.last_in
            )),
            (true, true) => self.last_in = data,
            (true, false) => {}
            (false, _) if given_up || self.excused || self.released || self.unsaid => {}
            (false, _) => {
                self.errors += 1;
                self.violate(format!(
                    "transfer {value} failed with {}, and nothing had happened to it",
                    status.0
                ));
            }
        }
    }

    /// Every transfer was answered, but for those that the guest forgot.
    pub(crate) fn is_complete(&self) -> bool {
        self.operations.iter().all(|o| o.answered || o.given_up)
    }
}
