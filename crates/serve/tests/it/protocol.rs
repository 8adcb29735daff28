//! What the protocol asks for, byte by byte.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ferry_serve::export::Attendance;
use ferry_serve::nbd::{Listener, Security};
use ferry_serve::testing::MemoryDevice;
use ferry_serve::traffic::Sort;

use crate::client::{
    BLOCK_STATUS, Client, DF, DISC, EXPORT_NAME, FLUSH, FUA, LIST, READ, Reply, SET_META_CONTEXT,
    STRUCTURED_REPLY, TRIM, WRITE, WRITE_ZEROES, go_bytes, option_bytes, request_bytes,
};
use crate::world::{World, promised};

const MIB: u64 = 1 << 20;

fn world() -> (World, Arc<MemoryDevice>) {
    let world = World::new();
    let device = world.add("a", MemoryDevice::new(40 * MIB));
    (world, device)
}

#[test]
fn requests_that_cannot_be_done_are_refused_and_the_connection_stays() {
    let (world, device) = world();
    world.add("r", MemoryDevice::new(MIB).read_only());
    let mut client = Client::attached(&world, "a");
    let end = 40 * MIB;
    for (flags, command, offset, length, error) in [
        (0, READ, end, 1, 22),
        (0, READ, end - 1, 2, 22),
        (0, READ, u64::MAX, 2, 22),
        (0, READ, 0, (32 << 20) + 1, 22),
        (0, READ, 0, 0, 22),
        (DF, READ, 0, 1, 22),
        (1 << 9, READ, 0, 1, 22),
        (0, TRIM, end, 1, 22),
        (0, WRITE_ZEROES, end - 1, 2, 28),
        (0, WRITE_ZEROES, 0, 0, 22),
        (0, BLOCK_STATUS, 0, 1, 22),
        (0, FLUSH, 1, 0, 22),
        (0, 99, 0, 0, 22),
        (0, FLUSH, 0, 0, 0),
    ] {
        assert_eq!(client.outcome(flags, command, offset, length), error, "{command} {offset} {length}");
    }
    // Payload that nobody wants is skipped.
    for (offset, length, error) in [(end - 1, 2, 28), (0, 33 << 20, 22)] {
        client.request(0, WRITE, 5, offset, length);
        client.send(&vec![1; usize::try_from(length).unwrap()]);
        assert_eq!(client.reply(), Reply::Simple { error, cookie: 5 });
    }
    assert_eq!(device.stored(), 0);
    let mut client = Client::attached(&world, "r");
    assert_eq!(client.outcome(0, WRITE_ZEROES, 0, 1), 1);
    assert_eq!(client.outcome(0, TRIM, 0, 1), 1);
    client.request(0, WRITE, 5, 0, 1);
    client.send(&[1]);
    assert_eq!(client.reply(), Reply::Simple { error: 1, cookie: 5 });
}

#[test]
fn the_old_way_to_attach_works_and_can_only_hang_up() {
    let (world, _) = world();
    let mut client = Client::greeted(&world);
    client.send(&option_bytes(EXPORT_NAME, b"a"));
    assert_eq!(u64::from_be_bytes(client.take()), 40 * MIB);
    assert_eq!(u16::from_be_bytes(client.take()) & 3, 1);
    assert_eq!(client.outcome(0, FLUSH, 0, 0), 0);
    let mut client = Client::greeted(&world);
    client.send(&option_bytes(EXPORT_NAME, b"b"));
    assert!(client.is_cut_off());
}

#[test]
fn clients_of_other_protocols_are_refused() {
    let (world, _) = world();
    for flags in [0_u32, 2, 4, 0xffff_ffff, 0x4745_5420] {
        let mut client = Client::mute(&world);
        client.take::<18>();
        client.send(&flags.to_be_bytes());
        assert!(client.is_cut_off(), "{flags}");
    }
}

