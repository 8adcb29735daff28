//! Measuring an image: bench.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use ferry_core::{BlockDevice, Errno, Reply, Rng};
use ferry_image::device::ImageDevice;
use ferry_image::header::Opening;

use super::{Run, failed};
use crate::api::{BenchPattern, BenchResult, BenchRow, BenchType, Command, Done, Failure, Response};

/// Rates are shown over this many seconds, as `rbd` shows them.
const WINDOW: usize = 5;

/// What is asked for.
#[derive(Debug)]
struct Load {
    io_type: BenchType,
    io_size: u64,
    slots: usize,
    total: u64,
    pattern: BenchPattern,
    read_percent: u64,
}

/// A request under way.
enum Pending {
    Read(Reply<Bytes>),
    Write(Reply<()>),
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    reads: u64,
    writes: u64,
}

impl Run<'_> {
    /// Executes `bench`.
    pub(super) async fn bench(&self, command: Command) -> Done<Response> {
        let Command::Bench { image: spec, io_type, io_size, io_threads, io_total, pattern, read_percent } =
            command
        else {
            return Err(Failure::plain(Errno::EINVAL, "not a measurement"));
        };
        let opening = if io_type == BenchType::Read { Opening::ReadOnly } else { Opening::ReadWrite };
        let opened = self.open(&spec, opening).await?;
        let cannot = || failed(format!("cannot measure {spec}"), "bench failed");
        let device = ImageDevice::open(opened.clone()).await.map_err(cannot())?;
        if io_size > device.size() {
            return Err(Failure::plain(
                Errno::EINVAL,
                format!(
                    "io-size {} larger than image size {}",
                    ferry_core::size::format_size(io_size),
                    ferry_core::size::format_size(device.size())
                ),
            )
            .then(format!("bench failed: {}", Errno::EINVAL)));
        }
        let slots = usize::try_from(io_threads).unwrap_or(1).max(1);
        let load = Load { io_type, io_size, slots, total: io_total, pattern, read_percent };
        let result = self.drive(&device, &load).await.map_err(cannot())?;
        drop(device);
        self.close(opened).await?;
        Ok(Response::Bench(result))
    }

    /// Keeps as many requests in flight as there are slots until all are made.
    async fn drive(&self, device: &ImageDevice, load: &Load) -> ferry_core::Result<BenchResult> {
        let (clock, rng) = (&self.env.clock, &*self.env.rng);
        let data = Bytes::from(vec![
            rng.next_u64().to_le_bytes()[0] | 1;
            usize::try_from(load.io_size).unwrap_or(0)
        ]);
        let mut places = places(device.size(), load, rng);
        let began = clock.elapsed();
        self.events.measured(&row(began, began, 0, load));
        let mut window: VecDeque<(Duration, u64)> = VecDeque::from([(began, 0)]);
        let (mut tally, mut made) = (Tally::default(), 0);
        while made * load.io_size < load.total {
            let mut flight = Vec::with_capacity(load.slots);
            for place in &mut places {
                if made * load.io_size >= load.total {
                    break;
                }
                advance(place, device.size(), load, rng);
                let reads = match load.io_type {
                    BenchType::Read => true,
                    BenchType::Write => false,
                    BenchType::ReadWrite => rng.next_u64() % 100 < load.read_percent,
                };
                flight.push(if reads {
                    tally.reads += 1;
                    Pending::Read(device.read(*place, load.io_size))
                } else {
                    tally.writes += 1;
                    Pending::Write(device.write(*place, data.clone()))
                });
                made += 1;
            }
            for pending in flight {
                match pending {
                    Pending::Read(reply) => drop(reply.await?),
                    Pending::Write(reply) => reply.await?,
                }
            }
            let now = clock.elapsed();
            let last = window.back().map_or(began, |(at, _)| *at);
            if (now - began).as_secs() != (last - began).as_secs() {
                window.push_back((now, made));
                if window.len() > WINDOW + 1 {
                    window.pop_front();
                }
                let (from, before) = window.front().copied().unwrap_or((began, 0));
                let lately = row(from, now, made - before, load);
                self.events.measured(&BenchRow { seconds: (now - began).as_secs(), ops: made, ..lately });
            }
        }
        device.flush().await?;
        let now = clock.elapsed();
        let part = |ops| row(began, now, ops, load);
        Ok(BenchResult {
            whole: part(made),
            parts: (load.io_type == BenchType::ReadWrite).then(|| (part(tally.reads), part(tally.writes))),
        })
    }
}

/// Rates of `ops` requests between two moments.
fn row(from: Duration, to: Duration, ops: u64, load: &Load) -> BenchRow {
    let seconds = (to - from).as_secs_f64().max(1e-9);
    #[expect(clippy::cast_precision_loss, reason = "rates are for people")]
    let (count, bytes) = (ops as f64, ops.saturating_mul(load.io_size) as f64);
    let rate = |n: f64| if ops == 0 { 0.0 } else { n / seconds };
    BenchRow {
        seconds: (to - from).as_secs(),
        ops,
        ops_per_second: rate(count),
        bytes_per_second: rate(bytes),
    }
}

/// Where each slot begins.
fn places(size: u64, load: &Load, rng: &dyn Rng) -> Vec<u64> {
    let blocks = (size / load.io_size).max(1);
    (0..load.slots as u64)
        .map(|slot| match load.pattern {
            BenchPattern::Random | BenchPattern::Sequential => rng.next_u64() % blocks * load.io_size,
            // One step before its first place: every slot moves on before it is used.
            BenchPattern::FullSequential => slot.wrapping_sub(load.slots as u64).wrapping_mul(load.io_size),
        })
        .collect()
}

/// Moves a slot on.
fn advance(place: &mut u64, size: u64, load: &Load, rng: &dyn Rng) {
    let blocks = (size / load.io_size).max(1);
    *place = match load.pattern {
        BenchPattern::Random => rng.next_u64() % blocks * load.io_size,
        BenchPattern::Sequential => {
            let next = *place + load.io_size;
            if next + load.io_size > size { 0 } else { next }
        }
        BenchPattern::FullSequential => {
            let next = place.wrapping_add(load.slots as u64 * load.io_size);
            if next + load.io_size > size {
                next % load.io_size + next / load.io_size % blocks * load.io_size
            } else {
                next
            }
        }
    };
}
