// SPDX-License-Identifier: GPL-3.0-or-later
//! The lab as a whole: what it is made of, starting it, stopping it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::Agent;
use crate::cache::{Cache, Key};
use crate::guest_module::Module;
use crate::hypervisor::Hypervisor;
use crate::images::{GuestImages, Images};
use crate::kernel::{Choice, Kernel};
use crate::machine::{Boot, MACHINES, Machine, Role, end_process};
use crate::packages::Apt;
use crate::progress::{Step, patience};
use crate::tree::Tree;
use crate::{device_model, host_tools, images, programs, switch};

/// Everything that is needed to start machines, made if it was not in the cache.
pub struct Lab {
    cache: Cache,
    run: PathBuf,
}

impl Lab {
    /// The lab of this user's cache, running or not.
    pub fn open() -> Result<Self> {
        let cache = Cache::open()?;
        let run = cache.path("run");
        // A Unix socket's path has 108 bytes; QEMU would say so only in its log.
        if run.as_os_str().len() > 80 {
            bail!(
                "{} is too long for Unix sockets; set {} to a shorter path",
                run.display(),
                crate::cache::CACHE_VARIABLE
            );
        }
        fs::create_dir_all(&run)?;
        Ok(Self { cache, run })
    }

    /// Directory of sockets, logs and results.
    pub fn run_directory(&self) -> &Path {
        &self.run
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Agent of a running machine.
    pub fn agent(&self, name: &str) -> Result<Agent> {
        Machine::named(name)?.agent(&self.run)
    }

    /// Make what is missing and start what is not running: these machines, or the usual ones. A host
    /// that runs on another hypervisor than `wanted` is started again.
    pub fn up(&self, names: &[&str], wanted: Option<Hypervisor>) -> Result<()> {
        let start = Instant::now();
        let machines = match names {
            [] => MACHINES.to_vec(),
            _ => names
                .iter()
                .map(|name| Machine::named(name))
                .collect::<Result<_>>()?,
        };
        host_tools::ensure()?;
        let apt = Apt::open(&self.cache);
        let tree = Tree::open(&self.cache, &apt)?;
        let kernel = Kernel::open(&self.cache, &apt, &tree, Choice::Backports)?;
        let hypervisor = if machines.iter().any(|machine| machine.role == Role::Host) {
            let hypervisor = wanted.unwrap_or(Hypervisor::Debian);
            Some(hypervisor.image(&self.cache)?)
        } else {
            None
        };
        let step = Step::start("the lab's own programs");
        let directory = programs::build(&["xen-vusb-lab"])?;
        step.done();
        let images = images::build(&self.cache, &tree, &kernel, &directory)?;
        self.start_switch(&directory)?;
        for machine in &machines {
            if let (Some(wanted), Some(image)) = (wanted, machine.booted(&self.run))
                && !wanted.is_at(&image)
            {
                machine.stop(&self.run)?;
            }
            if machine.pid(&self.run).is_some() {
                eprintln!("lab: {}: already running", machine.name);
                continue;
            }
            let hypervisor = hypervisor.as_deref().filter(|_| machine.role == Role::Host);
            self.start(machine, &tree, &kernel, hypervisor, &images)?;
        }
        eprintln!("lab: up after {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Build a kernel module for a guest if its sources have changed; its path.
    pub fn guest_module(&self, module: Module, kernel: Choice) -> Result<PathBuf> {
        let apt = Apt::of_release(&self.cache, kernel.release());
        module.build(&self.cache, &apt, kernel)
    }

    /// What a host needs to run HVM guests, as one archive.
    pub fn device_model(&self) -> Result<PathBuf> {
        let apt = Apt::open(&self.cache);
        let tree = Tree::open(&self.cache, &apt)?;
        device_model::archive(&self.cache, &apt, &tree)
    }

    /// The image and the ramdisk that a guest with this kernel boots.
    pub fn guest_images(&self, choice: Choice) -> Result<GuestImages> {
        let apt = Apt::open(&self.cache);
        let tree = Tree::open(&self.cache, &apt)?;
        let apt = Apt::of_release(&self.cache, choice.release());
        let kernel = Kernel::open(&self.cache, &apt, &tree, choice)?;
        let programs = programs::build(&["xen-vusb-lab"])?;
        images::guest(&self.cache, &tree, &kernel, choice, &programs)
    }

    fn start(
        &self,
        machine: &Machine,
        tree: &Tree,
        kernel: &Kernel,
        hypervisor: Option<&Path>,
        images: &Images,
    ) -> Result<()> {
        let ramdisk = match machine.role {
            Role::Host => &images.host,
            Role::Exporter => &images.exporter,
        };
        // A snapshot fits the QEMU, the images and the command line that it was taken with.
        let mut key = Key::new()
            .with(machine.name)
            .with_artefact(&tree.path)
            .with_artefact(ramdisk.parent().context("image directory")?)
            .with(include_str!("machine.rs"));
        if let Some(hypervisor) = hypervisor {
            key = key.with_artefact(hypervisor.parent().context("hypervisor directory")?);
        }
        let directory = self
            .cache
            .artefact(&format!("snapshot-{}", machine.name), key, |_| Ok(()))?;
        let boot = Boot {
            tree,
            hypervisor,
            vmlinux: &kernel.vmlinux,
            ramdisk,
            state: directory.join("state.qcow2"),
            run: &self.run,
        };
        machine.start(&boot)
    }

    fn switch_pid(&self) -> Option<u32> {
        let pid: u32 = fs::read_to_string(self.run.join("switch.pid"))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&command)
            .contains("lab-switch")
            .then_some(pid)
    }

    fn stop_switch(&self) -> Result<()> {
        let Some(pid) = self.switch_pid() else {
            return Ok(());
        };
        let _ = Command::new("kill").arg(pid.to_string()).status();
        end_process(pid, || self.switch_pid().is_some())
    }

    /// One that was started before there was a machine has no link for it.
    fn switch_knows_all(&self, pid: u32) -> bool {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).collect();
        Machine::all().all(|machine| words.contains(&machine.name.as_bytes()))
    }

    fn start_switch(&self, programs: &Path) -> Result<()> {
        if let Some(pid) = self.switch_pid() {
            if self.switch_knows_all(pid) {
                return Ok(());
            }
            self.stop_switch()?;
        }
        let log = fs::File::create(self.run.join("switch.log"))?;
        let child = Command::new(programs.join("lab-switch"))
            .arg(&self.run)
            .args(Machine::all().map(|machine| machine.name))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("starting the switch")?;
        fs::write(self.run.join("switch.pid"), child.id().to_string())?;
        let start = Instant::now();
        while switch::control(&self.run, MACHINES[0].name).is_err() {
            if start.elapsed() > patience(10) {
                bail!(
                    "the switch does not answer: {}",
                    fs::read_to_string(self.run.join("switch.log")).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Every machine as it was right after its first boot, the hosts on this hypervisor.
    pub fn fresh(&self, hypervisor: Hypervisor) -> Result<()> {
        self.fresh_some(&[], hypervisor)
    }

    /// The same for these machines; the others are stopped.
    pub fn fresh_some(&self, names: &[&str], hypervisor: Hypervisor) -> Result<()> {
        for machine in Machine::all() {
            machine.stop(&self.run)?;
        }
        self.up(names, Some(hypervisor))
    }

    /// Stop every machine and the switch.
    pub fn down(&self) -> Result<()> {
        for machine in Machine::all() {
            machine.stop(&self.run)?;
        }
        self.stop_switch()?;
        eprintln!("lab: down");
        Ok(())
    }

    /// Print machines and scenarios.
    pub fn list(&self) {
        for machine in Machine::all() {
            let state = match machine.pid(&self.run) {
                Some(pid) => format!("running, process {pid}"),
                None => "off".to_owned(),
            };
            println!(
                "machine   {:<14} {:<11} {state}",
                machine.name,
                machine.ip()
            );
        }
        for scenario in crate::scenario::SCENARIOS {
            println!("scenario  {:<14} {}", scenario.name, scenario.purpose);
        }
    }
}
