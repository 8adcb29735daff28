//! Clients that mean no good, or are broken: refused cleanly, in bounded memory, while others do not notice.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ferry_serve::nbd::limits::BUDGET_BYTES;
use ferry_serve::nbd::{Demand, Options, Refusals, Security, Tls};
use ferry_serve::testing::{FlatDevice, MemoryDevice, NullDevice};

use crate::client::{Client, FLUSH, GO, READ, Reply, WRITE, go_bytes, option_bytes, request_bytes};
use crate::world::{World, alone, promised, run};

const MIB: u64 = 1 << 20;

/// Memory of this process now. Bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

/// A world with devices that take no more memory, whatever is written to them.
fn world_of_nothing(options: Options) -> World {
    let world = World::with(options);
    let export = ferry_serve::export::Export::new("null", "", Arc::new(NullDevice::new()), false);
    world.exports.add(export).unwrap();
    // Its reads take memory of their own.
    let flat = Arc::new(FlatDevice::new(32 << 20));
    world.exports.add(ferry_serve::export::Export::new("flat", "", flat, false)).unwrap();
    world.add("a", MemoryDevice::new(8 * MIB).filled(1));
    world
}

/// An honest client gets what it asks for, and soon.
fn others_are_served(world: &World) {
    let began = Instant::now();
    let mut client = Client::attached(world, "a");
    for i in 0..100 {
        client.request(0, READ, i, i * 4096, 65536);
        assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: i });
        client.take::<65536>();
    }
    assert_eq!(client.outcome(0, FLUSH, 0, 0), 0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// So many clients were turned away. They are counted after the connection is closed, which the client sees first.
fn counted(world: &World, expected: u64, what: fn(Refusals) -> u64) {
    let began = Instant::now();
    while what(world.server.refusals()) < expected && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(what(world.server.refusals()), expected);
}

#[test]
fn large_requests_of_many_connections_fit_the_budget() {
    promised("Sixteen connections that send requests of 32 MiB need no more than 64 MiB.");
    if !alone("hostile::large_requests_of_many_connections_fit_the_budget") {
        return;
    }
    let world = world_of_nothing(Options::default());
    // The device's own memory does not count.
    let mut first = Client::attached(&world, "flat");
    first.request(0, WRITE, 1, 0, 32 << 20);
    first.send(&vec![1; 32 << 20]);
    assert_eq!(first.reply(), Reply::Simple { error: 0, cookie: 1 });
    drop(first);
    let before = resident();
    let (most, is_over, held) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicUsize::new(0));
    let piece = vec![1; 1 << 20];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                most.fetch_max(resident(), Ordering::SeqCst);
                held.fetch_max(world.server.bytes_in_flight(), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let clients: Vec<_> = (0..16)
            .map(|i| {
                let (world, piece) = (&world, &piece);
                scope.spawn(move || {
                    let mut client = Client::attached(world, "flat");
                    for round in 0..3 {
                        if (i + round) % 2 == 0 {
                            client.request(0, WRITE, 1, 0, 32 << 20);
                            (0..32).for_each(|_| client.send(piece));
                            assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1 });
                        } else {
                            client.request(0, READ, 1, 0, 32 << 20);
                            assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1 });
                            let mut buffer = vec![0; 64 << 10];
                            (0..512).for_each(|_| client.0.read_exact(&mut buffer).unwrap());
                        }
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|c| c.join().unwrap());
        is_over.store(true, Ordering::SeqCst);
    });
    let (grown, held) = (most.load(Ordering::SeqCst) - before, held.load(Ordering::SeqCst));
    println!("grown by {grown} bytes, {held} of them by the budget");
    assert!(held > 0 && held <= BUDGET_BYTES, "{held}");
    assert!(grown <= 64 << 20, "{grown} bytes");
}

