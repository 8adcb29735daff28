//! Letting requests come together before they are read.
//!
//! A client with many requests under way sends one for each reply it gets. Served one by one, each costs the server a wake-up and
//! two system calls, and the client the waking; a nap of 20 microseconds lets several come in, which are then read, done and
//! answered together. A client that has nothing to do but wait for the reply would only wait longer. Which it is, is tried:
//! with naps and without for some milliseconds each, and what served more requests a second is kept for a while.

use std::time::{Duration, Instant};

/// How long a nap is. A client sends five to ten requests in that time.
pub(super) const NAP: Duration = Duration::from_micros(20);

/// What is compared: so much time without and with naps.
const WINDOW: Duration = Duration::from_millis(4);
/// Without a request for so long nobody is busy, and nothing can be compared.
const PAUSE: Duration = Duration::from_millis(1);
/// Requests in a second below which a wake-up for each does not matter.
const RATE_MIN: f64 = 20_000.0;
/// How much slower naps may be: they save time of processors that somebody may need.
const SLOWER_MAX: f64 = 0.97;
/// Naps in a row in which nothing came together, after which there are no more.
const IN_VAIN_MAX: u32 = 8;
/// Windows with naps after which it is seen anew how it is without.
const NAPPING: u32 = 128;
/// Windows without naps after they did harm: this many the first time, then twice as many each time.
const PATIENCE: u32 = 8;
/// And no more than these: half a minute.
const PATIENCE_MAX: u32 = 8192;

/// See the module.
#[derive(Debug)]
pub(super) struct Gather {
    naps: bool,
    /// When the window began; nothing is compared before.
    began: Option<Instant>,
    /// When requests were last done.
    last: Instant,
    requests: u32,
    /// Naps in a row in which nothing came together.
    in_vain: u32,
    /// Requests in a second without naps, when last seen.
    rate: f64,
    /// Windows until it is tried the other way.
    left: u32,
    patience: u32,
}

impl Gather {
    /// A client that has sent nothing yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            naps: false,
            began: None,
            last: now,
            requests: 0,
            in_vain: 0,
            rate: 0.0,
            left: 0,
            patience: PATIENCE,
        }
    }

    /// All that came in is answered: so many requests by now. Whether to nap before looking for more.
    pub(super) fn round(&mut self, now: Instant, requests: u32) -> bool {
        let is_pause = now.saturating_duration_since(self.last) > PAUSE;
        self.last = now;
        let Some(began) = self.began.filter(|_| !is_pause) else {
            // What was done in this round began before.
            self.begin(now);
            return self.naps;
        };
        self.requests = self.requests.saturating_add(requests);
        self.in_vain = if self.naps && requests < 2 { self.in_vain + 1 } else { 0 };
        let took = now.saturating_duration_since(began);
        if self.in_vain >= IN_VAIN_MAX {
            // The client waits for each reply.
            self.stop_napping();
            self.begin(now);
        } else if took >= WINDOW {
            self.compare(f64::from(self.requests) / took.as_secs_f64());
            self.begin(now);
        }
        self.naps
    }

    fn begin(&mut self, now: Instant) {
        self.began = Some(now);
        self.requests = 0;
    }

    /// A window is over.
    fn compare(&mut self, rate: f64) {
        self.left = self.left.saturating_sub(1);
        if !self.naps {
            self.rate = rate;
            if self.left == 0 && rate >= RATE_MIN {
                self.naps = true;
                self.left = NAPPING;
            }
        } else if rate < self.rate * SLOWER_MAX {
            self.stop_napping();
        } else {
            self.patience = PATIENCE;
            if self.left == 0 {
                self.naps = false;
                self.left = 1;
            }
        }
    }

    fn stop_napping(&mut self) {
        self.naps = false;
        self.in_vain = 0;
        self.left = self.patience;
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Gather, Instant};

    /// A client, seen from the server: how long a round takes and how many requests it has, with and without a nap before it.
    struct World {
        now: Instant,
        gather: Gather,
        naps: bool,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            Self { now, gather: Gather::new(now), naps: false }
        }

        /// Lets time pass; in what part of the rounds there were naps.
        fn run(&mut self, time: Duration, with: (u64, u32), without: (u64, u32)) -> f64 {
            let (mut napped, mut rounds) = (0, 0);
            let end = self.now + time;
            while self.now < end {
                let (micros, requests) = if self.naps { with } else { without };
                self.now += Duration::from_micros(micros);
                napped += u32::from(self.naps);
                rounds += 1;
                self.naps = self.gather.round(self.now, requests);
            }
            f64::from(napped) / f64::from(rounds)
        }
    }

    #[test]
    fn a_client_that_waits_for_each_reply_is_not_kept_waiting() {
        let mut world = World::new();
        // 100,000 requests a second, or 33,000.
        let part = world.run(Duration::from_secs(2), (30, 1), (10, 1));
        assert!(part < 0.002, "{part}");
    }

    #[test]
    fn one_with_many_requests_under_way_is() {
        let mut world = World::new();
        // Two in 10 microseconds each time it wakes the server, six in 28 if the server naps.
        world.run(Duration::from_millis(50), (28, 6), (10, 2));
        let part = world.run(Duration::from_secs(1), (28, 6), (10, 2));
        assert!(part > 0.95, "{part}");
        // It begins to wait for each reply.
        let part = world.run(Duration::from_millis(10), (30, 1), (10, 1));
        assert!(part < 0.03, "{part}");
        // And has many under way again.
        world.run(Duration::from_millis(100), (28, 6), (10, 2));
        let part = world.run(Duration::from_secs(1), (28, 6), (10, 2));
        assert!(part > 0.95, "{part}");
    }

    #[test]
    fn four_under_way_that_are_slower_with_naps_go_without() {
        let mut world = World::new();
        // 160,000 requests a second without, 133,000 with.
        let part = world.run(Duration::from_secs(4), (30, 4), (12, 2));
        assert!(part < 0.01, "{part}");
    }

    #[test]
    fn a_quiet_client_is_answered_at_once() {
        let mut world = World::new();
        let part = world.run(Duration::from_secs(4), (5020, 32), (5000, 32));
        assert!(part == 0.0, "{part}");
        let part = world.run(Duration::from_secs(4), (120, 1), (100, 1));
        assert!(part == 0.0, "{part}");
    }
}
