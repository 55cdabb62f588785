// SPDX-License-Identifier: GPL-3.0-or-later
//! PV USB controllers that vusbd makes itself, since no toolstack but libxl does: their nodes in xenstore.
//!
//! Their devids are 64 and more. libxl takes the first free number below `/libxl/N/device/vusb`, where
//! these are not, and would wipe a controller of the same number.

use session::OwnController;
use xen::DomId;
use xen::xenstore::{Error, NodeAccess, Permission, Transaction, XenStore};

use crate::domain::DOMAINS;
use crate::xenbus::{BACKENDS, Key, XenbusState, frontends};

/// Why a controller was not made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// There is no such domain any more.
    #[error("domain {0} is gone")]
    NoDomain(DomId),
    /// The number is taken.
    #[error("domain {} has a PV USB controller {} already", .0.domid, .0.devid)]
    Exists(Key),
    /// Every number is.
    #[error("domain {0} has no free number for a PV USB controller")]
    NoNumber(DomId),
    /// xenstored refused.
    #[error("xenstore: {0}")]
    Store(#[from] Error),
}

/// Whether vusbd made this controller.
pub fn is_own(key: Key) -> bool {
    key.devid >= OwnController::FIRST_DEVID
}

/// Names and values of nodes.
type Values = Vec<(String, String)>;

/// The nodes of a new controller, below its frontend's and its backend's directory, as libxl writes them.
fn nodes(key: Key, controller: OwnController) -> (Values, Values) {
    let initialising = XenbusState::Initialising.as_str().to_owned();
    let named = |(name, value): (&str, String)| (name.to_owned(), value);
    let front = [
        ("backend", key.backend()),
        ("backend-id", "0".to_owned()),
        ("state", initialising.clone()),
    ];
    let back = [
        ("frontend", key.frontend()),
        ("frontend-id", key.domid.to_string()),
        ("online", "1".to_owned()),
        ("state", initialising),
        ("type", "pv".to_owned()),
        ("usb-ver", controller.usb_version.to_string()),
        ("num-ports", controller.ports.to_string()),
        ("port", String::new()),
    ];
    let mut back: Vec<_> = back.into_iter().map(named).collect();
    back.extend((1..=controller.ports).map(|port| (format!("port/{port}"), String::new())));
    (front.into_iter().map(named).collect(), back)
}

/// Makes a controller, in one transaction: `devid`, or the first free number. xenbus in the guest sees it at
/// once.
///
/// # Errors
/// See [`MakeError`].
pub async fn make(
    store: &XenStore,
    domid: DomId,
    devid: Option<u16>,
    controller: OwnController,
) -> Result<Key, MakeError> {
    store
        .transaction(|t| async move {
            // A directory that was written into would come to be, of a domain that is gone.
            if !t.exists(&format!("{DOMAINS}/{domid}/vm")).await? {
                return Err(MakeError::NoDomain(domid));
            }
            let key = match devid {
                Some(devid) => {
                    let key = Key { domid, devid };
                    match is_taken(&t, key).await? {
                        true => return Err(MakeError::Exists(key)),
                        false => key,
                    }
                }
                None => free(&t, domid).await?,
            };
            write(&t, key, controller).await?;
            Ok(key)
        })
        .await
}

async fn is_taken(t: &Transaction, key: Key) -> Result<bool, Error> {
    // A frontend's directory that is empty is what a controller that was removed has left.
    Ok(t.exists(&format!("{}/state", key.backend())).await?
        || t.exists(&format!("{}/backend", key.frontend())).await?)
}

async fn free(t: &Transaction, domid: DomId) -> Result<Key, MakeError> {
    for devid in OwnController::FIRST_DEVID..u16::MAX {
        let key = Key { domid, devid };
        if !is_taken(t, key).await? {
            return Ok(key);
        }
    }
    Err(MakeError::NoNumber(domid))
}

async fn write(t: &Transaction, key: Key, controller: OwnController) -> Result<(), Error> {
    let permission = |domain, access| Permission { domain, access };
    let (front, back) = nodes(key, controller);
    // What is below inherits these. The first is the owner, with what all others may do.
    let sides = [
        (key.frontend(), front, key.domid, DomId(0)),
        (key.backend(), back, DomId(0), key.domid),
    ];
    for (directory, nodes, owner, other) in sides {
        let permissions = [
            permission(owner, NodeAccess::None),
            permission(other, NodeAccess::Read),
        ];
        t.rm(&directory).await.or_else(no_node)?;
        t.mkdir(&directory).await?;
        t.set_perms(&directory, &permissions).await?;
        for (name, value) in nodes {
            t.write(&format!("{directory}/{name}"), value).await?;
        }
    }
    Ok(())
}

/// Asks the frontend and our own thread to end with a controller, as libxl does. Its nodes are removed when that
/// is done.
///
/// # Errors
/// Those of xenstore.
pub async fn close(store: &XenStore, key: Key) -> Result<(), Error> {
    let base = key.backend();
    store
        .transaction(|t| {
            let base = base.clone();
            async move {
                if !t.exists(&format!("{base}/state")).await? {
                    return Ok(());
                }
                t.write(&format!("{base}/online"), "0").await?;
                let closing = XenbusState::Closing.as_str();
                t.write(&format!("{base}/state"), closing).await
            }
        })
        .await
}

/// Removes a controller's nodes, and the directories above that are empty then.
///
/// # Errors
/// Those of xenstore.
pub async fn remove(store: &XenStore, key: Key) -> Result<(), Error> {
    store
        .transaction(|t| async move {
            t.rm(&key.frontend()).await.or_else(no_node)?;
            t.rm(&key.backend()).await.or_else(no_node)?;
            for directory in [
                frontends(key.domid),
                format!("{DOMAINS}/{}/device", key.domid),
                format!("{DOMAINS}/{}", key.domid),
                format!("{BACKENDS}/{}", key.domid),
            ] {
                match t.directory(&directory).await {
                    Ok(names) if names.is_empty() => {
                        t.rm(&directory).await.or_else(no_node)?;
                    }
                    Ok(_) => {}
                    Err(e) => no_node(e)?,
                }
            }
            Ok(())
        })
        .await
}

/// What is not there need not be removed.
fn no_node(error: Error) -> Result<(), Error> {
    match error.is_not_found() {
        true => Ok(()),
        false => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_are_those_of_libxl() {
        let key = Key {
            domid: DomId(7),
            devid: 64,
        };
        let controller = OwnController {
            ports: 2,
            usb_version: 1,
        };
        let (front, back) = nodes(key, controller);
        let lines = |nodes: &Values| {
            let lines: Vec<_> = nodes.iter().map(|(n, v)| format!("{n}={v}")).collect();
            lines.join(" ")
        };
        assert_eq!(
            lines(&front),
            "backend=/local/domain/0/backend/vusb/7/64 backend-id=0 state=1"
        );
        assert_eq!(
            lines(&back),
            "frontend=/local/domain/7/device/vusb/64 frontend-id=7 online=1 state=1 type=pv usb-ver=1 \
             num-ports=2 port= port/1= port/2="
        );
    }

    #[test]
    fn numbers_below_64_are_the_toolstacks() {
        let key = |devid| Key {
            domid: DomId(1),
            devid,
        };
        assert!(!is_own(key(0)) && !is_own(key(63)));
        assert!(is_own(key(64)) && is_own(key(u16::MAX)));
    }
}