#[test]
fn clients_that_never_read_cost_bounded_memory_and_nobody_else() {
    promised(
        "A client that does not take its replies, stops in the middle or sends nonsense costs no other client",
    );
    if !alone("hostile::clients_that_never_read_cost_bounded_memory_and_nobody_else") {
        return;
    }
    let stop_timeout = Duration::from_millis(200);
    let world = world_of_nothing(Options { stop_timeout, ..Options::default() });
    let before = resident();
    let mut silent: Vec<_> = (0..300)
        .map(|i| {
            let mut client = Client::attached(&world, "flat");
            // Large ones, small ones, and both.
            client.0.set_nonblocking(true).unwrap();
            for cookie in 0..4000 {
                let length = if i % 3 == 0 || (i % 3 == 1 && cookie % 9 == 0) { 32 << 20 } else { 4096 };
                if client.0.write_all(&request_bytes(0, READ, cookie, 0, length)).is_err() {
                    break;
                }
            }
            client
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    others_are_served(&world);
    let grown = resident().saturating_sub(before);
    println!("grown by {grown} bytes");
    assert!(world.server.bytes_in_flight() <= BUDGET_BYTES);
    // 48 MiB for all, and what each connection has of its own.
    assert!(grown <= (48 << 20) + 300 * (144 << 10), "{grown} bytes");
    // Whoever reads after all gets it all the same.
    let client = &mut silent[2];
    client.0.set_nonblocking(false).unwrap();
    for cookie in 0..100 {
        assert_eq!(client.reply(), Reply::Simple { error: 0, cookie });
        client.take::<4096>();
    }
    // They do not hold up the end either.
    let began = Instant::now();
    world.runtime.block_on(world.server.stop()).unwrap();
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(world.server.bytes_in_flight(), 0);
}

#[test]
fn thousands_of_idle_connections_cost_little() {
    if !alone("hostile::thousands_of_idle_connections_cost_little") {
        return;
    }
    let world = world_of_nothing(Options::default());
    let before = resident();
    let idle: Vec<_> = (0..3000)
        .map(|i| {
            let mut client = Client::attached(&world, "a");
            if i % 2 == 0 {
                assert_eq!(client.outcome(0, FLUSH, 0, 0), 0);
            }
            client
        })
        .collect();
    assert_eq!(world.server.list_clients().len(), 3000);
    let each = resident().saturating_sub(before) / 3000;
    println!("{each} bytes each");
    assert!(each <= 16 << 10, "{each} bytes");
    others_are_served(&world);
    drop(idle);
}

#[test]
fn a_connection_that_was_busy_gives_its_memory_back() {
    let world = world_of_nothing(Options::default());
    let mut client = Client::attached(&world, "null");
    let request = request_bytes(0, FLUSH, 1, 0, 0);
    client.send(&request.repeat(2000));
    for _ in 0..2000 {
        client.reply();
    }
    assert!(world.server.bytes_in_flight() > 0);
    let until = Instant::now() + Duration::from_secs(15);
    while world.server.bytes_in_flight() > 0 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(client.outcome(0, FLUSH, 0, 0), 0);
}

#[test]
fn who_does_not_finish_negotiating_is_hung_up_on() {
    let handshake_timeout = Duration::from_millis(400);
    let world = world_of_nothing(Options { handshake_timeout, ..Options::default() });
    let began = Instant::now();
    let mut mute = Client::mute(&world);
    let mut half = Client::greeted(&world);
    half.send(&option_bytes(GO, &go_bytes("a"))[..20]);
    // One byte at a time does not help.
    let mut slow = Client::greeted(&world);
    let dripping = std::thread::spawn(move || {
        for byte in option_bytes(GO, &go_bytes("a")) {
            if slow.0.write_all(&[byte]).is_err() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(60));
        }
        slow.ends()
    });
    mute.take::<18>();
    assert!(mute.is_cut_off() && half.is_cut_off());
    assert!(dripping.join().unwrap());
    assert!(began.elapsed() < Duration::from_secs(5));
    counted(&world, 3, |r| r.handshake);
    // Who did is left alone.
    let mut client = Client::attached(&world, "a");
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(client.outcome(0, FLUSH, 0, 0), 0);
}

#[test]
fn more_clients_than_allowed_are_turned_away() {
    let world = world_of_nothing(Options { connections_max: 3, ..Options::default() });
    let mut clients: Vec<_> = (0..3).map(|_| Client::attached(&world, "a")).collect();
    assert!(Client::mute(&world).is_cut_off());
    counted(&world, 1, |r| r.too_many);
    clients.pop();
    while world.server.list_clients().len() == 3 {
        std::thread::yield_now();
    }
    others_are_served(&world);
}

#[test]
fn nonsense_after_attaching_ends_that_connection_only() {
    let world = world_of_nothing(Options::default());
    let mut honest = Client::attached(&world, "a");
    let mut client = Client::attached(&world, "a");
    client.send(&[7; 28]);
    assert!(client.is_cut_off());
    // Gone in the middle of a payload.
    let mut client = Client::attached(&world, "a");
    client.request(0, WRITE, 1, 0, 8 << 20);
    client.send(&vec![9; 3 << 20]);
    client.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_cut_off());
    counted(&world, 2, |r| r.broken);
    assert_eq!(honest.outcome(0, FLUSH, 0, 0), 0);
    // Half gone: what it asked for before, it gets.
    let mut client = Client::attached(&world, "a");
    client.request(0, READ, 1, 0, 8 << 20);
    client.request(0, FLUSH, 2, 0, 0);
    client.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1 });
    let mut data = vec![0; 8 << 20];
    client.0.read_exact(&mut data).unwrap();
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 2 });
    assert!(client.is_cut_off());
}

