// SPDX-License-Identifier: GPL-3.0-or-later
use super::*;
use crate::test_dir::TestDir;
use rustls::pki_types::ServerName;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn der(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

#[test]
fn init_makes_a_private_key_and_a_public_certificate() {
    let dir = TestDir::new();
    let pool_dir = dir.path().join("etc/pool");
    let pool = init(&pool_dir, "lab").unwrap();
    assert_eq!(pool.ca_cert, pool_dir.join("ca.crt"));
    assert_eq!(mode(&pool.ca_key), 0o600);
    assert_eq!(mode(&pool_dir), 0o700);
    assert!(pool.warnings.is_empty(), "{:?}", pool.warnings);
    let key = KeyPair::from_pem(&fs::read_to_string(&pool.ca_key).unwrap()).unwrap();
    assert!(key.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256));
}

#[test]
fn init_never_overwrites() {
    let dir = TestDir::new();
    let pool = init(dir.path(), "lab").unwrap();
    let before = fs::read(&pool.ca_key).unwrap();
    let error = init(dir.path(), "lab").unwrap_err();
    assert!(matches!(&error, PoolError::PoolExists(p) if *p == pool.ca_cert));
    assert!(error.to_string().contains("give another --dir"));
    // A key alone is as precious as the pair.
    fs::remove_file(&pool.ca_cert).unwrap();
    assert!(matches!(init(dir.path(), "lab"), Err(PoolError::PoolExists(p)) if p == pool.ca_key));
    assert_eq!(fs::read(&pool.ca_key).unwrap(), before);
}

