// SPDX-License-Identifier: GPL-3.0-or-later
//! From a configuration to a running exporter.

use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use slog::{Logger, error, info, warn};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::{LocalSet, spawn_local};
use transport::{Acceptor, Identity};

use crate::Config;
use crate::config::tls_dir;
use crate::connection;
use crate::executor::Executor;
use crate::hub::Hub;
use crate::sim::{self, SimulatedDevice};
use crate::store::Store;
use crate::usb::{Bus, Change, Usb, UsbDevice};

/// How long devices and files may take when we end.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// An exporter that is about to run.
pub struct Daemon {
    config: Config,
    identity: Identity,
    log: Logger,
}

impl Daemon {
    /// Loads what the configuration names.
    pub fn new(config: Config, log: Logger) -> anyhow::Result<Self> {
        let tls = config.tls.files(&tls_dir());
        let identity = tls.load()?;
        if let Some(name) = &config.name
            && name != identity.name()
        {
            bail!(
                "the configuration says that this is '{name}', but {} is for '{}'",
                tls.cert.display(),
                identity.name()
            );
        }
        Ok(Self {
            config,
            identity,
            log,
        })
    }

    /// Runs until `stop` is done. Calls `ready` with the address once it listens. To be called
    /// outside of any runtime: it makes its own, on this thread.
    pub fn run(
        self,
        ready: impl FnOnce(SocketAddr),
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make a runtime")?;
        let local = LocalSet::new();
        let usb = Arc::new(Usb::new());
        let result = local.block_on(&runtime, self.serve(&usb, ready, stop));
        // Whatever has a device open lets go of it. One that does not answer must not keep us from ending.
        drop(local);
        usb.wait_until_closed(END_TIMEOUT);
        runtime.shutdown_timeout(END_TIMEOUT);
        result
    }

    async fn serve(
        self,
        usb: &Arc<Usb>,
        ready: impl FnOnce(SocketAddr),
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let Self {
            config,
            identity,
            log,
        } = self;
        let store = Store::open(&config.state_dir)?;
        let hub = Hub::new(
            log.clone(),
            config.policy(),
            config.attach.clone(),
            config.hold_times(),
            store.clone(),
        )?;
        let hub = Rc::new(hub);
        for (at, simulated) in config.simulated.iter().enumerate() {
            if !simulated.plugged {
                continue;
            }
            let device =
                SimulatedDevice::open(simulated, at + 1).with_context(|| {
                    match &simulated.file {
                        Some(file) => format!("simulated disk {}", file.display()),
                        None => format!("simulated device 0-{}", at + 1),
                    }
                })?;
            hub.add_device(Executor::Simulated(Box::new(device)));
        }
        let (changes, mut changed) = unbounded_channel();
        // Ends its threads when we end.
        let _bus = match config.usb.enabled {
            true => start_bus(&log, changes),
            false => None,
        };
        while let Ok(change) = changed.try_recv() {
            apply(&hub, change, usb);
        }
        hub.wait_for_missing();
        if let Err(refusal) = hub.save().await {
            bail!(refusal);
        }
        if let Err(e) = store.note_boot() {
            error!(
                log,
                "the next restart of this machine will go unnoticed: {:#}", e
            );
        }

        if let Some(path) = &config.simulated_control {
            // Before the listener: whoever sees us listen may use it.
            let control = sim::Control::bind(path)
                .with_context(|| format!("cannot make {}", path.display()))?;
            spawn_local(control.serve(hub.clone(), config.simulated.clone()));
        }
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.local_addr().context("no local address")?;
        store
            .save_port(address.port())
            .with_context(|| format!("cannot write to {}", config.state_dir.display()))?;
        info!(log, "{} listens on {}", identity.name(), address);
        ready(address);
        tokio::select! {
            () = connection::accept(hub.clone(), listener, Acceptor::new(&identity)) => (),
            () = hub.expire() => (),
            () = hub.save_changes() => (),
            () = hub.publish_changes() => (),
            () = hub.keep_hosts() => (),
            () = hub.open_reserved() => (),
            () = hub.execute_rules() => (),
            // Here, in the loop of all sessions: stuck, it must not look alive.
            never = service::watchdog() => match never {},
            () = async {
                while let Some(change) = changed.recv().await {
                    apply(&hub, change, usb);
                }
                // Without real devices there are no changes.
                pending().await
            } => (),
            () = stop => info!(log, "stopping"),
        }
        // What nobody waited for yet. A failure is in the log.
        let _ = hub.save_all().await;
        hub.save_hosts().await;
        Ok(())
    }
}

/// Without libusb there are still simulated devices.
fn start_bus(log: &Logger, changes: UnboundedSender<Change>) -> Option<Bus> {
    match Bus::start(log, changes) {
        Ok(bus) => Some(bus),
        Err(e) => {
            warn!(log, "no USB devices here: {}", e);
            None
        }
    }
}

fn apply(hub: &Hub, change: Change, usb: &Arc<Usb>) {
    match change {
        Change::Added(device, info) => {
            let device = UsbDevice::new(&device, info, usb.clone());
            hub.add_device(Executor::Usb(Box::new(device)));
        }
        Change::Removed(device) => hub.remove_device(&device),
    }
}
