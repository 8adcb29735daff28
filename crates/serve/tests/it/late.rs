//! A device that keeps no thread waiting and answers late, such as a cluster.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::{BlockDevice, DeviceExtent, Reply};
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
    fn read(&self, _: u64, length: u64) -> Reply<Bytes> {
        self.meet(vec![7; usize::try_from(length).unwrap()].into())
    }
    fn write(&self, _: u64, data: Bytes) -> Reply<()> {
        assert!(data.iter().all(|b| *b == 7));
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
    let data = vec![7; usize::try_from(length).unwrap()];
    let mut sender = client.0.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for cookie in 0..count {
                let head = client::request_bytes(0, command, cookie, cookie * 4096, length);
                let data = if command == WRITE { &data[..] } else { &[] };
                sender.write_all(&[&head, data].concat()).unwrap();
            }
        });
        for _ in 0..count {
            assert!(matches!(client.reply(), client::Reply::Simple { error: 0, .. }));
            if command == READ {
                let mut back = vec![0; data.len()];
                client.0.read_exact(&mut back).unwrap();
                assert!(back == data);
            }
        }
    });
}

fn world(options: Options, wanted: usize) -> (World, Arc<Late>) {
    let world = World::with(options);
    let device = Arc::new(Late { wanted: AtomicUsize::new(wanted), waiting: Mutex::default() });
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
