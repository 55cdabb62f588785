// SPDX-License-Identifier: GPL-3.0-or-later
//! Sits at both ends of `xl migrate` in dom0, and makes of it what xenopsd or libvirt would do to xenstore, in
//! their order. libxl still makes the domain and carries its memory.
//!
//! `send` is the command that `xl migrate -s ''` starts instead of ssh; `receive` starts `xl migrate-receive`.
//! Both pass the stream on and hold back the two messages that the order of a migration hangs on.
//!
//! | | xenopsd (`xenops_server.ml`, `xenops_server_xen.ml`, `domain.ml`) | libvirt |
//! |---|---|---|
//! | the domain appears at the target | name of the VM; `final-uuid`, `/xenops/domain/N` | name of the VM |
//! | the guest is suspended, its memory is there | the source's nodes move to the source's temporary uuid, with `origin-uuid` | |
//! | the source gives the VM away | `final-uuid` goes, then the target's nodes move to the VM's uuid | |
//! | the source is destroyed | `backend/*/N`, `/xenops/domain/N` and `/vm/TEMPORARY` go | |
//!
//! Not as there: `xl` renames the domain at the target from `NAME--incoming` right before it lets it run, and
//! compares the name first. So the name is that for some milliseconds, when the source has given the VM away.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, ValueEnum};
use tokio::runtime::Handle;
use xen::xenstore::{Endpoint, Nodes, XenStore};

/// What the target says to the source when all memory is there.
const READY: &[u8] = b"domain received, ready to unpause";
/// The last digit of xenopsd's temporary uuids.
const SOURCE: u8 = 0;
const TARGET: u8 = 1;
const DOMAINS: &str = "/local/domain";
const INCOMING: &str = "--incoming";
/// How long a domain may take to appear or to go.
const PATIENCE: Duration = Duration::from_secs(300);
/// Most bytes that are passed on at once.
const PIECE: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dialect {
    Xenopsd,
    Libvirt,
}

#[derive(Clone, Debug, Args)]
struct Vm {
    /// Whose nodes and order are imitated.
    dialect: Dialect,
    /// The VM's uuid.
    uuid: String,
    /// Its name.
    name: String,
}

