// SPDX-License-Identifier: GPL-3.0-or-later
//! Logs of daemons: to standard error, which systemd's journal keeps, and no more of it than is
//! useful.
//!
//! What a guest or a peer does may be worth a line; that it does so a million times is worth one
//! more. So whoever can be made to log by somebody else logs through [`limited`].

mod escape;
mod limit;

use std::io::Write;

use slog::{Drain, Level, Logger, o};

use escape::Escaped;
pub use limit::{Allowance, limited};

/// Lines that may wait to be written. More are dropped, and counted in the log: they must not fill
/// memory.
pub const QUEUE: usize = 4096;

/// A logger to standard error; the guard writes what is queued when it is dropped. `verbose` 0 is
/// info, 1 debug, 2 and more trace. Control characters in what is logged are escaped.
pub fn to_stderr(verbose: u8) -> (Logger, slog_async::AsyncGuard) {
    to_writer(std::io::stderr(), verbose)
}

/// The same to anything else.
pub fn to_writer(
    writer: impl Write + Send + 'static,
    verbose: u8,
) -> (Logger, slog_async::AsyncGuard) {
    let level = match verbose {
        0 => Level::Info,
        1 => Level::Debug,
        _ => Level::Trace,
    };
    let decorator = Escaped(slog_term::PlainDecorator::new(writer));
    let format = slog_term::FullFormat::new(decorator)
        .use_original_order()
        .build()
        .fuse();
    let (drain, guard) = slog_async::Async::new(format.filter_level(level).fuse())
        .chan_size(QUEUE)
        .overflow_strategy(slog_async::OverflowStrategy::DropAndReport)
        .build_with_guard();
    (Logger::root(drain.fuse(), o!()), guard)
}
