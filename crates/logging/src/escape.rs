// SPDX-License-Identifier: GPL-3.0-or-later
//! What a log line is made of, written so that it stays one line and says what it is.

use std::fmt::Write as _;
use std::io;

use slog::{OwnedKVList, Record};
use slog_term::{Decorator, RecordDecorator};

/// Longest message or value in a line, in bytes. The longest of our own have some hundred.
const MAX_LEN: usize = 8 * 1024;

/// Escapes what is not for a log in messages, keys and values: control characters, with which a peer's
/// string would begin a line of its own or speak to the terminal, and those that hide or reorder others.
pub(crate) struct Escaped<D>(pub(crate) D);

impl<D: Decorator> Decorator for Escaped<D> {
    fn with_record<F>(&self, record: &Record<'_>, values: &OwnedKVList, write: F) -> io::Result<()>
    where
        F: FnOnce(&mut dyn RecordDecorator) -> io::Result<()>,
    {
        self.0.with_record(record, values, |inner| {
            write(&mut EscapedRecord {
                inner,
                is_text: false,
                left: 0,
            })
        })
    }
}

struct EscapedRecord<'a> {
    inner: &'a mut dyn RecordDecorator,
    /// What is written now is a message, a key or a value, not the line's own form.
    is_text: bool,
    /// Bytes of it that may still be written.
    left: usize,
}

impl EscapedRecord<'_> {
    fn begin_text(&mut self) {
        self.is_text = true;
        self.left = MAX_LEN;
    }
}

impl io::Write for EscapedRecord<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_text {
            return self.inner.write(bytes);
        }
        if self.left > 0 {
            let mut part = bytes;
            if bytes.len() > self.left {
                part = &bytes[..self.left];
            }
            self.left -= part.len();
            let mut text = escape(&String::from_utf8_lossy(part));
            if part.len() < bytes.len() {
                text.push_str("...");
            }
            self.inner.write_all(text.as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl RecordDecorator for EscapedRecord<'_> {
    fn reset(&mut self) -> io::Result<()> {
        self.is_text = false;
        self.inner.reset()
    }

    fn start_msg(&mut self) -> io::Result<()> {
        self.begin_text();
        self.inner.start_msg()
    }

    fn start_key(&mut self) -> io::Result<()> {
        self.begin_text();
        self.inner.start_key()
    }

    fn start_value(&mut self) -> io::Result<()> {
        self.begin_text();
        self.inner.start_value()
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match is_hidden(c) {
            // Writing to a string cannot fail.
            true => drop(write!(out, "{}", c.escape_default())),
            false => out.push(c),
        }
    }
    out
}

/// Control characters, line and paragraph separators, and what hides or reorders other characters.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use slog::{info, o};

    use super::*;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(log: impl FnOnce(&slog::Logger)) -> String {
        let output = Output::default();
        let (logger, guard) = crate::to_writer(output.clone(), 0);
        log(&logger);
        drop((logger, guard));
        let bytes = output.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_string_of_a_peer_does_not_begin_a_line() {
        let name = "x\nDec 01 00:00:00.000 INFO all is well\r\u{1b}[2K\u{202e}";
        let text = logged(|log| {
            let log = log.new(o!("bound" => name));
            info!(log, "device {}", name; "value" => name);
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains(['\r', '\u{1b}', '\u{202e}']), "{text:?}");
        assert_eq!(text.matches("x\\nDec 01").count(), 3, "{text}");
        assert!(text.contains("\\u{1b}[2K\\u{202e}"), "{text}");
    }

    #[test]
    fn letters_of_all_alphabets_and_our_own_form_stay() {
        let text = logged(|log| {
            info!(log, "Gerät «1-2»: Кирилица"; "a" => 1, "b" => "c d");
            info!(log, "next");
        });
        assert_eq!(text.lines().count(), 2, "{text}");
        let first = text.lines().next().unwrap();
        assert!(
            first.ends_with("INFO Gerät «1-2»: Кирилица, a: 1, b: c d"),
            "{first}"
        );
    }

    #[test]
    fn nothing_that_is_too_long_fills_the_log() {
        let long = "ä".repeat(200_000);
        let text = logged(|log| info!(log, "{}", long; "value" => &long));
        assert!(text.len() < 3 * MAX_LEN, "{}", text.len());
        assert!(text.contains("..."));
    }
}
