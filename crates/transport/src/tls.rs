// SPDX-License-Identifier: GPL-3.0-or-later
//! Where a host's certificate is, and how a daemon's configuration says so.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{Error, Identity};

/// Where daemons look for their certificates unless told otherwise.
pub const TLS_DIR: &str = "/etc/xen-vusb/tls";
/// The certificate of the pool's CA, in [`TLS_DIR`].
pub const CA_CERT: &str = "ca.crt";
/// This host's certificate there.
pub const HOST_CERT: &str = "host.crt";
/// Its private key there.
pub const HOST_KEY: &str = "host.key";

/// `[tls]` of a configuration: PEM files, made by `xl-vusb pool issue`. What is left out is in the
/// directory that the daemon takes for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The pool's CA certificate; else [`CA_CERT`].
    pub ca: Option<PathBuf>,
    /// This host's certificate; else [`HOST_CERT`].
    pub cert: Option<PathBuf>,
    /// Its private key; else [`HOST_KEY`].
    pub key: Option<PathBuf>,
}

impl Tls {
    /// The files, where this is the daemon's directory.
    pub fn files(&self, dir: &Path) -> TlsFiles {
        let file = |said: &Option<PathBuf>, name| said.clone().unwrap_or_else(|| dir.join(name));
        TlsFiles {
            ca: file(&self.ca, CA_CERT),
            cert: file(&self.cert, HOST_CERT),
            key: file(&self.key, HOST_KEY),
        }
    }
}

/// The files of an [`Identity`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The pool's CA certificate.
    pub ca: PathBuf,
    /// This host's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Loads the certificate.
    ///
    /// # Errors
    /// Those of [`Identity::load`].
    pub fn load(&self) -> Result<Identity, Error> {
        Identity::load(&self.ca, &self.cert, &self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_in_the_directory() {
        let tls = Tls {
            cert: Some("/elsewhere/mine.crt".into()),
            ..Tls::default()
        };
        let files = tls.files(Path::new("/run/credentials"));
        let expected = TlsFiles {
            ca: "/run/credentials/ca.crt".into(),
            cert: "/elsewhere/mine.crt".into(),
            key: "/run/credentials/host.key".into(),
        };
        assert_eq!(files, expected);
    }
}
