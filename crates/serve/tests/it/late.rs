//! A device that keeps no thread waiting and answers late, such as a cluster.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::{BlockDevice, DeviceExtent, Error, ErrorKind, Reply};
use ferry_serve::export::Export;
use ferry_serve::nbd::Options;
use tokio::sync::oneshot;

use crate::client::{self, Client, READ, WRITE};
use crate::world::World;

/// A device that answers once it was asked for so much at once.
#[derive(Debug)]
struct Late {
    wanted: AtomicUsize,
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
    /// A read of this byte fails.
    broken_at: AtomicU64,
}

/// What the device holds: every block is another.
fn pattern(offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length).map(|at| u8::try_from(at / 4096 % 255).unwrap() + 1).collect()
}

impl Late {
    /// Answers everything from now on.
    fn answer(&self) {
        let mut waiting = self.waiting.lock().unwrap();
        self.wanted.store(0, Ordering::SeqCst);
        waiting.drain(..).for_each(|sender| sender.send(()).unwrap());
    }

    /// Waits for the others.
    fn meet<T: Send + 'static>(&self, answer: T) -> Reply<T> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap();
        waiting.push(sender);
        if waiting.len() >= self.wanted.load(Ordering::SeqCst) {
            waiting.drain(..).for_each(|sender| sender.send(()).unwrap());
        }
        Reply::pending(async move {
            // Not even the last one is answered at once.
            tokio::task::yield_now().await;
            receiver.await.unwrap();
            Ok(answer)
        })
    }
}

impl BlockDevice for Late {
    fn size(&self) -> u64 {
        64 << 20
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        let is_broken = (offset..offset + length).contains(&self.broken_at.load(Ordering::SeqCst));
        let data = pattern(offset, length).into();
        let answer = self.meet(data);
        Reply::pending(async move {
            if is_broken { Err(Error::new(ErrorKind::Io, "this byte is broken")) } else { answer.await }
        })
    }
    fn write(&self, offset: u64, data: Bytes) -> Reply<()> {
        assert!(data == pattern(offset, data.len() as u64));
        self.meet(())
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Reply<()> {
        self.meet(())
    }
    fn discard(&self, _: u64, _: u64) -> Reply<()> {
        self.meet(())
    }
    fn flush(&self) -> Reply<()> {
        Reply::ready(Ok(()))
    }
    fn extents(&self, _: u64, _: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(Ok(Vec::new()))
    }
}

/// Sends `count` requests, and takes their replies as they come.
fn ask(client: &mut Client, (command, length, count): (u16, u32, u64)) {
    let data = |cookie: u64| pattern(cookie * 4096, u64::from(length));
    let mut sender = client.0.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for cookie in 0..count {
                let head = client::request_bytes(0, command, cookie, cookie * 4096, length);
                let data = if command == WRITE { data(cookie) } else { Vec::new() };
                sender.write_all(&[head, data].concat()).unwrap();
            }
        });
        for _ in 0..count {
            let client::Reply::Simple { error: 0, cookie } = client.reply() else { panic!("it failed") };
            if command == READ {
                let mut back = vec![0; usize::try_from(length).unwrap()];
                client.0.read_exact(&mut back).unwrap();
                assert!(back == data(cookie));
            }
        }
    });
}

fn world(options: Options, wanted: usize) -> (World, Arc<Late>) {
    let world = World::with(options);
    let (wanted, broken_at) = (AtomicUsize::new(wanted), AtomicU64::new(u64::MAX));
    let device = Arc::new(Late { wanted, waiting: Mutex::default(), broken_at });
    world.exports.add(Export::new("a", "", Arc::clone(&device) as _, false)).unwrap();
    (world, device)
}

#[test]
fn a_device_that_answers_late_is_asked_for_all_that_a_client_wants_at_once() {
    let (world, _) = world(Options::default(), 100);
    let mut client = Client::attached(&world, "a");
    // What came before makes no difference.
    for length in [4096, 512, 32 << 10, 64 << 10, 256 << 10] {
        ask(&mut client, (READ, length, 200));
    }
    for length in [512, 4096, 32 << 10, 64 << 10] {
        ask(&mut client, (WRITE, length, 200));
        ask(&mut Client::attached(&world, "a"), (WRITE, length, 200));
    }
}

#[test]
fn where_memory_is_short_a_device_that_answers_late_is_asked_for_less() {
    for command in [READ, WRITE] {
        let (world, device) = world(Options { budget_bytes: 256 << 10, ..Options::default() }, usize::MAX);
        let mut client = Client::attached(&world, "a");
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&mut client, (command, 16 << 10, 100)));
            std::thread::sleep(Duration::from_millis(500));
            let waiting = device.waiting.lock().unwrap().len();
            // Of its own 64 KiB, and one request more, and of the budget.
            assert!((2..=5 + 16).contains(&waiting), "{waiting}");
            assert!(!asking.is_finished());
            device.answer();
        });
    }
}

/// The chunks of a large read of one client, in pieces or in parts: what they tell of the range, and the error at the end.
fn read_in_chunks(client: &mut Client, cookie: u64, offset: u64, length: u32) -> (Vec<u8>, Option<u32>) {
    client.request(0, READ, cookie, offset, length);
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    loop {
        let client::Reply::Chunk { kind, is_done, cookie: told, data } = client.reply() else { panic!() };
        assert_eq!(told, cookie);
        let number = |at: usize| u64::from_be_bytes(data[at..at + 8].try_into().unwrap());
        match kind {
            1 => {
                let at = usize::try_from(number(0) - offset).unwrap();
                bytes[at..at + data.len() - 8].copy_from_slice(&data[8..]);
            }
            0x8001 => return (bytes, Some(u32::from_be_bytes(data[..4].try_into().unwrap()))),
            other => panic!("a chunk of {other}"),
        }
        if is_done {
            return (bytes, None);
        }
    }
}

#[test]
fn a_large_read_of_a_device_that_answers_late_is_asked_for_as_a_whole() {
    let (world, device) = world(Options::default(), 1);
    let mut client = Client::structured(&world, "a");
    // The server learns that the device lets reads wait.
    read_in_chunks(&mut client, 1, 0, 2 << 20);
    // A part for each MiB that it touches.
    for (offset, length, parts) in [(0, 2 << 20, 2), (5 << 20, 5 << 20, 5), (4096, 5 << 20, 6)] {
        device.wanted.store(parts, Ordering::SeqCst);
        let read = read_in_chunks(&mut client, 2, offset, length);
        assert!(read == (pattern(offset, u64::from(length)), None));
    }
    device.wanted.store(1, Ordering::SeqCst);
    for broken_at in [4096, (2 << 20) + 7, (5 << 20) + 4095] {
        device.broken_at.store(broken_at, Ordering::SeqCst);
        let (_, error) = read_in_chunks(&mut client, 3, 4096, 5 << 20);
        assert_eq!(error, Some(5));
    }
    device.broken_at.store(u64::MAX, Ordering::SeqCst);
    assert!(read_in_chunks(&mut client, 4, 7 << 20, 3 << 20) == (pattern(7 << 20, 3 << 20), None));
}

#[test]
fn where_memory_is_short_it_is_read_in_pieces() {
    let (world, _) = world(Options { budget_bytes: 8 << 20, ..Options::default() }, 1);
    let mut client = Client::structured(&world, "a");
    for cookie in 0..4 {
        assert!(read_in_chunks(&mut client, cookie, 512, 9 << 20) == (pattern(512, 9 << 20), None));
    }
}
