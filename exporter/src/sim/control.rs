// SPDX-License-Identifier: GPL-3.0-or-later
//! What happens to simulated devices from outside: keys are pressed, plugs are pulled. A socket
//! takes commands, one in a line, and answers each with a line: `ok`, perhaps more, or
//! `error: REASON`.
//!
//! ```text
//! DEVICE counters             what the device counted, as NAME=NUMBER
//! DEVICE stroke USAGE…        presses and releases keys, by their usages in hexadecimal
//! DEVICE waiting ENDPOINT     how many transfers of an endpoint wait; 81 is IN endpoint 1
//! DEVICE fail ENDPOINT COUNT  lets so many transfers or packets fail on the bus
//! DEVICE opening MILLISECONDS lets it take so long from now on until it is ready for a holder
//! DEVICE advance MICROSECONDS lets time pass on the bus, where it does not by itself
//! DEVICE fail-open COUNT      is not opened so many times, when a host connects
//! DEVICE unplug
//! DEVICE plug
//! DEVICE plug as OTHER        plugs in, at this place, a device like the one of that place's configuration
//! ```

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use slog::warn;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use usb_sim::Device;

use super::{Clock, SimulatedDevice, ToServer, place};
use crate::config::Simulated;
use crate::executor::Executor;
use crate::hub::Hub;
use crate::session_state::Session;

/// The file of a disk that was just pulled out is in use until its connection has ended.
const PLUG_TIMEOUT: Duration = Duration::from_secs(5);

/// The socket.
pub(crate) struct Control(UnixListener);

impl Control {
    /// Makes it; only the exporter's user may open it.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => (),
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self(listener))
    }

    /// Serves it. Ends when nobody can be let in any more.
    pub(crate) async fn serve(self, hub: Rc<Hub>, configs: Vec<Simulated>) {
        let configs: Rc<[Simulated]> = configs.into();
        loop {
            let stream = match self.0.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    warn!(hub.log(), "control of simulated devices ends: {}", e);
                    return;
                }
            };
            let (hub, configs) = (hub.clone(), configs.clone());
            spawn_local(async move {
                if let Err(e) = talk(&hub, &configs, stream).await {
                    warn!(hub.log(), "control of simulated devices: {}", e);
                }
            });
        }
    }
}

async fn talk(hub: &Hub, configs: &[Simulated], stream: UnixStream) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match run(hub, configs, &line).await {
            Ok(more) if more.is_empty() => "ok\n".to_owned(),
            Ok(more) => format!("ok {more}\n"),
            Err(reason) => format!("error: {reason}\n"),
        };
        writer.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

async fn run(hub: &Hub, configs: &[Simulated], line: &str) -> Result<String, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [device, ref command @ ..] = words[..] else {
        return Err("no command".to_owned());
    };
    let known = |device: &str| {
        let number = (1..=configs.len()).find(|n| place(*n).0 == device);
        number.ok_or_else(|| format!("no simulated device '{device}'"))
    };
    let number = known(device)?;
    match *command {
        ["unplug"] => {
            if hub.session(&place(number)).is_none() {
                return Err("it is not plugged in".to_owned());
            }
            hub.remove_device(&place(number));
            return Ok(String::new());
        }
        ["plug", ref like @ ..] => {
            let like = match like {
                [] => number,
                ["as", other] => known(other)?,
                _ => return Err(format!("no command '{}'", command.join(" "))),
            };
            if hub.session(&place(number)).is_some() {
                return Err("it is plugged in".to_owned());
            }
            let device = open(&configs[like - 1], number).await?;
            hub.add_device(Executor::Simulated(Box::new(device)));
            return Ok(String::new());
        }
        _ => (),
    }
    let session = hub.session(&place(number));
    let session = session.ok_or_else(|| "it is not plugged in".to_owned())?;
    let Session {
        server, executor, ..
    } = &mut *session.borrow_mut();
    let Executor::Simulated(device) = executor else {
        return Err("it is not simulated".to_owned());
    };
    let answer = device.command(&mut ToServer(server), command);
    // What was carried out is to be sent.
    device.alarm.ring();
    answer
}

async fn open(config: &Simulated, number: usize) -> Result<SimulatedDevice, String> {
    let deadline = Instant::now() + PLUG_TIMEOUT;
    loop {
        match SimulatedDevice::open(config, number) {
            Ok(device) => return Ok(device),
            Err(e) if Instant::now() > deadline => return Err(e.to_string()),
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

impl SimulatedDevice {
    fn command(&mut self, host: &mut ToServer<'_>, command: &[&str]) -> Result<String, String> {
        match *command {
            ["counters"] => {
                let counters = self.port.function().counters().into_iter();
                let counters = counters.map(|(name, value)| format!("{name}={value}"));
                return Ok(counters.collect::<Vec<_>>().join(" "));
            }
            ["stroke", ref usages @ ..] => {
                for usage in usages {
                    let usage = hexadecimal(usage)?;
                    let pressed = self.port.update(host, |function| match function {
                        Device::Keyboard(k) => k.stroke(usage).map_err(|e| e.to_string()),
                        _ => Err("it is no keyboard".to_owned()),
                    });
                    pressed?;
                }
            }
            ["waiting", endpoint] => {
                return Ok(self.port.waiting(hexadecimal(endpoint)?).to_string());
            }
            ["fail", endpoint, count] => {
                let count = count.parse().map_err(|_| format!("no count '{count}'"))?;
                self.port.fail_next(hexadecimal(endpoint)?, count);
            }
            ["fail-open", count] => {
                self.closed = count.parse().map_err(|_| format!("no count '{count}'"))?;
            }
            ["opening", time] => {
                let time = time.parse().map_err(|_| format!("no time '{time}'"))?;
                self.opening = Duration::from_millis(time);
            }
            ["advance", time] => {
                let Clock::Manual(now) = &mut self.clock else {
                    return Err("its clock is not \"manual\"".to_owned());
                };
                let time = time.parse().map_err(|_| format!("no time '{time}'"))?;
                *now = now.saturating_add(Duration::from_micros(time));
                let now = *now;
                self.port.advance(now, host);
            }
            _ => return Err(format!("no command '{}'", command.join(" "))),
        }
        Ok(String::new())
    }
}

fn hexadecimal(text: &str) -> Result<u8, String> {
    u8::from_str_radix(text, 16).map_err(|_| format!("no hexadecimal byte '{text}'"))
}
