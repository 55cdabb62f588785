// SPDX-License-Identifier: GPL-3.0-or-later
//! Fuzzers of the shipping code, for stable Rust and without a runtime of their own.
//!
//! A [`Target`] reads decisions from an [`Input`], a string of bytes: a sequence of operations, or
//! bytes for a decoder. It panics where something promised does not hold. The [`driver`] makes
//! inputs with a seeded generator and by mutation of those that did something new ([`Input::did`]),
//! so that the same seed tries the same inputs for as long as the code stays the same.
//!
//! An input that failed once is in `regressions/TARGET.txt` and is tried by every test run.
#![forbid(unsafe_code)]

pub mod driver;
mod input;
mod mutate;
mod random;
pub mod regressions;
pub mod target;

pub use input::Input;
pub use random::Random;

/// What is fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Tries one input.
    pub run: fn(&mut Input<'_>),
}

/// Every target.
pub const TARGETS: [Target; 11] = [
    target::ring::TARGET,
    target::controller::TARGET,
    target::frame::TARGET,
    target::session::TARGET,
    target::lease::TARGET,
    target::message::TARGET,
    target::xenstore::TARGET,
    target::config::TARGET,
    target::certificate::TARGET,
    target::descriptor::TARGET,
    target::disk::TARGET,
];
