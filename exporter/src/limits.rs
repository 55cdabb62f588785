// SPDX-License-Identifier: GPL-3.0-or-later
//! How often one host may ask, over all its connections. One that asks more often waits; others do not.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::pace::Pace;

/// Requests at once, and the time for one more. A host asks a few times in a second, and once for each
/// device when it or the exporter has been started.
const REQUESTS: (u32, Duration) = (1024, Duration::from_millis(10));
/// The same for what changes leases, each of which is written to the disk.
const CHANGES: (u32, Duration) = (512, Duration::from_millis(50));

/// The paces of a host.
pub(crate) struct Limits {
    requests: RefCell<Pace>,
    changes: RefCell<Pace>,
}

impl Limits {
    pub(crate) fn new(now: Instant) -> Self {
        let pace = |(burst, interval)| RefCell::new(Pace::new(burst, interval, now));
        Self {
            requests: pace(REQUESTS),
            changes: pace(CHANGES),
        }
    }

    /// Waits until the host may ask for something.
    pub(crate) async fn request(&self) {
        let wait = self.requests.borrow_mut().reserve(Instant::now());
        pause(wait).await;
    }

    /// Waits until the host may change a lease.
    pub(crate) async fn change(&self) {
        let wait = self.changes.borrow_mut().reserve(Instant::now());
        pause(wait).await;
    }
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}
