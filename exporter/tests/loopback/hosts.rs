// SPDX-License-Identifier: GPL-3.0-or-later
//! What an exporter knows of hosts.

use std::fs;
use std::time::Duration;

use session::DeviceId;
use session::control::{Refusal, Reply, Request};
use session::hosts::{KnownHost, Software};
use transport::Identity;

use crate::common::*;

fn software(version: &str) -> Software {
    Software {
        version: version.to_owned(),
        makes_controllers: true,
    }
}

async fn hosts(control: &mut Control, vm_number: Option<u8>) -> Vec<KnownHost> {
    let hosts = Request::Hosts {
        vm: vm_number.map(vm),
    };
    match control.ask(hosts).await {
        Reply::Hosts(hosts) => hosts,
        other => panic!("{other:?}"),
    }
}

async fn introduced(exporter: &Exporter, host: &Identity, version: &str) -> Control {
    let mut control = exporter.control(host).await;
    let introduce = Request::Introduce(software(version));
    assert_eq!(control.ask(introduce).await, Reply::Done);
    control
}

/// Waits until the exporter has noticed that host B is not connected any more.
async fn without_b(control: &mut Control, vm_number: Option<u8>) -> Vec<KnownHost> {
    let gone = async {
        loop {
            let hosts = hosts(control, vm_number).await;
            if hosts.iter().any(|h| h.name == "host-b" && !h.connected) {
                return hosts;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, gone)
        .await
        .expect("it stays connected")
}

#[test]
fn hosts_are_known_with_their_version_and_what_the_policy_allows_them() {
    let pool = Pool::new();
    let (a, b) = (pool.identity("host-a"), pool.identity("host-b"));
    let only_a = format!(
        "[[allow]]\ndevice = '0-1'\nvm = '{0}'\nhost = '*'\n\
         [[allow]]\ndevice = '0-2'\nvm = '{0}'\nhost = 'host-a'\n",
        vm(1)
    );
    {
        let exporter = pool.start(&only_a);
        run(async {
            let mut of_a = introduced(&exporter, &a, "1").await;
            let of_b = introduced(&exporter, &b, "2").await;
            for (device, port) in [("0-1", 1), ("0-2", 2)] {
                let lease = of_a.acquire(wanted(device, vm(1), port)).await;
                let confirm = Request::Confirm {
                    device: lease.device.id,
                    vm: vm(1),
                };
                assert_eq!(of_a.ask(confirm).await, Reply::Done);
            }
            let known = hosts(&mut of_a, Some(1)).await;
            let host = |name: &str, version: &str, refused: &[&str]| KnownHost {
                name: name.to_owned(),
                connected: true,
                seen_seconds: 0,
                software: Some(software(version)),
                refused: refused.iter().map(|d| DeviceId((*d).to_owned())).collect(),
            };
            let all = [host("host-a", "1", &[]), host("host-b", "2", &["0-2"])];
            assert_eq!(known, all);
            // Nothing is said of devices that the caller may not see, nor of other VMs'.
            let mut also_b = introduced(&exporter, &b, "2").await;
            assert!(
                hosts(&mut also_b, Some(1))
                    .await
                    .iter()
                    .all(|h| h.refused.is_empty())
            );
            assert!(
                hosts(&mut of_a, Some(2))
                    .await
                    .iter()
                    .all(|h| h.refused.is_empty())
            );

            // While it is connected, nobody puts it out of the pool.
            let forget = || Request::ForgetHost {
                host: "host-b".to_owned(),
            };
            let refused = of_a.ask(forget()).await;
            assert!(
                matches!(&refused, Reply::Refused(Refusal::Limit(why)) if why.contains("stop vusbd"))
            );
            drop((of_b, also_b));
            let known = without_b(&mut of_a, Some(1)).await;
            assert_eq!(known[1].software, Some(software("2")));
            assert_eq!(known[1].refused, [DeviceId("0-2".to_owned())]);
        });
    }
    // The exporter is started again.
    let exporter = pool.start(&only_a);
    run(async {
        let mut of_a = introduced(&exporter, &a, "1").await;
        let known = without_b(&mut of_a, None).await;
        assert_eq!(known[1].software, Some(software("2")));
        let forget = Request::ForgetHost {
            host: "host-b".to_owned(),
        };
        assert_eq!(of_a.ask(forget.clone()).await, Reply::Done);
        assert_eq!(hosts(&mut of_a, None).await.len(), 1);
        let refused = of_a.ask(forget).await;
        assert!(
            matches!(&refused, Reply::Refused(Refusal::Limit(why)) if why.contains("no host host-b"))
        );
    });
    drop(exporter);
    let exporter = pool.start(&only_a);
    run(async {
        let mut of_a = introduced(&exporter, &a, "1").await;
        assert_eq!(hosts(&mut of_a, None).await.len(), 1);
    });
}

#[test]
fn a_list_of_hosts_that_cannot_be_read_keeps_nobody_from_working() {
    let pool = Pool::new();
    let host = pool.identity("host-a");
    fs::create_dir_all(pool.dir.join("state")).unwrap();
    fs::write(pool.dir.join("state/hosts.json"), "{").unwrap();
    let exporter = pool.start(ALLOW_ALL);
    run(async {
        let (mut control, _, _device) = exporter.lend(&host).await;
        let known = hosts(&mut control, None).await;
        assert_eq!(known.len(), 1);
        assert_eq!(known[0].software, None);
    });
}

#[test]
fn a_version_that_is_none_is_refused() {
    with_exporter(ALLOW_ALL, async |_, exporter, host| {
        let mut control = exporter.control(host).await;
        let long = Request::Introduce(software(&"v".repeat(65)));
        let refused = control.ask(long).await;
        assert!(
            matches!(refused, Reply::Refused(Refusal::Limit(_))),
            "{refused:?}"
        );
        assert_eq!(hosts(&mut control, None).await[0].software, None);
    });
}
