// SPDX-License-Identifier: GPL-3.0-or-later
//! When what guests set at their devices (configurations, alternate settings) is saved. A guest may set
//! them as often as it likes, and each save writes the whole file to what may be an SD card. So each
//! device has so many saves at once, and one more now and then; what is set in between is in the
//! next one. Nobody waits for these saves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use session::DeviceId;

use crate::pace::Pace;

/// Saves at once: a guest that boots, and opens what it has.
const BURST: u32 = 10;
/// One more save for each device after this time.
const INTERVAL: Duration = Duration::from_secs(60);

struct Device {
    pace: Pace,
    /// When what is set now is to be saved; `None` where it is.
    due: Option<Instant>,
}

/// See the module's documentation. A pure machine; the time is an argument.
#[derive(Default)]
pub(super) struct Settings(BTreeMap<DeviceId, Device>);

impl Settings {
    /// A guest has set something at its device. Answers when that is to be saved, where that is news.
    pub(super) fn changed(&mut self, device: &DeviceId, now: Instant) -> Option<Instant> {
        let device = self.0.entry(device.clone()).or_insert_with(|| Device {
            pace: Pace::new(BURST, INTERVAL, now),
            due: None,
        });
        if device.due.is_some() {
            return None;
        }
        let at = now + device.pace.wait(now);
        device.pace.take(at);
        device.due = Some(at);
        device.due
    }

    /// When to save next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.values().filter_map(|d| d.due).min()
    }

    /// All is saved as it is now.
    pub(super) fn saved(&mut self, now: Instant) {
        self.0.retain(|_, device| {
            device.due = None;
            !device.pace.is_full(now)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> DeviceId {
        DeviceId(format!("1-{number}"))
    }

    #[test]
    fn what_is_set_is_saved_at_once_and_once() {
        let now = Instant::now();
        let mut settings = Settings::default();
        assert_eq!(settings.due(), None);
        assert_eq!(settings.changed(&id(1), now), Some(now));
        assert_eq!(settings.changed(&id(1), now), None);
        assert_eq!(settings.due(), Some(now));
        settings.saved(now);
        assert_eq!(settings.due(), None);
        assert_eq!(settings.changed(&id(1), now), Some(now));
    }

    /// A thousand times a second for an hour, beside a guest that sets something once an hour.
    #[test]
    fn a_guest_that_sets_all_the_time_wears_out_no_card() {
        let start = Instant::now();
        let mut settings = Settings::default();
        let (mut saves, mut last) = (0, start);
        for ms in 0..3_600_000 {
            let now = start + Duration::from_millis(ms);
            settings.changed(&id(1), now);
            if settings.due().is_some_and(|due| due <= now) {
                settings.saved(now);
                saves += 1;
                last = now;
            }
        }
        assert!((10..=10 + 60).contains(&saves), "{saves}");
        assert!(start + Duration::from_secs(3600) - last <= INTERVAL);
        let now = start + Duration::from_secs(3600);
        assert_eq!(
            settings.changed(&id(2), now),
            Some(now),
            "others do not wait"
        );
    }

    #[test]
    fn devices_that_are_quiet_are_forgotten() {
        let start = Instant::now();
        let mut settings = Settings::default();
        for number in 0..100 {
            settings.changed(&id(number), start);
        }
        settings.saved(start + 2 * INTERVAL);
        assert!(settings.0.is_empty());
    }
}
