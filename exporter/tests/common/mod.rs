// SPDX-License-Identifier: GPL-3.0-or-later
#![allow(dead_code, reason = "each test file is a program of its own")]
//! An exporter in this process, over loopback TLS, and a backend's two kinds of connection to it.

use std::convert::Infallible;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use exporter::{Config, Daemon};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use session::client::{self, Client};
use session::control::{Acquire, Event, FromBackend, Reply, Request, ToBackend};
use session::frame::{Completion, Transfer, TransferType};
use session::message::Purpose;
use session::open::{Attempt, Evidence, How, Open, Opened};
use session::{DeviceId, Epoch, Lease, VmUuid};
use slog::Logger;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use transport::{Identity, MessageReader, TlsStream, connect, greet, receive, send};

pub const EXPORTER: &str = "desk";

pub fn vm(number: u8) -> VmUuid {
    VmUuid(uuid::Uuid::from_bytes([number; 16]))
}

pub fn disk() -> DeviceId {
    DeviceId("0-1".to_owned())
}

pub fn run<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    runtime.block_on(future)
}

/// A CA and a directory with its certificates.
pub struct Pool {
    pub dir: PathBuf,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Pool {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("exporter-{}-{unique}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(dir.join("ca.crt"), ca.pem()).unwrap();
        Self { dir, ca }
    }

    fn issue(&self, host: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.ca).unwrap();
        let cert_path = self.dir.join(format!("{host}.crt"));
        let key_path = self.dir.join(format!("{host}.key"));
        fs::write(&cert_path, cert.pem()).unwrap();
        fs::write(&key_path, key.serialize_pem()).unwrap();
        fs::set_permissions(&key_path, fs::Permissions::from_mode(0o600)).unwrap();
        (cert_path, key_path)
    }

    pub fn identity(&self, host: &str) -> Identity {
        let (cert, key) = self.issue(host);
        Identity::load(&self.dir.join("ca.crt"), &cert, &key).unwrap()
    }

    /// Starts an exporter with two simulated disks and these rules.
    pub fn start(&self, more: &str) -> Exporter {
        self.start_exporter(more, false)
    }

    /// Like [`Pool::start`], with this machine's real devices, too.
    pub fn start_with_usb(&self, more: &str) -> Exporter {
        self.start_exporter(more, true)
    }

    fn start_exporter(&self, more: &str, usb: bool) -> Exporter {
        Exporter::start(&self.configure(more, usb), no_log())
    }

    /// Like [`Pool::start`], with a log.
    pub fn start_logging(&self, more: &str, log: Logger) -> Exporter {
        Exporter::start(&self.configure(more, false), log)
    }

    /// Like [`Pool::start`], but the disk at 0-1 is not plugged in yet; see [`Pool::command`].
    pub fn start_without_disk(&self, more: &str) -> Exporter {
        let path = self.configure(more, false);
        let text = fs::read_to_string(&path).unwrap();
        let unplugged = text.replacen("size_mib = 4\n", "size_mib = 4\nplugged = false\n", 1);
        let control = format!("simulated_control = '{}'\n", self.control_path().display());
        fs::write(&path, control + &unplugged).unwrap();
        Exporter::start(&path, no_log())
    }

    fn control_path(&self) -> PathBuf {
        self.dir.join("control")
    }

