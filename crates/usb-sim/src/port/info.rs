// SPDX-License-Identifier: GPL-3.0-or-later
//! The device as an exporter lists it.

use session::{DeviceId, DeviceInfo, DeviceState};

use super::Port;
use crate::function::Function;
use crate::standard;

impl<F: Function> Port<F> {
    /// The device, as an exporter lists it at the place `id`.
    pub fn info(&self, id: DeviceId) -> DeviceInfo {
        let descriptors = self.function.descriptors();
        let device = &descriptors.device;
        let word = |at: usize| match device.get(at..at + 2) {
            Some(bytes) => u16::from_le_bytes([bytes[0], bytes[1]]),
            None => 0,
        };
        let string = |at: usize| {
            let index = usize::from(*device.get(at)?).checked_sub(1)?;
            descriptors.strings.get(index).cloned()
        };
        let names: Vec<_> = [14, 15].into_iter().filter_map(string).collect();
        let mut classes: Vec<u8> = device
            .get(4)
            .copied()
            .into_iter()
            .filter(|c| *c != 0)
            .collect();
        if let Some(first) = descriptors.configurations.first() {
            for (kind, part) in standard::parts(first) {
                if let (standard::INTERFACE, Some(&class)) = (kind, part.get(5))
                    && !classes.contains(&class)
                {
                    classes.push(class);
                }
            }
        }
        DeviceInfo {
            id,
            vendor: word(8),
            product: word(10),
            serial: string(16),
            name: names.join(" "),
            speed: self.function.speed(),
            classes,
            state: DeviceState::Free,
        }
    }
}
