// SPDX-License-Identifier: GPL-3.0-or-later
//! A backend in dom0 that serves one PV USB controller and breaks the protocol in one way. The guest's
//! frontend must notice, or put up with it, and its kernel must not be harmed.
//!
//! It says that a device is plugged into port 1 and fails the frontend's requests, as a broken device
//! would, until it misbehaves. It prints one line when it has, and ends when the frontend has closed.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use tokio::time::{Instant, sleep};
use usbif::{
    BackRing, Conn, ConnResponse, PortNumber, RingMemory, Speed, Urb, UrbKind, UrbRequest,
    UrbResponse, UrbStatus,
};
use xen::linux::{LinuxMapping, LinuxXen};
use xen::xenstore::{Endpoint, XenStore};
use xen::{Access, Backend, DomId, EventChannel, EvtchnPort, GrantRef, RingPage};

/// Of an URB ring's and a connection ring's page: where the producer index of responses is.
const RSP_PROD: usize = 8;
/// How long the toolstack and the guest have for each step.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often the rings are looked at: nothing here is fast.
const INTERVAL: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// A request is answered, and its answer comes again in place of the next one's.
    Twice,
    /// An answer has an id that no request had.
    WrongId,
    /// An answer that names another place of the frontend's table, where nothing waits.
    FarId,
    /// The index of the URB ring's responses runs ahead of the requests.
    IndexAhead,
    /// It goes back.
    IndexBack,
    /// The same of the connection ring.
    ConnIndexAhead,
    /// An event for a port that there is not.
    WrongPort,
    /// An event with a speed that there is not.
    WrongSpeed,
    /// A request is answered while its pages are mapped, and they are kept so.
    KeepsPages,
    /// More bytes than were asked for, and a status that there is not.
    TooMuch,
    /// Everything on both pages is overwritten, again and again.
    Scribbles,
    /// No request is answered, also no unlink request; the backend closes after a while.
    Silent,
    /// The process ends with requests unanswered and pages mapped; its nodes stay.
    Dies,
}

