// SPDX-License-Identifier: GPL-3.0-or-later
//! A host of a rig: `xen-sim` and `vusbd-sim`.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xen::DomId;
use xen_sim::toolstack::Toolstack;

use super::guest::OWN;
use super::store_link::StoreLink;
use super::tls_section;
use crate::process::Process;
use crate::programs;

/// A simulated host with its daemon.
#[derive(Debug)]
pub struct Host {
    name: String,
    dir: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    store_link: Option<StoreLink>,
    /// Plays `xl` there, or the toolstack of [`RigOptions::dialect`](super::RigOptions::dialect).
    pub xl: Toolstack,
    /// Before `xen`: it lets go of everything first.
    vusbd: Mutex<Process>,
    xen: Process,
    has_power: bool,
    made: Made,
}

/// How a host was made, and is made again.
#[derive(Clone, Debug)]
struct Made {
    rig_dir: PathBuf,
    logs: PathBuf,
    first_domid: u16,
    seed: u64,
    exporters: Vec<(&'static str, String)>,
    hand_off: String,
    of_exporter: String,
}

impl Host {
    pub(super) fn start(
        rig_dir: &Path,
        logs: &Path,
        name: &str,
        first_domid: u16,
        seed: u64,
        exporters: &[(&'static str, String)],
        (hand_off, of_exporter): (&str, &str),
    ) -> Result<Self> {
        let dir = rig_dir.join(name);
        let mut command = Command::new(programs::path("xen-sim")?);
        command.arg("--dir").arg(&dir).args(["--name", name]);
        command.args(["--first-domid", &first_domid.to_string()]);
        command.args(["--seed", &seed.to_string()]);
        command.stdout(Stdio::piped());
        let log = logs.join(format!("{name}-xen-sim.log"));
        let mut xen = Process::start("xen-sim", command, &log)?;
        xen.wait_for_line("ready")?;
        let xl = Toolstack::connect(&dir)?;
        let socket = dir.join("vusbd.sock");
        let config = dir.join("vusbd.toml");
        let text = format!(
            "socket = \"{}\"\n{}[hand-off]\n{hand_off}\n{}",
            socket.display(),
            tls_section(rig_dir, name),
            exporters
                .iter()
                .map(|(name, address)| {
                    format!(
                        "[[exporter]]\nname = \"{name}\"\naddress = \"{address}\"\n{of_exporter}\n"
                    )
                })
                .collect::<String>(),
        );
        std::fs::write(&config, text)?;
        let log = logs.join(format!("{name}-vusbd.log"));
        let vusbd = run(&dir, &config, &socket, &log, None)?;
        Ok(Self {
            name: name.to_owned(),
            dir,
            config,
            socket,
            log,
            store_link: None,
            xl,
            vusbd: Mutex::new(vusbd),
            xen,
            has_power: true,
            made: Made {
                rig_dir: rig_dir.to_owned(),
                logs: logs.to_owned(),
                first_domid,
                seed,
                exporters: exporters.to_vec(),
                hand_off: hand_off.to_owned(),
                of_exporter: of_exporter.to_owned(),
            },
        })
    }

    /// Whether vusbd has made a controller of a domain.
    pub(super) fn has_own_controller(&self, domid: DomId) -> bool {
        let backends = format!("/local/domain/0/backend/vusb/{domid}");
        let devids = self.xl.store().and_then(|mut s| s.directory(&backends));
        let is_own = |devid: &String| devid.parse().is_ok_and(|devid: u32| devid >= OWN);
        devids.unwrap_or_default().iter().any(is_own)
    }

    /// Waits until vusbd has made these controllers; a while, for it may be one that cannot.
    pub fn wait_for_controllers(&self, domid: DomId, devids: &[u16]) {
        let deadline = Instant::now() + Duration::from_secs(5);
        let Ok(mut store) = self.xl.store() else {
            return;
        };
        for devid in devids {
            let state = format!("/local/domain/0/backend/vusb/{domid}/{devid}/state");
            while !matches!(store.read(&state), Ok(Some(state)) if state == "2")
                && Instant::now() < deadline
            {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// The directory of its `xen-sim`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its vusbd's control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its vusbd's configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Whether its vusbd is alive.
    pub fn vusbd_runs(&self) -> bool {
        self.vusbd().is_running()
    }

    fn vusbd(&self) -> MutexGuard<'_, Process> {
        self.vusbd.lock().expect("no holder panics")
    }

    /// Kills vusbd as a crash would, and starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_vusbd(&self) -> Result<()> {
        self.kill_vusbd()?;
        self.start_vusbd()
    }

    /// Kills vusbd as a crash would.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_vusbd(&self) -> Result<()> {
        let mut vusbd = self.vusbd();
        vusbd.signal(libc::SIGKILL);
        vusbd.wait().map(drop)
    }

    /// The host loses power: nothing of it is left, and nobody was told. Its guests' processes are
    /// the caller's to end. It comes back with [`Host::power_on`].
    ///
    /// # Errors
    /// When a process does not end.
    pub fn lose_power(&mut self) -> Result<()> {
        self.kill_vusbd()?;
        self.xen.signal(libc::SIGKILL);
        self.xen.wait()?;
        self.has_power = false;
        Ok(())
    }

    /// The host boots after it has lost power: without domains, and vusbd remembers nothing.
    ///
    /// # Errors
    /// What did not start.
    pub fn power_on(&mut self) -> Result<()> {
        std::fs::remove_dir_all(&self.dir)?;
        let (made, dialect) = (self.made.clone(), self.xl.dialect());
        let more = (made.hand_off.as_str(), made.of_exporter.as_str());
        *self = Self::start(
            &made.rig_dir,
            &made.logs,
            &self.name,
            made.first_domid,
            made.seed,
            &made.exporters,
            more,
        )?;
        self.xl.speak(dialect);
        Ok(())
    }

    /// Asks vusbd to end, as `systemctl restart` does.
    ///
    /// # Errors
    /// When it does not end.
    pub fn terminate_vusbd(&self) -> Result<()> {
        let mut vusbd = self.vusbd();
        vusbd.signal(libc::SIGTERM);
        vusbd.wait().map(drop)
    }

    /// Starts vusbd after it has ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_vusbd(&self) -> Result<()> {
        let link = self.store_link.as_ref();
        *self.vusbd() = run(&self.dir, &self.config, &self.socket, &self.log, link)?;
        Ok(())
    }

    /// The command that starts its vusbd, for a test that starts it itself.
    ///
    /// # Errors
    /// When the program cannot be found.
    pub fn vusbd_command(&self) -> Result<Command> {
        command(&self.dir, &self.config, self.store_link.as_ref())
    }

    /// Stops its xenstored and its hypervisor in their tracks (SIGSTOP), or lets them go on.
    pub fn pause_xen(&self, paused: bool) {
        let signal = if paused { libc::SIGSTOP } else { libc::SIGCONT };
        self.xen.signal(signal);
    }

    /// From now on vusbd reaches xenstored through something that can be lost.
    pub(super) fn link_store(&mut self) -> Result<()> {
        let path = self.dir.join("link.sock");
        let link = StoreLink::start(&path, &self.dir.join("xenstored.sock"))?;
        self.store_link = Some(link);
        self.restart_vusbd()
    }

    /// vusbd loses its connection to xenstored, and does not find it for a while. Needs
    /// [`RigOptions::lose_store`](super::RigOptions::lose_store).
    pub fn lose_store(&self, how_long: Duration) {
        if let Some(link) = &self.store_link {
            link.lose(how_long);
        }
    }

    /// The memory that its vusbd has in use now, in KiB.
    ///
    /// # Errors
    /// When it does not run.
    pub fn vusbd_rss_kib(&self) -> Result<u64> {
        self.vusbd().rss_kib()
    }

    /// The processor time that each thread of its vusbd has used so far, by name: a controller's is
    /// `vusb-DOMID-DEVID`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn vusbd_thread_times(&self) -> Result<BTreeMap<String, Duration>> {
        self.vusbd().thread_times()
    }