#[test]
fn options_are_bounded_in_length_and_number() {
    let (world, _) = world();
    let invalid = 0x8000_0003;
    let mut client = Client::greeted(&world);
    assert_eq!(client.option(LIST, &[0; 65 << 10])[0].0, 0x8000_0009);
    assert_eq!(client.option(LIST, b"x")[0].0, invalid);
    assert_eq!(client.option(7, &[0, 0, 0, 9, b'a'])[0].0, invalid);
    assert_eq!(client.option(7, &[go_bytes("a"), vec![1]].concat())[0].0, invalid);
    assert_eq!(client.option(7, &go_bytes(&"n".repeat(5000)))[0].0, 0x8000_0009);
    assert_eq!(client.option(7, &go_bytes("no"))[0].0, 0x8000_0006);
    assert_eq!(client.option(SET_META_CONTEXT, b"")[0].0, invalid);
    assert_eq!(client.option(STRUCTURED_REPLY, b"")[0].0, 1);
    let many = [go_bytes("a")[..5].to_vec(), vec![0xff; 4]].concat();
    assert_eq!(client.option(SET_META_CONTEXT, &many)[0].0, invalid);
    assert_eq!(client.option(5, b"")[0].0, 0x8000_0002);
    assert_eq!(client.option(12345, b"")[0].0, 0x8000_0001);
    client.go("a");
    let mut client = Client::greeted(&world);
    client.send(&[b"IHAVEOPT".as_slice(), &[0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff]].concat());
    assert!(client.is_cut_off());
    let mut client = Client::greeted(&world);
    for _ in 0..1026 {
        client.option(LIST, b"");
    }
    client.send(&option_bytes(LIST, b""));
    assert!(client.is_cut_off());
}

#[test]
fn large_reads_are_read_ahead_and_each_gets_its_own_bytes() {
    let world = World::new();
    let device = world.add("a", MemoryDevice::new(40 * MIB).filled(5));
    let contents = device.contents();
    device.bad_byte.store(37 * MIB, Ordering::SeqCst);
    for is_structured in [false, true] {
        let mut client = match is_structured {
            false => Client::attached(&world, "a"),
            true => Client::structured(&world, "a"),
        };
        let places: Vec<u64> = (0..12_u64).map(|i| i * 3 * MIB + 512 * i).chain([36 * MIB + 4096]).collect();
        let heads: Vec<Vec<u8>> =
            places.iter().zip(0..).map(|(at, i)| request_bytes(0, READ, i, *at, 1 << 20)).collect();
        client.send(&heads.concat());
        // As much as the socket takes is there before anybody takes it.
        let until = Instant::now() + Duration::from_secs(10);
        while rustix::io::ioctl_fionread(&client.0).unwrap() < 256 << 10 {
            assert!(Instant::now() < until, "the socket has no room for a large reply");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut got = vec![vec![0; 1 << 20]; places.len()];
        let (mut well, mut failed) = (0, 0);
        while well + failed < places.len() {
            match client.reply() {
                Reply::Simple { error: 0, cookie } => {
                    client.0.read_exact(&mut got[usize::try_from(cookie).unwrap()]).unwrap();
                    well += 1;
                }
                Reply::Chunk { kind: 1, is_done, cookie, data } => {
                    let cookie = usize::try_from(cookie).unwrap();
                    let at = u64::from_be_bytes(data[..8].try_into().unwrap()) - places[cookie];
                    let at = usize::try_from(at).unwrap();
                    got[cookie][at..at + data.len() - 8].copy_from_slice(&data[8..]);
                    well += usize::from(is_done);
                }
                Reply::Simple { cookie, .. } | Reply::Chunk { cookie, is_done: true, .. } => {
                    assert_eq!(cookie, 12);
                    failed += 1;
                }
                other @ Reply::Chunk { .. } => panic!("{other:?}"),
            }
        }
        assert_eq!(failed, 1);
        for (at, bytes) in places.iter().zip(&got).take(12) {
            let at = usize::try_from(*at).unwrap();
            assert!(*bytes == contents[at..at + (1 << 20)], "{at}");
        }
    }
}

#[test]
fn room_for_large_replies_is_given_back_after_a_while() {
    let (world, device) = world();
    device.fill_with_zeros();
    let mut client = Client::attached(&world, "a");
    client.request(0, READ, 1, 0, 1 << 20);
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1 });
    client.0.read_exact(&mut vec![0; 1 << 20]).unwrap();
    let held = world.server.bytes_in_flight();
    assert!(held >= 1 << 20, "{held}");
    let until = Instant::now() + Duration::from_secs(20);
    while world.server.bytes_in_flight() > 0 {
        assert!(Instant::now() < until, "memory of an idle connection is still held");
        std::thread::sleep(Duration::from_millis(100));
    }
    let head = |i| request_bytes(0, READ, i, 0, 64 << 10);
    client.send(&(0..16).flat_map(head).collect::<Vec<u8>>());
    std::thread::sleep(Duration::from_millis(300));
    let there = rustix::io::ioctl_fionread(&client.0).unwrap();
    assert!(there <= 256 << 10, "{there}");
}