#[derive(Parser)]
struct Arguments {
    /// The guest.
    domid: u16,
    /// Its controller, which is about to be made.
    devid: u16,
    #[arg(value_enum)]
    fault: Fault,
    /// Requests that are served before.
    #[arg(long, default_value_t = 2)]
    after: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lab-bad-backend: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-bad-backend: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Nodes of both ends.
struct Bus {
    store: XenStore,
    backend: String,
    frontend: String,
}

impl Bus {
    async fn number(&self, base: &str, node: &str) -> Result<Option<u32>> {
        let text = self.store.read_optional(&format!("{base}/{node}")).await?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    /// Waits until an end's state is one of these.
    async fn wait(&self, base: &str, wanted: &[u32]) -> Result<u32> {
        let start = Instant::now();
        loop {
            if let Some(state) = self.number(base, "state").await?
                && wanted.contains(&state)
            {
                return Ok(state);
            }
            if start.elapsed() > PATIENCE {
                bail!("{base}: its state does not become {wanted:?}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn switch(&self, state: &str) -> Result<()> {
        let node = format!("{}/state", self.backend);
        Ok(self.store.write(&node, state).await?)
    }
}

/// The connected rings.
struct Link {
    urb: BackRing<RingPage<LinuxMapping>, Urb>,
    conn: BackRing<RingPage<LinuxMapping>, Conn>,
    channel: <LinuxXen as Backend>::Channel,
    platform: LinuxXen,
    guest: DomId,
    /// The guest's pages that are not let go of.
    kept: Vec<LinuxMapping>,
}

async fn run(arguments: &Arguments) -> Result<()> {
    let &Arguments {
        domid,
        devid,
        fault,
        after,
    } = arguments;
    let platform = LinuxXen::open()?;
    let (store, _events) = XenStore::connect(&Endpoint::detect()?).await?;
    let bus = Bus {
        store,
        backend: format!("/local/domain/0/backend/vusb/{domid}/{devid}"),
        frontend: format!("/local/domain/{domid}/device/vusb/{devid}"),
    };
    bus.wait(&bus.backend, &[1]).await?;
    bus.switch("2").await?;
    bus.wait(&bus.frontend, &[3, 4]).await?;
    let mut link = Link::map(&bus, platform, DomId(domid)).await?;
    bus.switch("4").await?;
    link.plug(1, Speed::High)?;

    let start = Instant::now();
    let mut served = 0;
    loop {
        if start.elapsed() > PATIENCE {
            bail!("the frontend sent {served} requests only");
        }
        sleep(INTERVAL).await;
        let Some(request) = link.request()? else {
            continue;
        };
        if served < after {
            served += 1;
            link.answer(request.id, UrbStatus::STALL, 0)?;
            continue;
        }
        link.misbehave(fault, &request).await?;
        break;
    }
    println!("misbehaved: {fault:?} after {served} requests");
    if fault == Fault::Dies {
        return Ok(());
    }
    // What the frontend did of it: it closes by itself, or goes on until it is asked to close.
    let state = tokio::time::timeout(Duration::from_secs(15), bus.wait(&bus.frontend, &[5, 6]))
        .await
        .map_or("goes on", |state| match state {
            Ok(_) => "closes",
            Err(_) => "is gone",
        });
    println!("frontend: {state}");
    bus.switch("5").await?;
    bus.wait(&bus.frontend, &[6]).await?;
    drop(link);
    bus.switch("6").await
}

impl Link {
    async fn map(bus: &Bus, platform: LinuxXen, guest: DomId) -> Result<Self> {
        let node = async |name: &str| {
            bus.number(&bus.frontend, name)
                .await?
                .with_context(|| format!("the frontend has no {name}"))
        };
        let page = |gref: u32| -> Result<RingPage<LinuxMapping>> {
            let mapping = platform.map(guest, &[GrantRef(gref)], Access::ReadWrite)?;
            Ok(RingPage::new(mapping, 0))
        };
        let urb = BackRing::new(page(node("urb-ring-ref").await?)?);
        let conn = BackRing::new(page(node("conn-ring-ref").await?)?);
        let channel = EvtchnPort(node("event-channel").await?);
        Ok(Self {
            urb,
            conn,
            channel: platform.bind_interdomain(guest, channel)?,
            platform,
            guest,
            kept: Vec::new(),
        })
    }

    /// The next request that makes sense; unlink requests, too.
    fn request(&mut self) -> Result<Option<UrbRequest>> {
        // What was signalled, we see without that.
        self.channel.take_event()?;
        let request = self.urb.next_request()?;
        let _ = self.urb.final_check();
        match request {
            Some(Ok(request)) => Ok(Some(request)),
            Some(Err(bad)) => bail!("the frontend's request makes no sense: {bad}"),
            None => Ok(None),
        }
    }

    fn answer(&mut self, id: u16, status: UrbStatus, actual_length: u32) -> Result<()> {
        let mut response = UrbResponse::with_status(id, status);
        response.actual_length = actual_length;
        self.urb.push_response(&response)?;
        if self.urb.publish() {
            self.channel.notify()?;
        }
        Ok(())
    }

    fn plug(&mut self, port: u8, speed: Speed) -> Result<()> {
        let port = PortNumber::new(port).context("port")?;
        let request = self.conn.next_request()?.context("no room for an event")?;
        let id = request.id;
        self.conn.push_response(&ConnResponse { id, port, speed })?;
        if self.conn.publish() {
            self.channel.notify()?;
        }
        Ok(())
    }

    /// An event with any port and speed, on the next slot of the connection ring.
    fn event(&mut self, port: u8, speed: u8) -> Result<()> {
        let memory = self.conn.memory();
        let index = self.conn.indices().rsp;
        memory.write(64 + 4 * (index % 512) as usize, &[0, 0, port, speed]);
        memory.store_release(RSP_PROD, index.wrapping_add(1));
        Ok(self.channel.notify()?)
    }

    /// The next request, waited for.
    async fn wait_request(&mut self) -> Result<UrbRequest> {
        let start = Instant::now();
        loop {
            if let Some(request) = self.request()? {
                return Ok(request);
            }
            if start.elapsed() > PATIENCE {
                bail!("no further request");
            }
            sleep(INTERVAL).await;
        }
    }

    fn map_data(&mut self, request: &UrbRequest) -> Result<()> {
        for segment in request.segments() {
            let gref = GrantRef(segment.gref);
            // Pages to be written to the device are granted for reading.
            let mapping = self
                .platform
                .map(self.guest, &[gref], Access::ReadOnly)
                .context("mapping the request's page")?;
            self.kept.push(mapping);
        }
        Ok(())
    }

    async fn misbehave(&mut self, fault: Fault, request: &UrbRequest) -> Result<()> {
        let id = request.id;
        let rsp = self.urb.indices().rsp;
        match fault {
            Fault::Twice => {
                self.answer(id, UrbStatus::STALL, 0)?;
                self.wait_request().await?;
                self.answer(id, UrbStatus::OK, 0)?;
            }
            Fault::WrongId => self.answer(id ^ 0x0ff0, UrbStatus::OK, 18)?,
            Fault::FarId => self.answer(id ^ 0x000f, UrbStatus::OK, 18)?,
            Fault::IndexAhead => self.set_index(rsp.wrapping_add(100))?,
            Fault::IndexBack => self.set_index(rsp.wrapping_sub(1))?,
            Fault::ConnIndexAhead => {
                self.conn.memory().store_release(RSP_PROD, 0x8000_0000);
                self.channel.notify()?;
            }
            Fault::WrongPort => self.event(200, 3)?,
            Fault::WrongSpeed => self.event(1, 9)?,
            Fault::KeepsPages => {
                self.map_data(request)?;
                self.answer(id, UrbStatus::OK, 0)?;
            }
            Fault::TooMuch => {
                self.answer(id, UrbStatus(12_345), u32::MAX)?;
                for _ in 0..3 {
                    let next = self.wait_request().await?;
                    self.answer(next.id, UrbStatus::OK, 0x1_0001)?;
                }
            }
            Fault::Scribbles => {
                for round in 0..400u32 {
                    let bytes: Vec<u8> = (0..4096u32)
                        .map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(round) >> 11) as u8)
                        .collect();
                    self.urb.memory().write(0, &bytes);
                    self.conn.memory().write(0, &bytes);
                    self.channel.notify()?;
                    sleep(INTERVAL).await;
                }
            }
            Fault::Silent => {
                // For longer than the USB core waits for a control transfer.
                let start = Instant::now();
                while start.elapsed() < Duration::from_secs(20) {
                    if let Some(UrbKind::Unlink { id }) = self.request()?.map(|next| next.kind) {
                        println!("left unanswered: unlink of {id}");
                    }
                    sleep(INTERVAL).await;
                }
            }
            Fault::Dies => self.map_data(request)?,
        }
        Ok(())
    }

    fn set_index(&mut self, index: u32) -> Result<()> {
        self.urb.memory().store_release(RSP_PROD, index);
        Ok(self.channel.notify()?)
    }
}
