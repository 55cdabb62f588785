// SPDX-License-Identifier: GPL-3.0-or-later
//! Names and values of the xenstore nodes of a PV USB controller.

use std::fmt;

use xen::DomId;

/// The state of one end of a split driver (`enum xenbus_state` of Xen's `io/xenbus.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum XenbusState {
    /// The node is missing, empty, or not a state.
    Unknown = 0,
    /// Being set up by the toolstack or the driver.
    Initialising = 1,
    /// The backend is ready for its frontend; what libxl waits for.
    InitWait = 2,
    /// The frontend has written its details.
    Initialised = 3,
    /// At work.
    Connected = 4,
    /// To be closed.
    Closing = 5,
    /// Closed.
    Closed = 6,
    /// Not used by PV USB.
    Reconfiguring = 7,
    /// Not used by PV USB.
    Reconfigured = 8,
}

impl XenbusState {
    /// From the node's text.
    pub fn parse(text: &str) -> Self {
        match text.trim() {
            "1" => Self::Initialising,
            "2" => Self::InitWait,
            "3" => Self::Initialised,
            "4" => Self::Connected,
            "5" => Self::Closing,
            "6" => Self::Closed,
            "7" => Self::Reconfiguring,
            "8" => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }

    /// The node's text.
    pub fn as_str(self) -> &'static str {
        ["0", "1", "2", "3", "4", "5", "6", "7", "8"][self as usize]
    }
}

impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// `usb-ver` of a controller: what its root hub can be (`version=` of `usbctrl`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsbVersion {
    /// Low and full speed only.
    Usb11,
    /// High speed, too.
    Usb20,
}

impl UsbVersion {
    /// From the node's text. `None` where it is neither 1 nor 2, as libxl writes it.
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "1" => Some(Self::Usb11),
            "2" => Some(Self::Usb20),
            _ => None,
        }
    }

    /// As the node says it.
    pub fn number(self) -> u8 {
        match self {
            Self::Usb11 => 1,
            Self::Usb20 => 2,
        }
    }

    /// Whether a device of this speed can be plugged in, as the guest is told its speed.
    pub fn takes(self, speed: usbif::Speed) -> bool {
        self == Self::Usb20 || speed != usbif::Speed::High
    }
}

/// Which controller: domain and devid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The guest.
    pub domid: DomId,
    /// The controller's number in the guest, as in `usbctrl=['devid=N,…']`.
    pub devid: u16,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vusb-{}-{}", self.domid, self.devid)
    }
}

/// Where the toolstack makes the backends of PV USB controllers.
pub const BACKENDS: &str = "/local/domain/0/backend/vusb";

impl Key {
    /// The backend's directory.
    pub fn backend(self) -> String {
        format!("{BACKENDS}/{}/{}", self.domid, self.devid)
    }

    /// The frontend's directory. Real frontends and libxl use `device/vusb`, where usbif.h says
    /// `qusb`. It is not read from the backend's `frontend` node, so that nothing there can point
    /// us at another domain.
    pub fn frontend(self) -> String {
        format!("{}/{}", frontends(self.domid), self.devid)
    }

    /// The controller that a path below [`BACKENDS`] is about.
    pub fn of_backend_path(path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix(BACKENDS)?.strip_prefix('/')?.split('/');
        let domid = DomId(parts.next()?.parse().ok()?);
        let devid = parts.next()?.parse().ok()?;
        Some(Self { domid, devid })
    }
}

/// The directory of a domain's PV USB frontends.
pub fn frontends(domid: DomId) -> String {
    format!("/local/domain/{domid}/device/vusb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_their_controller() {
        let key = Key {
            domid: DomId(7),
            devid: 2,
        };
        assert_eq!(Key::of_backend_path(&key.backend()), Some(key));
        assert_eq!(
            Key::of_backend_path(&format!("{}/port/1", key.backend())),
            Some(key)
        );
        assert_eq!(Key::of_backend_path(BACKENDS), None);
        assert_eq!(Key::of_backend_path("/local/domain/0/backend/vusb/7"), None);
        assert_eq!(
            Key::of_backend_path("/local/domain/0/backend/vusbx/7/0"),
            None
        );
        assert_eq!(
            Key::of_backend_path("/local/domain/0/backend/vusb/70000/0"),
            None
        );
    }

    #[test]
    fn states_are_their_numbers() {
        for n in 0..=8 {
            let state = XenbusState::parse(&n.to_string());
            assert_eq!(state as u8, n);
            assert_eq!(state.as_str(), n.to_string());
        }
        assert_eq!(XenbusState::parse("9"), XenbusState::Unknown);
        assert_eq!(XenbusState::parse(""), XenbusState::Unknown);
    }

    #[test]
    fn a_usb_1_1_controller_takes_no_high_speed_device() {
        use usbif::Speed;
        assert_eq!(UsbVersion::parse("1"), Some(UsbVersion::Usb11));
        assert_eq!(UsbVersion::parse("2"), Some(UsbVersion::Usb20));
        for odd in ["", "0", "3", "-1", "two"] {
            assert_eq!(UsbVersion::parse(odd), None, "{odd}");
        }
        assert!(UsbVersion::Usb20.takes(Speed::High) && UsbVersion::Usb11.takes(Speed::Full));
        assert!(!UsbVersion::Usb11.takes(Speed::High));
    }
}
