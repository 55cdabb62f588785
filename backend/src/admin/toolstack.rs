// SPDX-License-Identifier: GPL-3.0-or-later
//! Which toolstack made a controller, and so whether it will be there on the host that the domain goes to.

use std::path::Path;

use control::Toolstack;
use session::VmUuid;
use xen::DomId;
use xen::xenstore::{Error, XenStore};

use crate::xenbus::Key;

/// Where libxl keeps the files of its users about a domain: Xen's own default, and some
/// distributions'.
const USERDATA: [&str; 2] = ["/var/lib/xen", "/run/xen"];

/// The toolstack that made a controller. What cannot be read counts as not seen: the answer is never
/// [`Toolstack::Xl`] without a sign of libxl.
pub async fn of(store: &XenStore, key: Key, vm: VmUuid) -> Toolstack {
    let made_by = signs(store, key).await.unwrap_or(Toolstack::Unknown);
    let is_libvirt = || {
        USERDATA
            .iter()
            .any(|dir| is_libvirt(Path::new(dir), key, vm))
    };
    match made_by {
        Toolstack::Xl if is_libvirt() => Toolstack::Libvirt,
        made_by => made_by,
    }
}

/// The toolstack that migrates: the one that is named, or the one that made the controller. `xl` takes
/// along a controller that libxl made, also in a domain of libvirt, and no other.
pub fn migrating(made_by: Toolstack, named: Option<Toolstack>) -> Toolstack {
    match (made_by, named) {
        (Toolstack::Xl | Toolstack::Libvirt, Some(named)) => named,
        (Toolstack::Xapi | Toolstack::Unknown, Some(Toolstack::Xl)) | (_, None) => made_by,
        (_, Some(named)) => named,
    }
}

/// The toolstack of a domain, whatever made its controllers.
pub async fn of_domain(store: &XenStore, domid: DomId, vm: VmUuid) -> Toolstack {
    let exists = async |path: String| store.exists(&path).await.unwrap_or(false);
    let key = Key { domid, devid: 0 };
    if exists(format!("/xenops/domain/{domid}")).await {
        Toolstack::Xapi
    } else if USERDATA
        .iter()
        .any(|dir| is_libvirt(Path::new(dir), key, vm))
    {
        Toolstack::Libvirt
    } else if exists(format!("/libxl/{domid}")).await {
        Toolstack::Xl
    } else {
        Toolstack::Unknown
    }
}

/// What xenstore says. libxl keeps a list of the devices that it made; xenopsd has a directory for each
/// of its domains.
async fn signs(store: &XenStore, key: Key) -> Result<Toolstack, Error> {
    let Key { domid, devid, .. } = key;
    let libxl = format!("/libxl/{domid}/device/vusb/{devid}");
    let xenopsd = format!("/xenops/domain/{domid}");
    Ok(if store.exists(&libxl).await? {
        Toolstack::Xl
    } else if store.exists(&xenopsd).await? {
        Toolstack::Xapi
    } else {
        Toolstack::Unknown
    })
}

/// Whether libvirt keeps its description of the domain with libxl, as it does for each that it starts.
fn is_libvirt(dir: &Path, key: Key, vm: VmUuid) -> bool {
    dir.join(format!("userdata-d.{}.{vm}.libvirt-xml", key.domid))
        .exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Toolstack::*;

    #[test]
    fn xl_takes_along_only_what_libxl_made_and_the_others_nothing() {
        for made_by in [Xl, Libvirt, Xapi, Unknown] {
            assert_eq!(migrating(made_by, None), made_by);
            assert_eq!(migrating(made_by, Some(Xapi)), Xapi);
            assert_eq!(migrating(made_by, Some(Libvirt)), Libvirt);
        }
        assert_eq!(migrating(Xl, Some(Xl)), Xl);
        assert_eq!(migrating(Libvirt, Some(Xl)), Xl);
        assert_eq!(migrating(Xapi, Some(Xl)), Xapi);
        assert_eq!(migrating(Unknown, Some(Xl)), Unknown);
    }

    #[test]
    fn libvirt_shows_by_the_description_that_it_keeps_with_libxl() {
        let dir = std::env::temp_dir().join(format!("vusbd-userdata-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let vm = "6f7d3c1e-8b0a-4f0e-9d6e-2a1b3c4d5e6f";
        let key = |domid| Key {
            domid: xen::DomId(domid),
            devid: 0,
        };
        let file = |user: &str| dir.join(format!("userdata-d.5.{vm}.{user}"));
        let vm = vm.parse().unwrap();
        std::fs::write(file("libxl-json"), "{}").unwrap();
        assert!(!is_libvirt(&dir, key(5), vm));
        std::fs::write(file("libvirt-xml"), "<domain/>").unwrap();
        assert!(is_libvirt(&dir, key(5), vm));
        assert!(!is_libvirt(&dir, key(6), vm));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
