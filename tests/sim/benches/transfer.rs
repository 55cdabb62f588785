// SPDX-License-Identifier: GPL-3.0-or-later
//! From the guest's ring to the exporter's device and back, against TLS alone, in the same run and
//! on the same machine.
//!
//! The ring's side is the whole system: a guest here, `vusbd-sim` and `vusb-exporter` as processes.
//! TLS alone is the same `transport`, from here to a thread.

#[path = "transfer/guest.rs"]
mod guest;
#[path = "transfer/raw.rs"]
mod raw;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use guest::BenchGuest;
use raw::Raw;
use sim_scenarios::programs;
use sim_scenarios::rig::{HOSTS, Rig, RigOptions};

/// Bytes of one measured stream: 256 URBs of 64 KiB.
const STREAM_BYTES: usize = 16 << 20;
/// URBs in flight: the ring has no more slots.
const IN_FLIGHT: usize = 16;

/// Measures `run` with criterion, and gives the median time of one run in seconds.
fn median(
    criterion: &mut Criterion,
    name: &str,
    bytes: Option<usize>,
    mut run: impl FnMut(),
) -> f64 {
    let mut samples = Vec::new();
    let mut group = criterion.benchmark_group("transfer");
    if let Some(bytes) = bytes {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.sample_size(20);
    }
    group.measurement_time(Duration::from_secs(4));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            let started = Instant::now();
            for _ in 0..count {
                run();
            }
            let spent = started.elapsed();
            samples.push(spent.as_secs_f64() / count as f64);
            spent
        });
    });
    group.finish();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("transfer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    programs::build()?;
    let rig = Rig::start(&RigOptions {
        devices: guest::DEVICE.into(),
        ..RigOptions::default()
    })?;
    let mut guest = BenchGuest::start(&rig)?;
    let mut raw = Raw::start(&rig.dir().join("pool").join(HOSTS[0]))?;
    let mut criterion = Criterion::default().configure_from_args();
    let c = &mut criterion;

    let raw_echo = median(c, "TLS echo", None, || raw.echo());
    let ring_trip = median(c, "control transfer", None, || guest.control());
    let bytes = Some(STREAM_BYTES);
    let raw_in = median(c, "TLS stream in", bytes, || raw.stream_in(STREAM_BYTES));
    let ring_in = median(c, "bulk in", bytes, || {
        guest.bulk_in(STREAM_BYTES, IN_FLIGHT);
    });
    let raw_out = median(c, "TLS stream out", bytes, || raw.stream_out(STREAM_BYTES));
    let ring_out = median(c, "bulk out", bytes, || {
        guest.bulk_out(STREAM_BYTES, IN_FLIGHT);
    });
    criterion.final_summary();

    let mib_s = |seconds: f64| STREAM_BYTES as f64 / seconds / f64::from(1 << 20);
    println!(
        "round trip: {:.1} us through ring and exporter, {:.1} us through TLS alone: ratio {:.2} \
         (aim: at most 1.5)",
        ring_trip * 1e6,
        raw_echo * 1e6,
        ring_trip / raw_echo
    );
    for (name, ring, raw) in [("in", ring_in, raw_in), ("out", ring_out, raw_out)] {
        println!(
            "bulk {name}, 64 KiB URBs, {IN_FLIGHT} in flight: {:.0} MiB/s through ring and \
             exporter, {:.0} MiB/s through TLS alone: ratio {:.2} (aim: at least 0.7)",
            mib_s(ring),
            mib_s(raw),
            raw / ring
        );
    }
    drop(guest);
    Ok(())
}
