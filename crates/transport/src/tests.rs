// SPDX-License-Identifier: GPL-3.0-or-later
//! Connections over loopback with certificates made for the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use session::control::Request;
use session::message::Purpose;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::*;

/// A directory that goes away with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("transport-{}-{unique}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

struct Files {
    dir: Dir,
}

impl Files {
    fn issue(
        trusted: &Ca,
        issuer: &Ca,
        host: &str,
        edit: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let dir = Dir::new();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        edit(&mut params);
        let cert = params.signed_by(&key, issuer).unwrap();
        fs::write(dir.0.join("ca.crt"), trusted.pem()).unwrap();
        fs::write(dir.0.join("host.crt"), cert.pem()).unwrap();
        fs::write(dir.0.join("host.key"), key.serialize_pem()).unwrap();
        fs::set_permissions(dir.0.join("host.key"), fs::Permissions::from_mode(0o600)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.0.join(name)
    }

    fn load(&self) -> Result<Identity, Error> {
        Identity::load(
            &self.path("ca.crt"),
            &self.path("host.crt"),
            &self.path("host.key"),
        )
    }
}

fn identity(ca: &Ca, host: &str) -> Identity {
    Files::issue(ca, ca, host, |_| ()).load().unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Both ends of one connection to the exporter `asked_for`.
async fn pair(
    exporter: &Identity,
    backend: &Identity,
    asked_for: &str,
) -> (Result<(TlsStream, String), Error>, Result<TlsStream, Error>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = Acceptor::new(exporter);
    let accept = async {
        let (tcp, _) = listener.accept().await.unwrap();
        acceptor.accept(tcp).await
    };
    tokio::join!(accept, connect(backend, &address, asked_for))
}

#[test]
fn both_ends_know_each_other_and_exchange_messages() {
    let ca = ca();
    let (exporter, backend) = (identity(&ca, "desk"), identity(&ca, "host-a"));
    assert_eq!(exporter.name(), "desk");
    run(async {
        let (accepted, connected) = pair(&exporter, &backend, "desk").await;
        let (mut e, host) = accepted.unwrap();
        let mut b = connected.unwrap();
        assert_eq!(host, "host-a");
        let (purpose, greeted) = tokio::join!(greeted(&mut e), greet(&mut b, Purpose::Device));
        greeted.unwrap();
        assert_eq!(purpose.unwrap(), Purpose::Device);
        // What follows a message must not be swallowed with it.
        send(&mut b, &Request::Devices).await.unwrap();
        b.write_all(b"frames").await.unwrap();
        b.flush().await.unwrap();
        assert_eq!(receive::<Request>(&mut e).await.unwrap(), Request::Devices);
        let mut rest = [0; 6];
        e.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"frames");
        drop(b);
        assert!(matches!(
            receive::<Request>(&mut e).await,
            Err(Error::Closed)
        ));
    });
}

#[test]
fn a_reader_that_was_dropped_in_the_middle_loses_nothing() {
    run(async {
        let (mut a, mut b) = tokio::io::duplex(64);
        let mut bytes = Vec::new();
        session::message::encode(&Request::Devices, &mut bytes).unwrap();
        session::message::encode(&Request::Subscribe, &mut bytes).unwrap();
        let mut reader = MessageReader::new();
        let mut got = Vec::new();
        for byte in bytes {
            {
                let pending = reader.receive::<Request>(&mut b);
                tokio::pin!(pending);
                tokio::select! {
                    biased;
                    request = &mut pending => panic!("{request:?} too early"),
                    () = std::future::ready(()) => (),
                }
            }
            a.write_all(&[byte]).await.unwrap();
            tokio::select! {
                biased;
                request = reader.receive::<Request>(&mut b) => got.push(request.unwrap()),
                () = std::future::ready(()) => (),
            }
        }
        assert_eq!(got, [Request::Devices, Request::Subscribe]);
    });
}

#[test]
fn a_message_that_is_too_long_is_refused_before_it_is_read() {
    run(async {
        let (mut a, mut b) = tokio::io::duplex(64);
        a.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        let error = receive::<Request>(&mut b).await.unwrap_err();
        assert!(matches!(error, Error::Message(_)), "{error}");
    });
}

#[test]
fn another_version_is_refused_by_both() {
    run(async {
        let (mut a, mut b) = tokio::io::duplex(64);
        let old = session::Hello {
            version: 0,
            purpose: Purpose::Control,
        };
        send(&mut a, &old).await.unwrap();
        let error = greeted(&mut b).await.unwrap_err();
        assert!(matches!(error, Error::Version { theirs: 0, .. }), "{error}");
    });
}

#[test]
fn an_exporter_of_another_pool_is_told_from_an_unreachable_one() {
    let (ours, theirs) = (ca(), ca());
    let backend = identity(&ours, "host-a");
    run(async {
        let (_, connected) = pair(&identity(&theirs, "desk"), &backend, "desk").await;
        let error = connected.unwrap_err();
        assert!(matches!(error, Error::NotOurCa { .. }), "{error}");

        let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = unused.local_addr().unwrap().to_string();
        drop(unused);
        let error = connect(&backend, &address, "desk").await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    });
}

#[test]
fn the_name_counts_and_not_the_address() {
    let ca = ca();
    run(async {
        let (_, connected) = pair(&identity(&ca, "desk"), &identity(&ca, "host-a"), "attic").await;
        let error = connected.unwrap_err();
        assert!(
            matches!(&error, Error::WrongName { expected, .. } if expected == "attic"),
            "{error}"
        );
    });
}

#[test]
fn expired_certificates_are_refused_at_both_ends() {
    let ca = ca();
    let expire = |p: &mut CertificateParams| {
        p.not_before = date_time_ymd(2001, 1, 1);
        p.not_after = date_time_ymd(2002, 1, 1);
    };
    let old = Files::issue(&ca, &ca, "desk", expire).load().unwrap();
    let new = identity(&ca, "desk");
    run(async {
        let (_, connected) = pair(&old, &new, "desk").await;
        let error = connected.unwrap_err();
        assert!(matches!(error, Error::Expired { .. }), "{error}");
        let (accepted, _) = pair(&new, &old, "desk").await;
        let error = accepted.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Expired { .. }), "{error}");
    });
}