#[test]
fn a_pool_needs_a_printable_name() {
    let dir = TestDir::new();
    for name in ["", "  ", "a\nb", "ä", &"x".repeat(41)] {
        assert!(
            matches!(init(dir.path(), name), Err(PoolError::PoolName(_))),
            "{name:?}"
        );
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_issued_certificate_is_a_member_in_both_roles() {
    let dir = TestDir::new();
    let pool = init(dir.path(), "lab").unwrap();
    let issued = issue(dir.path(), "xen1.example.org", None).unwrap();
    assert_eq!(issued.dir, dir.path().join("xen1.example.org"));
    assert_eq!(mode(&issued.dir), 0o700);
    assert_eq!(mode(&issued.dir.join(HOST_KEY)), 0o600);
    assert_eq!(mode(&issued.dir.join(HOST_CERT)), 0o644);
    assert_eq!(
        fs::read(issued.dir.join(CA_CERT)).unwrap(),
        fs::read(&pool.ca_cert).unwrap()
    );
    assert!(issued.warnings.is_empty(), "{:?}", issued.warnings);

    let cert = der(&issued.dir.join(HOST_CERT));
    verify(&cert, &der(&pool.ca_cert)).unwrap();
    let cert = EndEntityCert::try_from(&cert).unwrap();
    let names: Vec<&str> = cert.valid_dns_names().collect();
    assert_eq!(names, ["xen1.example.org"]);
    let name = ServerName::try_from("xen1.example.org").unwrap();
    cert.verify_is_valid_for_subject_name(&name).unwrap();
    let other = ServerName::try_from("xen2.example.org").unwrap();
    assert!(cert.verify_is_valid_for_subject_name(&other).is_err());
}

#[test]
fn the_longest_name_has_a_certificate() {
    let dir = TestDir::new();
    init(dir.path(), "lab").unwrap();
    let name = [
        "a".repeat(63),
        "b".repeat(63),
        "c".repeat(63),
        "d".repeat(61),
    ]
    .join(".");
    let issued = issue(dir.path(), &name, Some(&dir.path().join("out"))).unwrap();
    let cert = der(&issued.dir.join(HOST_CERT));
    let cert = EndEntityCert::try_from(&cert).unwrap();
    assert_eq!(cert.valid_dns_names().collect::<Vec<_>>(), [name]);
}

#[test]
fn another_pools_certificate_does_not_verify() {
    let (one, two) = (TestDir::new(), TestDir::new());
    init(one.path(), "same name").unwrap();
    let two_pool = init(two.path(), "same name").unwrap();
    let issued = issue(one.path(), "xen1", None).unwrap();
    assert!(verify(&der(&issued.dir.join(HOST_CERT)), &der(&two_pool.ca_cert)).is_err());
}

#[test]
fn a_certificate_is_valid_now_and_ends_before_its_ca() {
    let dir = TestDir::new();
    let pool = init(dir.path(), "lab").unwrap();
    let issued = issue(dir.path(), "xen1", None).unwrap();
    assert!(issued.valid_until < pool.valid_until);
    let (ca, cert) = (der(&pool.ca_cert), der(&issued.dir.join(HOST_CERT)));
    let anchors = [anchor_from_trusted_cert(&ca).unwrap()];
    let cert = EndEntityCert::try_from(&cert).unwrap();
    let at = |offset: i64| {
        let now = UnixTime::now()
            .as_secs()
            .checked_add_signed(offset)
            .unwrap();
        cert.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &[],
            UnixTime::since_unix_epoch(Duration::from_secs(now)),
            KeyUsage::server_auth(),
            None,
            None,
        )
        .map(|_| ())
    };
    let day = 24 * 60 * 60;
    assert_eq!(at(-day / 2), Ok(()));
    assert!(matches!(
        at(-2 * day),
        Err(webpki::Error::CertNotValidYet { .. })
    ));
    assert_eq!(at(4 * 365 * day), Ok(()));
    assert!(matches!(
        at(6 * 365 * day),
        Err(webpki::Error::CertExpired { .. })
    ));
}

#[test]
fn issue_says_what_is_missing() {
    let dir = TestDir::new();
    let error = issue(dir.path(), "xen1", None).unwrap_err().to_string();
    assert!(error.contains("xl-vusb pool init --dir"), "{error}");
    assert!(matches!(
        issue(dir.path(), "../xen1", None),
        Err(PoolError::HostName(_))
    ));
}

#[test]
fn issue_never_overwrites() {
    let dir = TestDir::new();
    init(dir.path(), "lab").unwrap();
    let out = dir.path().join("elsewhere");
    issue(dir.path(), "xen1", Some(&out)).unwrap();
    let before = fs::read(out.join(HOST_KEY)).unwrap();
    assert!(matches!(
        issue(dir.path(), "xen1", Some(&out)),
        Err(PoolError::HostExists(_))
    ));
    assert_eq!(fs::read(out.join(HOST_KEY)).unwrap(), before);
    // The pool's own directory holds a ca.crt: members' files do not belong there.
    assert!(matches!(
        issue(dir.path(), "xen1", Some(dir.path())),
        Err(PoolError::HostExists(_))
    ));
}

#[test]
fn a_foreign_or_broken_ca_is_named() {
    let (one, two) = (TestDir::new(), TestDir::new());
    let pool = init(one.path(), "lab").unwrap();
    let other = init(two.path(), "lab").unwrap();
    fs::copy(&other.ca_key, &pool.ca_key).unwrap();
    let error = issue(one.path(), "xen1", None).unwrap_err();
    assert!(matches!(error, PoolError::Mismatch { .. }), "{error}");
    assert!(!one.path().join("xen1").exists());

    fs::write(&pool.ca_key, "not a key").unwrap();
    let error = issue(one.path(), "xen1", None).unwrap_err().to_string();
    assert!(error.contains("no private key in PEM"), "{error}");
    fs::write(&other.ca_cert, "not a certificate").unwrap();
    let error = issue(two.path(), "xen1", None).unwrap_err().to_string();
    assert!(error.contains("no certificate in PEM"), "{error}");
}

#[test]
fn a_member_cannot_make_members() {
    let dir = TestDir::new();
    let pool = init(dir.path(), "lab").unwrap();
    let member = issue(dir.path(), "xen1", None).unwrap();
    // The member plays the CA for another name, and sends its own certificate along as the
    // intermediate one.
    let fake = TestDir::new();
    fs::copy(member.dir.join(HOST_CERT), fake.path().join(CA_CERT)).unwrap();
    fs::copy(member.dir.join(HOST_KEY), fake.path().join(CA_KEY)).unwrap();
    let forged = issue(fake.path(), "xen2", None).unwrap();

    let ca = der(&pool.ca_cert);
    let anchors = [anchor_from_trusted_cert(&ca).unwrap()];
    let chain = [der(&member.dir.join(HOST_CERT))];
    let forged = der(&forged.dir.join(HOST_CERT));
    let forged = EndEntityCert::try_from(&forged).unwrap();
    let result = forged.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &chain,
        UnixTime::now(),
        KeyUsage::client_auth(),
        None,
        None,
    );
    assert!(matches!(
        result.map(|_| ()),
        Err(webpki::Error::EndEntityUsedAsCa)
    ));
}

#[test]
fn a_secret_that_others_can_read_is_warned_of() {
    let dir = TestDir::new();
    let pool = init(dir.path(), "lab").unwrap();
    fs::set_permissions(&pool.ca_key, fs::Permissions::from_mode(0o640)).unwrap();
    let issued = issue(dir.path(), "xen1", None).unwrap();
    assert_eq!(issued.warnings.len(), 1, "{:?}", issued.warnings);
    assert!(issued.warnings[0].contains("ca.key can be read by others (mode 0640): chmod go="));

    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&pool.ca_key, fs::Permissions::from_mode(0o600)).unwrap();
    let issued = issue(dir.path(), "xen1", Some(&open)).unwrap();
    assert!(issued.warnings[0].contains("open can be changed by others (mode 0777)"));
}
