// SPDX-License-Identifier: GPL-3.0-or-later
//! The name in a certificate. It decides what a host may do, and it is printed in logs.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use crate::{Input, Target};

/// See the module's documentation.
pub const TARGET: Target = Target {
    name: "certificate",
    seeds,
    run,
};

/// Without keys: those were thrown away.
const PEM: [&str; 3] = [
    include_str!("../../certificates/plain.pem"),
    include_str!("../../certificates/many.pem"),
    include_str!("../../certificates/wildcard.pem"),
];

fn seeds() -> Vec<Vec<u8>> {
    let der = |pem: &&str| {
        CertificateDer::from_pem_slice(pem.as_bytes())
            .unwrap()
            .to_vec()
    };
    PEM.iter().map(der).collect()
}

fn run(input: &mut Input<'_>) {
    let der = input.rest();
    let name = transport::host_name(&CertificateDer::from(der));
    input.did((name.is_some(), name.as_ref().map(String::len)));
    if let Some(name) = name {
        assert!((1..=253).contains(&name.len()), "{name:?}");
        let printable = |b: u8| b.is_ascii_alphanumeric() || b"-_.*".contains(&b);
        assert!(name.bytes().all(printable), "{name:?}");
        // A pattern is no host. `*` in a policy means all of them.
        assert!(
            matches!(
                ServerName::try_from(name.as_str()),
                Ok(ServerName::DnsName(_))
            ),
            "{name:?} is no host's name"
        );
    }
}
