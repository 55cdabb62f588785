// SPDX-License-Identifier: GPL-3.0-or-later
//! Two hosts, an exporter and guests, every one a process of its own.

mod devices;
mod domain;
mod exporter;
mod guest;
mod host;
mod proxy;
mod store_link;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use control::{Attachment, Response, Status};
use xen::DomId;
use xen_sim::toolstack::{Dialect, MigrateError, MigrateOptions, Migration, Step};
use xl_hooks::pool;

pub use devices::Devices;
pub use domain::Domain;
pub use exporter::{EXPORTER, Exporter, SECOND_EXPORTER};
pub use guest::{Guest, GuestOptions};
pub use host::Host;
pub use proxy::Proxy;

use crate::guest::Report;
use crate::programs;
use crate::scratch::ScratchDir;

/// The names of the hosts in the pool.
pub const HOSTS: [&str; 2] = ["host-a", "host-b"];

/// How a rig is made.
#[derive(Clone, Debug)]
pub struct RigOptions {
    /// The disk's image, instead of a fresh one of 64 MiB that is gone afterwards.
    pub disk: Option<PathBuf>,
    /// Seed of the simulated hosts' spurious events.
    pub seed: u64,
    /// Where the exporter's hosts reach it, instead of directly.
    pub exporter_address: Option<String>,
    /// Where the second host reaches it, instead of as the first one does.
    pub second_host_address: Option<String>,
    /// How long the exporter keeps a device for a VM whose domain is gone, in seconds; its default
    /// otherwise.
    pub hold_seconds: Option<u64>,
    /// The same for a VM that was saved, as the exporter's configuration says it.
    pub saved_hold_seconds: Option<String>,
    /// How long a holder is silent before another domain with its VM's uuid may have its devices, in seconds;
    /// the exporter's default otherwise.
    pub takeover_seconds: Option<u64>,
    /// How long a lease waits for a holder that is not connected, in seconds; for ever otherwise.
    pub disconnected_hold_seconds: Option<u64>,
    /// The exporter's port; one that is free by default.
    pub exporter_port: Option<u16>,
    /// More keys of the hosts' `[[exporter]]` section.
    pub on_unreachable: String,
    /// Keys of the hosts' `[hand-off]` section.
    pub hand_off: String,
    /// The `[[allow]]` sections of the exporter's configuration.
    pub policy: String,
    /// More `[[simulated]]` sections for the exporter: the disk is at 0-1, these from 0-2 on.
    pub devices: String,
    /// The `[[simulated]]` sections of another exporter, from 0-1 on, where there is one. `{disk}` is the
    /// disk's image, which only one of them can have plugged in.
    pub second_exporter: Option<String>,
    /// Whether the exporter's certificate is of another pool.
    pub foreign_exporter: bool,
    /// Whether the hosts' vusbd can [lose xenstored](Host::lose_store).
    pub lose_store: bool,
    /// Which toolstack the hosts have.
    pub dialect: Dialect,
    /// Where the programs' logs go, instead of into the rig's own directory.
    pub logs: Option<PathBuf>,
}

impl Default for RigOptions {
    fn default() -> Self {
        Self {
            disk: None,
            seed: 1,
            exporter_address: None,
            second_host_address: None,
            hold_seconds: None,
            saved_hold_seconds: None,
            takeover_seconds: None,
            disconnected_hold_seconds: None,
            on_unreachable: String::new(),
            hand_off: String::new(),
            exporter_port: None,
            policy: "[[allow]]\ndevice = \"*\"\nvm = \"*\"\nhost = \"*\"\n".into(),
            devices: String::new(),
            second_exporter: None,
            foreign_exporter: false,
            lose_store: false,
            dialect: Dialect::default(),
            logs: None,
        }
    }
}

impl RigOptions {
    /// Puts a network that can be cut between the exporter and the hosts.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn cuttable(&mut self) -> Result<Proxy> {
        let proxy = self.proxy()?;
        self.exporter_address = Some(proxy.address());
        Ok(proxy)
    }

    /// The same for the second host alone.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn second_host_cuttable(&mut self) -> Result<Proxy> {
        let proxy = self.proxy()?;
        self.second_host_address = Some(proxy.address());
        Ok(proxy)
    }

    fn proxy(&mut self) -> Result<Proxy> {
        let port = match self.exporter_port {
            Some(port) => port,
            None => *self.exporter_port.insert(free_port()?),
        };
        Proxy::start(port).context("no network to the exporter")
    }
}

/// The running system. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Rig {
    /// The hosts, named [`HOSTS`].
    pub hosts: Vec<Host>,
    /// The exporter.
    pub exporter: Exporter,
    /// Another one.
    pub second: Option<Exporter>,
    logs: PathBuf,
    scratch: ScratchDir,
}