    /// Has a command carried out by the simulated devices, as `0-1 plug`.
    pub fn command(&self, command: &str) {
        let mut stream = UnixStream::connect(self.control_path()).unwrap();
        writeln!(stream, "{command}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert_eq!(answer, "ok\n", "{command}");
    }

    /// Writes the configuration of an exporter with two simulated disks, and says where.
    pub fn configure(&self, more: &str, usb: bool) -> PathBuf {
        self.issue(EXPORTER);
        let dir = self.dir.display();
        let text = format!(
            "listen = '127.0.0.1:0'\nstate_dir = '{dir}/state'\n{more}\n\
             [tls]\nca = '{dir}/ca.crt'\ncert = '{dir}/{EXPORTER}.crt'\nkey = '{dir}/{EXPORTER}.key'\n\
             [usb]\nenabled = {usb}\n\
             [[simulated]]\nkind = 'disk'\nfile = '{dir}/disk1'\nsize_mib = 4\n\
             [[simulated]]\nkind = 'disk'\nfile = '{dir}/disk2'\nsize_mib = 4\n"
        );
        let path = self.dir.join("exporter.toml");
        fs::write(&path, text).unwrap();
        path
    }
}

/// Runs a test with an exporter with two simulated disks and these rules, and the first host.
pub fn with_exporter<T>(more: &str, test: impl AsyncFnOnce(&Pool, &Exporter, &Identity) -> T) -> T {
    let pool = Pool::new();
    let exporter = pool.start(more);
    let host = pool.identity("host-a");
    run(test(&pool, &exporter, &host))
}

/// Everybody may do everything.
pub const ALLOW_ALL: &str = "[[allow]]\ndevice = '*'\nvm = '*'\nhost = '*'\n";

fn no_log() -> Logger {
    Logger::root(slog::Discard, slog::o!())
}

pub struct Exporter {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    fn start(config: &Path, log: Logger) -> Self {
        let config = Config::load(config).unwrap();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let daemon = Daemon::new(config, log).unwrap();
            let stopped = async move {
                let _ = stopped.await;
            };
            daemon
                .run(|address| ready.send(address).unwrap(), stopped)
                .unwrap();
        });
        Self {
            address: is_ready.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub async fn connect(&self, identity: &Identity, purpose: Purpose) -> TlsStream {
        let address = self.address.to_string();
        let mut stream = connect(identity, &address, EXPORTER).await.unwrap();
        greet(&mut stream, purpose).await.unwrap();
        stream
    }

    pub async fn control(&self, identity: &Identity) -> Control {
        Control {
            stream: self.connect(identity, Purpose::Control).await,
            reader: MessageReader::new(),
            events: Vec::new(),
            number: 0,
        }
    }

    /// A control connection that hears of everything.
    pub async fn subscribed(&self, identity: &Identity) -> Control {
        let mut control = self.control(identity).await;
        assert_eq!(control.ask(Request::Subscribe).await, Reply::Done);
        control
    }

    /// Acquires the device at 0-1 for VM 1.
    pub async fn acquire(&self, identity: &Identity) -> Lease {
        let mut control = self.control(identity).await;
        control.acquire(wanted("0-1", vm(1), 1)).await
    }

    /// Acquires, claims and configures the device at 0-1 for VM 1.
    pub async fn lend(&self, identity: &Identity) -> (Control, Lease, Device) {
        let mut control = self.subscribed(identity).await;
        let lease = control.acquire(wanted("0-1", vm(1), 1)).await;
        let mut device = self.claim(identity, &lease).await;
        device.configure().await;
        (control, lease, device)
    }

    pub async fn open(&self, identity: &Identity, open: &Open) -> (TlsStream, Opened) {
        let mut stream = self.connect(identity, Purpose::Device).await;
        send(&mut stream, open).await.unwrap();
        let opened = receive(&mut stream).await.unwrap();
        (stream, opened)
    }

    /// Claims a lease of domain 1, which must work.
    pub async fn claim(&self, identity: &Identity, lease: &Lease) -> Device {
        self.claim_for(identity, lease, 1).await
    }

    /// The same for any domain.
    pub async fn claim_for(&self, identity: &Identity, lease: &Lease, domid: u16) -> Device {
        let open = open(lease, domid, How::Claim { seen: lease.epoch });
        let (stream, opened) = self.open(identity, &open).await;
        let Opened::Ready {
            epoch,
            requests_received: 0,
            ..
        } = opened
        else {
            panic!("{opened:?}");
        };
        Device::new(stream, Client::new(epoch))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

pub fn open(lease: &Lease, domid: u16, how: How) -> Open {
    Open {
        device: lease.device.id.clone(),
        vm: lease.vm,
        domid,
        attempt: Attempt::default(),
        frontend_resumes: true,
        evidence: Evidence::Arrival,
        how,
    }
}

pub fn wanted(device: &str, vm: VmUuid, port: u8) -> Acquire {
    Acquire {
        device: device.parse().unwrap(),
        vm,
        vm_name: "guest".to_owned(),
        domid: 1,
        controller: 0,
        port,
        on_migrate: None,
        exchange: None,
        own_controller: None,
        persistence: Default::default(),
        returns: None,
    }
}

pub struct Control {
    stream: TlsStream,
    reader: MessageReader,
    pub events: Vec<Event>,
    number: u64,
}

impl Control {
    pub async fn ask(&mut self, request: Request) -> Reply {
        let number = self.send(request).await;
        self.reply(number).await
    }

    /// Sends a request, and answers its number.
    pub async fn send(&mut self, request: Request) -> u64 {
        self.number += 1;
        let number = self.number;
        let asked = FromBackend { number, request };
        send(&mut self.stream, &asked).await.unwrap();
        number
    }

    /// The reply of a request, which is the next one.
    pub async fn reply(&mut self, to: u64) -> Reply {
        loop {
            match self.next().await {
                ToBackend::Reply { number, reply } => {
                    assert_eq!(number, to);
                    return reply;
                }
                ToBackend::Event(event) => self.events.push(event),
            }
        }
    }

    /// Waits until the exporter has closed the connection.
    pub async fn closed(&mut self) {
        while self
            .reader
            .receive::<ToBackend>(&mut self.stream)
            .await
            .is_ok()
        {}
    }

    async fn next(&mut self) -> ToBackend {
        self.reader.receive(&mut self.stream).await.unwrap()
    }

    /// The first event that is `wanted`, of those that came and those that will.
    pub async fn wait(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            if let Some(at) = self.events.iter().position(&wanted) {
                return self.events.drain(..=at).next_back().unwrap();
            }
            match self.next().await {
                ToBackend::Event(event) => self.events.push(event),
                reply => panic!("{reply:?} to no request"),
            }
        }
    }

    /// Acquires a device, and confirms it.
    pub async fn acquire(&mut self, wanted: Acquire) -> Lease {
        let lease = match self.ask(Request::Acquire(wanted)).await {
            Reply::Lease(lease) => *lease,
            other => panic!("{other:?}"),
        };
        let confirm = Request::Confirm {
            device: lease.device.id.clone(),
            vm: lease.vm,
        };
        assert_eq!(self.ask(confirm).await, Reply::Done);
        lease
    }

    /// The only lease.
    pub async fn lease(&mut self) -> Lease {
        match self.ask(Request::Leases { vm: None }).await {
            Reply::Leases(leases) if leases.len() == 1 => leases.into_iter().next().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub async fn release(&mut self, device: DeviceId, vm: VmUuid, epoch: Epoch) -> Reply {
        self.ask(Request::Release {
            device,
            vm,
            epoch,
            force: false,
        })
        .await
    }
}

/// What came last on a device connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Completed(Completion, Vec<u8>),
    Gone,
    Fenced,
    Closed,
}

/// A device connection.
pub struct Device {
    pub stream: TlsStream,
    pub client: Client,
    input: Vec<u8>,
}

impl Device {
    pub fn new(stream: TlsStream, client: Client) -> Self {
        Self {
            stream,
            client,
            input: Vec::new(),
        }
    }

    /// Puts a transfer into the client's output.
    pub fn submit(&mut self, transfer: &Transfer, body: &[u8]) -> u64 {
        let fill = |out: &mut Vec<u8>| -> Result<(), Infallible> {
            out.extend_from_slice(body);
            Ok(())
        };
        let Ok(request) = self.client.submit(transfer, fill);
        request
    }

    pub async fn flush(&mut self) {
        let output = std::mem::take(self.client.output());
        self.stream.write_all(&output).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub async fn next(&mut self) -> Said {
        self.flush().await;
        loop {
            let input = std::mem::take(&mut self.input);
            if let Some((event, taken)) = self.client.next_event(&input).unwrap() {
                let said = match event {
                    client::Event::Completed { completion, body } => {
                        Some(Said::Completed(completion, body.to_vec()))
                    }
                    client::Event::Gone => Some(Said::Gone),
                    client::Event::Fenced => Some(Said::Fenced),
                    client::Event::Ping | client::Event::Pong => None,
                };
                self.input = input[taken..].to_vec();
                if let Some(said) = said {
                    return said;
                }
                continue;
            }
            self.input = input;
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return Said::Closed,
                Ok(_) => (),
            }
        }
    }

    pub async fn completion(&mut self) -> (Completion, Vec<u8>) {
        match self.next().await {
            Said::Completed(completion, body) => (completion, body),
            other => panic!("{other:?}"),
        }
    }

    /// A transfer on its own.
    pub async fn transfer(&mut self, transfer: &Transfer, body: &[u8]) -> (Completion, Vec<u8>) {
        let request = self.submit(transfer, body);
        let (completion, body) = self.completion().await;
        assert_eq!(completion.request, request);
        (completion, body)
    }

    /// Gives the simulated disk its configuration.
    pub async fn configure(&mut self) {
        let (completion, _) = self
            .transfer(&control_transfer([0, 9, 1, 0, 0, 0, 0, 0]), &[])
            .await;
        assert_eq!(completion.status, session::frame::TransferStatus::Completed);
    }
}

pub fn control_transfer(setup: [u8; 8]) -> Transfer {
    Transfer {
        transfer_type: TransferType::Control,
        endpoint: setup[0] & 0x80,
        flags: 0,
        length: u16::from_le_bytes([setup[6], setup[7]]).into(),
        interval: 0,
        setup,
    }
}

pub fn bulk_in(length: u32) -> Transfer {
    Transfer {
        transfer_type: TransferType::Bulk,
        endpoint: 0x81,
        flags: 0,
        length,
        interval: 0,
        setup: [0; 8],
    }
}

pub fn bulk_out(length: u32) -> Transfer {
    Transfer {
        endpoint: 0x02,
        ..bulk_in(length)
    }
}

/// A command block wrapper for READ(10) or WRITE(10).
pub fn cbw(tag: u32, is_read: bool, lba: u32, blocks: u16) -> Vec<u8> {
    let mut cbw = Vec::new();
    cbw.extend_from_slice(b"USBC");
    cbw.extend_from_slice(&tag.to_le_bytes());
    cbw.extend_from_slice(&(u32::from(blocks) * 512).to_le_bytes());
    cbw.extend_from_slice(&[if is_read { 0x80 } else { 0 }, 0, 10]);
    cbw.extend_from_slice(&[if is_read { 0x28 } else { 0x2a }, 0]);
    cbw.extend_from_slice(&lba.to_be_bytes());
    cbw.push(0);
    cbw.extend_from_slice(&blocks.to_be_bytes());
    cbw.resize(31, 0);
    cbw
}
