// SPDX-License-Identifier: GPL-3.0-or-later
//! What a backend saves in a lease.
//!
//! Layout, version 1: byte 0 the version, byte 1 the device address that the guest gave (0 for
//! none), byte 2 the speed that the guest was told (`XENUSB_SPEED_*` of usbif.h). It is written
//! whenever one of these changes, so that it is true also when a host dies without notice.

/// The state of one port that a hand-off carries over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cookie {
    /// Device address, 1 to 127; 0 for none (USB 2.0 §9.4.6).
    pub address: u8,
    /// `XENUSB_SPEED_*`: 0 none, 1 low, 2 full, 3 high.
    pub speed: u8,
}

/// A cookie that cannot be used. The device is then shown to the guest anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CookieError {
    /// Saved by a newer vusbd.
    #[error("saved state of version {0} is newer than this vusbd; update it")]
    Version(u8),
    /// Too short, or a value out of range.
    #[error("saved state is damaged")]
    Damaged,
}

impl Cookie {
    const VERSION: u8 = 1;

    /// To bytes.
    pub fn encode(self) -> [u8; 3] {
        [Self::VERSION, self.address, self.speed]
    }

    /// From bytes; `None` for an empty cookie, which is what a new lease has.
    ///
    /// # Errors
    /// [`CookieError`]. Bytes after the known ones are ignored, so that they can be added.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, CookieError> {
        match *bytes {
            [] => Ok(None),
            [Self::VERSION, address @ 0..=127, speed @ 0..=3, ..] => {
                Ok(Some(Self { address, speed }))
            }
            [version, ..] if version > Self::VERSION => Err(CookieError::Version(version)),
            _ => Err(CookieError::Damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_these_bytes() {
        let cookie = Cookie {
            address: 5,
            speed: 3,
        };
        assert_eq!(cookie.encode(), [1, 5, 3]);
        assert_eq!(Cookie::decode(&[1, 5, 3]), Ok(Some(cookie)));
        assert_eq!(Cookie::decode(&[]), Ok(None));
    }

    #[test]
    fn what_is_damaged_or_newer_is_not_guessed_at() {
        assert_eq!(Cookie::decode(&[1, 128, 3]), Err(CookieError::Damaged));
        assert_eq!(Cookie::decode(&[1, 5, 4]), Err(CookieError::Damaged));
        assert_eq!(Cookie::decode(&[1, 5]), Err(CookieError::Damaged));
        assert_eq!(Cookie::decode(&[0]), Err(CookieError::Damaged));
        assert_eq!(Cookie::decode(&[2, 5, 3]), Err(CookieError::Version(2)));
    }
}