impl Rig {
    /// Makes a pool and starts everything.
    ///
    /// # Errors
    /// What did not start, with the end of its log.
    pub fn start(options: &RigOptions) -> Result<Self> {
        let scratch = ScratchDir::new().context("cannot make a directory for the run")?;
        let dir = scratch.path();
        let logs = options.logs.clone().unwrap_or_else(|| kept_logs(dir));
        std::fs::create_dir_all(&logs)?;
        let pool_dir = dir.join("pool");
        pool::init(&pool_dir, "simulator")?;
        for name in HOSTS {
            pool::issue(&pool_dir, name, None)?;
        }
        let exporters_pool = match options.foreign_exporter {
            true => dir.join("other-pool"),
            false => pool_dir.clone(),
        };
        if options.foreign_exporter {
            pool::init(&exporters_pool, "another")?;
        }
        pool::issue(&exporters_pool, EXPORTER, Some(&pool_dir.join(EXPORTER)))?;
        let port = match options.exporter_port {
            Some(port) => port,
            None => free_port()?,
        };
        let exporter = Exporter::start(dir, &logs, port, options)?;
        let address = options
            .exporter_address
            .clone()
            .unwrap_or_else(|| exporter.address());
        let second = match &options.second_exporter {
            Some(devices) => {
                pool::issue(&pool_dir, SECOND_EXPORTER, None)?;
                let port = free_port()?;
                let second = Exporter::start_second(dir, &logs, port, options, devices)?;
                Some(second)
            }
            None => None,
        };
        let mut hosts = Vec::new();
        for (index, name) in (0..).zip(HOSTS) {
            let seed = options.seed.wrapping_add(index);
            let first_domid = 1 + 20 * index as u16;
            let address = match &options.second_host_address {
                Some(other) if index > 0 => other,
                _ => &address,
            };
            let more = (options.hand_off.as_str(), options.on_unreachable.as_str());
            let mut exporters = vec![(EXPORTER, address.clone())];
            exporters.extend(second.as_ref().map(|s| (SECOND_EXPORTER, s.address())));
            let mut host = Host::start(dir, &logs, name, first_domid, seed, &exporters, more)?;
            host.xl.speak(options.dialect);
            if options.lose_store {
                host.link_store()?;
            }
            hosts.push(host);
        }
        let rig = Self {
            hosts,
            exporter,
            second,
            logs,
            scratch,
        };
        if !options.foreign_exporter {
            rig.wait_for_exporter()?;
        }
        Ok(rig)
    }

