// SPDX-License-Identifier: GPL-3.0-or-later
//! The pool's certificate authority: who is a member of the pool.
//!
//! A pool is a directory with `ca.crt` and `ca.key`, kept on one machine. [`issue`] makes for each
//! machine what it needs in [`TLS_DIR`]: `ca.crt`, `host.crt`, `host.key`. Keys are ECDSA P-256.
//! Backends call and exporters answer, but a dom0 is often both, so each certificate serves as
//! client and as server.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::host_name::{HostName, HostNameError};

pub use transport::{CA_CERT, HOST_CERT, HOST_KEY, TLS_DIR};

#[cfg(test)]
mod tests;

/// Where the pool is kept unless told otherwise.
pub const DEFAULT_DIR: &str = "/etc/xen-vusb/pool";
/// The key of the CA. It never leaves the pool's directory.
pub const CA_KEY: &str = "ca.key";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60 + 6 * 60 * 60);
/// Replacing the CA means visiting every machine; it should outlive the hardware.
const CA_VALIDITY: Duration = YEAR.saturating_mul(20);
/// Replacing one machine's certificate is one command and one copy.
const HOST_VALIDITY: Duration = YEAR.saturating_mul(5);
/// Certificates start in the past, because the clock of a freshly booted thin client may lag.
const CLOCK_SKEW: Duration = DAY;

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The host's name is none.
    #[error(transparent)]
    HostName(#[from] HostNameError),
    /// The pool's name cannot stand in a certificate.
    #[error("a pool's name has 1 to 40 printable ASCII characters, '{0}' has not")]
    PoolName(String),
    /// There is a pool already.
    #[error(
        "{0} exists: this pool has its CA already, and every certificate hangs on it; \
         issue with it, or give another --dir"
    )]
    PoolExists(PathBuf),
    /// There is none yet.
    #[error("{0} does not exist: make the pool first: xl-vusb pool init --dir {dir}", dir = .0.parent().unwrap_or(Path::new(".")).display())]
    NoPool(PathBuf),
    /// The machine has its files already.
    #[error("{0} exists: to renew, remove it first or give another --out")]
    HostExists(PathBuf),
    /// A file that is not what its name says.
    #[error("{path} cannot be used: {reason}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `ca.key` and `ca.crt` are not of one pair.
    #[error("{key} is not the key of {cert}: restore both from the same backup")]
    Mismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        cert: PathBuf,
    },
    /// The file system says no.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The machine's clock is before 1970.
    #[error("this machine's clock is before 1970: set it first")]
    Clock,
}

/// A pool that was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Pool {
    /// The CA's certificate, for everyone.
    pub ca_cert: PathBuf,
    /// The CA's key, mode 0600.
    pub ca_key: PathBuf,
    /// The last day of the CA, `YYYY-MM-DD`.
    pub valid_until: String,
    /// Secrets that others can read, one sentence each.
    pub warnings: Vec<String>,
}

/// A machine's files that were made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Issued {
    /// The machine.
    pub host: HostName,
    /// The directory of [`CA_CERT`], [`HOST_CERT`] and [`HOST_KEY`].
    pub dir: PathBuf,
    /// The last day of the certificate, `YYYY-MM-DD`.
    pub valid_until: String,
    /// Secrets that others can read, one sentence each.
    pub warnings: Vec<String>,
}

/// Makes the pool's CA in `dir` (created with mode 0700 where missing). `name` is for people.
///
/// # Errors
/// Nothing is overwritten: a `ca.crt` or `ca.key` that exists is [`PoolError::PoolExists`].
pub fn init(dir: &Path, name: &str) -> Result<Pool, PoolError> {
    let printable = |b: u8| b == b' ' || b.is_ascii_graphic();
    if name.trim().is_empty() || name.len() > 40 || !name.bytes().all(printable) {
        return Err(PoolError::PoolName(name.to_owned()));
    }
    let (ca_cert, ca_key) = (dir.join(CA_CERT), dir.join(CA_KEY));
    for path in [&ca_cert, &ca_key] {
        if path.symlink_metadata().is_ok() {
            return Err(PoolError::PoolExists(path.clone()));
        }
    }
    let mut params = params_for(&format!("xen-vusb pool {name}"), CA_VALIDITY)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;

    create_private_dir(dir)?;
    create_file(&ca_key, key.serialize_pem().as_bytes(), 0o600)?;
    create_file(&ca_cert, cert.pem().as_bytes(), 0o644)?;
    Ok(Pool {
        valid_until: params.not_after.date().to_string(),
        warnings: warnings(&[dir, &ca_key]),
        ca_cert,
        ca_key,
    })
}

