// SPDX-License-Identifier: GPL-3.0-or-later
//! The backend's end of a ring: requests in, responses out.

use core::marker::PhantomData;

use crate::ring::{
    REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingCorrupt, RingIndices, RingKind, publish_index,
    slot_offset,
};
use crate::{RingMemory, Urb};

/// [`BackRing::push_response`] without a request that still wants one. Written all the same, the
/// response would destroy a request that has not been read yet. Always our own mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("every request that was read has been answered")]
pub struct NoRequestToAnswer;

impl<M: RingMemory> BackRing<M, Urb> {
    /// As [`next_request`](Self::next_request), but the slot's bytes, for who keeps them. They are
    /// for [`UrbRequest::decode`](crate::UrbRequest::decode).
    ///
    /// # Errors
    /// Those of `next_request`.
    pub fn next_slot(&mut self) -> Result<Option<[u8; Urb::SLOT_BYTES]>, RingCorrupt> {
        if self.unread()? == 0 {
            return Ok(None);
        }
        let mut bytes = [0; Urb::SLOT_BYTES];
        self.memory
            .read(slot_offset::<Urb>(self.req_cons), &mut bytes);
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(Some(bytes))
    }
}

/// The backend's end of a ring.
///
/// Per wake-up: take the event of the channel, then [`next_request`](Self::next_request) until
/// `None`, [`push_response`](Self::push_response) for whatever is finished, one
/// [`publish`](Self::publish) (signal the peer if it says so), and
/// [`final_check`](Self::final_check) before going to sleep (go round again if it says so).
///
/// Responses may come in any order; what is counted is only that there are no more of them than
/// requests were read.
#[derive(Clone, Debug)]
pub struct BackRing<M, R> {
    memory: M,
    req_cons: u32,
    rsp_prod_pvt: u32,
    /// What we last stored to `rsp_prod`. Never read back from the page.
    rsp_prod: u32,
    kind: PhantomData<fn() -> R>,
}

impl<M: RingMemory, R: RingKind> BackRing<M, R> {
    /// A ring that the frontend has just set up (`BACK_RING_INIT`).
    pub fn new(memory: M) -> Self {
        Self::at(memory, 0)
    }

    /// A ring that an earlier backend served (`BACK_RING_ATTACH`): goes on at the shared response
    /// index, so that every slot without a response is read again.
    ///
    /// With responses out of order these slots are not the unanswered requests: some may have been
    /// answered in an earlier slot, and some unanswered ones may lie in slots that responses have
    /// overwritten. Whoever kept a record of the requests uses [`resume`](Self::resume).
    pub fn attach(memory: M) -> Self {
        let rsp_prod = memory.load_acquire(RSP_PROD);
        Self::at(memory, rsp_prod)
    }

    /// A ring that goes on where [`indices`](Self::indices) said after the last
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// When the indices are more than a ring apart.
    pub fn resume(memory: M, indices: RingIndices) -> Result<Self, RingCorrupt> {
        if indices.req.wrapping_sub(indices.rsp) > R::SLOTS {
            let published = memory.load_acquire(REQ_PROD);
            return Err(RingCorrupt { published, indices });
        }
        let mut ring = Self::at(memory, indices.rsp);
        ring.req_cons = indices.req;
        Ok(ring)
    }

    /// The two producer indices as they are on a shared page, not checked.
    pub fn shared_indices(memory: &M) -> RingIndices {
        RingIndices {
            req: memory.load_acquire(REQ_PROD),
            rsp: memory.load_acquire(RSP_PROD),
        }
    }

    fn at(memory: M, index: u32) -> Self {
        Self {
            memory,
            req_cons: index,
            rsp_prod_pvt: index,
            rsp_prod: index,
            kind: PhantomData,
        }
    }

    /// The next request, copied from its slot exactly once, or `None` when there is none.
    ///
    /// # Errors
    /// The frontend's index is further ahead than the ring is long, or behind what it published
    /// before. The ring must not be used any more.
    pub fn next_request(&mut self) -> Result<Option<R::ReadRequest>, RingCorrupt> {
        if self.unread()? == 0 {
            return Ok(None);
        }
        let request = R::read_request(&self.memory, slot_offset::<R>(self.req_cons));
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(Some(request))
    }

    /// Writes a response into the next slot. The frontend sees it after
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// When as many responses as requests were read have been pushed already. Nothing is written.
    pub fn push_response(&mut self, response: &R::Response) -> Result<(), NoRequestToAnswer> {
        if self.unanswered() == 0 {
            return Err(NoRequestToAnswer);
        }
        R::write_response(&self.memory, slot_offset::<R>(self.rsp_prod_pvt), response);
        self.rsp_prod_pvt = self.rsp_prod_pvt.wrapping_add(1);
        Ok(())
    }

    /// Shows the frontend every response pushed so far. True: signal it
    /// (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
    #[must_use = "the frontend sleeps until it is signalled"]
    pub fn publish(&mut self) -> bool {
        let old = self.rsp_prod;
        if old == self.rsp_prod_pvt {
            return false;
        }
        self.rsp_prod = self.rsp_prod_pvt;
        publish_index(&self.memory, RSP_PROD, RSP_EVENT, old, self.rsp_prod)
    }

    /// Asks to be signalled for the next request. True: one has come in meanwhile, or the index is
    /// corrupt; in both cases call [`next_request`](Self::next_request)
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`).
    #[must_use = "a request may be waiting"]
    pub fn final_check(&mut self) -> bool {
        if self.unread() != Ok(0) {
            return true;
        }
        self.memory
            .store_release(REQ_EVENT, self.req_cons.wrapping_add(1));
        self.memory.full_barrier();
        self.unread() != Ok(0)
    }

    /// Where we are: the next request to read, the next response to push.
    pub fn indices(&self) -> RingIndices {
        RingIndices {
            req: self.req_cons,
            rsp: self.rsp_prod_pvt,
        }
    }

    /// Requests read for which no response has been pushed.
    pub fn unanswered(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod_pvt)
    }

    /// Responses pushed but not published.
    pub fn unpublished(&self) -> u32 {
        self.rsp_prod_pvt.wrapping_sub(self.rsp_prod)
    }

    /// The shared page.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Gives the shared page back.
    pub fn into_memory(self) -> M {
        self.memory
    }

    /// Requests that the frontend has published and we have not read.
    fn unread(&self) -> Result<u32, RingCorrupt> {
        let req_prod = self.memory.load_acquire(REQ_PROD);
        // Counted from our response index: a frontend that knows of fewer responses than we have
        // pushed has room for fewer requests, never for more.
        let produced = req_prod.wrapping_sub(self.rsp_prod_pvt);
        if produced > R::SLOTS || produced < self.unanswered() {
            return Err(RingCorrupt {
                published: req_prod,
                indices: self.indices(),
            });
        }
        Ok(produced - self.unanswered())
    }
}