    /// What vusbd has logged.
    pub fn vusbd_log(&self) -> String {
        self.vusbd().log()
    }

    pub(super) fn log_tails(&self) -> String {
        let Self { name, xen, .. } = self;
        let vusbd = self.vusbd();
        format!(
            "--- vusbd of {name}\n{}\n--- xen-sim {name}\n{}\n",
            vusbd.log_tail(),
            xen.log_tail()
        )
    }

    pub(super) fn stop(self) -> Result<Vec<String>> {
        if !self.has_power {
            return Ok(Vec::new());
        }
        let vusbd = self.vusbd.into_inner().expect("no holder panics");
        vusbd.terminate()?;
        drop(self.xl);
        self.xen.terminate()?;
        let violations = std::fs::read_to_string(self.dir.join("violations"))
            .context("the host's list of violations")?;
        Ok(violations
            .lines()
            .map(|line| format!("{}: {line}", self.name))
            .collect())
    }
}

fn run(
    dir: &Path,
    config: &Path,
    socket: &Path,
    log: &Path,
    store_link: Option<&StoreLink>,
) -> Result<Process> {
    let command = command(dir, config, store_link)?;
    let mut vusbd = Process::start("vusbd-sim", command, log)?;
    vusbd.wait_until("listening", || UnixStream::connect(socket).is_ok())?;
    Ok(vusbd)
}

fn command(dir: &Path, config: &Path, store_link: Option<&StoreLink>) -> Result<Command> {
    let mut command = Command::new(programs::path("vusbd-sim")?);
    command.arg("--host-dir").arg(dir);
    command.arg("--config").arg(config);
    if let Some(link) = store_link {
        command.arg("--xenstored").arg(link.path());
    }
    Ok(command)
}
