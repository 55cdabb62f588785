// SPDX-License-Identifier: GPL-3.0-or-later
//! A device's session: the machine, the device, and the connection of the moment.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use session::Epoch;
use session::frame::Transfer;
use session::frame::TransferStatus;
use session::server::{self, Order, Outcome, Server, ServerError};
use tokio::sync::{Mutex, Notify};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;

use crate::executor::Executor;
use crate::pace::Pace;

/// Orders carried out before other tasks get their turn: a device that always has data could else
/// keep the thread for itself.
const MAX_ORDERS: usize = 64;
/// How long a guest that runs again may take to ask for what was kept for it. Who asks later has
/// begun anew, and does not want to know what was typed before.
const STASH_TIMEOUT: Duration = Duration::from_secs(30);

/// How a device connection's task is reached.
#[derive(Default)]
pub(crate) struct Connection {
    /// There is output, or a farewell.
    pub(crate) wake: Arc<Notify>,
    /// The last bytes to send before closing. Nothing else is to be done with the session.
    farewell: RefCell<Option<Vec<u8>>>,
}

impl Connection {
    pub(crate) fn is_dismissed(&self) -> bool {
        self.farewell.borrow().is_some()
    }

    pub(crate) fn take_farewell(&self) -> Option<Vec<u8>> {
        self.farewell.borrow_mut().take()
    }

    fn dismiss(&self, farewell: Vec<u8>) {
        *self.farewell.borrow_mut() = Some(farewell);
        self.wake.notify_one();
    }
}

/// See the module's documentation.
pub(crate) struct Session {
    pub(crate) server: Server,
    pub(crate) executor: Executor,
    connection: Option<Rc<Connection>>,
    /// Who is woken when the device has something: the connection, or the minder.
    wake: Arc<Notify>,
    /// Looks after a device whose guest is away while nobody is connected.
    minder: Option<AbortHandle>,
    /// Held while the device is opened.
    pub(crate) opening: Rc<Mutex<()>>,
    /// How often leases are saved because this guest waits for it.
    saves: Pace,
    /// Drops what the guest does not ask for in time.
    forgets: Option<AbortHandle>,
}

/// Saves that a guest may cause at once, and the time for one more. A guest gives a device an address when it
/// finds or resets it.
const SAVES: (u32, Duration) = (64, Duration::from_millis(200));

impl Session {
    pub(crate) fn new(executor: Executor) -> Self {
        Self {
            server: Server::new(Epoch::default()),
            executor,
            connection: None,
            wake: Arc::default(),
            minder: None,
            opening: Rc::default(),
            saves: Pace::new(SAVES.0, SAVES.1, Instant::now()),
            forgets: None,
        }
    }

    /// How long a request of the guest waits before the leases are saved for it.
    pub(crate) fn may_save(&mut self) -> Duration {
        self.saves.reserve(Instant::now())
    }

    /// The device was lent anew.
    pub(crate) fn lend(&mut self, epoch: Epoch) {
        self.end();
        self.server = Server::new(epoch);
    }

    /// Somebody takes over under a newer epoch.
    pub(crate) fn claim(&mut self, epoch: Epoch) -> Rc<Connection> {
        let old = self.server.epoch();
        let at_device: Vec<u64> = self.server.at_device().collect();
        let farewell = self.server.claim(epoch);
        self.executor.abandon(&mut self.server, old, &at_device);
        self.connect(farewell)
    }

    /// The holder is back. Answers the last request received.
    pub(crate) fn resume(
        &mut self,
        completions_received: u64,
    ) -> Result<(u64, Rc<Connection>), ServerError> {
        let received = self.server.resume(completions_received);
        // Even if it is refused: who asks has lost the other connection.
        let connection = self.connect(Vec::new());
        Ok((received?, connection))
    }

    fn connect(&mut self, farewell: Vec<u8>) -> Rc<Connection> {
        let connection = Rc::new(Connection::default());
        self.set_wake(connection.wake.clone());
        if let Some(old) = self.connection.replace(connection.clone()) {
            old.dismiss(farewell);
        }
        connection
    }

    fn set_wake(&mut self, wake: Arc<Notify>) {
        if let Some(minder) = self.minder.take() {
            minder.abort();
        }
        self.executor.set_wake(wake.clone());
        self.wake = wake;
    }

