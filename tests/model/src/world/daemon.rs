// SPDX-License-Identifier: GPL-3.0-or-later
//! What a host's `vusbd` does, and its end and its start.

use backend::watched::{Due, due};
use handoff::Event;
use session::open::Opened;

use super::World;
use crate::host::{Controller, Gone, Nodes, Stage, Watch};
use crate::memory::{self, Kept};
use crate::network::{Connection, Message};

impl World {
    /// Lets a controller do something, then sends what came of it.
    pub(super) fn at<R: Default>(
        &mut self,
        host: usize,
        dom: u16,
        act: impl FnOnce(&mut Controller, &mut Nodes) -> R,
    ) -> R {
        let Some(controller) = self.hosts[host].controllers.get_mut(&dom) else {
            return R::default();
        };
        // Of a domain that is gone nobody reads them.
        let mut gone = Nodes::new(host);
        gone.away = true;
        memory::set_power(self.hosts[host].dies_after);
        let nodes = self.nodes.get_mut(&dom).unwrap_or(&mut gone);
        let result = act(controller, nodes);
        self.pump(host, dom);
        match self.look_power(host) {
            true => result,
            // Nobody is left to whom it means anything.
            false => R::default(),
        }
    }

    /// Whether the process has lived through what it did.
    fn look_power(&mut self, host: usize) -> bool {
        let left = memory::power();
        memory::set_power(None);
        self.hosts[host].dies_after = left;
        let lives = left != Some(0);
        if !lives {
            self.vusbd_ends(host);
        }
        lives
    }

    pub(super) fn pump(&mut self, host: usize, dom: u16) {
        let Some(controller) = self.hosts[host].controllers.get_mut(&dom) else {
            return;
        };
        let (opening, output) = (controller.opening(), controller.output());
        let Some(id) = controller.task.as_ref().and_then(|t| t.connection) else {
            return;
        };
        if opening.is_none() && output.is_empty() {
            return;
        }
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.cut
            && connection.exporter
            && memory::take_power()
        {
            connection.up.extend(opening.map(Message::Open));
            Connection::send(&mut connection.up, &output);
        }
    }

    pub(super) fn watch(&mut self, host: usize) {
        let Some(watch) = self.hosts[host].watches.pop_front() else {
            return;
        };
        match watch {
            Watch::Domain(dom) => self.make_own_controller(host, dom),
            Watch::Backend(dom) => self.backend_changed(host, dom),
            Watch::Frontend(dom) => self.at(host, dom, Controller::frontend_changed),
            Watch::Shutdown(dom) => self.shutdown_changed(host, dom),
        }
    }

    fn shutdown_changed(&mut self, host: usize, dom: u16) {
        let Some(now) = self.nodes.get(&dom).map(|n| n.shutdown) else {
            return;
        };
        if self.hosts[host].controllers.contains_key(&dom)
            && self.hosts[host].look_shutdown(dom, now)
        {
            self.at(host, dom, |c, nodes| {
                c.event(Event::SuspendRequested, nodes)
            });
            if self.hosts[host].controllers.contains_key(&dom) {
                self.suspends_heard.insert(dom);
            }
        }
    }

    fn backend_changed(&mut self, host: usize, dom: u16) {
        let known = self.hosts[host].controllers.contains_key(&dom);
        let node = Nodes::backend_node(self.nodes.get(&dom));
        match due(node, known, false) {
            Due::Nothing => {}
            Due::Begin => self.begin(host, dom),
            Due::Adopt => self.adopt(host, dom),
            Due::End => self.domain_gone(host, dom),
            // The toolstack of this world does not wait for it.
            Due::Close => {}
        }
    }

    fn begin(&mut self, host: usize, dom: u16) {
        memory::set_power(self.hosts[host].dies_after);
        self.hosts[host].had.insert(dom);
        let arrives = self.nodes.get(&dom).is_some_and(|n| n.incoming);
        let controller = Controller::new(host, dom, &self.left, arrives);
        self.hosts[host].controllers.insert(dom, controller);
        self.pump(host, dom);
        if self.look_power(host) {
            self.shutdown_changed(host, dom);
        }
    }

    fn adopt(&mut self, host: usize, dom: u16) {
        let Some(nodes) = self.nodes.get_mut(&dom) else {
            return;
        };
        memory::set_power(self.hosts[host].dies_after);
        let controller = Controller::adopt(host, dom, &self.left, nodes);
        self.hosts[host].controllers.insert(dom, controller);
        self.pump(host, dom);
        if self.look_power(host) {
            self.shutdown_changed(host, dom);
        }
    }

    fn domain_gone(&mut self, host: usize, dom: u16) {
        self.at(host, dom, |c, nodes| c.event(Event::DomainGone, nodes));
        let Some(controller) = self.hosts[host].controllers.remove(&dom) else {
            return;
        };
        let is_heard = controller.is_heard();
        if let Some(id) = controller.task.and_then(|t| t.connection) {
            self.end_of(id, |c| c.backend = false);
        }
        self.hosts[host].forget(dom);
        match is_heard {
            true => self.forget_files(host, dom),
            false => self.say_gone(host, dom),
        }
    }

