// SPDX-License-Identifier: GPL-3.0-or-later
//! A device's session: the machine, the device, and the connection of the moment.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use session::Epoch;
use session::frame::TransferStatus;
use session::server::{Server, ServerError};
use tokio::sync::{Mutex, Notify};

use crate::executor::Executor;

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
    /// Held while the device is opened.
    pub(crate) opening: Rc<Mutex<()>>,
}

impl Session {
    pub(crate) fn new(executor: Executor) -> Self {
        Self {
            server: Server::new(Epoch::default()),
            executor,
            connection: None,
            opening: Rc::default(),
        }
    }

    /// The device was lent anew.
    pub(crate) fn lend(&mut self, epoch: Epoch) {
        self.end();
        self.server = Server::new(epoch);
    }

    /// Somebody takes over under a newer epoch.
    pub(crate) fn claim(&mut self, epoch: Epoch) -> Rc<Connection> {
        let farewell = self.server.claim(epoch);
        self.executor.abandon();
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
        self.executor.set_wake(connection.wake.clone());
        if let Some(old) = self.connection.replace(connection.clone()) {
            old.dismiss(farewell);
        }
        connection
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
        self.executor.release();
        self.server.abort(TransferStatus::NoDevice);
        if let Some(connection) = self.connection.take() {
            self.server.gone();
            connection.dismiss(self.server.output().to_vec());
        }
        self.server.disconnected();
    }
}
