// SPDX-License-Identifier: GPL-3.0-or-later
//! The frontend's end of a ring: requests out, responses in.

use core::marker::PhantomData;

use crate::RingMemory;
use crate::ring::{
    REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingCorrupt, RingIndices, RingKind, publish_index,
    slot_offset,
};

/// [`FrontRing::push_request`] while every slot is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("every slot of the ring is in use")]
pub struct RingFull;

/// The frontend's end of a ring.
///
/// Per wake-up: take the event of the channel, then [`next_response`](Self::next_response) until
/// `None`, [`push_request`](Self::push_request) what is to be sent, one
/// [`publish`](Self::publish), and [`final_check`](Self::final_check) before going to sleep.
#[derive(Clone, Debug)]
pub struct FrontRing<M, R> {
    memory: M,
    req_prod_pvt: u32,
    /// What we last stored to `req_prod`. Never read back from the page.
    req_prod: u32,
    rsp_cons: u32,
    kind: PhantomData<fn() -> R>,
}

impl<M: RingMemory, R: RingKind> FrontRing<M, R> {
    /// Sets up a fresh ring in `memory` (`SHARED_RING_INIT`, `FRONT_RING_INIT`).
    pub fn new(memory: M) -> Self {
        Self::starting_at(memory, 0)
    }

    /// Sets up a fresh ring whose indices start at `index`, for tests of the wrap at 2^32. A
    /// backend must [`attach`](crate::BackRing::attach) to such a ring.
    pub fn starting_at(memory: M, index: u32) -> Self {
        memory.store_release(REQ_PROD, index);
        memory.store_release(RSP_PROD, index);
        memory.store_release(REQ_EVENT, index.wrapping_add(1));
        memory.store_release(RSP_EVENT, index.wrapping_add(1));
        Self {
            memory,
            req_prod_pvt: index,
            req_prod: index,
            rsp_cons: index,
            kind: PhantomData,
        }
    }

    /// Writes a request into the next slot. The backend sees it after
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// When no slot is free.
    pub fn push_request(&mut self, request: &R::Request) -> Result<(), RingFull> {
        if self.free() == 0 {
            return Err(RingFull);
        }
        R::write_request(&self.memory, slot_offset::<R>(self.req_prod_pvt), request);
        self.req_prod_pvt = self.req_prod_pvt.wrapping_add(1);
        Ok(())
    }

    /// Shows the backend every request pushed so far. True: signal it
    /// (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`).
    #[must_use = "the backend sleeps until it is signalled"]
    pub fn publish(&mut self) -> bool {
        let old = self.req_prod;
        if old == self.req_prod_pvt {
            return false;
        }
        self.req_prod = self.req_prod_pvt;
        publish_index(&self.memory, REQ_PROD, REQ_EVENT, old, self.req_prod)
    }

    /// The next response, copied from its slot exactly once, or `None` when there is none.
    ///
    /// # Errors
    /// The backend's index is ahead of the requests that we published, or ran backwards. Linux
    /// only checks that it is not further ahead than the ring is long.
    pub fn next_response(&mut self) -> Result<Option<R::ReadResponse>, RingCorrupt> {
        if self.unread()? == 0 {
            return Ok(None);
        }
        let response = R::read_response(&self.memory, slot_offset::<R>(self.rsp_cons));
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(Some(response))
    }

    /// Asks to be signalled for the next response. True: one has come in meanwhile, or the index
    /// is corrupt; in both cases call [`next_response`](Self::next_response)
    /// (`RING_FINAL_CHECK_FOR_RESPONSES`).
    #[must_use = "a response may be waiting"]
    pub fn final_check(&mut self) -> bool {
        if self.unread() != Ok(0) {
            return true;
        }
        self.memory
            .store_release(RSP_EVENT, self.rsp_cons.wrapping_add(1));
        self.memory.full_barrier();
        self.unread() != Ok(0)
    }

    /// Where we are: the next request to push, the next response to read.
    pub fn indices(&self) -> RingIndices {
        RingIndices {
            req: self.req_prod_pvt,
            rsp: self.rsp_cons,
        }
    }

    /// Free slots.
    pub fn free(&self) -> u32 {
        R::SLOTS - self.pending()
    }

    /// Requests pushed for which no response has been read.
    pub fn pending(&self) -> u32 {
        self.req_prod_pvt.wrapping_sub(self.rsp_cons)
    }

    /// The shared page.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Gives the shared page back.
    pub fn into_memory(self) -> M {
        self.memory
    }

    /// Responses that the backend has published and we have not read.
    fn unread(&self) -> Result<u32, RingCorrupt> {
        let rsp_prod = self.memory.load_acquire(RSP_PROD);
        let unread = rsp_prod.wrapping_sub(self.rsp_cons);
        if unread > self.req_prod.wrapping_sub(self.rsp_cons) {
            return Err(RingCorrupt {
                published: rsp_prod,
                indices: self.indices(),
            });
        }
        Ok(unread)
    }
}
