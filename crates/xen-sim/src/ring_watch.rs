// SPDX-License-Identifier: GPL-3.0-or-later
//! What may be stored in the header of a ring (`DEFINE_RING_TYPES` of Xen's `ring.h`).

use std::sync::atomic::{AtomicU32, Ordering};

const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;

/// Checks a backend's store of `value` at `offset` of a ring's page. Gives what is wrong with it.
pub(crate) fn check_backend_store<'a>(
    index: impl Fn(usize) -> &'a AtomicU32,
    offset: usize,
    value: u32,
) -> Option<String> {
    match offset {
        REQ_PROD => Some("stored the frontend's req_prod".to_owned()),
        RSP_PROD => {
            let before = index(RSP_PROD).load(Ordering::Relaxed);
            let requests = index(REQ_PROD).load(Ordering::Acquire);
            // Free-running 32-bit counters: only differences mean anything.
            if (value.wrapping_sub(before) as i32) < 0 {
                Some(format!("rsp_prod went back from {before} to {value}"))
            } else if (requests.wrapping_sub(value) as i32) < 0 {
                Some(format!("rsp_prod {value} ahead of req_prod {requests}"))
            } else {
                None
            }
        }
        _ => None,
    }
}
