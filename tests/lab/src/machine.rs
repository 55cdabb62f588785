// SPDX-License-Identifier: GPL-3.0-or-later
//! One emulated machine: its QEMU, its snapshot, its agent.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::{AGENT_PORT, Agent};
use crate::progress::Step;
use crate::qmp::Qmp;
use crate::switch::link_sockets;
use crate::tree::Tree;

/// Extended processor state (XSAVE and what needs it) is broken for Xen PV guests in this
/// emulation: random programs die. PVH guests crash on RDTSCP. SHA instructions work on another
/// domain's registers after a switch between domains (docs/lab.md, "What the emulator gets wrong").
const CPU: &str =
    "max,-rdtscp,-xsave,-xsaveopt,-xsavec,-xsaves,-avx,-avx2,-fma,-f16c,-vaes,-vpclmulqdq,-sha-ni";

/// Name of the snapshot in a machine's state file.
const SNAPSHOT: &str = "ready";

/// A machine's part in the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Xen and a dom0.
    Host,
    /// A plain Linux with USB controllers.
    Exporter,
}

/// A machine of the lab, by name.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Name: of the machine, of its network link, of its host certificate.
    pub name: &'static str,
    /// Last byte of its address 10.9.0.x.
    pub number: u8,
    /// What it is.
    pub role: Role,
}

/// A second exporter, which is started by the scenarios that need one.
pub const SPARE: Machine = Machine {
    name: "exporter-b",
    number: 4,
    role: Role::Exporter,
};

/// The machines that every scenario has.
pub const MACHINES: &[Machine] = &[
    Machine {
        name: "host-a",
        number: 1,
        role: Role::Host,
    },
    Machine {
        name: "host-b",
        number: 2,
        role: Role::Host,
    },
    Machine {
        name: "exporter",
        number: 3,
        role: Role::Exporter,
    },
];

/// What a machine boots.
pub struct Boot<'a> {
    /// Runs QEMU.
    pub tree: &'a Tree,
    /// The hypervisor's multiboot image, for a host.
    pub hypervisor: Option<&'a Path>,
    /// The kernel's ELF image.
    pub vmlinux: &'a Path,
    /// Initial ramdisk.
    pub ramdisk: &'a Path,
    /// Holds the snapshot; created by `qemu-img`.
    pub state: PathBuf,
    /// Sockets, logs, process ids.
    pub run: &'a Path,
}

impl Machine {
    /// The machine of that name.
    pub fn named(name: &str) -> Result<Self> {
        Self::all()
            .find(|machine| machine.name == name)
            .with_context(|| {
                let names: Vec<_> = Self::all().map(|machine| machine.name).collect();
                format!("no machine {name:?}; there are {}", names.join(", "))
            })
    }

    /// Every machine that there can be.
    pub fn all() -> impl Iterator<Item = Self> {
        MACHINES.iter().copied().chain([SPARE])
    }

