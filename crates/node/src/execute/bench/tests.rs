//! Requests are in flight at once, and all of them are made.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::{BlockDevice, DeviceExtent, Error, Reply};
use futures_executor::block_on;

use super::{Load, drive};
use crate::api::{BenchPattern, BenchRow, BenchType, Events, Outcome};
use crate::env::system_env;

/// Answers on the calling thread, once as many requests as it waits for are there together.
#[derive(Debug)]
struct Gathering {
    awaited: u64,
    inside: Mutex<u64>,
    all_here: Condvar,
    made: AtomicU64,
    fails_at: u64,
}

impl Gathering {
    fn of(awaited: u64, fails_at: u64) -> Self {
        let (inside, all_here, made) = (Mutex::new(0), Condvar::new(), AtomicU64::new(0));
        Self { awaited, inside, all_here, made, fails_at }
    }

    fn answer<T>(&self, value: T) -> Reply<T> {
        let made = self.made.fetch_add(1, Ordering::SeqCst) + 1;
        if made >= self.fails_at {
            return Reply::ready(Err(Error::invalid("as asked")));
        }
        let mut inside = self.inside.lock().unwrap();
        *inside += 1;
        self.all_here.notify_all();
        let waited =
            self.all_here.wait_timeout_while(inside, Duration::from_secs(20), |n| *n < self.awaited).unwrap();
        if waited.1.timed_out() {
            return Reply::ready(Err(Error::invalid("the others did not come")));
        }
        Reply::ready(Ok(value))
    }
}

impl BlockDevice for Gathering {
    fn size(&self) -> u64 {
        1 << 20
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, _offset: u64, length: u64) -> Reply<Bytes> {
        self.answer(Bytes::from(vec![0; usize::try_from(length).unwrap()]))
    }
    fn write(&self, _offset: u64, _data: Bytes) -> Reply<()> {
        self.answer(())
    }
    fn write_zeroes(&self, _offset: u64, _length: u64) -> Reply<()> {
        Reply::ready(Ok(()))
    }
    fn discard(&self, _offset: u64, _length: u64) -> Reply<()> {
        Reply::ready(Ok(()))
    }
    fn flush(&self) -> Reply<()> {
        Reply::ready(Ok(()))
    }
    fn extents(&self, _offset: u64, _length: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(Ok(Vec::new()))
    }
}

#[derive(Debug)]
struct Silent;

impl Events for Silent {
    fn progress(&self, _title: &str, _done: u64, _total: u64) {}
    fn finished(&self, _title: &str, _outcome: Outcome) {}
    fn note(&self, _line: &str) {}
    fn advise(&self, _line: &str) {}
    fn say(&self, _line: &str) {}
    fn measured(&self, _row: &BenchRow) {}
}

fn load(slots: usize) -> Load {
    Load {
        io_type: BenchType::ReadWrite,
        io_size: 4096,
        slots,
        total: 100 * 4096,
        pattern: BenchPattern::Random,
        read_percent: 50,
    }
}

#[test]
fn as_many_requests_are_in_flight_as_threads_were_asked_for() {
    let device = Gathering::of(16, u64::MAX);
    let result = block_on(drive(&device, &load(16), &system_env().unwrap(), &Silent)).unwrap();
    assert_eq!(result.whole.ops, 100);
    let (reads, writes) = result.parts.unwrap();
    assert_eq!(reads.ops + writes.ops, 100);
    assert_eq!(device.made.load(Ordering::SeqCst), 100);
}

#[test]
fn more_requests_than_threads_are_made_all_the_same() {
    let result =
        block_on(drive(&Gathering::of(1, u64::MAX), &load(1000), &system_env().unwrap(), &Silent)).unwrap();
    assert_eq!(result.whole.ops, 100);
}

#[test]
fn a_request_that_fails_ends_the_measurement() {
    let device = Gathering::of(1, 10);
    let error = block_on(drive(&device, &load(4), &system_env().unwrap(), &Silent)).unwrap_err();
    assert!(error.to_string().contains("as asked"), "{error}");
    assert!(device.made.load(Ordering::SeqCst) < 20);
}
