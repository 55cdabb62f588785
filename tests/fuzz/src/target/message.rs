// SPDX-License-Identifier: GPL-3.0-or-later
//! Messages of the control connection and of the opening, saved state, and names that
//! administrators write.

use handoff::Cookie;
use serde::Serialize;
use serde::de::DeserializeOwned;
use session::control::{Acquire, FromBackend, Refusal, Reply, Request, ToBackend};
use session::message::{self, Purpose};
use session::open::{Attempt, Evidence, How, Open, Opened};
use session::{DeviceId, DeviceSelector, Epoch, Hello, VmUuid};

use crate::{Input, Target};

/// See the module's documentation.
pub const TARGET: Target = Target {
    name: "message",
    seeds,
    run,
};

fn seed(kind: u8, message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![kind];
    message::encode(message, &mut bytes).unwrap();
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let vm = VmUuid(uuid::Uuid::from_u128(7));
    let device = DeviceId("1-2".into());
    let hello = Hello {
        version: 1,
        purpose: Purpose::Device,
    };
    let open = Open {
        device: device.clone(),
        vm,
        domid: 3,
        frontend_resumes: true,
        attempt: Attempt { life: 7, number: 3 },
        evidence: Evidence::HolderGone(2),
        how: How::Claim { seen: Epoch(5) },
    };
    let request = Request::Acquire(Acquire {
        device: DeviceSelector::Place(device.clone()),
        vm,
        vm_name: "web".into(),
        domid: 3,
        controller: 0,
        port: 1,
        on_migrate: None,
        exchange: None,
        own_controller: None,
        persistence: Default::default(),
        returns: None,
    });
    let acquire = FromBackend { number: 1, request };
    let refused = Refusal::NoLease {
        device: device.clone(),
        vm,
    };
    vec![
        seed(0, &hello),
        seed(1, &open),
        seed(2, &Opened::Refused(refused.clone())),
        seed(3, &acquire),
        seed(
            4,
            &ToBackend::Reply {
                number: 1,
                reply: Reply::Refused(refused),
            },
        ),
        vec![5, 1, 5, 3],
        [&[6][..], b"0951:1666:0123"].concat(),
        [&[6][..], b"1-2.3"].concat(),
    ]
}

fn run(input: &mut Input<'_>) {
    let kind = input.below(7);
    let bytes = input.rest();
    let understood = match kind {
        0 => both_ways::<Hello>(bytes),
        1 => both_ways::<Open>(bytes),
        2 => both_ways::<Opened>(bytes),
        3 => both_ways::<FromBackend>(bytes),
        4 => both_ways::<ToBackend>(bytes),
        5 => match Cookie::decode(bytes) {
            Ok(Some(cookie)) => {
                assert!(cookie.address <= 127 && cookie.speed <= 3);
                assert_eq!(Cookie::decode(&cookie.encode()), Ok(Some(cookie)));
                2
            }
            Ok(None) => 1,
            Err(_) => 0,
        },
        _ => selector(&String::from_utf8_lossy(bytes)),
    };
    input.did((kind, understood));
}

fn both_ways<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> u8 {
    match message::decode::<T>(bytes) {
        Ok(Some((value, len))) => {
            assert!(len <= bytes.len());
            let mut again = Vec::new();
            message::encode(&value, &mut again).unwrap();
            let (decoded, taken) = message::decode::<T>(&again).unwrap().unwrap();
            assert_eq!(decoded, value);
            assert_eq!(taken, again.len());
            2
        }
        Ok(None) => 1,
        Err(_) => 0,
    }
}

fn selector(text: &str) -> u8 {
    let Ok(selector) = text.parse::<DeviceSelector>() else {
        return u8::from(text.parse::<VmUuid>().is_ok());
    };
    let again: DeviceSelector = selector.to_string().parse().unwrap();
    assert_eq!(again, selector, "what is printed can be given back");
    2
}