#[test]
fn nothing_comes_between_the_pieces_of_a_read_that_was_promised_whole() {
    let world = World::new();
    let device = world.add("a", MemoryDevice::new(40 * MIB).filled(5));
    let contents = device.contents();
    let whole = 8 << 20..24 << 20;
    for is_structured in [false, true] {
        let (mut client, flags) = match is_structured {
            false => (Client::attached(&world, "a"), 0),
            true => (Client::structured(&world, "a"), DF),
        };
        // Flushes that are done at once, and flushes that are done when the read has begun.
        for micros in [0, 20_000, 20_000, 0, 0] {
            device.flush_micros.store(micros, Ordering::SeqCst);
            client.send(
                &[
                    request_bytes(0, FLUSH, 1, 0, 0),
                    request_bytes(flags, READ, 2, 8 * MIB, 16 << 20),
                    request_bytes(0, FLUSH, 3, 0, 0),
                ]
                .concat(),
            );
            std::thread::sleep(Duration::from_millis(40));
            let mut done = Vec::new();
            while done.len() < 3 {
                match client.reply() {
                    Reply::Simple { error: 0, cookie } => {
                        if cookie == 2 {
                            let mut data = vec![0; 16 << 20];
                            client.0.read_exact(&mut data).unwrap();
                            assert!(data == contents[whole.clone()]);
                        }
                        done.push(cookie);
                    }
                    Reply::Chunk { kind: 1, cookie: 2, is_done, data } => {
                        assert!(data[8..] == contents[whole.clone()]);
                        done.extend(is_done.then_some(2));
                    }
                    Reply::Chunk { kind: 0, is_done: true, cookie, .. } => done.push(cookie),
                    other => panic!("{other:?}"),
                }
            }
            done.sort_unstable();
            assert_eq!(done, [1, 2, 3]);
        }
    }
}

#[test]
fn a_read_in_pieces_that_fails_midway_says_so() {
    let (world, device) = world();
    device.bad_byte.store(9 * MIB, Ordering::SeqCst);
    let is_error = |reply: &Reply| matches!(reply, Reply::Chunk { kind, .. } if kind >> 15 == 1);
    // In chunks: what was read, then the error.
    let mut client = Client::structured(&world, "a");
    client.request(0, READ, 1, 0, 16 << 20);
    let mut replies = vec![client.reply()];
    while !matches!(replies.last().unwrap(), Reply::Chunk { is_done: true, .. }) {
        replies.push(client.reply());
    }
    assert!(replies.len() > 1 && is_error(replies.last().unwrap()));
    // In one chunk: padded, then the error and where it is.
    client.request(DF, READ, 2, 0, 16 << 20);
    let Reply::Chunk { kind: 1, is_done: false, data, .. } = client.reply() else { panic!() };
    assert_eq!(data.len(), (16 << 20) + 8);
    let Reply::Chunk { kind, is_done: true, data, .. } = client.reply() else { panic!() };
    assert_eq!(kind, (1 << 15) + 2);
    assert_eq!(data[..4], 5_u32.to_be_bytes());
    let at = u64::from_be_bytes(data[data.len() - 8..].try_into().unwrap());
    assert!((8 * MIB..=9 * MIB).contains(&at), "{at}");
    // Simple: the reply has begun, so only the end of the connection says it.
    let mut client = Client::attached(&world, "a");
    client.request(0, READ, 3, 0, 16 << 20);
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 3 });
    let mut got = Vec::new();
    client.0.read_to_end(&mut got).unwrap();
    assert!(got.len() < 10 << 20);
    // Small enough to be read before its reply begins.
    let mut client = Client::attached(&world, "a");
    assert_eq!(client.outcome(0, READ, 9 * MIB - 512, 1 << 16), 5);
    assert_eq!(client.outcome(0, FLUSH, 0, 0), 0);
}

#[test]
fn zeros_come_as_holes_unless_one_chunk_was_asked_for() {
    let (world, _) = world();
    let mut client = Client::structured(&world, "a");
    client.request(0, READ, 1, 4096, 8192);
    let hole = [4096_u64.to_be_bytes().as_slice(), &8192_u32.to_be_bytes()].concat();
    assert_eq!(client.reply(), Reply::Chunk { kind: 2, is_done: true, cookie: 1, data: hole });
    client.request(DF, READ, 1, 4096, 8192);
    let Reply::Chunk { kind: 1, is_done: true, data, .. } = client.reply() else { panic!() };
    assert_eq!(data.len(), 8192 + 8);
}