#[derive(Parser)]
enum Arguments {
    /// The source's end.
    Send {
        #[command(flatten)]
        vm: Vm,
        /// The domain that leaves.
        domid: u32,
        /// Address and port of the target's end.
        target: String,
    },
    /// The target's end.
    Receive {
        #[command(flatten)]
        vm: Vm,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse() {
        Arguments::Send { vm, domid, target } => send(&vm, domid, &target),
        Arguments::Receive { vm } => receive(&vm),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("lab-toolstack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Vm {
    /// xenopsd's temporary uuid, at the source (0) or the target (1): the first 24 characters of the VM's,
    /// and 12 digits.
    fn temporary(&self, end: u8) -> String {
        let start = self.uuid.get(..24).unwrap_or_default();
        format!("{start}00000000000{end}")
    }
}

/// xenstore, for threads that wait for it.
struct Store {
    handle: Handle,
    store: XenStore,
}

impl Store {
    /// Connects; a thread of its own reads the answers, as long as the process lives.
    fn connect() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let endpoint = Endpoint::detect()?;
        let (store, _events) = runtime.block_on(XenStore::connect(&endpoint))?;
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        Ok(Self { handle, store })
    }

    fn read(&self, path: &str) -> Result<Option<String>> {
        Ok(self.handle.block_on(self.store.read_optional(path))?)
    }

    fn list(&self, path: &str) -> Result<Vec<String>> {
        match self.handle.block_on(self.store.directory(path)) {
            Ok(names) => Ok(names),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn remove(&self, path: &str) -> Result<()> {
        match self.handle.block_on(self.store.rm(path)) {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn write(&self, path: &str, value: &str) -> Result<()> {
        Ok(self.handle.block_on(self.store.write(path, value))?)
    }

    /// Several nodes in one transaction.
    fn write_all(&self, nodes: &[(String, String)]) -> Result<()> {
        let written = self.store.transaction(async |t| {
            for (path, value) in nodes {
                t.write(path, value).await?;
            }
            Ok::<_, xen::xenstore::Error>(())
        });
        Ok(self.handle.block_on(written)?)
    }

    /// A VM's nodes get another uuid: those below `/vm`, and what names them in the domain's.
    fn rename(&self, domid: u32, from: &str, to: &str) -> Result<()> {
        let (from, to) = (&format!("/vm/{from}"), &format!("/vm/{to}"));
        let moved = self.store.transaction(async |t| {
            copy(&t, from, to).await?;
            t.rm(from).await?;
            t.write(&format!("{DOMAINS}/{domid}/vm"), to).await
        });
        Ok(self.handle.block_on(moved)?)
    }

    /// What xenopsd removes when it has destroyed a domain: every backend, whoever made it.
    fn remove_domain(&self, vm: &Vm, domid: u32) -> Result<()> {
        let start = Instant::now();
        while self.read(&format!("{DOMAINS}/{domid}/name"))?.is_some() {
            if start.elapsed() > PATIENCE {
                bail!("domain {domid} was not destroyed");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let backends = format!("{DOMAINS}/0/backend");
        for kind in self.list(&backends)? {
            self.remove(&format!("{backends}/{kind}/{domid}"))?;
        }
        self.remove(&format!("/xenops/domain/{domid}"))?;
        self.remove(&format!("/vm/{}", vm.temporary(SOURCE)))
    }
}

/// Copies what is below a node, with the permissions.
async fn copy(nodes: &Nodes, from: &str, to: &str) -> Result<(), xen::xenstore::Error> {
    let mut pending = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = pending.pop() {
        let value = nodes.read(&from).await?;
        let permissions = nodes.get_perms(&from).await?;
        nodes.write(&to, value).await?;
        nodes.set_perms(&to, &permissions).await?;
        for name in nodes.directory(&from).await? {
            pending.push((format!("{from}/{name}"), format!("{to}/{name}")));
        }
    }
    Ok(())
}

/// Passes everything on from one file to another, without a copy in this process. `first` is done before
/// what comes after the other end's [`READY`], of which `ready` tells.
fn pass(
    from: &impl AsRawFd,
    to: OwnedFd,
    ready: &AtomicBool,
    first: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut first = Some(first);
    loop {
        let mut poll = libc::pollfd {
            fd: from.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry, which lives as long as the call.
        let polled = unsafe { libc::poll(&mut poll, 1, -1) };
        if polled < 0 {
            continue;
        }
        if ready.load(Ordering::Acquire)
            && let Some(first) = first.take()
        {
            first()?;
        }
        // SAFETY: both files are open; no memory is involved.
        let moved = unsafe {
            libc::splice(
                from.as_raw_fd(),
                std::ptr::null_mut(),
                to.as_raw_fd(),
                std::ptr::null_mut(),
                PIECE,
                0,
            )
        };
        match moved {
            0 => return Ok(()),
            1.. => {}
            _ => {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(error).context("passing the stream on");
                }
            }
        }
    }
}

/// Passes the target's messages on to the source; `first` is done before [`READY`].
fn answer(
    from: &mut impl Read,
    to: &mut impl Write,
    first: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut first = Some(first);
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let length = match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("reading the target's messages"),
        };
        said.extend_from_slice(&piece[..length]);
        if said.windows(READY.len()).any(|part| part == READY)
            && let Some(first) = first.take()
        {
            first()?;
        }
        to.write_all(&piece[..length])?;
        to.flush()?;
    }
}

/// The end of the other thread ends the process with its own status.
fn report(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("lab-toolstack: {error:#}");
    }
}

fn receive(vm: &Vm) -> Result<u8> {
    let store = Store::connect()?;
    let before = store.list(DOMAINS)?;
    let (input, output) = std::io::pipe()?;
    let mut xl = Command::new("xl")
        .arg("migrate-receive")
        .stdin(Stdio::from(input))
        .stdout(Stdio::piped())
        .spawn()
        .context("starting xl migrate-receive")?;
    let mut messages = xl.stdout.take().context("the output of xl")?;
    let ready = AtomicBool::new(false);
    let arrived = std::sync::OnceLock::new();
    std::thread::scope(|scope| {
        scope.spawn(|| report(arrive(&store, vm, &before, &arrived)));
        scope.spawn(|| {
            report(pass(&std::io::stdin(), output.into(), &ready, || {
                let domid = *arrived.get().context("the domain has not appeared")?;
                take_over(&store, vm, domid)
            }));
        });
        report(answer(&mut messages, &mut std::io::stdout(), || {
            ready.store(true, Ordering::Release);
            Ok(())
        }));
        // The other threads may wait for ends that keep their connection open.
        let status = xl.wait()?;
        std::process::exit(status.code().unwrap_or(1))
    })
}

/// Waits for the new domain, and gives it the nodes that it has while it arrives.
fn arrive(
    store: &Store,
    vm: &Vm,
    before: &[String],
    arrived: &std::sync::OnceLock<u32>,
) -> Result<()> {
    let wanted = format!("{}{INCOMING}", vm.name);
    let start = Instant::now();
    loop {
        for name in store.list(DOMAINS)? {
            let node = format!("{DOMAINS}/{name}/name");
            if before.contains(&name) || store.read(&node)?.as_deref() != Some(&wanted) {
                continue;
            }
            let domid = name.parse().context("a domain's number")?;
            let mut nodes = vec![(node, vm.name.clone())];
            if vm.dialect == Dialect::Xenopsd {
                nodes.push((format!("/xenops/domain/{domid}"), String::new()));
                nodes.push((
                    format!("/vm/{}/final-uuid", vm.temporary(TARGET)),
                    vm.uuid.clone(),
                ));
            }
            store.write_all(&nodes)?;
            let _ = arrived.set(domid);
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!("no domain {wanted} appeared");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The source has given the VM away.
fn take_over(store: &Store, vm: &Vm, domid: u32) -> Result<()> {
    let controllers = store.list(&format!("{DOMAINS}/0/backend/vusb/{domid}"))?;
    eprintln!(
        "lab-toolstack: domain {domid} is about to run; controllers: {}",
        controllers.join(" ")
    );
    if vm.dialect == Dialect::Xenopsd {
        store.remove(&format!("/vm/{}/final-uuid", vm.temporary(TARGET)))?;
        store.rename(domid, &vm.temporary(TARGET), &vm.uuid)?;
    }
    store.write(
        &format!("{DOMAINS}/{domid}/name"),
        &format!("{}{INCOMING}", vm.name),
    )
}

fn send(vm: &Vm, domid: u32, target: &str) -> Result<u8> {
    let store = Store::connect()?;
    let messages = TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
    messages.set_nodelay(true)?;
    let stream = OwnedFd::from(messages.try_clone()?);
    let ready = AtomicBool::new(false);
    let name = format!("{DOMAINS}/{domid}/name");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // xl has renamed the domain by now.
            report(pass(&std::io::stdin(), stream, &ready, || {
                store.write(&name, &vm.name)
            }));
            let _ = messages.shutdown(std::net::Shutdown::Write);
        });
        // SAFETY: nothing else of this process writes to its standard output.
        let mut output = unsafe { File::from_raw_fd(libc::STDOUT_FILENO) };
        report(answer(&mut &messages, &mut output, || {
            if vm.dialect == Dialect::Xenopsd {
                let temporary = vm.temporary(SOURCE);
                store.rename(domid, &vm.uuid, &temporary)?;
                store.write(&format!("/vm/{temporary}/origin-uuid"), &vm.uuid)?;
            }
            ready.store(true, Ordering::Release);
            Ok(())
        }));
        // xl hears by the end of this file that the target's end has closed.
        drop(output);
    });
    if vm.dialect == Dialect::Xenopsd && ready.into_inner() {
        store.remove_domain(vm, domid)?;
    }
    Ok(0)
}
