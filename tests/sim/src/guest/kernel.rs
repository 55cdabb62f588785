// SPDX-License-Identifier: GPL-3.0-or-later
//! What every guest has, whatever it does with its devices: a frontend, and the way through a
//! suspend.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use frontend_shim::{
    Completion, Frontend, FrontendOptions, HostOptions, ResumeMode, Resumed, UsbHost, Violation,
};
use xen::DomId;
use xen::xenstore::Endpoint;
use xen_sim::SimGuest;
use xen_sim::toolstack::Store;

/// How long the backend may take to give everything back at a suspend.
pub(super) const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the backend did wrong.
#[derive(Clone, Debug, Default)]
pub struct Wrongs {
    /// Answers to URBs that were answered before, or never submitted.
    pub duplicated: u64,
    /// All of it, in words.
    pub texts: Vec<String>,
}

/// The kernel of a guest on a simulated host, in this process.
pub struct Kernel {
    guest: SimGuest,
    store: Store,
    frontend: Frontend<SimGuest>,
    wrongs: Arc<Mutex<Wrongs>>,
}

impl Kernel {
    /// Boots in a domain: waits until it is unpaused, and connects the frontend.
    ///
    /// # Errors
    /// What failed.
    pub fn boot(host_dir: &Path, domid: DomId, mode: ResumeMode) -> Result<Self> {
        Self::boot_with(host_dir, domid, 0, mode)
    }

    /// The same, with this controller.
    ///
    /// # Errors
    /// What failed.
    pub fn boot_with(host_dir: &Path, domid: DomId, devid: u32, mode: ResumeMode) -> Result<Self> {
        let guest = SimGuest::boot(host_dir, domid)
            .with_context(|| format!("cannot boot in domain {domid}"))?;
        let store = watch_shutdown(&guest)?;
        let wrongs = Arc::new(Mutex::new(Wrongs::default()));
        let (seen, reporter) = (wrongs.clone(), guest.clone());
        let hook = move |violation: &Violation| {
            let text = violation.to_string();
            reporter.report_violation(&text);
            let mut wrongs = seen.lock().expect("no holder panics");
            wrongs.duplicated += u64::from(matches!(violation, Violation::UnknownId(_)));
            wrongs.texts.push(text);
        };
        let options = FrontendOptions {
            devid,
            mode,
            host: HostOptions {
                on_violation: Some(Box::new(hook)),
                check_grants: true,
            },
            ..FrontendOptions::default()
        };
        let endpoint = Endpoint::Socket(guest.xenstore_path());
        let mut frontend = Frontend::connect(guest.clone(), &endpoint, options)?;
        register_rings(&guest, frontend.host())?;
        Ok(Self {
            guest,
            store,
            frontend,
            wrongs,
        })
    }

    /// Its domain now.
    pub fn domid(&self) -> DomId {
        self.guest.domid()
    }

    /// Its USB host controller.
    pub fn host(&mut self) -> &mut UsbHost<SimGuest> {
        self.frontend.host()
    }

    /// What the backend did wrong so far.
    pub fn wrongs(&self) -> Wrongs {
        self.wrongs.lock().expect("no holder panics").clone()
    }

    /// The next completion, waited for.
    ///
    /// # Errors
    /// When there is none in time, or the backend broke the protocol.
    pub fn completion(&mut self, limit: Duration) -> Result<Completion> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(completion) = self.host().next_completion() {
                return Ok(completion);
            }
            if self.host().front().is_dead() {
                bail!("the backend broke the protocol: {:?}", self.wrongs().texts);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("nothing completed within {limit:?}");
            }
            self.host().wait(left)?;
        }
    }

    /// Whether the toolstack asks it to suspend.
    ///
    /// # Errors
    /// Those of xenstore.
    pub fn suspend_requested(&mut self) -> Result<bool> {
        if self.store.next_event(Instant::now())?.is_none() {
            return Ok(false);
        }
        let request = self.store.read("control/shutdown")?;
        Ok(request.as_deref() == Some("suspend"))
    }

    /// Whether drivers notice nothing of a suspend, and take nothing back.
    pub fn is_unnoticed(&self) -> bool {
        self.frontend.mode().is_unnoticed()
    }

    /// Tells the toolstack that its request was seen. Then the drivers take back what they
    /// submitted, unless they [notice nothing](Self::is_unnoticed).
    ///
    /// # Errors
    /// Those of xenstore.
    pub fn acknowledge_suspend(&mut self) -> Result<()> {
        Ok(self.store.write("control/shutdown", "")?)
    }

    /// Takes back all that is left, and waits for it. Its completions are there then, of URBs that
    /// will not go on after the suspend.
    ///
    /// # Errors
    /// When the backend does not give it back.
    pub fn freeze(&mut self) -> Result<()> {
        self.frontend.freeze(FREEZE_TIMEOUT)?;
        Ok(())
    }

    /// Suspends, and goes on wherever it is then. `drivers` is what they do when they resume; they
    /// do nothing where the suspend was cancelled. Answers whether it was.
    ///
    /// # Errors
    /// When its domain was destroyed instead, or does not connect again.
    pub fn suspend(&mut self, drivers: impl FnOnce(&mut UsbHost<SimGuest>)) -> Result<bool> {
        if self.guest.suspend()? == xen_sim::Resumed::Cancelled {
            self.frontend.resume_cancelled();
            return Ok(true);
        }
        self.store = watch_shutdown(&self.guest)?;
        let place = Resumed {
            guest: self.guest.clone(),
            store: Endpoint::Socket(self.guest.xenstore_path()),
        };
        self.frontend.resume(place, drivers)?;
        register_rings(&self.guest, self.frontend.host())?;
        Ok(false)
    }

    /// Unloads the driver. The host checks what is still mapped.
    ///
    /// # Errors
    /// When the backend does not follow, or still maps a ring.
    pub fn shut_down(self) -> Result<()> {
        match self.frontend.close()? {
            true => Ok(()),
            false => bail!("the backend still maps a ring"),
        }
    }
}

/// Has the host watch what the backend does to the rings' indices.
fn register_rings(guest: &SimGuest, host: &UsbHost<SimGuest>) -> Result<()> {
    let (urb, conn) = host.ring_pages().context("no rings")?;
    guest.register_rings(urb)?;
    guest.register_rings(conn)?;
    Ok(())
}

fn watch_shutdown(guest: &SimGuest) -> Result<Store> {
    let mut store = Store::connect(&guest.xenstore_path())?;
    store.watch("control/shutdown", "shutdown")?;
    Ok(store)
}
