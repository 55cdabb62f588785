// SPDX-License-Identifier: GPL-3.0-or-later
//! Sockets, and the clock.

use std::cell::{Cell, RefCell};
use std::io;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::Instant;
use usb_sim::{Function, Port};

use crate::op::{self, Request, Status};
use crate::{Attachment, Delay, DeviceRecord, ProtocolError, Slow};

/// While so much waits to be sent, nothing more is read.
const MAX_OUTPUT: usize = 8 << 20;
const READ_LEN: usize = 64 << 10;

/// A device that clients can attach, one at a time.
#[derive(Debug)]
pub struct Export<F> {
    number: u32,
    port: RefCell<Port<F>>,
    attachment: RefCell<Option<Attachment>>,
    /// The device changed, or is to be detached.
    changed: Notify,
    unplugged: Cell<bool>,
}

impl<F: Function> Export<F> {
    /// Its bus id.
    pub fn bus_id(&self) -> String {
        self.record().bus_id
    }

    /// As clients see it.
    pub fn record(&self) -> DeviceRecord {
        DeviceRecord::new(self.number, &self.port.borrow())
    }

    /// Whether a client has it.
    pub fn is_attached(&self) -> bool {
        self.attachment.borrow().is_some()
    }

    /// Looks at the device.
    pub fn inspect<R>(&self, look: impl FnOnce(&F) -> R) -> R {
        look(self.port.borrow().function())
    }

    /// Changes the device: a key is pressed.
    pub fn update<R>(&self, change: impl FnOnce(&mut F) -> R) -> R {
        let mut port = self.port.borrow_mut();
        let result = match &mut *self.attachment.borrow_mut() {
            Some(attachment) => attachment.update(&mut port, change),
            // Nothing waits for it.
            None => Attachment::default().update(&mut port, change),
        };
        self.changed.notify_one();
        result
    }

    /// Tells an attached device the time, then does `step`.
    fn step(
        &self,
        now: Duration,
        step: impl FnOnce(&mut Attachment, &mut Port<F>) -> Result<(), ProtocolError>,
    ) -> io::Result<()> {
        let Some(attachment) = &mut *self.attachment.borrow_mut() else {
            return Ok(());
        };
        let mut port = self.port.borrow_mut();
        attachment.advance(&mut port, now).map_err(invalid)?;
        step(attachment, &mut port).map_err(invalid)
    }

    /// Makes it slow to answer such transfers, or with `None` as quick as ever. False when no client has
    /// it: a client that attaches it finds it quick.
    pub fn hold(&self, slow: Slow, delay: Option<Delay>) -> bool {
        let mut attachment = self.attachment.borrow_mut();
        attachment.as_mut().map(|a| a.hold(slow, delay)).is_some()
    }

    /// When something happens by itself.
    fn next_event(&self) -> Option<Duration> {
        let attachment = self.attachment.borrow();
        let held = attachment.as_ref().and_then(Attachment::next_event);
        let own = self.port.borrow().next_event();
        held.into_iter().chain(own).min()
    }

    /// Unplugs it (its client loses the connection; nobody can attach it), or plugs it in again.
    pub fn set_unplugged(&self, unplugged: bool) {
        self.unplugged.set(unplugged);
        self.changed.notify_one();
    }
}

/// The devices that a server has.
#[derive(Debug)]
pub struct Exports<F> {
    devices: Vec<Rc<Export<F>>>,
    epoch: Instant,
    slowness: NonZeroU32,
}

impl<F: Function> Exports<F> {
    /// These devices, with the bus ids `1-1`, `1-2` …
    pub fn new(devices: impl IntoIterator<Item = F>) -> Self {
        let export = |(number, function)| {
            Rc::new(Export {
                number,
                port: RefCell::new(Port::new(function)),
                attachment: RefCell::new(None),
                changed: Notify::new(),
                unplugged: Cell::new(false),
            })
        };
        Self {
            devices: (1..).zip(devices).map(export).collect(),
            epoch: Instant::now(),
            slowness: NonZeroU32::MIN,
        }
    }

    /// The same on buses whose clocks are slow: a millisecond of theirs takes so many.
    pub fn slowed(self, slowness: NonZeroU32) -> Self {
        Self { slowness, ..self }
    }

    /// All of them.
    pub fn devices(&self) -> &[Rc<Export<F>>] {
        &self.devices
    }

