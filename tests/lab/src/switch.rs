// SPDX-License-Identifier: GPL-3.0-or-later
//! A small learning network switch between the lab's machines.
//!
//! Each link is a pair of Unix datagram sockets: QEMU's `-netdev dgram` sends frames to
//! `<link>.up` and receives on `<link>.down`. Nothing leaves the machine, and every link can be
//! delayed, throttled, made lossy or cut while it runs, through a control socket that takes one
//! line per connection: `LINK key=value …`, answered with the link's settings and counters.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// Frames kept for a link that cannot take them now; beyond it frames are lost, as on a real
/// switch.
const QUEUE_FRAMES: usize = 4096;
/// Largest frame: the lab's MTU of 16000 and its Ethernet header, or a 64 KiB offloaded packet.
const FRAME_BYTES: usize = 1 << 17;

/// What a link does to the frames sent towards its machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkSettings {
    /// Added one-way delay in milliseconds.
    pub delay_ms: u64,
    /// Frames lost, in parts per thousand.
    pub drop_permille: u32,
    /// Bandwidth in kilobytes per second; 0 is unlimited.
    pub rate_kbytes: u64,
    /// Nothing passes, in either direction.
    pub cut: bool,
}

impl LinkSettings {
    /// Apply one `key=value`.
    pub fn set(&mut self, word: &str) -> Result<(), String> {
        let (key, value) = word
            .split_once('=')
            .ok_or(format!("{word:?} is not key=value"))?;
        let number: u64 = value
            .parse()
            .map_err(|_| format!("{value:?} is not a number"))?;
        match key {
            "delay_ms" => self.delay_ms = number,
            "drop_permille" => self.drop_permille = number.min(1000) as u32,
            "rate_kbytes" => self.rate_kbytes = number,
            "cut" => self.cut = number != 0,
            _ => return Err(format!("unknown setting {key:?}")),
        }
        Ok(())
    }
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<(Instant, Vec<u8>)>,
    settings: LinkSettings,
    passed: u64,
    lost: u64,
    random: u64,
}