#[test]
fn durability_is_asked_of_the_device_before_it_is_promised() {
    promised("A flush on one connection makes durable what was acknowledged on all of them.");
    let (world, device) = world();
    let (mut one, mut other) = (Client::attached(&world, "a"), Client::attached(&world, "a"));
    let flushes = || device.flushes.load(Ordering::SeqCst);
    one.request(0, WRITE, 1, 0, 3);
    one.send(b"abc");
    assert_eq!(one.reply(), Reply::Simple { error: 0, cookie: 1 });
    assert_eq!(flushes(), 0);
    assert_eq!(other.outcome(0, FLUSH, 0, 0), 0);
    assert_eq!(flushes(), 1);
    one.request(FUA, WRITE, 2, 0, 3);
    one.send(b"abd");
    assert_eq!(one.reply(), Reply::Simple { error: 0, cookie: 2 });
    assert_eq!(flushes(), 2);
    assert_eq!(other.outcome(FUA, WRITE_ZEROES, 0, 8 << 20), 0);
    assert_eq!(flushes(), 3);
    let long = vec![7; 5 << 20];
    one.request(FUA, WRITE, 3, 0, 5 << 20);
    one.send(&long);
    assert_eq!(one.reply(), Reply::Simple { error: 0, cookie: 3 });
    assert_eq!(flushes(), 4);
    assert!(device.contents()[..5 << 20] == long);
}

#[test]
fn a_slow_flush_holds_up_nobody_and_is_shared() {
    let (world, device) = world();
    let mut client = Client::attached(&world, "a");
    device.flush_micros.store(300_000, Ordering::SeqCst);
    // The server learns that flushes are slow.
    assert_eq!(client.outcome(0, FLUSH, 0, 0), 0);
    client.request(0, FLUSH, 1, 0, 0);
    std::thread::sleep(Duration::from_millis(50));
    for cookie in 2..12 {
        client.request(0, FLUSH, cookie, 0, 0);
    }
    client.request(0, TRIM, 100, 0, 4096);
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 100 });
    for cookie in 1..12 {
        assert_eq!(client.reply(), Reply::Simple { error: 0, cookie });
    }
    assert_eq!(device.flushes.load(Ordering::SeqCst), 3);
}

#[test]
fn reads_of_a_slow_device_are_done_beside_each_other() {
    let (world, device) = world();
    let mut client = Client::attached(&world, "a");
    device.read_micros.store(10_000, Ordering::SeqCst);
    let mut read = |count: u64| {
        for cookie in 0..count {
            client.request(0, READ, cookie, cookie * 4096, 4096);
        }
        let mut cookies = std::collections::BTreeSet::new();
        for _ in 0..count {
            let Reply::Simple { error: 0, cookie } = client.reply() else { panic!() };
            cookies.insert(cookie);
            client.take::<4096>();
        }
        assert_eq!(cookies.len(), usize::try_from(count).unwrap());
    };
    // The server learns that the device is slow.
    read(8);
    read(100);
    let at_once = device.slow_reads_max();
    assert!(at_once > 2, "{at_once} reads at once");
    // Others of the connection do not wait behind them. All come in at once, so that none is the only one there is.
    device.read_micros.store(200_000, Ordering::SeqCst);
    let mut all: Vec<u8> = (0..8).flat_map(|cookie| request_bytes(0, READ, cookie, 0, 4096)).collect();
    all.extend(request_bytes(0, TRIM, 99, 0, 4096));
    client.send(&all);
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 99 });
    for _ in 0..8 {
        assert!(matches!(client.reply(), Reply::Simple { error: 0, .. }));
        client.take::<4096>();
    }
}

#[test]
fn requests_are_counted() {
    let (world, _) = world();
    let mut client = Client::attached(&world, "a");
    assert_eq!(client.outcome(0, TRIM, 0, 8192), 0);
    assert_eq!(client.outcome(0, TRIM, 0, 4096), 0);
    assert_eq!(client.outcome(0, READ, 0, 0), 22);
    client.request(0, DISC, 0, 0, 0);
    assert!(client.is_cut_off());
    let export = world.exports.get("a").unwrap();
    for traffic in [world.server.traffic(), export.traffic()] {
        let zero = traffic.counts(Sort::Zero);
        assert_eq!((zero.requests, zero.errors, zero.bytes), (2, 0, 12288));
        assert_eq!(zero.durations.iter().sum::<u64>(), 2);
        let read = traffic.counts(Sort::Read);
        assert_eq!((read.requests, read.errors, read.bytes), (1, 1, 0));
    }
}