    /// Hands over what is over at the device, and does what that leads to.
    pub(crate) fn pump(&mut self) {
        self.executor.drain(&mut self.server);
        self.carry_out();
        self.executor.flush();
    }

    /// Does what the session wants of the device by itself.
    pub(crate) fn carry_out(&mut self) {
        for _ in 0..MAX_ORDERS {
            let Some(order) = self.server.next_order() else {
                return;
            };
            match order {
                Order::Submit { request, transfer } => {
                    self.executor
                        .submit(&mut self.server, request, &transfer, &[]);
                }
                Order::Cancel { request } => self.executor.cancel(&mut self.server, request),
            }
        }
        self.wake.notify_one();
    }

    /// The submitter of a request is being suspended.
    pub(crate) fn keep(&mut self, request: u64) {
        let endpoint = self.server.endpoint_of(request);
        let packet_len = endpoint.and_then(|e| self.executor.packet_len(e));
        self.server.keep(request, packet_len);
    }

    /// See [`Server::recall`].
    pub(crate) fn recall(&mut self, request: u64) {
        let endpoint = self.server.endpoint_of(request);
        let packet_len = endpoint.and_then(|e| self.executor.packet_len(e));
        self.server.recall(request, packet_len);
    }

    /// A request of `epoch` that was not for the device is done. Nothing happens where nobody waits for
    /// it any more.
    pub(crate) fn answer(&mut self, epoch: Epoch, request: u64) {
        let done = Outcome::new(TransferStatus::Completed, 0);
        if self.server.complete(epoch, request, done, |_| ()) {
            self.wake.notify_one();
        }
    }

    /// Before a request goes to the device: whether it makes worthless what is kept.
    pub(crate) fn before(&mut self, transfer: &Transfer) {
        if let Some(interface) = server::set_interface(transfer)
            && self.server.is_away()
        {
            match self.executor.endpoints_of(interface) {
                Some(endpoints) => self.server.forget(|e| endpoints.contains(&e)),
                None => self.server.forget(|_| true),
            }
        }
        self.carry_out();
    }

    /// `connection` is lost. Returns whether it was the session's.
    pub(crate) fn disconnected(&mut self, connection: &Rc<Connection>) -> bool {
        let ours = |c: &Rc<Connection>| Rc::ptr_eq(c, connection);
        if !self.connection.as_ref().is_some_and(ours) {
            return false;
        }
        self.connection = None;
        self.server.disconnected();
        true
    }

    /// The lease ended: everything in flight completes, and the holder hears that the device is
    /// gone.
    pub(crate) fn end(&mut self) {
        if let Some(minder) = self.minder.take() {
            minder.abort();
        }
        self.executor.release();
        self.server.abort(TransferStatus::NoDevice);
        if let Some(connection) = self.connection.take() {
            self.server.gone();
            connection.dismiss(self.server.output().to_vec());
        }
        self.server.disconnected();
    }
}

/// Nobody is connected: sees to it that endpoints whose guest is away are polled all the same.
pub(crate) fn mind(session: &Rc<RefCell<Session>>) {
    let mut state = session.borrow_mut();
    if !state.server.is_away() {
        return;
    }
    let wake = Arc::new(Notify::new());
    state.set_wake(wake.clone());
    wake.notify_one();
    let session = Rc::downgrade(session);
    let minder = spawn_local(async move {
        loop {
            wake.notified().await;
            let Some(session) = session.upgrade() else {
                return;
            };
            session.borrow_mut().pump();
        }
    });
    state.minder = Some(minder.abort_handle());
}

/// The guest runs again: what it does not ask for in time is dropped.
pub(crate) fn forget_later(session: &Rc<RefCell<Session>>) {
    let changes = {
        let server = &session.borrow().server;
        if !server.is_away() {
            return;
        }
        server.away_changes()
    };
    let weak = Rc::downgrade(session);
    let forgets = spawn_local(async move {
        sleep(STASH_TIMEOUT).await;
        let Some(session) = weak.upgrade() else {
            return;
        };
        let mut state = session.borrow_mut();
        if state.server.away_changes() == changes {
            state.server.forget(|_| true);
            state.pump();
        }
    });
    // A guest can go and come as often as it likes: one waits at a time, for the last one.
    let before = session.borrow_mut().forgets.replace(forgets.abort_handle());
    if let Some(before) = before {
        before.abort();
    }
}
