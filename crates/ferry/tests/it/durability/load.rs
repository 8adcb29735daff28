//! A load on one image: two connections with many requests each, until it is stopped or the server is gone.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::client::{Client, Request};
use super::ledger::{BLOCK, Durable, Found, Ledger, Sent, pattern};

/// Connections of one image.
const CONNECTIONS: u64 = 2;
/// Requests in flight on one connection.
const DEPTH: usize = 16;
/// Most blocks of one write.
const WRITE_BLOCKS_MAX: u64 = 24;
/// Bytes of one read of a check.
const READ: usize = 1 << 20;

/// Numbers that follow from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// What one request was.
#[derive(Debug)]
enum InFlight {
    Write(Sent),
    Flush(u64),
}

/// An image and what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) export: &'static str,
    pub(crate) ledger: Arc<Ledger>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Load {
    is_stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Load {
    /// Starts it on all of `subjects`.
    pub(crate) fn start(socket: &Path, subjects: &[Subject], seed: u64) -> Self {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (i, subject) in (0..).zip(subjects) {
            for connection in 0..CONNECTIONS {
                let client = Client::connect(socket, subject.export).unwrap();
                let (ledger, stopped) = (Arc::clone(&subject.ledger), Arc::clone(&is_stopped));
                let numbers = Numbers(seed ^ (i << 8 | connection));
                threads.push(thread::spawn(move || drive(client, &ledger, numbers, &stopped)));
            }
        }
        Self { is_stopped, threads }
    }

    /// Starts one of another kind, on one subject: a block is written and flushed, then the next, as a database commits.
    pub(crate) fn start_committing(socket: &Path, subject: &Subject, seed: u64) -> Self {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let client = Client::connect(socket, subject.export).unwrap();
        let (ledger, stopped) = (Arc::clone(&subject.ledger), Arc::clone(&is_stopped));
        let thread = thread::spawn(move || commit(client, &ledger, Numbers(seed), &stopped));
        Self { is_stopped, threads: vec![thread] }
    }

    /// Ends it; every request must have gone well.
    pub(crate) fn end(self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
    }

    /// Waits until every connection has ended by itself; how.
    pub(crate) fn outcomes(self) -> Vec<io::Result<()>> {
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    /// Ends it, the server being gone: that alone is no failure.
    pub(crate) fn end_without_server(self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        for thread in self.threads {
            if let Err(e) = thread.join().unwrap() {
                assert_ne!(e.kind(), io::ErrorKind::InvalidData, "{e}");
                assert_ne!(e.kind(), io::ErrorKind::WouldBlock, "the server hangs");
            }
        }
    }
}

/// Sends writes and flushes as `numbers` say, `DEPTH` at once.
fn drive(mut client: Client, ledger: &Ledger, mut numbers: Numbers, stopped: &AtomicBool) -> io::Result<()> {
    let blocks = client.size / u64::try_from(BLOCK).unwrap();
    let mut in_flight = BTreeMap::new();
    let mut cookie = 0;
    while !stopped.load(Ordering::SeqCst) || !in_flight.is_empty() {
        let burst = 1 + numbers.below(12);
        for _ in 0..burst {
            if in_flight.len() >= DEPTH || stopped.load(Ordering::SeqCst) {
                break;
            }
            let Some((request, noted)) = choose(ledger, &mut numbers, blocks) else { continue };
            cookie += 1;
            in_flight.insert(cookie, noted);
            client.send(cookie, &request)?;
        }
        let answers = 1 + usize::try_from(numbers.below(12)).unwrap();
        for _ in 0..answers.min(in_flight.len()) {
            let reply = client.receive()?;
            let answered = in_flight.remove(&reply.cookie);
            let answered = answered
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer nobody waits for"))?;
            if reply.error != 0 {
                let text = format!("{answered:?} failed with {}", reply.error);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            match answered {
                InFlight::Write(sent) => ledger.written(&sent),
                InFlight::Flush(moment) => ledger.flushed(moment),
            }
        }
    }
    Ok(())
}

/// Writes a block and flushes it, again and again.
fn commit(mut client: Client, ledger: &Ledger, mut numbers: Numbers, stopped: &AtomicBool) -> io::Result<()> {
    let blocks = client.size / u64::try_from(BLOCK).unwrap();
    let mut cookie = 0;
    let mut ask = |request: &Request| {
        cookie += 1;
        client.send(cookie, request)?;
        let reply = client.receive()?;
        if reply.cookie == cookie && reply.error == 0 {
            return Ok(());
        }
        let text = format!("request {cookie} was answered {reply:?}");
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    };
    while !stopped.load(Ordering::SeqCst) {
        let at = usize::try_from(numbers.below(blocks)).unwrap();
        let sent = ledger.write(at, 1, false, false).expect("nothing else is in flight");
        let data = pattern(sent.contents[0], at);
        ask(&Request::Write { offset: u64::try_from(at * BLOCK).unwrap(), data, is_durable: false })?;
        ledger.written(&sent);
        let moment = ledger.flush();
        ask(&Request::Flush)?;
        ledger.flushed(moment);
    }
    Ok(())
}

/// The next request; none where its blocks are in flight.
fn choose(ledger: &Ledger, numbers: &mut Numbers, blocks: u64) -> Option<(Request, InFlight)> {
    if numbers.below(12) == 0 {
        return Some((Request::Flush, InFlight::Flush(ledger.flush())));
    }
    let most = if numbers.below(4) == 0 { WRITE_BLOCKS_MAX } else { 2 };
    let count = 1 + numbers.below(most);
    // Half of the writes go to a few blocks, so that these are written over again and again.
    let span = if numbers.below(2) == 0 { 64 } else { blocks };
    let first = numbers.below(span.min(blocks - count));
    let (zeros, is_durable) = (numbers.below(10) == 0, numbers.below(20) == 0);
    let (first, count) = (usize::try_from(first).unwrap(), usize::try_from(count).unwrap());
    let sent = ledger.write(first, count, zeros, is_durable)?;
    let offset = u64::try_from(first * BLOCK).unwrap();
    let request = if zeros {
        Request::Zero { offset, length: u32::try_from(count * BLOCK).unwrap(), is_durable }
    } else {
        let data = (first..).zip(&sent.contents).flat_map(|(at, c)| pattern(*c, at)).collect();
        Request::Write { offset, data, is_durable }
    };
    Some((request, InFlight::Write(sent)))
}

/// Reads a whole export.
pub(crate) fn read(socket: &Path, export: &str) -> io::Result<Vec<u8>> {
    let mut client = Client::connect(socket, export)?;
    let size = usize::try_from(client.size).unwrap();
    let mut image = Vec::with_capacity(size);
    while image.len() < size {
        let length = READ.min(size - image.len());
        image.extend(client.read(u64::try_from(image.len()).unwrap(), length)?);
    }
    client.disconnect()?;
    Ok(image)
}

/// Checks a subject as it is served at `socket`.
pub(crate) fn check(socket: &Path, subject: &Subject, durable: &Durable) -> Result<(Found, Vec<u8>), String> {
    let image =
        read(socket, subject.export).map_err(|e| format!("{} cannot be read: {e}", subject.export))?;
    let found = subject.ledger.check(durable, &image).map_err(|e| format!("{}: {e}", subject.export))?;
    Ok((found, image))
}

/// Waits until each subject has had so many flushes acknowledged.
pub(crate) fn wait_for_flushes(subjects: &[Subject], flushes: u64) {
    let began = std::time::Instant::now();
    while subjects.iter().any(|s| s.ledger.acknowledged().1 < flushes) {
        assert!(began.elapsed() < Duration::from_secs(60), "no flush is acknowledged");
        thread::sleep(Duration::from_millis(1));
    }
}
