// SPDX-License-Identifier: GPL-3.0-or-later
//! The devices that there are.

/// A device that the exporter machine can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// QEMU's keyboard, at full speed.
    Keyboard,
    /// QEMU's tablet.
    Tablet,
    /// QEMU's FTDI serial adapter.
    Serial,
    /// QEMU's CCID reader with a card.
    Reader,
    /// QEMU's loudspeaker (UAC1).
    Speaker,
    /// QEMU's mass storage on EHCI, at high speed.
    Stick,
    /// QEMU's mass storage on xHCI, at SuperSpeed.
    SuperStick,
    /// QEMU's UAS storage on EHCI: without streams, and without a bulk-only setting.
    UasStick,
    /// The same on xHCI: at SuperSpeed UAS is streams, which PV USB has not, so it is refused.
    UasOnlyStick,
    /// A simulated disk at SuperSpeed with a bulk-only setting and one for UAS, which is not shown.
    SuperUasStick,
    /// A CDC-ACM gadget.
    AcmGadget,
    /// A HID gadget that is a boot keyboard.
    HidGadget,
    /// A mass-storage gadget.
    StorageGadget,
    /// A printer gadget, in both directions.
    PrinterGadget,
    /// The source and sink gadget, for `usbtest`.
    SourceSinkGadget,
    /// The simulated headset (UAC2).
    Headset,
    /// The simulated source and sink, for `usbtest`.
    SimulatedSourceSink,
    /// Another, which is slow to answer when it is told to.
    SlowSourceSink,
    /// Another, which answers nothing when it is told to.
    SilentSourceSink,
}

impl Kind {
    /// All that have a job besides being tested.
    pub const USEFUL: [Self; 14] = [
        Self::Keyboard,
        Self::Tablet,
        Self::Serial,
        Self::Reader,
        Self::Speaker,
        Self::Stick,
        Self::SuperStick,
        Self::UasStick,
        Self::SuperUasStick,
        Self::AcmGadget,
        Self::HidGadget,
        Self::StorageGadget,
        Self::PrinterGadget,
        Self::Headset,
    ];

    /// A word for tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keyboard => "keyboard",
            Self::Tablet => "tablet",
            Self::Serial => "serial",
            Self::Reader => "reader",
            Self::Speaker => "speaker",
            Self::Stick => "stick",
            Self::SuperStick => "super-stick",
            Self::UasStick => "uas-stick",
            Self::UasOnlyStick => "uas-only-stick",
            Self::SuperUasStick => "super-uas-stick",
            Self::AcmGadget => "acm-gadget",
            Self::HidGadget => "hid-gadget",
            Self::StorageGadget => "storage-gadget",
            Self::PrinterGadget => "printer-gadget",
            Self::SourceSinkGadget => "source-sink-gadget",
            Self::Headset => "headset",
            Self::SimulatedSourceSink => "simulated-source-sink",
            Self::SlowSourceSink => "slow-source-sink",
            Self::SilentSourceSink => "silent-source-sink",
        }
    }

    /// Whether it is a disk.
    pub fn is_disk(self) -> bool {
        matches!(
            self,
            Self::Stick
                | Self::SuperStick
                | Self::UasStick
                | Self::UasOnlyStick
                | Self::SuperUasStick
                | Self::StorageGadget
        )
    }

    /// The serial numbers of those that are given one.
    pub fn serial(self) -> Option<&'static str> {
        match self {
            Self::SuperStick => Some("LAB0002"),
            Self::UasStick | Self::UasOnlyStick => Some("LAB0003"),
            Self::Keyboard => Some("LAB0004"),
            Self::Serial => Some("LAB0005"),
            _ => None,
        }
    }

    /// Bus and port of the machine's controllers, which every device has for itself.
    pub(super) fn port(self) -> (&'static str, &'static str) {
        match self {
            Self::Keyboard => ("xhci.0", "1"),
            Self::Tablet => ("xhci.0", "2"),
            Self::Serial => ("uhci.0", "1"),
            Self::Reader => ("xhci.0", "4"),
            Self::Speaker => ("xhci.0", "5"),
            Self::SuperStick => ("xhci.0", "6"),
            Self::UasOnlyStick => ("xhci.0", "7"),
            Self::UasStick => ("ehci.0", "2"),
            _ => ("xhci.0", "8"),
        }
    }
}
