//! Time, CPU time, randomness, and lines of results.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ferry_core::{Clock, Env, Reply, Rng, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// How often each measurement is made; the median counts.
pub(crate) const ROUNDS: usize = 5;

/// Lines of results, told as they come: a run that fails or is cut off keeps what it found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    is_lost: bool,
}

impl Report {
    /// Tells a line.
    pub(crate) fn line(&mut self, text: impl std::fmt::Display) {
        let mut out = std::io::stdout();
        self.is_lost |= writeln!(out, "{text}").and_then(|()| out.flush()).is_err();
    }

    /// Whether a line could not be told.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }
}

/// Wall time and CPU time of this process while `work` ran.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T, String>) -> Result<(T, f64, f64), String> {
    let (wall, cpu) = (Instant::now(), cpu_time());
    let value = work()?;
    Ok((value, wall.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64()))
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The value below which `share` of them lie.
pub(crate) fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share).floor();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let at = at as usize;
    values[at.min(values.len() - 1)]
}

/// Resident memory of this process, in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Drops clean pages of the page cache, where that is allowed.
pub(crate) fn drop_caches() {
    rustix::fs::sync();
    if std::fs::write("/proc/sys/vm/drop_caches", "3").is_err() {
        // Without the right to do so the figures are those of a warm cache; the report says which machine it was.
    }
}

/// The machine's clock.
#[derive(Debug)]
struct SystemClock(Instant);

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp {
            seconds: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
            nanoseconds: now.subsec_nanos(),
        }
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) -> Reply<()> {
        std::thread::sleep(time);
        Reply::ready(Ok(()))
    }
}

/// Numbers that follow from a seed: each run does the same.
#[derive(Debug)]
pub(crate) struct Numbers(AtomicU64);

impl Numbers {
    /// Those of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// One below `n`.
    pub(crate) fn below(&self, n: u64) -> u64 {
        self.next_u64() % n
    }
}

impl Rng for Numbers {
    fn next_u64(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// The machine's clock and numbers from a seed.
pub(crate) fn env() -> Env {
    Env { clock: Arc::new(SystemClock(Instant::now())), rng: Arc::new(Numbers::new(7)) }
}