/// Makes the certificate and key of `host` with the CA in `dir`, into `out` or, without it, into
/// `dir/HOST` (created with mode 0700 where missing).
///
/// The certificate was verified against the CA, as the other end will do it, before it is written.
///
/// # Errors
/// Nothing is overwritten: any of the three files that exists is [`PoolError::HostExists`].
pub fn issue(dir: &Path, host: &str, out: Option<&Path>) -> Result<Issued, PoolError> {
    let host: HostName = host.parse()?;
    let out = out.map_or_else(|| dir.join(host.as_str()), Path::to_owned);
    let (ca_cert_path, ca_key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
    let ca_cert = read(&ca_cert_path)?;
    let ca_key = read(&ca_key_path)?;
    for path in [CA_CERT, HOST_CERT, HOST_KEY].map(|name| out.join(name)) {
        if path.symlink_metadata().is_ok() {
            return Err(PoolError::HostExists(path));
        }
    }

    let ca_key = KeyPair::from_pem(&ca_key).map_err(|e| PoolError::BadFile {
        path: ca_key_path.clone(),
        reason: format!("no private key in PEM ({e})"),
    })?;
    let bad_cert = |e: &dyn std::fmt::Display| PoolError::BadFile {
        path: ca_cert_path.clone(),
        reason: format!("no certificate in PEM ({e})"),
    };
    let issuer = Issuer::from_ca_cert_pem(&ca_cert, &ca_key).map_err(|e| bad_cert(&e))?;
    let ca_der = CertificateDer::from_pem_slice(ca_cert.as_bytes()).map_err(|e| bad_cert(&e))?;

    let mut params = params_for(host.as_str(), HOST_VALIDITY)?;
    params.subject_alt_names = vec![rcgen::SanType::DnsName(host.as_str().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?;
    // The issuer takes any key with any certificate; a pair from two backups would give
    // certificates that no member accepts.
    if let Err(error) = verify(cert.der(), &ca_der) {
        return Err(match error {
            webpki::Error::InvalidSignatureForPublicKey
            | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
                PoolError::Mismatch {
                    key: ca_key_path,
                    cert: ca_cert_path,
                }
            }
            other => PoolError::BadFile {
                path: ca_cert_path,
                reason: format!("it is not a CA that members would trust ({other})"),
            },
        });
    }

    create_private_dir(&out)?;
    create_file(&out.join(HOST_KEY), key.serialize_pem().as_bytes(), 0o600)?;
    create_file(&out.join(HOST_CERT), cert.pem().as_bytes(), 0o644)?;
    create_file(&out.join(CA_CERT), ca_cert.as_bytes(), 0o644)?;
    Ok(Issued {
        valid_until: params.not_after.date().to_string(),
        warnings: warnings(&[&ca_key_path, &out, &out.join(HOST_KEY)]),
        host,
        dir: out,
    })
}

fn params_for(common_name: &str, validity: Duration) -> Result<CertificateParams, PoolError> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| PoolError::Clock)?;
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.as_secs());
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + validity;
    params.distinguished_name = rcgen::DistinguishedName::new();
    // For people only, and at most 64 characters (X.520, ub-common-name); a host name may be longer.
    let common_name: String = common_name.chars().take(64).collect();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    Ok(params)
}

/// Verifies a machine's certificate the way both ends of a connection do: chain, dates, and each of
/// the two roles.
fn verify(cert: &CertificateDer<'_>, ca: &CertificateDer<'_>) -> Result<(), webpki::Error> {
    let anchors = [anchor_from_trusted_cert(ca)?];
    let cert = EndEntityCert::try_from(cert)?;
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        cert.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &[],
            UnixTime::now(),
            usage,
            None,
            None,
        )?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, PoolError> {
    fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => PoolError::NoPool(path.to_owned()),
        _ => PoolError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        },
    })
}

fn create_private_dir(path: &Path) -> Result<(), PoolError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| PoolError::Io {
            action: "create directory",
            path: path.to_owned(),
            source,
        })
}

fn create_file(path: &Path, content: &[u8], mode: u32) -> Result<(), PoolError> {
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|source| PoolError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

/// One sentence for each of `secrets` that its group or others can read.
fn warnings(secrets: &[&Path]) -> Vec<String> {
    let readable = |path: &&Path| {
        let mode = fs::metadata(path).ok()?.permissions().mode();
        let forbidden = if mode & 0o170_000 == 0o040_000 {
            0o022
        } else {
            0o077
        };
        (mode & forbidden != 0).then(|| {
            let (what, fix) = if forbidden == 0o022 {
                ("changed", "go-w")
            } else {
                ("read", "go=")
            };
            format!(
                "{path} can be {what} by others (mode {mode:04o}): chmod {fix} {path}",
                path = path.display(),
                mode = mode & 0o7777,
            )
        })
    };
    secrets.iter().filter_map(readable).collect()
}