#[test]
fn clients_are_listed_and_leave_with_their_export() {
    promised("Removing an export ends its clients, after what they had under way is done and answered.");
    #[derive(Debug, Default)]
    struct Seen(std::sync::atomic::AtomicI64);
    impl Attendance for Seen {
        fn attached(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn left(&self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let (world, _) = world();
    let (device, seen) = (Arc::new(MemoryDevice::new(MIB)), Arc::new(Seen::default()));
    let export = ferry_serve::export::Export::new("b", "", Arc::clone(&device) as _, false);
    let export = world.exports.add(export.attended_by(Arc::clone(&seen) as _)).unwrap();
    let mut here = Client::attached(&world, "a");
    let mut there = Client::attached(&world, "b");
    let clients = world.server.list_clients();
    assert_eq!(clients.len(), 2);
    assert_eq!(clients[1].export.as_ref().unwrap().name(), "b");
    assert_eq!(clients[1].peer.to_string(), format!("pid {} (uid 0)", std::process::id()));
    assert_eq!(seen.0.load(Ordering::SeqCst), 1);

    // What is under way is finished, and heard of.
    device.hold();
    there.request(0, TRIM, 9, 0, 4096);
    while device.waiting() == 0 {
        std::thread::yield_now();
    }
    world.exports.remove("b").unwrap();
    let (server, ended) = (Arc::clone(&world.server), Arc::clone(&export));
    let end = world.runtime.spawn(async move { server.end_clients(&ended).await });
    std::thread::sleep(Duration::from_millis(50));
    assert!(!end.is_finished());
    device.let_go();
    assert_eq!(there.reply(), Reply::Simple { error: 0, cookie: 9 });
    assert!(there.is_cut_off());
    world.runtime.block_on(end).unwrap();
    assert_eq!(seen.0.load(Ordering::SeqCst), 0);
    assert_eq!(world.server.list_clients().len(), 1);
    assert_eq!(here.outcome(0, FLUSH, 0, 0), 0);
}

#[test]
fn a_stop_finishes_flushes_and_closes() {
    let (world, device) = world();
    let mut client = Client::attached(&world, "a");
    let mut greeted = Client::greeted(&world);
    device.hold();
    client.request(0, TRIM, 9, 0, 4096);
    while device.waiting() == 0 {
        std::thread::yield_now();
    }
    let server = Arc::clone(&world.server);
    let stop = world.runtime.spawn(async move { server.stop().await });
    assert!(greeted.ends());
    device.let_go();
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 9 });
    assert!(client.is_cut_off());
    world.runtime.block_on(stop).unwrap().unwrap();
    assert_eq!(device.flushes.load(Ordering::SeqCst), 1);
    assert!(!world.socket().exists());
}

#[test]
fn a_switch_of_the_device_is_not_seen_by_a_client_under_way() {
    let (world, old) = world();
    let new = Arc::new(MemoryDevice::new(40 * MIB).filled(4));
    let export = world.exports.get("a").unwrap();
    let mut client = Client::attached(&world, "a");
    old.hold();
    client.request(0, TRIM, 1, 0, 4096);
    while old.waiting() == 0 {
        std::thread::yield_now();
    }
    let given = Arc::clone(&new);
    let swap = world.runtime.spawn(async move {
        let paused = export.pause(Duration::from_secs(10)).await?;
        paused.replace(given as _)
    });
    std::thread::sleep(Duration::from_millis(50));
    client.request(0, READ, 2, MIB, 4096);
    std::thread::sleep(Duration::from_millis(50));
    old.let_go();
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1 });
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 2 });
    assert!(client.take::<4096>() == new.contents()[1 << 20..(1 << 20) + 4096]);
    world.runtime.block_on(swap).unwrap().unwrap();
}

#[test]
fn a_listener_that_somebody_else_opened_serves_too_and_a_dead_one_is_replaced() {
    let (world, _) = world();
    let path = world.file("given");
    let given = std::os::unix::net::UnixListener::bind(&path).unwrap();
    world.server.listen_on(Listener::Unix(given), Security::Plain).unwrap();
    let mut client = Client(std::os::unix::net::UnixStream::connect(&path).unwrap());
    assert_eq!(client.take::<18>()[..8], *b"NBDMAGIC");
    // Somebody listens there.
    assert_eq!(world.server.listen_unix(&world.socket(), Security::Plain).unwrap_err().errno().0, 16);
    // Nobody does any more.
    let dead = world.file("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    world.server.listen_unix(&dead, Security::Plain).unwrap();
    let mut client = Client(std::os::unix::net::UnixStream::connect(&dead).unwrap());
    assert_eq!(client.take::<18>()[..8], *b"NBDMAGIC");
    // What is no socket is left alone.
    let file = world.file("file");
    std::fs::write(&file, "x").unwrap();
    assert!(world.server.listen_unix(&file, Security::Plain).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
}
