// SPDX-License-Identifier: GPL-3.0-or-later
//! A backend and a disk that do what they are told, over plain shared memory.

// Each test program uses a part.
#![allow(dead_code)]

pub(crate) mod backend;
pub(crate) mod disk;
pub(crate) mod memory;
