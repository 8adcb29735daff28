//! The real clock and real randomness.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ferry_core::{Clock, Env, Error, ErrorKind, Reply, Result, Rng, Timestamp};
use futures_channel::oneshot;

/// The machine's clock.
#[derive(Debug)]
struct SystemClock {
    started: Instant,
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::default().after(since)
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// By a thread of its own: whoever waits may run on no runtime. What waits is rare, and waits for seconds.
    fn sleep(&self, time: Duration) -> Reply<()> {
        let (done, wait) = oneshot::channel();
        let thread = thread::Builder::new().name("sleep".to_owned()).spawn(move || {
            thread::sleep(time);
            // Nobody may be waiting any more.
            done.send(()).ok();
        });
        match thread {
            Ok(_) => Reply::pending(async move {
                wait.await.map_err(|_| Error::new(ErrorKind::Internal, "a thread that slept has died"))
            }),
            Err(e) => Reply::ready(Err(Error::io("cannot start a thread", e))),
        }
    }
}

/// The kernel's random numbers.
#[derive(Debug)]
struct SystemRng {
    source: File,
}

impl Rng for SystemRng {
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        (&self.source).read_exact(&mut bytes).expect("the kernel's random numbers never end");
        u64::from_le_bytes(bytes)
    }
}

/// Time and randomness of this machine.
///
/// # Errors
/// `Io` where the machine has no random numbers to give.
pub fn system_env() -> Result<Env> {
    let source = File::open("/dev/urandom").map_err(|e| Error::io("cannot open /dev/urandom", e))?;
    Ok(Env { clock: Arc::new(SystemClock { started: Instant::now() }), rng: Arc::new(SystemRng { source }) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::system_env;

    #[test]
    fn the_clock_tells_this_century_and_random_numbers_differ() {
        let env = system_env().unwrap();
        assert!(env.clock.now().seconds > 1_700_000_000);
        assert_ne!(env.rng.next_u64(), env.rng.next_u64());
        let before = env.clock.elapsed();
        env.clock.sleep(Duration::from_millis(20)).wait().unwrap();
        assert!(env.clock.elapsed() - before >= Duration::from_millis(20));
    }
}
