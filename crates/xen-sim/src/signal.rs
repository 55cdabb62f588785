// SPDX-License-Identifier: GPL-3.0-or-later
//! Ending a host's process with SIGTERM or SIGINT, so that it still makes its last checks.

use std::mem::MaybeUninit;

/// SIGTERM and SIGINT, blocked.
#[derive(Clone, Copy)]
pub struct StopSignals(libc::sigset_t);

impl StopSignals {
    /// Blocks them in this thread and in those that it starts from now on.
    pub fn block() -> StopSignals {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set; the other calls get valid pointers.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::sigaddset(&mut set, libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            StopSignals(set)
        }
    }

    /// Waits for one of them.
    pub fn wait(&self) {
        let mut signal = 0;
        // SAFETY: both pointers are valid. It fails only for a set with invalid signals.
        unsafe { libc::sigwait(&self.0, &mut signal) };
    }
}