    /// Its address on the lab network.
    pub fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 9, 0, self.number)
    }

    fn file(&self, run: &Path, what: &str) -> PathBuf {
        run.join(format!("{}.{what}", self.name))
    }

    /// Its agent, if it was started.
    pub fn agent(&self, run: &Path) -> Result<Agent> {
        let port = fs::read_to_string(self.file(run, "port")).with_context(|| {
            format!(
                "{} is not running; `cargo xtask lab up` starts it",
                self.name
            )
        })?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.trim().parse()?));
        Ok(Agent {
            name: self.name.to_owned(),
            address,
            relay: None,
        })
    }

    /// Where the machine's sound device plays to.
    pub fn recording(&self, run: &Path) -> PathBuf {
        self.file(run, "wav")
    }

    /// Its monitor's socket.
    pub fn monitor(&self, run: &Path) -> PathBuf {
        self.file(run, "qmp")
    }

    /// Its monitor.
    pub fn qmp(&self, run: &Path) -> Result<Qmp> {
        Qmp::connect(&self.monitor(run))
    }

    /// QEMU's process id, if that process is alive and still this machine's QEMU.
    pub fn pid(&self, run: &Path) -> Option<u32> {
        let pid: u32 = fs::read_to_string(self.file(run, "pid"))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let socket = self.file(run, "qmp");
        String::from_utf8_lossy(&command)
            .contains(&*socket.to_string_lossy())
            .then_some(pid)
    }

    /// The hypervisor's image that a running host has booted.
    pub fn booted(&self, run: &Path) -> Option<PathBuf> {
        let pid = self.pid(run).filter(|_| self.role == Role::Host)?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut words = command.split(|byte| *byte == 0);
        words.find(|word| *word == b"-kernel")?;
        Some(PathBuf::from(
            String::from_utf8_lossy(words.next()?).into_owned(),
        ))
    }

    /// Start it: from its snapshot in seconds, or from power-on and then make the snapshot.
    pub fn start(&self, boot: &Boot<'_>) -> Result<()> {
        if !boot.state.exists() {
            return self.cold(boot);
        }
        let step = Step::start(format!("{}: from its snapshot", self.name));
        self.spawn(boot, true)?;
        let agent = self.agent(boot.run)?;
        self.wait(&agent, boot.run, Duration::from_secs(60), None)?;
        agent.clock_offset(true)?;
        step.done();
        Ok(())
    }

    fn cold(&self, boot: &Boot<'_>) -> Result<()> {
        let mut step = Step::start(format!("{}: first boot", self.name));
        let partial = boot.state.with_extension("partial");
        crate::host_tools::output(
            std::process::Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .arg(&partial)
                .arg("64M"),
        )?;
        let started = Boot {
            state: partial.clone(),
            ..*boot
        };
        self.spawn(&started, false)?;
        let agent = self.agent(boot.run)?;
        self.wait(&agent, boot.run, Duration::from_secs(600), Some(&mut step))?;
        agent.clock_offset(true)?;
        step.note("snapshot");
        self.qmp(boot.run)?.human(&format!("savevm {SNAPSHOT}"))?;
        // QEMU keeps the renamed file open; the next start finds it complete.
        fs::rename(&partial, &boot.state)?;
        step.done();
        Ok(())
    }

    fn wait(
        &self,
        agent: &Agent,
        run: &Path,
        timeout: Duration,
        mut step: Option<&mut Step>,
    ) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = agent.wait_ready(Duration::from_secs(1)) {
            let console = fs::read_to_string(self.file(run, "console")).unwrap_or_default();
            let last = console
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty())
                .unwrap_or_default()
                .to_owned();
            if self.pid(run).is_none() {
                bail!(
                    "{}: QEMU ended; {}\nlast on the console: {last}",
                    self.name,
                    fs::read_to_string(self.file(run, "log")).unwrap_or_default()
                );
            }
            if start.elapsed() > timeout {
                return Err(error.context(format!("last on the console: {last}")));
            }
            if let Some(step) = step.as_deref_mut() {
                step.note(&last);
            }
        }
        Ok(())
    }

    fn spawn(&self, boot: &Boot<'_>, load: bool) -> Result<()> {
        let run = boot.run;
        fs::create_dir_all(run)?;
        let port = free_port()?;
        let (up, down) = link_sockets(run, self.name);
        let _ = fs::remove_file(&down);
        let number = self.number;
        let mut command = boot.tree.command("usr/bin/qemu-system-x86_64");
        command.env(
            "QEMU_MODULE_DIR",
            boot.tree.path.join("usr/lib/x86_64-linux-gnu/qemu"),
        );
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(boot.tree.path.join(data));
        }
        command.args([
            "-name",
            self.name,
            "-M",
            "pc",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            CPU,
            "-smp",
            "1",
        ]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        command
            .arg("-serial")
            .arg(format!("file:{}", self.file(run, "console").display()));
        command.arg("-qmp").arg(format!(
            "unix:{},server=on,wait=off",
            self.file(run, "qmp").display()
        ));
        // The state file is attached to nothing in the machine: it only holds the snapshot.
        command.arg("-drive").arg(format!(
            "if=none,id=state,format=qcow2,file={}",
            boot.state.display()
        ));
        command.arg("-netdev").arg(format!(
            "user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:{AGENT_PORT}"
        ));
        command.arg("-device").arg(format!(
            "virtio-net-pci,netdev=n0,romfile=,mac=52:54:00:00:01:{number:02x}"
        ));
        command.arg("-netdev").arg(format!(
            "dgram,id=n1,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            down.display(),
            up.display()
        ));
        command.arg("-device").arg(format!(
            "virtio-net-pci,netdev=n1,romfile=,mac=52:54:00:00:09:{number:02x}"
        ));
        let linux = format!(
            "console={} lab.name={} lab.ip={}",
            if self.role == Role::Host {
                "hvc0"
            } else {
                "ttyS0"
            },
            self.name,
            self.ip()
        );
        match self.role {
            Role::Host => {
                let hypervisor = boot.hypervisor.context("a host needs a hypervisor")?;
                command.args(["-m", "2048", "-kernel"]).arg(hypervisor);
                command.args([
                    "-append",
                    "console=com1 com1=115200,8n1 dom0_mem=1024M,max:1024M noreboot",
                ]);
                command.arg("-initrd").arg(format!(
                    "{} {linux},{}",
                    boot.vmlinux.display(),
                    boot.ramdisk.display()
                ));
            }
            Role::Exporter => {
                command.args(["-m", "512", "-kernel"]).arg(boot.vmlinux);
                command
                    .arg("-append")
                    .arg(linux)
                    .arg("-initrd")
                    .arg(boot.ramdisk);
                // EHCI for high speed; xHCI for everything slower, which this EHCI has no
                // companions for, and for SuperSpeed. A wav audiodev records what a sound device
                // plays; it cannot be added later.
                command.args(["-device", "usb-ehci,id=ehci"]);
                command.args(["-device", "qemu-xhci,id=xhci,p2=8,p3=8"]);
                // For devices with several reads at a time: see "What the emulator gets wrong".
                command.args(["-device", "piix3-usb-uhci,id=uhci"]);
                command.arg("-audiodev").arg(format!(
                    "wav,id=sound,out.frequency=48000,out.format=s16,out.channels=2,path={}",
                    self.file(run, "wav").display()
                ));
            }
        }
        if load {
            command.args(["-loadvm", SNAPSHOT]);
        }
        let log = fs::File::create(self.file(run, "log"))?;
        let _ = fs::remove_file(self.file(run, "console"));
        // A process group of its own: Ctrl-C ends the command, not the machines.
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("starting QEMU")?;
        fs::write(self.file(run, "pid"), child.id().to_string())?;
        fs::write(self.file(run, "port"), port.to_string())?;
        Ok(())
    }

    /// Switch it off.
    pub fn stop(&self, run: &Path) -> Result<()> {
        let Some(pid) = self.pid(run) else {
            return Ok(());
        };
        if let Ok(mut qmp) = self.qmp(run) {
            // QEMU may close the socket before it answers.
            let _ = qmp.execute("quit", serde_json::json!({}));
        }
        end_process(pid, || self.pid(run).is_some())
    }
}

/// Wait for a process to end, then insist.
pub fn end_process(pid: u32, alive: impl Fn() -> bool) -> Result<()> {
    for signal in [None, Some("-TERM"), Some("-KILL")] {
        if let Some(signal) = signal {
            let _ = std::process::Command::new("kill")
                .arg(signal)
                .arg(pid.to_string())
                .status();
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            if !alive() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    bail!("process {pid} does not end")
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}
