// SPDX-License-Identifier: GPL-3.0-or-later
//! What is fuzzed.

pub mod certificate;
pub mod config;
pub mod controller;
pub mod descriptor;
pub mod disk;
pub mod frame;
pub mod lease;
pub mod message;
pub mod ring;
pub mod session;
pub mod xenstore;
