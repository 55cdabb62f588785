// SPDX-License-Identifier: GPL-3.0-or-later
//! What all devices of a process share of the kernel's memory for transfers.
//!
//! The kernel counts the buffers of all transfers of all programs against one limit (`usbcore.usbfs_memory_mb`, 16
//! MB unless set otherwise), and refuses what is beyond it. An IN transfer holds its buffer as long as the device is
//! silent, so a few owners could take it all, for good. Here each device has a **reserve** that nobody else can take; what is
//! left is a **pool**, of which one device gets at most [`DEVICE_MAX`] and all devices of one owner half. Who does not get
//! any waits in a queue, and is given what becomes free in the order of the queue: each gets one transfer's worth and goes to its end.

use std::collections::VecDeque;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::EventFd;

/// The kernel's limit where it cannot be read, in bytes: its default.
const DEFAULT_LIMIT: usize = 16 << 20;
/// Most that one device gets, in bytes: sixteen transfers of 64 KiB, with what the kernel counts besides.
const DEVICE_MAX: usize = 16 * (64 + 4) * 1024;
/// What each device can always have, in bytes: one of the longest transfers, and some small ones.
const RESERVE: usize = 96 * 1024;

/// The kernel's limit for the buffers of all transfers of all programs, in bytes; `None` for none.
pub fn kernel_limit() -> Option<usize> {
    let text = fs::read_to_string("/sys/module/usbcore/parameters/usbfs_memory_mb");
    match text.ok().and_then(|t| t.trim().parse::<usize>().ok()) {
        Some(0) => None,
        Some(megabytes) => Some(megabytes.saturating_mul(1 << 20)),
        None => Some(DEFAULT_LIMIT),
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    limit: Option<usize>,
    devices: Vec<Device>,
    /// Devices that wait for what is in the pool, by number.
    queue: VecDeque<u64>,
    /// Devices that the kernel had no memory for, by number.
    starved: VecDeque<u64>,
    next: u64,
}

#[derive(Debug)]
struct Device {
    number: u64,
    owner: Arc<str>,
    used: usize,
    /// What it waits for.
    wanted: Option<Request>,
    /// What it waited for and has got. It is part of `used`.
    granted: Option<Request>,
    wake: Arc<EventFd>,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    endpoint: u8,
    cost: usize,
    /// Its endpoint has no other transfer: it is not held to the limits of the device and its owner.
    only_one: bool,
}

/// Why a request is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The device or its owner has enough.
    OwnLimit,
    /// There is nothing left.
    PoolEmpty,
}

impl Device {
    /// What it has of the pool.
    fn of_pool(&self, reserve: usize) -> usize {
        self.used.saturating_sub(reserve)
    }
}

impl State {
    fn at(&mut self, number: u64) -> Option<&mut Device> {
        self.devices.iter_mut().find(|d| d.number == number)
    }

    /// With very many devices, half of the limit is divided among them.
    fn reserve(&self) -> usize {
        let Some(limit) = self.limit else {
            return RESERVE;
        };
        RESERVE.min(limit / 2 / self.devices.len().max(1))
    }

    fn grantable(&self, number: u64, request: Request) -> Result<(), Refusal> {
        let reserve = self.reserve();
        let Some(device) = self.devices.iter().find(|d| d.number == number) else {
            return Ok(());
        };
        let after = device.used + request.cost;
        if after <= reserve {
            return Ok(());
        }
        if after > DEVICE_MAX && !request.only_one && device.used > 0 {
            return Err(Refusal::OwnLimit);
        }
        let Some(limit) = self.limit else {
            return Ok(());
        };
        // Half of the limit is kept back for reserves, however many devices there will be.
        let pool = limit / 2;
        let more = after.saturating_sub(reserve) - device.of_pool(reserve);
        let (mut all, mut owners) = (0, 0);
        for other in &self.devices {
            let of_pool = other.of_pool(reserve);
            all += of_pool;
            if other.owner == device.owner {
                owners += of_pool;
            }
        }
        // The longest transfer is to fit where nothing else is.
        if all > 0 && all + more > pool {
            return Err(Refusal::PoolEmpty);
        }
        if owners > 0 && owners + more > pool / 2 && !request.only_one {
            return Err(Refusal::OwnLimit);
        }
        Ok(())
    }

    /// Gives what is free to those that wait, in their order.
    fn grant(&mut self) {
        for _ in 0..self.queue.len() {
            let Some(number) = self.queue.pop_front() else {
                return;
            };
            let Some(request) = self.at(number).and_then(|d| d.wanted) else {
                continue;
            };
            match self.grantable(number, request) {
                Ok(()) => {
                    if let Some(device) = self.at(number) {
                        device.wanted = None;
                        device.used += request.cost;
                        device.granted = Some(request);
                        device.wake.set();
                    }
                }
                Err(Refusal::OwnLimit) => self.queue.push_back(number),
                Err(Refusal::PoolEmpty) => {
                    // Nobody overtakes it, or who needs much would never get it.
                    self.queue.push_front(number);
                    return;
                }
            }
        }
    }