    /// Waits until every host is connected to the exporter.
    ///
    /// # Errors
    /// When one is not, after a while.
    pub fn wait_for_exporter(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        for (host, name) in HOSTS.iter().enumerate() {
            while let Some(error) = self
                .status(host)?
                .exporters
                .iter()
                .find_map(|e| e.error.clone())
            {
                if Instant::now() > deadline {
                    bail!("{name} is not connected: {error}");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// Waits until nobody holds the exporter's device any more.
    ///
    /// # Errors
    /// When somebody does after a while, with all logs.
    pub fn wait_until_free(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let devices = self.xl_vusb(0, &["devices"])?;
            if String::from_utf8_lossy(&devices.stdout).contains("free") {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the device is not given back\n{}", self.log_tails());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The rig's own directory, gone with it.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Where the programs' logs are.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Runs `xl-vusb` at a host.
    ///
    /// # Errors
    /// When it cannot be started. What it says is the caller's to judge.
    pub fn xl_vusb(&self, host: usize, arguments: &[&str]) -> Result<Output> {
        Command::new(programs::path("xl-vusb")?)
            .arg("--socket")
            .arg(self.hosts[host].socket())
            .args(arguments)
            .output()
            .context("cannot run xl-vusb")
    }

    /// Runs `xl-vusb --json` at a host; it must succeed.
    ///
    /// # Errors
    /// With its message.
    pub fn xl_vusb_json(&self, host: usize, arguments: &[&str]) -> Result<Response> {
        let output = self.xl_vusb(host, &[arguments, &["--json"]].concat())?;
        if !output.status.success() {
            bail!(
                "xl-vusb {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Attaches the simulated disk to a guest, at its first free port.
    ///
    /// # Errors
    /// With the message of `xl-vusb`.
    pub fn attach_disk(&self, guest: &Guest) -> Result<Attachment> {
        let device = format!("{EXPORTER}/0-1");
        match self.xl_vusb_json(guest.host, &["attach", guest.name(), &device])? {
            Response::Attached(attachment) => Ok(*attachment),
            other => bail!("xl-vusb attach answered {other:?}"),
        }
    }

    /// `xl-vusb status` of a host.
    ///
    /// # Errors
    /// With the message of `xl-vusb`.
    pub fn status(&self, host: usize) -> Result<Status> {
        match self.xl_vusb_json(host, &["status"])? {
            Response::Status(status) => Ok(*status),
            other => bail!("xl-vusb status answered {other:?}"),
        }
    }

    /// `xl migrate` of a guest, or what it is with the hosts' toolstack. It is where it was when that fails.
    ///
    /// # Errors
    /// Those of the toolstack.
    pub fn migrate(
        &self,
        guest: &mut Guest,
        to: usize,
        options: &MigrateOptions,
    ) -> Result<Migration, MigrateError> {
        self.migrate_by_steps(guest, to, options, |_| ())
    }

    /// The same, where `at` is called after each step.
    ///
    /// # Errors
    /// Those of the toolstack.
    pub fn migrate_by_steps(
        &self,
        guest: &mut Guest,
        to: usize,
        options: &MigrateOptions,
        mut at: impl FnMut(Step),
    ) -> Result<Migration, MigrateError> {
        let from = (guest.host, guest.domid);
        let migration = self.migrate_domain(from, to, options, &mut at)?;
        guest.host = to;
        guest.domid = migration.domid;
        Ok(migration)
    }

    /// The controllers of a domain that vusbd has made, and that have a device: those are made again where the
    /// domain goes to.
    fn controllers_in_use(&self, host: usize, domid: DomId) -> Vec<u16> {
        let attachments = self.status(host).map(|status| status.attachments);
        let mut attachments = attachments.unwrap_or_default();
        attachments.retain(|a| a.domid == domid.0 && u32::from(a.controller) >= guest::OWN);
        attachments.iter().map(|a| a.controller).collect()
    }

    /// The memory of a real guest takes seconds to copy, in which the target's vusbd makes its controllers.
    fn migrate_domain(
        &self,
        (host, domid): (usize, DomId),
        to: usize,
        options: &MigrateOptions,
        at: &mut dyn FnMut(Step),
    ) -> Result<Migration, MigrateError> {
        let source = &self.hosts[host].xl;
        let mut step = |step, incoming| {
            at(step);
            if step == Step::TargetMade && self.hosts[host].has_own_controller(domid) {
                let devids = self.controllers_in_use(host, domid);
                self.hosts[to].wait_for_controllers(incoming, &devids);
            }
        };
        source.migrate_by_steps(domid, &self.hosts[to].xl, options, &mut step)
    }

    /// Ends everything in order, and gives what the hosts have seen that must not be.
    ///
    /// # Errors
    /// When a program does not end when asked to.
    pub fn stop(self) -> Result<Vec<String>> {
        let mut violations = Vec::new();
        for host in self.hosts {
            violations.extend(host.stop()?);
        }
        self.exporter.stop()?;
        if let Some(second) = self.second {
            second.stop()?;
        }
        Ok(violations)
    }

    /// Ends a guest and the rig, and looks whether anything was lost, doubled or wrong.
    ///
    /// # Panics
    /// When it was.
    pub fn end(self, guest: Guest) -> Report {
        let report = match guest.stop(&self) {
            Ok(report) => report,
            Err(e) => panic!("{e:#}\n{}", self.log_tails()),
        };
        assert_eq!(
            (report.lost, report.duplicated, report.mismatches),
            (0, 0, 0),
            "{report:?}"
        );
        assert!(report.violations.is_empty(), "{report:?}");
        match self.stop() {
            Ok(violations) => assert_eq!(violations, Vec::<String>::new()),
            Err(e) => panic!("{e:#}"),
        }
        report
    }

    /// The same for a guest that has worked, and noticed nothing but pauses.
    ///
    /// # Panics
    /// When it has.
    pub fn end_unnoticed(self, guest: Guest) {
        let report = self.end(guest);
        assert!(report.commands > 0, "{report:?}");
        assert_eq!((report.errors, report.disconnects), (0, 0), "{report:?}");
    }

    /// The ends of all logs, for whoever has to find out what went wrong.
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for host in &self.hosts {
            text.push_str(&host.log_tails());
        }
        text.push_str(&format!("--- exporter\n{}\n", self.exporter.log_tail()));
        if let Some(second) = &self.second {
            text.push_str(&format!("--- {SECOND_EXPORTER}\n{}\n", second.log_tail()));
        }
        text
    }
}

/// In the rig's own directory, or below `XEN_VUSB_SIM_LOGS`, to look at after a scenario failed.
fn kept_logs(dir: &Path) -> PathBuf {
    match (std::env::var_os("XEN_VUSB_SIM_LOGS"), dir.file_name()) {
        (Some(logs), Some(name)) => Path::new(&logs).join(name),
        _ => dir.join("logs"),
    }
}

/// A TCP port of this machine that nobody listens on.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free TCP port")?;
    Ok(listener.local_addr()?.port())
}

/// The `[tls]` section for the certificate that the rig's pool issued to `name`.
fn tls_section(dir: &Path, name: &str) -> String {
    let tls = dir.join("pool").join(name);
    let file = |name: &str| tls.join(name).display().to_string();
    format!(
        "[tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
        file(pool::CA_CERT),
        file(pool::HOST_CERT),
        file(pool::HOST_KEY)
    )
}
