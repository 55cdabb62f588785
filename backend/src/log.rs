// SPDX-License-Identifier: GPL-3.0-or-later
//! Logging to standard error, which systemd's journal keeps.

use slog::{Drain, Level, Logger, o};

/// Lines that may wait to be written. More are dropped, and counted in the log: a guest must not
/// fill memory with them.
const QUEUE: usize = 4096;

/// A logger; the guard writes what is queued when it is dropped. `verbose` 0 is info, 1 debug, 2
/// and more trace.
pub fn to_stderr(verbose: u8) -> (Logger, slog_async::AsyncGuard) {
    let level = match verbose {
        0 => Level::Info,
        1 => Level::Debug,
        _ => Level::Trace,
    };
    let decorator = slog_term::PlainDecorator::new(std::io::stderr());
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