    fn feed_starved(&mut self) {
        if let Some(number) = self.starved.pop_front()
            && let Some(device) = self.at(number)
        {
            device.wake.set();
        }
    }
}

impl Memory {
    /// To be divided: so many bytes, or as much as anybody likes.
    pub fn new(limit: Option<usize>) -> Self {
        Self(Arc::new(Mutex::new(State {
            limit,
            devices: Vec::new(),
            queue: VecDeque::new(),
            starved: VecDeque::new(),
            next: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device's share. `wake` is set when it gets something that it waited for.
    pub fn share(&self, wake: Arc<EventFd>) -> Share {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.devices.push(Device {
            number,
            owner: "".into(),
            used: 0,
            wanted: None,
            granted: None,
            wake,
        });
        drop(state);
        Share {
            memory: self.clone(),
            number,
        }
    }

    /// Bytes that are in use.
    pub fn used(&self) -> usize {
        self.lock().devices.iter().map(|d| d.used).sum()
    }
}

/// What one device has. All of it is given back when this is dropped.
#[derive(Debug)]
pub struct Share {
    memory: Memory,
    number: u64,
}

impl Share {
    /// Who uses the device from now on: devices of the same owner share a limit.
    pub fn set_owner(&self, owner: &str) {
        self.lender().set_owner(owner);
    }

    /// Sets the owner from elsewhere.
    pub(crate) fn lender(&self) -> Lender {
        Lender {
            memory: self.memory.clone(),
            number: self.number,
        }
    }

    /// Takes `cost` bytes for a transfer of `endpoint`. Where it answers false, the device waits for them, and its `wake`
    /// is set when it has them, so that asking for the same again succeeds. A device waits for one endpoint at a
    /// time, which is the first one that it was refused for. `only_one`: the endpoint has no other transfer.
    pub fn take(&self, endpoint: u8, cost: usize, only_one: bool) -> bool {
        let mut state = self.memory.lock();
        let request = Request {
            endpoint,
            cost,
            only_one,
        };
        let Some(device) = state.at(self.number) else {
            return true;
        };
        if device.granted.is_some_and(|g| g.endpoint == endpoint) {
            let granted = device.granted.take().map_or(0, |g| g.cost);
            if granted == cost {
                return true;
            }
            device.used -= granted;
        }
        let used = device.used;
        let fits = state.grantable(self.number, request).is_ok();
        // What is in the pool is for those who wait for it.
        if fits && (used + cost <= state.reserve() || state.all_wait_for_themselves()) {
            if let Some(device) = state.at(self.number) {
                device.used += cost;
            }
            return true;
        }
        if let Some(device) = state.at(self.number)
            && device.wanted.is_none()
            && device.granted.is_none()
        {
            device.wanted = Some(request);
            state.queue.push_back(self.number);
        }
        false
    }

    /// The endpoint that the device waits for, or has got something for that it did not take.
    pub fn waits_for(&self) -> Option<u8> {
        let mut state = self.memory.lock();
        let device = state.at(self.number)?;
        let request = device.wanted.or(device.granted)?;
        Some(request.endpoint)
    }

    /// Gives `cost` bytes back.
    pub fn release(&self, cost: usize) {
        let mut state = self.memory.lock();
        if let Some(device) = state.at(self.number) {
            debug_assert!(device.used >= cost, "more than it had");
            device.used = device.used.saturating_sub(cost);
        }
        state.grant();
        state.feed_starved();
    }

    /// The kernel had no memory for what was taken, whoever has it: `wake` is set when any device has given
    /// something back.
    pub fn starve(&self) {
        let mut state = self.memory.lock();
        if !state.starved.contains(&self.number) {
            state.starved.push_back(self.number);
        }
    }

    /// The device waits for nothing any more.
    pub fn stop_waiting(&self) {
        let mut state = self.memory.lock();
        let number = self.number;
        if let Some(device) = state.at(number) {
            device.wanted = None;
            device.used -= device.granted.take().map_or(0, |g| g.cost);
        }
        state.queue.retain(|n| *n != number);
        state.starved.retain(|n| *n != number);
        state.grant();
    }
}

impl State {
    /// Whether all that wait do so for their own limits, so that others may have what is in the pool.
    fn all_wait_for_themselves(&self) -> bool {
        self.queue.iter().all(|number| {
            let device = self.devices.iter().find(|d| d.number == *number);
            let request = device.and_then(|d| d.wanted);
            request.is_none_or(|r| self.grantable(*number, r) == Err(Refusal::OwnLimit))
        })
    }
}

/// Tells whose a device is.
#[derive(Clone, Debug)]
pub(crate) struct Lender {
    memory: Memory,
    number: u64,
}

impl Lender {
    pub(crate) fn set_owner(&self, owner: &str) {
        let mut state = self.memory.lock();
        if let Some(device) = state.at(self.number)
            && &*device.owner != owner
        {
            device.owner = owner.into();
            state.grant();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.memory.lock();
        let number = self.number;
        state.devices.retain(|d| d.number != number);
        state.queue.retain(|n| *n != number);
        state.starved.retain(|n| *n != number);
        state.grant();
        state.feed_starved();
    }
}

#[cfg(test)]
mod tests;