#[test]
fn a_backend_of_another_pool_learns_why_with_its_first_read() {
    let (ours, theirs) = (ca(), ca());
    let exporter = identity(&ours, "desk");
    // It trusts our CA, but its own certificate is of another.
    let backend = Files::issue(&ours, &theirs, "host-x", |_| ())
        .load()
        .unwrap();
    run(async {
        let (accepted, connected) = pair(&exporter, &backend, "desk").await;
        let error = accepted.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::NotOurCa { .. }), "{error}");
        let error = receive::<Request>(&mut connected.unwrap())
            .await
            .unwrap_err();
        assert!(
            matches!(error, Error::OurCertificateRefused { .. }),
            "{error}"
        );
    });
}

#[test]
fn a_backend_without_a_certificate_is_refused() {
    let ca = ca();
    let exporter = identity(&ca, "desk");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept = async {
            let (tcp, _) = listener.accept().await.unwrap();
            Acceptor::new(&exporter).accept(tcp).await.map(|_| ())
        };
        let connect = async {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
            connector.connect("desk".try_into().unwrap(), tcp).await
        };
        let (accepted, _connected) = tokio::join!(accept, connect);
        let error = accepted.unwrap_err();
        assert!(matches!(error, Error::NoCertificate { .. }), "{error}");
    });
}

#[test]
fn files_that_will_not_do_are_told_apart() {
    let ca = ca();
    let good = Files::issue(&ca, &ca, "desk", |_| ());
    let other = Files::issue(&ca, &ca, "desk", |_| ());
    let load = |cert: &Path, key: &Path| Identity::load(&good.path("ca.crt"), cert, key);

    let error = load(&good.path("none.crt"), &good.path("host.key")).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }));
    assert!(error.to_string().contains("xl-vusb pool issue HOST"));

    let error = load(&good.path("host.key"), &good.path("host.key")).unwrap_err();
    assert!(matches!(error, Error::NotPem { .. }), "{error}");

    let error = load(&good.path("host.crt"), &other.path("host.key")).unwrap_err();
    assert!(matches!(error, Error::KeyMismatch { .. }), "{error}");

    let open = fs::Permissions::from_mode(0o640);
    fs::set_permissions(other.path("host.key"), open).unwrap();
    let error = load(&other.path("host.crt"), &other.path("host.key")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("can be read by others (mode 0640)"),
        "{error}"
    );
}
