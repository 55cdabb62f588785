// SPDX-License-Identifier: GPL-3.0-or-later
//! Who we are: the pool's CA, our certificate and its key.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ServerConfig};

use crate::Error;

/// A host's certificate, ready for connecting and accepting. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    name: Arc<str>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads PEM files: the pool's CA certificate, this host's certificate (chain), its private key.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for root in certificates("pool's CA certificate", ca)? {
            roots
                .add(root)
                .map_err(|e| not_pem("pool's CA certificate", ca, e))?;
        }
        let chain = certificates("certificate of this host", cert)?;
        let name = chain
            .first()
            .and_then(host_name)
            .ok_or_else(|| Error::NoHostName("this host".to_owned()))?;
        let private_key = private_key(key)?;

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let wrong_key = |e| match e {
            rustls::Error::InconsistentKeys(_) => Error::KeyMismatch {
                cert: cert.to_owned(),
                key: key.to_owned(),
            },
            e => not_pem("private key of this host", key, e),
        };
        let roots = Arc::new(roots);
        let client = client_config(&provider, &roots, chain.clone(), private_key.clone_key())
            .map_err(wrong_key)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| not_pem("pool's CA certificate", ca, e))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|b| {
                b.with_client_cert_verifier(verifier)
                    .with_single_cert(chain, private_key)
            })
            .map_err(wrong_key)?;
        // A resumed TLS session would outlive a change of certificates.
        server.send_tls13_tickets = 0;
        Ok(Self {
            name: name.into(),
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    /// This host's name in the pool, from its certificate.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain, key)?;
    client.resumption = rustls::client::Resumption::disabled();
    Ok(client)
}

/// A host's name in the pool: the first DNS name of its certificate, if it has any. A pattern
/// (`*.example.org`) names no host.
pub fn host_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names = parsed.valid_dns_names();
    names.find(|name| !name.contains('*')).map(str::to_owned)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(what, path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| not_pem(what, path, e))?;
    if found.is_empty() {
        return Err(not_pem(what, path, "it holds no certificate"));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let what = "private key of this host";
    let pem = read(what, path)?;
    let mode = fs::metadata(path)
        .map_err(|source| unreadable(what, path, source))?
        .permissions()
        .mode()
        & 0o7777;
    // A credential of systemd's belongs to root, and an ACL lets the service read it, which shows as
    // the group's permission.
    let allowed = if is_credential(path) { 0o040 } else { 0 };
    if mode & 0o077 & !allowed != 0 {
        return Err(Error::ReadableByOthers {
            path: path.to_owned(),
            mode,
        });
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| not_pem(what, path, e))
}

/// Whether a file was given to this service, and to no other, by systemd (`LoadCredential=`).
fn is_credential(path: &Path) -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|dir| path.starts_with(dir))
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| unreadable(what, path, source))
}

fn unreadable(what: &'static str, path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { what, path },
        _ => Error::Unreadable { what, path, source },
    }
}

fn not_pem(what: &'static str, path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::NotPem {
        what,
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