struct Link {
    name: String,
    socket: UnixDatagram,
    towards: PathBuf,
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Link {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn push(&self, frame: &[u8]) {
        let mut queue = self.queue();
        // xorshift: cheap, and the same losses in every run of a scenario.
        queue.random ^= queue.random << 13;
        queue.random ^= queue.random >> 7;
        queue.random ^= queue.random << 17;
        let unlucky = (queue.random % 1000) < u64::from(queue.settings.drop_permille);
        if queue.settings.cut || unlucky || queue.frames.len() >= QUEUE_FRAMES {
            queue.lost += 1;
            return;
        }
        let due = Instant::now() + Duration::from_millis(queue.settings.delay_ms);
        queue.frames.push_back((due, frame.to_vec()));
        drop(queue);
        self.wake.notify_one();
    }

    /// Deliver frames to the machine, in order, when they are due.
    fn deliver(&self) {
        loop {
            let mut queue = self.queue();
            let (due, frame) = loop {
                match queue.frames.pop_front() {
                    Some(next) => break next,
                    None => {
                        queue = self
                            .wake
                            .wait(queue)
                            .unwrap_or_else(|poisoned| poisoned.into_inner())
                    }
                }
            };
            let rate = queue.settings.rate_kbytes;
            queue.passed += 1;
            drop(queue);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // Without a limit the division has no answer, and nothing is waited for.
            if let Some(us) = (frame.len() as u64 * 1000).checked_div(rate) {
                thread::sleep(Duration::from_micros(us));
            }
            // The machine may be off; then its frames are nobody's.
            let _ = self.socket.send_to(&frame, &self.towards);
        }
    }
}

/// Sockets of a link: where the switch receives, and where QEMU receives.
pub fn link_sockets(directory: &Path, link: &str) -> (PathBuf, PathBuf) {
    (
        directory.join(format!("{link}.up")),
        directory.join(format!("{link}.down")),
    )
}

/// The control socket.
pub fn control_socket(directory: &Path) -> PathBuf {
    directory.join("switch")
}

/// Send one line to a running switch; its answer.
pub fn control(directory: &Path, line: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(control_socket(directory))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

/// Run the switch in `directory` for ever.
pub fn serve(directory: &Path, names: &[String]) -> io::Result<()> {
    let mut links = Vec::new();
    for name in names {
        let (up, down) = link_sockets(directory, name);
        let _ = std::fs::remove_file(&up);
        links.push(Arc::new(Link {
            name: name.clone(),
            socket: UnixDatagram::bind(&up)?,
            towards: down,
            queue: Mutex::new(Queue {
                random: 0x9e37_79b9_7f4a_7c15,
                ..Queue::default()
            }),
            wake: Condvar::new(),
        }));
    }
    let links: Arc<[Arc<Link>]> = links.into();
    let learnt: Arc<Mutex<HashMap<[u8; 6], usize>>> = Arc::default();
    for (index, link) in links.iter().enumerate() {
        let sender = Arc::clone(link);
        thread::spawn(move || sender.deliver());
        let (links, learnt) = (Arc::clone(&links), Arc::clone(&learnt));
        thread::spawn(move || forward(&links, &learnt, index));
    }
    let path = control_socket(directory);
    let _ = std::fs::remove_file(&path);
    for stream in UnixListener::bind(&path)?.incoming() {
        let _ = stream.and_then(|stream| answer(&links, stream));
    }
    Ok(())
}

fn forward(links: &[Arc<Link>], learnt: &Mutex<HashMap<[u8; 6], usize>>, from: usize) {
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        let Ok(len) = links[from].socket.recv(&mut buffer) else {
            continue;
        };
        let frame = &buffer[..len];
        let (Some(to), Some(source)) = (mac(frame, 0), mac(frame, 6)) else {
            continue;
        };
        if links[from].queue().settings.cut {
            continue;
        }
        let target = {
            let mut learnt = learnt
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            learnt.insert(source, from);
            // The lowest bit of the first byte marks a group address.
            if to[0] & 1 == 0 {
                learnt.get(&to).copied()
            } else {
                None
            }
        };
        match target {
            Some(target) if target == from => {}
            Some(target) => links[target].push(frame),
            None => links
                .iter()
                .enumerate()
                .filter(|(index, _)| *index != from)
                .for_each(|(_, link)| link.push(frame)),
        }
    }
}

fn mac(frame: &[u8], at: usize) -> Option<[u8; 6]> {
    frame.get(at..at + 6)?.try_into().ok()
}

fn answer(links: &[Arc<Link>], stream: UnixStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or_default();
    let reply = match links.iter().find(|link| link.name == name) {
        None => format!("no link {name:?}"),
        Some(link) => {
            let mut queue = link.queue();
            let mut settings = queue.settings;
            match words.try_for_each(|word| settings.set(word)) {
                Err(error) => error,
                Ok(()) => {
                    queue.settings = settings;
                    format!(
                        "ok {name} {settings:?} passed={} lost={}",
                        queue.passed, queue.lost
                    )
                }
            }
        }
    };
    (&stream).write_all(format!("{reply}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(to: u8, from: u8) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from];
        frame.extend_from_slice(b"payload");
        frame
    }

    #[test]
    fn frames_reach_the_learnt_link_only_and_a_cut_link_not_at_all() {
        let directory =
            std::env::temp_dir().join(format!("xen-vusb-switch-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let names: Vec<String> = ["a", "b", "c"].map(String::from).into();
        let machines: Vec<(UnixDatagram, PathBuf)> = names
            .iter()
            .map(|name| {
                let (up, down) = link_sockets(&directory, name);
                let _ = std::fs::remove_file(&down);
                let socket = UnixDatagram::bind(down).unwrap();
                socket
                    .set_read_timeout(Some(Duration::from_millis(500)))
                    .unwrap();
                (socket, up)
            })
            .collect();
        let place = directory.clone();
        thread::spawn(move || serve(&place, &names));
        while control(&directory, "a").is_err() {
            thread::sleep(Duration::from_millis(10));
        }
        let mut buffer = [0; 64];
        // Unknown address: flooded to b and c, and a is learnt.
        machines[0].0.send_to(&frame(2, 1), &machines[0].1).unwrap();
        assert!(machines[1].0.recv(&mut buffer).is_ok());
        assert!(machines[2].0.recv(&mut buffer).is_ok());
        machines[1].0.send_to(&frame(1, 2), &machines[1].1).unwrap();
        assert!(machines[0].0.recv(&mut buffer).is_ok());
        assert!(machines[2].0.recv(&mut buffer).is_err());
        assert!(control(&directory, "a cut=1").unwrap().starts_with("ok"));
        machines[1].0.send_to(&frame(1, 2), &machines[1].1).unwrap();
        assert!(machines[0].0.recv(&mut buffer).is_err());
        assert!(
            control(&directory, "a speed=1")
                .unwrap()
                .starts_with("unknown")
        );
        let _ = std::fs::remove_dir_all(&directory);
    }
}