    /// The one with this bus id.
    pub fn find(&self, bus_id: &str) -> Option<&Rc<Export<F>>> {
        self.devices.iter().find(|d| d.bus_id() == bus_id)
    }

    /// The buses' time.
    fn now(&self) -> Duration {
        self.epoch.elapsed() / self.slowness.get()
    }

    /// When the buses' time is `at`. Not before: an event is due then.
    fn instant(&self, at: Duration) -> Instant {
        self.epoch + (at + Duration::from_nanos(1)) * self.slowness.get()
    }
}

/// Accepts clients for ever, each on a task of its own. To be run within a
/// [`tokio::task::LocalSet`]. Ends when the listener fails; `ended` learns how each connection
/// ended.
pub async fn serve<F: Function + 'static>(
    exports: Rc<Exports<F>>,
    listener: TcpListener,
    ended: impl Fn(io::Result<()>) + Clone + 'static,
) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let exports = Rc::clone(&exports);
        let ended = ended.clone();
        spawn_local(async move { ended(client(&exports, stream).await) });
    }
}

async fn client<F: Function>(exports: &Exports<F>, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::new();
    let request = loop {
        if let Some((request, len)) = op::decode(&input).map_err(invalid)? {
            input.drain(..len);
            break request;
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    };
    let bus_id = match request {
        Request::DeviceList => {
            let plugged = exports.devices.iter().filter(|d| !d.unplugged.get());
            let records: Vec<_> = plugged.map(|d| d.record()).collect();
            stream.write_all(&op::device_list(&records)).await?;
            return stream.shutdown().await;
        }
        Request::Import(bus_id) => bus_id,
    };
    let refusal = match exports.find(&bus_id) {
        None => Status::NoDevice,
        Some(export) if export.unplugged.get() => Status::NoDevice,
        Some(export) if export.is_attached() => Status::DeviceBusy,
        Some(export) => {
            let _hold = Hold::new(export, exports.now());
            stream.write_all(&op::imported(&export.record())).await?;
            return attached(exports, export, stream, &input).await;
        }
    };
    stream.write_all(&op::refused(refusal)).await?;
    stream.shutdown().await
}

/// A client has the device until this is dropped.
struct Hold<'a, F: Function>(&'a Export<F>);

impl<'a, F: Function> Hold<'a, F> {
    fn new(export: &'a Export<F>, now: Duration) -> Self {
        let attachment = Attachment::new(&mut export.port.borrow_mut(), now);
        *export.attachment.borrow_mut() = Some(attachment);
        Self(export)
    }
}

impl<F: Function> Drop for Hold<'_, F> {
    fn drop(&mut self) {
        if let Some(attachment) = self.0.attachment.take() {
            attachment.end(&mut self.0.port.borrow_mut());
        }
    }
}

async fn attached<F: Function>(
    exports: &Exports<F>,
    export: &Export<F>,
    stream: TcpStream,
    input: &[u8],
) -> io::Result<()> {
    let mut buffer = vec![0; READ_LEN];
    export.step(exports.now(), |attachment, port| {
        attachment.handle_input(port, input)
    })?;
    while !export.unplugged.get() {
        export.step(exports.now(), |_, _| Ok(()))?;
        if let Some(attachment) = &mut *export.attachment.borrow_mut() {
            write(&stream, attachment)?;
        }
        let waiting = output_len(export);
        let event = export.next_event();
        let timer = async {
            match event {
                Some(at) => tokio::time::sleep_until(exports.instant(at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = stream.readable(), if waiting < MAX_OUTPUT => {
                ready?;
                let len = match stream.try_read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(len) => len,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(e) => return Err(e),
                };
                export.step(exports.now(), |attachment, port| {
                    attachment.handle_input(port, &buffer[..len])
                })?;
            }
            ready = stream.writable(), if waiting > 0 => ready?,
            () = timer => (),
            () = export.changed.notified() => (),
        }
    }
    Ok(())
}

fn output_len<F>(export: &Export<F>) -> usize {
    let attachment = export.attachment.borrow();
    attachment.as_ref().map_or(0, |a| a.output().len())
}

/// Sends what can be sent now.
fn write(stream: &TcpStream, attachment: &mut Attachment) -> io::Result<()> {
    while !attachment.output().is_empty() {
        match stream.try_write(attachment.output()) {
            Ok(len) => attachment.sent(len),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn invalid(error: ProtocolError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