#[test]
fn what_was_slipped_in_before_encryption_is_not_taken_for_encrypted() {
    // What is no TLS may look like the beginning of a long record: only time tells.
    let handshake_timeout = Duration::from_secs(1);
    let world = world_of_nothing(Options { handshake_timeout, ..Options::default() });
    let tls = Tls::with_keys("alice:000102030405060708090a0b0c0d0e0f").unwrap();
    let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let address = world.server.listen_tcp(address, Security::Tls(Arc::new(tls), Demand::Required)).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let go = option_bytes(GO, &go_bytes("a"));
    stream.write_all(&[3_u32.to_be_bytes().as_slice(), &option_bytes(5, b""), &go].concat()).unwrap();
    let mut said = Vec::new();
    // It may be a reset: there was something unread.
    drop(stream.read_to_end(&mut said));
    let ack = [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &[0, 0, 0, 5, 0, 0, 0, 1]].concat();
    assert!(said.windows(16).filter(|w| *w == ack).count() <= 1);
    let go_ack = [0, 0, 0, 7, 0, 0, 0, 1];
    assert!(!said.windows(8).any(|w| w == go_ack));
    while !world.server.list_clients().is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    counted(&world, 1, |r| r.handshake);
    others_are_served(&world);
}

/// The link between is taken away.
#[test]
fn a_tcp_peer_that_vanished_is_noticed_within_thirty_seconds() {
    promised("A TCP peer that vanished is noticed within 30 seconds; a process that died, at once.");
    let name = format!("fn{}", std::process::id() % 100_000);
    let ip = |arguments: &str| {
        let arguments: Vec<_> = arguments.split(' ').collect();
        std::process::Command::new("ip").args(arguments).output().is_ok_and(|o| o.status.success())
    };
    struct Gone<'a>(&'a dyn Fn(&str) -> bool, String);
    impl Drop for Gone<'_> {
        fn drop(&mut self) {
            (self.0)(&format!("netns del {}", self.1));
        }
    }
    if !ip(&format!("netns add {name}")) {
        println!("SKIPPED a_tcp_peer_that_vanished_is_noticed_within_thirty_seconds: no network namespaces");
        return;
    }
    let _gone = Gone(&ip, name.clone());
    if !ip(&format!("link add {name}a type veth peer name {name}b netns {name}")) {
        println!("SKIPPED a_tcp_peer_that_vanished_is_noticed_within_thirty_seconds: no veth");
        return;
    }
    let octet = std::process::id() % 250;
    assert!(ip(&format!("addr add 10.213.{octet}.1/30 dev {name}a")));
    assert!(ip(&format!("link set {name}a up")));
    assert!(ip(&format!("-n {name} addr add 10.213.{octet}.2/30 dev {name}b")));
    assert!(ip(&format!("-n {name} link set {name}b up")));
    let world = world_of_nothing(Options { plain: ferry_serve::nbd::Plain::Anywhere, ..Options::default() });
    let address = format!("10.213.{octet}.1:0").parse().unwrap();
    let port = world.server.listen_tcp(address, Security::Plain).unwrap().port();
    let mut client = std::process::Command::new("ip")
        .args(["netns", "exec", &name, "qemu-io", "-f", "raw", "-r"])
        .args(["-c", "read 0 4k", "-c", "sleep 60000"])
        .arg(format!("nbd://10.213.{octet}.1:{port}/a"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let traffic = world.exports.get("a").unwrap();
    let reads = || traffic.traffic().counts(ferry_serve::traffic::Sort::Read).requests;
    let until = Instant::now() + Duration::from_secs(10);
    while reads() == 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(traffic.clients(), 1);
    assert!(ip(&format!("link set {name}a down")));
    let began = Instant::now();
    while traffic.clients() > 0 {
        assert!(began.elapsed() < Duration::from_secs(31), "still there");
        std::thread::sleep(Duration::from_millis(50));
    }
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(run("ip", &["netns", "list"]).contains(&name));
}
