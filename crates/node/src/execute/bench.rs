//! Measuring an image: bench.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::{BlockDevice, Env, Errno, Result, Rng};
use ferry_image::device::ImageDevice;
use ferry_image::header::Opening;
use futures_util::stream::{self, StreamExt};

use super::{Run, failed};
use crate::api::{BenchPattern, BenchResult, BenchRow, BenchType, Command, Done, Events, Failure, Response};

/// Rates are shown over this many seconds, as `rbd` shows them.
const WINDOW: usize = 5;

/// Threads a measurement starts at most: more than any disk answers at once.
const THREADS_MAX: usize = 64;

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
        let result = drive(&device, &load, self.env, self.events).await.map_err(cannot())?;
        // A measurement counts, whether it can be noted or not.
        device.note_times().await.ok();
        drop(device);
        self.close(opened).await?;
        Ok(Response::Bench(result))
    }
}

/// Keeps as many requests in flight as there are slots until all are made. A request of the engine runs on the thread that
/// makes it, so requests in flight are threads; beyond [`THREADS_MAX`] a thread keeps several.
async fn drive(device: &dyn BlockDevice, load: &Load, env: &Env, events: &dyn Events) -> Result<BenchResult> {
    let (clock, rng) = (&*env.clock, &*env.rng);
    let data =
        Bytes::from(vec![rng.next_u64().to_le_bytes()[0] | 1; usize::try_from(load.io_size).unwrap_or(0)]);
    let began = clock.elapsed();
    events.measured(&row(began, began, 0, load));
    let course = Course {
        load,
        size: device.size(),
        rng,
        state: Mutex::new(State {
            places: places(device.size(), load, rng),
            made: 0,
            done: 0,
            tally: Tally::default(),
            window: VecDeque::from([(began, 0)]),
        }),
        began,
    };
    let threads = load.slots.min(THREADS_MAX);
    let outcome = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|n| {
                let share = load.slots / threads + usize::from(n < load.slots % threads);
                let (course, data) = (&course, &data);
                scope.spawn(move || {
                    let result = futures_executor::block_on(course.run(share, device, data, || {
                        course.count(clock.elapsed(), events);
                    }));
                    if result.is_err() {
                        course.stop();
                    }
                    result
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|w| w.join().expect("a thread of a measurement does not panic"))
            .fold(Ok(()), Result::and)
    });
    outcome?;
    device.flush().await?;
    let now = clock.elapsed();
    let (made, tally) = {
        let state = course.state();
        (state.made, state.tally)
    };
    let part = |ops| row(began, now, ops, load);
    Ok(BenchResult {
        whole: part(made),
        parts: (load.io_type == BenchType::ReadWrite).then(|| (part(tally.reads), part(tally.writes))),
    })
}

/// A measurement under way, shared by its threads.
#[derive(Debug)]
struct Course<'a> {
    load: &'a Load,
    size: u64,
    rng: &'a dyn Rng,
    began: Duration,
    state: Mutex<State>,
}

/// How far it is.
#[derive(Debug)]
struct State {
    places: Vec<u64>,
    made: u64,
    done: u64,
    tally: Tally,
    /// When the last seconds began, and what was done by then.
    window: VecDeque<(Duration, u64)>,
}

impl Course<'_> {
    /// Makes requests until there are none left, `share` of them at once; tells `done` after each.
    async fn run(&self, share: usize, device: &dyn BlockDevice, data: &Bytes, done: impl Fn()) -> Result<()> {
        let requests = stream::iter(std::iter::from_fn(|| self.next())).map(|(reads, place)| async move {
            if reads {
                device.read(place, self.load.io_size).await.map(drop)
            } else {
                device.write(place, data.clone()).await
            }
        });
        let mut answers = std::pin::pin!(requests.buffer_unordered(share));
        while let Some(answer) = answers.next().await {
            answer?;
            done();
        }
        Ok(())
    }

    /// The next request: whether it reads, and where.
    fn next(&self) -> Option<(bool, u64)> {
        let mut state = self.state();
        if state.made.saturating_mul(self.load.io_size) >= self.load.total {
            return None;
        }
        let reads = match self.load.io_type {
            BenchType::Read => true,
            BenchType::Write => false,
            BenchType::ReadWrite => self.rng.next_u64() % 100 < self.load.read_percent,
        };
        let slot = usize::try_from(state.made % self.load.slots as u64).expect("a slot is a place in memory");
        advance(&mut state.places[slot], self.size, self.load, self.rng);
        let made = if reads { &mut state.tally.reads } else { &mut state.tally.writes };
        *made += 1;
        state.made += 1;
        Some((reads, state.places[slot]))
    }

    /// Counts a request that is done, and shows a row once a second.
    fn count(&self, now: Duration, events: &dyn Events) {
        let mut state = self.state();
        state.done += 1;
        let done = state.done;
        let last = state.window.back().map_or(self.began, |(at, _)| *at);
        let second = now.saturating_sub(self.began).as_secs();
        if second <= last.saturating_sub(self.began).as_secs() {
            return;
        }
        state.window.push_back((now, done));
        if state.window.len() > WINDOW + 1 {
            state.window.pop_front();
        }
        let (from, before) = state.window.front().copied().unwrap_or((self.began, 0));
        let lately = row(from, now, done - before, self.load);
        events.measured(&BenchRow { seconds: second, ops: done, ..lately });
    }

    /// Makes no further requests.
    fn stop(&self) {
        self.state().made = u64::MAX;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
