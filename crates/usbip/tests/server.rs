// SPDX-License-Identifier: GPL-3.0-or-later
//! The server and the program over sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The program, ended with the test.
struct Program {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Program {
    /// With these devices and options.
    fn start(devices: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_usbip-sim"))
            .args(["--listen", "127.0.0.1:0"])
            .args(devices)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap();
        let address = address.parse().unwrap();
        for _ in devices.iter().filter(|word| !word.starts_with("--")) {
            answers.read_line(&mut line).unwrap();
        }
        Self {
            child,
            commands,
            answers,
            address,
        }
    }

    fn command(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Repeats `stats` until it has this pair.
    fn await_stat(&mut self, bus_id: &str, pair: &str) {
        until(|| {
            let stats = self.command(&format!("stats {bus_id}"));
            stats.split(' ').any(|p| p == pair)
        });
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        // A test that waits for ever says so.
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    /// Asks for a device: the connection and the reply.
    fn import(&self, bus_id: &str) -> (TcpStream, Vec<u8>) {
        let mut stream = self.connect();
        let mut request = vec![1, 0x11, 0x80, 3, 0, 0, 0, 0];
        request.extend_from_slice(bus_id.as_bytes());
        request.resize(40, 0);
        stream.write_all(&request).unwrap();
        let mut reply = vec![0; 8];
        stream.read_exact(&mut reply).unwrap();
        if reply[7] == 0 {
            reply.resize(0x140, 0);
            stream.read_exact(&mut reply[8..]).unwrap();
        }
        (stream, reply)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits; a test that would wait for ever fails.
fn until(mut reached: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if reached() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not reached");
}

fn submit(sequence: u32, is_in: bool, endpoint: u32, length: u32, setup: [u8; 8]) -> Vec<u8> {
    let direction = u32::from(is_in);
    let mut message = Vec::new();
    for field in [
        1,
        sequence,
        0x0001_0002,
        direction,
        endpoint,
        0,
        length,
        0,
        0,
        0,
    ] {
        message.extend_from_slice(&field.to_be_bytes());
    }
    message.extend_from_slice(&setup);
    message
}

/// The next reply: its words, and its data.
fn reply(stream: &mut TcpStream, is_in: bool) -> ([u32; 10], Vec<u8>) {
    let mut header = [0; 48];
    stream.read_exact(&mut header).unwrap();
    let mut words = [0; 10];
    for (word, bytes) in words.iter_mut().zip(header.chunks_exact(4)) {
        *word = u32::from_be_bytes(bytes.try_into().unwrap());
    }
    let mut data = vec![0; if is_in { words[6] as usize } else { 0 }];
    stream.read_exact(&mut data).unwrap();
    (words, data)
}

#[test]
fn the_list_ends_with_the_connection() {
    let program = Program::start(&[
        "disk:1",
        "keyboard",
        "serial",
        "source-sink:mod63",
        "audio",
        "super-disk:1",
    ]);
    let mut stream = program.connect();
    stream.write_all(&[1, 0x11, 0x80, 5, 0, 0, 0, 0]).unwrap();
    let mut list = Vec::new();
    stream.read_to_end(&mut list).unwrap();
    assert_eq!(list[..12], [1, 0x11, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6]);
    // One, one, two, one, three and one interfaces
    assert_eq!(list.len(), 12 + 6 * 0x138 + 9 * 4);
}

#[test]
fn one_client_at_a_time() {
    let program = Program::start(&["keyboard"]);
    let (stream, reply) = program.import("1-1");
    assert_eq!(reply[..8], [1, 0x11, 0, 3, 0, 0, 0, 0]);
    assert_eq!(program.import("1-1").1, [1, 0x11, 0, 3, 0, 0, 0, 2]);
    assert_eq!(program.import("1-9").1, [1, 0x11, 0, 3, 0, 0, 0, 4]);
    drop(stream);
    // The server learns it when it gets to it.
    until(|| program.import("1-1").1[7] == 0);
}

#[test]
fn keys_are_typed() {
    let mut program = Program::start(&["keyboard"]);
    let (mut stream, _) = program.import("1-1");
    stream
        .write_all(&submit(1, false, 0, 0, [0, 9, 1, 0, 0, 0, 0, 0]))
        .unwrap();
    assert_eq!(reply(&mut stream, false).0[5], 0);
    assert_eq!(program.command("stroke 1-1 05"), "ok");
    for (sequence, key) in [(2, 5), (3, 0)] {
        stream
            .write_all(&submit(sequence, true, 1, 8, [0; 8]))
            .unwrap();
        let (words, data) = reply(&mut stream, true);
        assert_eq!((words[1], words[5]), (sequence, 0));
        assert_eq!(data, [0, 0, key, 0, 0, 0, 0, 0]);
    }
    // These wait before the keys come.
    for sequence in 10..30 {
        stream
            .write_all(&submit(sequence, true, 1, 8, [0; 8]))
            .unwrap();
    }
    assert_eq!(program.command("type 1-1 04 10 1"), "ok");
    for sequence in 10..30 {
        let (words, data) = reply(&mut stream, true);
        assert_eq!(words[1], sequence);
        assert_eq!(data[2], if sequence % 2 == 0 { 4 } else { 0 });
    }
    program.await_stat("1-1", "typing=0");
    let stats = program.command("stats 1-1");
    assert_eq!(
        stats,
        "attached=1 fetched=22 waiting=0 leds=0 typed=10 refused=0 typing=0"
    );
}

#[test]
fn isochronous_transfers_end_in_real_time() {
    record(&Program::start(&["audio"]));
}

#[test]
fn on_a_slow_bus_they_take_longer() {
    let program = Program::start(&["--slow=20", "audio"]);
    let start = Instant::now();
    record(&program);
    // Twenty packets, one in each millisecond of the bus. More is the machine's business.
    assert!(start.elapsed() >= 20 * Duration::from_millis(20));
}

/// Records for twenty milliseconds of the bus.
fn record(program: &Program) {
    let (mut stream, _) = program.import("1-1");
    for (sequence, setup) in [
        (1, [0, 9, 1, 0, 0, 0, 0, 0]),
        (2, [1, 11, 1, 0, 2, 0, 0, 0]),
    ] {
        stream
            .write_all(&submit(sequence, false, 0, 0, setup))
            .unwrap();
        assert_eq!(reply(&mut stream, false).0[5], 0);
    }
    // Four transfers of five packets, always two on the way
    let transfer = |sequence| {
        let mut message = submit(sequence, true, 2, 5 * 196, [0; 8]);
        message[0x20..0x24].copy_from_slice(&5_u32.to_be_bytes());
        for at in 0..5_u32 {
            for field in [at * 196, 196, 0, 0] {
                message.extend_from_slice(&field.to_be_bytes());
            }
        }
        message
    };
    stream.write_all(&transfer(10)).unwrap();
    stream.write_all(&transfer(11)).unwrap();
    let mut last = 0;
    for sequence in 10..14 {
        let (words, data) = reply(&mut stream, true);
        assert_eq!((words[1], words[5], words[6]), (sequence, 0, 5 * 192));
        let mut table = [0; 5 * 16];
        stream.read_exact(&mut table).unwrap();
        for frame in data.chunks_exact(4) {
            let number = u32::from_le_bytes(frame.try_into().unwrap());
            // On a busy machine we may come late, and then samples are lost; never doubled.
            assert!(number > last);
            last = number;
        }
        stream.write_all(&transfer(sequence + 2)).unwrap();
    }
    assert!(last >= 4 * 5 * 48);
}

#[test]
fn unplugging_ends_the_connection() {
    let mut program = Program::start(&["serial"]);
    let (mut stream, _) = program.import("1-1");
    assert_eq!(program.command("unplug 1-1"), "ok");
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(program.import("1-1").1[7], 4);
    assert_eq!(program.command("plug 1-1"), "ok");
    assert_eq!(program.import("1-1").1[7], 0);
}

#[test]
fn nonsense_ends_the_connection_only() {
    let mut program = Program::start(&["keyboard"]);
    for nonsense in [[0xff; 64].as_slice(), &[1, 0x11, 0x80, 9, 0, 0, 0, 0]] {
        let mut stream = program.connect();
        stream.write_all(nonsense).unwrap();
        // Closed, or reset because not all of it was read.
        assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    let (mut stream, _) = program.import("1-1");
    stream.write_all(&[0xff; 48]).unwrap();
    assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    program.await_stat("1-1", "attached=0");
}

#[test]
fn commands_that_are_wrong() {
    let mut program = Program::start(&["disk:1"]);
    for (command, answer) in [
        ("stats 1-2", "error: no device '1-2'"),
        ("stroke 1-1 04", "error: it is no keyboard"),
        ("stroke 1-1 xx", "error: no usage: 'xx'"),
        ("type 1-1 04 1 1", "error: '1-1' is no keyboard"),
        ("type 1-1 04 1 0", "error: no interval: '0'"),
        ("dance", "error: no command 'dance'; try help"),
        ("stats 1-1", "attached=0"),
    ] {
        assert_eq!(program.command(command), answer);
    }
}