    // ---- the end of it, and the start

    /// The process is killed. What it has sent still arrives.
    pub(super) fn vusbd_ends(&mut self, host: usize) {
        memory::set_power(None);
        for dom in self.hosts[host].controllers.keys() {
            memory::channel(*dom, |c| c.to_backend = false);
        }
        if self.left.planted_late_journal {
            memory::forget_last_store();
        }
        self.hosts[host].die();
        for connection in self.connections.values_mut() {
            if connection.host == host {
                connection.backend = false;
                connection.down.clear();
            }
        }
    }

    /// It is started again, and takes over what there is.
    pub(super) fn vusbd_starts(&mut self, host: usize) {
        self.hosts[host].up = true;
        let here = self.nodes.iter().filter(|(_, n)| n.host == host);
        let here: Vec<u16> = here.map(|(&dom, _)| dom).collect();
        for dom in here {
            self.make_own_controller(host, dom);
            self.backend_changed(host, dom);
        }
        for dom in memory::kept() {
            if self.hosts[host].had.contains(&dom)
                && !self.hosts[host].controllers.contains_key(&dom)
            {
                self.say_gone(host, dom);
            }
        }
    }

    /// Xenstored is there again: every watch is set again, and fires.
    pub(super) fn store_is_back(&mut self, at: usize) {
        self.hosts[at].has_store = true;
        let known: Vec<u16> = self.hosts[at].controllers.keys().copied().collect();
        for &dom in &known {
            self.at(at, dom, Controller::has_store);
        }
        let here = self.nodes.iter().filter(|(_, n)| n.host == at);
        let here: Vec<u16> = here.map(|(&dom, _)| dom).collect();
        let host = &mut self.hosts[at];
        for dom in here {
            host.tell(Watch::Domain(dom));
            host.tell(Watch::Backend(dom));
        }
        for dom in known {
            host.tell(Watch::Backend(dom));
            host.tell(Watch::Frontend(dom));
            host.tell(Watch::Shutdown(dom));
        }
    }

    // ---- domains that are gone

    fn forget_files(&mut self, host: usize, dom: u16) {
        self.hosts[host].had.remove(&dom);
        Kept(dom).remove();
    }

    fn say_gone(&mut self, host: usize, dom: u16) {
        match Gone::new(dom) {
            Some(gone) => drop(self.hosts[host].gone.insert(dom, gone)),
            None => self.forget_files(host, dom),
        }
    }

    /// What a connection that was made to say so has brought.
    pub(super) fn gone_hears(&mut self, host: usize, dom: u16, id: u8, heard: Option<Message>) {
        let Some(Message::Opened(opened)) = heard else {
            return;
        };
        let Some(gone) = self.hosts[host].gone.get_mut(&dom) else {
            return;
        };
        gone.connection = None;
        let words = gone.opened(&opened);
        if let (Ok(Some(bytes)), Some(connection)) = (&words, self.connections.get_mut(&id))
            && !connection.cut
        {
            Connection::send(&mut connection.up, bytes);
        }
        self.end_of(id, |c| c.backend = false);
        if matches!(*opened, Opened::Ready { .. }) || words.is_err() {
            self.hosts[host].gone.remove(&dom);
            self.forget_files(host, dom);
        }
    }

    // ---- connections

    pub(super) fn connect(&mut self, host: usize, dom: u16) {
        let free = (0..=u8::MAX).find(|id| !self.connections.contains_key(id));
        let Some(id) = free else { return };
        if let Some(gone) = self.hosts[host].gone.get_mut(&dom) {
            gone.connection = Some(id);
            let mut connection = Connection::new(host, dom);
            connection.up.push_back(Message::Open(gone.open(dom)));
            self.connections.insert(id, connection);
            return;
        }
        let Some(controller) = self.hosts[host].controllers.get_mut(&dom) else {
            return;
        };
        if let Some(task) = &mut controller.task {
            (task.stage, task.connection) = (Stage::Standing, Some(id));
            self.connections.insert(id, Connection::new(host, dom));
        }
        self.at(host, dom, |_, _| ());
    }

    pub(super) fn backend_end(&mut self, id: u8) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let (host, dom) = (connection.host, connection.dom);
        self.end_of(id, |c| c.backend = false);
        if let Some(gone) = self.hosts[host].gone.get_mut(&dom)
            && gone.connection == Some(id)
        {
            gone.connection = None;
        }
        if let Some(controller) = self.hosts[host].controllers.get_mut(&dom)
            && controller
                .task
                .as_ref()
                .is_some_and(|t| t.connection == Some(id))
        {
            controller.lost();
        }
    }
}
