// SPDX-License-Identifier: GPL-3.0-or-later
//! The hosts that are told of what changes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use session::control::Event;
use tokio::sync::Notify;

/// Events that a subscriber was not sent yet. Each says how something is now, so the last one about a
/// lease, a device or an arrival stands for those before it: there are never more than there are leases,
/// devices and arrivals, however slow the subscriber is and whatever others do.
#[derive(Debug, Default)]
struct Pending(VecDeque<Event>);

impl Pending {
    fn push(&mut self, event: Event) {
        let all = &mut self.0;
        match &event {
            Event::Devices => {
                if all.contains(&event) {
                    return;
                }
            }
            Event::Lease(new) => all.retain(|old| {
                !matches!(old, Event::Lease(old) if old.device.id == new.device.id && old.vm == new.vm)
            }),
            Event::Released { device, vm, .. } => all.retain(|old| match old {
                Event::Lease(old) => old.device.id != *device || old.vm != *vm,
                Event::Released { device: old, .. } => old != device,
                _ => true,
            }),
            Event::Arriving { .. } => {
                let before = all.len();
                all.retain(|old| !is_opposite(old, &event));
                // It has come and gone, or gone and come: what the subscriber knows is true.
                if all.len() < before {
                    return;
                }
            }
        }
        all.push_back(event);
    }
}

/// Whether the two say of the same domain that it arrives, and that it does not.
fn is_opposite(one: &Event, other: &Event) -> bool {
    let key = |event: &Event| match event {
        Event::Arriving {
            vm,
            host,
            domid,
            arriving,
        } => Some(((*vm, host.clone(), *domid), *arriving)),
        _ => None,
    };
    match (key(one), key(other)) {
        (Some((one, was)), Some((other, is))) => one == other && was != is,
        _ => false,
    }
}

#[derive(Default)]
struct Mailbox {
    host: String,
    pending: RefCell<Pending>,
    filled: Notify,
}

impl Mailbox {
    fn push(&self, event: Event) {
        self.pending.borrow_mut().push(event);
        self.filled.notify_one();
    }
}

/// What one subscriber hears. It is a subscriber as long as this lives.
pub(crate) struct Events(Rc<Mailbox>);

impl Events {
    /// The next event. May be dropped and called again: nothing is lost.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            let event = self.0.pending.borrow_mut().0.pop_front();
            if let Some(event) = event {
                return event;
            }
            self.0.filled.notified().await;
        }
    }
}

/// Every host that has subscribed.
#[derive(Default)]
pub(super) struct Subscribers(RefCell<Vec<Weak<Mailbox>>>);

impl Subscribers {
    /// Adds `host`, which is told of these first.
    pub(super) fn add(&self, host: &str, first: impl Iterator<Item = Event>) -> Events {
        let mailbox = Rc::new(Mailbox {
            host: host.to_owned(),
            ..Mailbox::default()
        });
        first.for_each(|event| mailbox.push(event));
        self.0.borrow_mut().push(Rc::downgrade(&mailbox));
        Events(mailbox)
    }

    /// Tells those hosts that may know.
    pub(super) fn publish(&self, event: &Event, may_know: impl Fn(&str) -> bool) {
        self.0.borrow_mut().retain(|subscriber| {
            let Some(mailbox) = subscriber.upgrade() else {
                return false;
            };
            if may_know(&mailbox.host) {
                mailbox.push(event.clone());
            }
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use session::{DeviceId, VmUuid};

    use super::*;

    fn vm(number: u128) -> VmUuid {
        VmUuid(uuid::Uuid::from_u128(number))
    }

    fn arriving(number: u128, arriving: bool) -> Event {
        Event::Arriving {
            vm: vm(number),
            host: "host-a".into(),
            domid: 1,
            arriving,
        }
    }

    fn released(port: u8, number: u128) -> Event {
        Event::Released {
            device: DeviceId(format!("1-{port}")),
            vm: vm(number),
            reason: String::new(),
        }
    }

    fn pending(events: impl IntoIterator<Item = Event>) -> Vec<Event> {
        let mut pending = Pending::default();
        events.into_iter().for_each(|event| pending.push(event));
        pending.0.into()
    }

    #[test]
    fn what_happens_again_and_again_is_told_once() {
        assert_eq!(pending(vec![Event::Devices; 1000]), [Event::Devices]);
        let all = (0..1000).map(|n| released((n % 2) as u8, n));
        assert_eq!(pending(all), [released(0, 998), released(1, 999)]);
    }

    #[test]
    fn an_arrival_that_is_over_is_not_told_and_others_are() {
        let flood = (2..1000).flat_map(|n| [arriving(n, true), arriving(n, false)]);
        let all = pending([arriving(1, true)].into_iter().chain(flood));
        assert_eq!(all, [arriving(1, true)]);
        // The subscriber knows that the first one arrives.
        let again = [arriving(1, false), arriving(1, true), arriving(1, false)];
        assert_eq!(pending(again), [arriving(1, false)]);
    }
}
