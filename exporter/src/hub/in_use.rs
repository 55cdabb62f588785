// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices with what this machine uses itself, as it is now.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use session::DeviceInfo;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::Hub;
use crate::in_use::{Mounts, Snapshot, mark};

/// How long it is taken for what it was: hosts that ask at the same time share one look. A device is
/// looked at again when it is opened.
const FRESH: Duration = Duration::from_millis(200);

/// What this machine used when it was looked at last.
#[derive(Default)]
pub(super) struct Uses(Mutex<Option<(Instant, Arc<Snapshot>)>>);

impl Uses {
    /// Reads it on another thread, unless that was done just now.
    async fn look(&self) -> Arc<Snapshot> {
        let mut last = self.0.lock().await;
        if let Some((at, snapshot)) = &*last
            && at.elapsed() < FRESH
        {
            return snapshot.clone();
        }
        let read = spawn_blocking(|| Snapshot::read(Path::new("/"), Mounts::OfInit));
        // It fails when the exporter ends.
        let snapshot = Arc::new(read.await.unwrap_or_default());
        *last = Some((Instant::now(), snapshot.clone()));
        snapshot
    }
}

impl Hub {
    /// Every device that is plugged in. Those that this machine uses itself are unavailable.
    pub(super) async fn devices_now(&self) -> Vec<DeviceInfo> {
        let has_real = || {
            let devices = self.devices.borrow();
            devices.values().any(|s| s.borrow().executor.is_real())
        };
        if !has_real() {
            return self.device_infos();
        }
        let now = self.uses.look().await;
        let mut devices = self.device_infos();
        mark(&mut devices, &now, self.table.borrow().policy());
        devices
    }
}
