// SPDX-License-Identifier: GPL-3.0-or-later
//! What can go wrong with a connection, in words for the administrator.

use std::io;
use std::path::PathBuf;

use rustls::{AlertDescription, CertificateError};

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the identity does not exist.
    #[error(
        "there is no {what} at {path}; run `xl-vusb pool issue HOST` where the pool's CA is kept, \
         with the name of this host, and copy its files here"
    )]
    Missing {
        /// Which file.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file of the identity cannot be read.
    #[error("cannot read the {what} {path}")]
    Unreadable {
        /// Which file.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The private key may be read by others than its owner.
    #[error(
        "the private key {path} can be read by others (mode {mode:04o}); run `chmod 600 {path}`"
    )]
    ReadableByOthers {
        /// Where it is.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file of the identity holds something else.
    #[error("the {what} {path} is no valid PEM file of its kind: {reason}")]
    NotPem {
        /// Which file.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The certificate and the key do not belong together.
    #[error("the certificate {cert} and the private key {key} do not belong together")]
    KeyMismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A certificate without a DNS name.
    #[error("the certificate of {0} names no host (it has no DNS name)")]
    NoHostName(String),
    /// The peer's address cannot be resolved.
    #[error("cannot find the address of {address}")]
    Resolve {
        /// What was looked up.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Nothing answers at the address.
    #[error("cannot reach {address}: {source}")]
    Unreachable {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{peer} did not answer within {seconds} s ({during})")]
    TimedOut {
        /// Who.
        peer: String,
        /// What was waited for.
        during: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The peer's certificate is of another CA.
    #[error("the certificate of {peer} is not of our pool's CA")]
    NotOurCa {
        /// Who.
        peer: String,
    },
    /// The peer's certificate is outside its time.
    #[error(
        "the certificate of {peer} is expired or not yet valid; check the clocks, then issue a new one"
    )]
    Expired {
        /// Who.
        peer: String,
    },
    /// The peer's certificate is another host's.
    #[error("{peer} has a certificate of another host: it is not for '{expected}'")]
    WrongName {
        /// Who.
        peer: String,
        /// The name that was asked for.
        expected: String,
    },
    /// The peer showed no certificate.
    #[error("{peer} showed no certificate")]
    NoCertificate {
        /// Who.
        peer: String,
    },
    /// The peer does not accept our certificate.
    #[error("{peer} refuses our certificate: {reason}")]
    OurCertificateRefused {
        /// Who.
        peer: String,
        /// What it says about it.
        reason: &'static str,
    },
    /// The name of an exporter is no host name.
    #[error("'{0}' cannot be the name of an exporter")]
    InvalidName(String),
    /// Any other failure of TLS.
    #[error("no TLS connection with {peer}: {source}")]
    Tls {
        /// Who.
        peer: String,
        /// Why.
        source: rustls::Error,
    },
    /// The peer speaks another version.
    #[error(
        "{peer} speaks version {theirs} of the protocol, we speak {ours}; update the older one"
    )]
    Version {
        /// Who.
        peer: String,
        /// Its version.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The peer closed the connection.
    #[error("the connection was closed by the other end")]
    Closed,
    /// What the peer sent is no message.
    #[error("the other end sent no valid message")]
    Message(#[from] session::message::MessageError),
    /// Any other failure of the connection.
    #[error("the connection failed: {0}")]
    Io(io::Error),
}

impl Error {
    /// What an I/O error of a connection with `peer` means. In TLS 1.3 a server's refusal of our
    /// certificate arrives only with the first read, so reads and writes need this, too.
    pub fn from_io(error: io::Error, peer: &str) -> Self {
        let inner = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        match inner {
            Some(tls) => Self::from_tls(tls.clone(), peer, None),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            None => Self::Io(error),
        }
    }

    /// [`Error::from_io`] during the handshake, when a certain name was `expected`.
    pub(crate) fn from_handshake(error: io::Error, peer: &str, expected: Option<&str>) -> Self {
        let inner = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        match inner {
            Some(tls) => Self::from_tls(tls.clone(), peer, expected),
            None => Self::from_io(error, peer),
        }
    }

    fn from_tls(error: rustls::Error, peer: &str, expected: Option<&str>) -> Self {
        use CertificateError as C;
        let peer = peer.to_owned();
        match &error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate { peer },
            rustls::Error::InvalidCertificate(reason) => match reason {
                C::UnknownIssuer | C::BadSignature => Self::NotOurCa { peer },
                C::Expired
                | C::ExpiredContext { .. }
                | C::NotValidYet
                | C::NotValidYetContext { .. } => Self::Expired { peer },
                C::NotValidForName | C::NotValidForNameContext { .. } => Self::WrongName {
                    peer,
                    expected: expected.unwrap_or_default().to_owned(),
                },
                _ => Self::Tls {
                    peer,
                    source: error,
                },
            },
            rustls::Error::AlertReceived(alert) => match refusal(*alert) {
                Some(reason) => Self::OurCertificateRefused { peer, reason },
                None => Self::Tls {
                    peer,
                    source: error,
                },
            },
            _ => Self::Tls {
                peer,
                source: error,
            },
        }
    }
}

fn refusal(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::UnknownCA => "it is not of its pool's CA",
        AlertDescription::CertificateExpired => "it is expired or not yet valid",
        AlertDescription::CertificateRequired => "it wants one and got none",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => "it is not valid there",
        _ => return None,
    })
}
