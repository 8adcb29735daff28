//! Sessions of bytes that were right once, before some of them were changed: over streams inside this process, so that many fit
//! into a test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ferry_serve::export::{Export, Exports};
use ferry_serve::nbd::{Options, Server};
use ferry_serve::testing::MemoryDevice;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof};
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{go_bytes, option_bytes, request_bytes};

const SIZE: u64 = 1 << 20;

/// Sessions, where nothing else is said.
const SESSIONS: u32 = 24_000;

/// What happens to the bytes of a session.
#[derive(Clone, Debug)]
enum Change {
    Set(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Repeat(usize, usize),
    Cut(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let n = bytes.len().max(1);
        match self {
            _ if bytes.is_empty() => {}
            Self::Set(at, to) => bytes[at % n] = *to,
            Self::Insert(at, what) => drop(bytes.splice(at % n..at % n, what.iter().copied())),
            Self::Remove(at, count) => drop(bytes.drain(at % n..n.min(at % n + count))),
            Self::Repeat(at, count) => {
                let part = bytes[at % n..n.min(at % n + count)].to_vec();
                bytes.splice(at % n..at % n, part);
            }
            Self::Cut(at) => bytes.truncate(at % n),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<usize>;
    prop_oneof![
        6 => (at(), prop_oneof![any::<u8>(), Just(0), Just(0xff)]).prop_map(|(a, b)| Change::Set(a, b)),
        1 => (at(), proptest::collection::vec(any::<u8>(), 1..40)).prop_map(|(a, w)| Change::Insert(a, w)),
        1 => (at(), 1..40_usize).prop_map(|(a, n)| Change::Remove(a, n)),
        1 => (at(), 1..60_usize).prop_map(|(a, n)| Change::Repeat(a, n)),
        1 => at().prop_map(Change::Cut),
    ]
}

/// One option of a negotiation that does not end it.
fn option() -> impl Strategy<Value = Vec<u8>> {
    let contexts = |number, queries: &[&str]| {
        let mut data = go_bytes("a")[..5].to_vec();
        data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
        for query in queries {
            data.extend_from_slice(&u32::try_from(query.len()).unwrap().to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        option_bytes(number, &data)
    };
    prop_oneof![
        Just(option_bytes(3, b"")),
        Just(option_bytes(8, b"")),
        Just(option_bytes(8, b"")),
        Just(option_bytes(5, b"")),
        Just(option_bytes(6, &[&go_bytes("a")[..5], &[0, 3, 0, 1, 0, 2, 0, 3]].concat())),
        Just(contexts(9, &[])),
        Just(contexts(10, &["base:allocation"])),
        Just(contexts(10, &["base:allocation", "base:", "nothing"])),
        (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..80)).prop_map(|(n, d)| option_bytes(n, &d)),
    ]
}

/// One request, mostly inside the device, sometimes anywhere; a write comes with its payload.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![8 => Just(0_u16), 4 => 0..32_u16, 1 => any::<u16>()];
    let command = prop_oneof![20 => 0..8_u16, 1 => any::<u16>()];
    let offset = prop_oneof![8 => 0..SIZE, 1 => any::<u64>()];
    let length = prop_oneof![8 => 0..9000_u32, 2 => 0..300_000_u32, 1 => any::<u32>()];
    (flags, command, offset, length).prop_map(|(flags, command, offset, length)| {
        let is_flush = command == 3 && offset % 4 != 0;
        let (offset, length) = if is_flush { (0, 0) } else { (offset, length) };
        let mut bytes = request_bytes(flags, command, offset ^ 0x55, offset, length);
        if command == 1 {
            bytes.resize(bytes.len() + usize::try_from(length).unwrap().min(400_000), 0x77);
        }
        bytes
    })
}

/// A session: greeting, options, attaching, requests, and what is done to it; and by how many bytes it arrives at a time.
fn session() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let options = proptest::collection::vec(option(), 0..5);
    let attach = prop_oneof![
        8 => Just(option_bytes(7, &go_bytes("a"))),
        1 => Just(option_bytes(1, b"a")),
        1 => Just(option_bytes(7, &go_bytes("b"))),
    ];
    let requests = proptest::collection::vec(request(), 0..12);
    let greeting = prop_oneof![9 => Just(3_u32), 1 => Just(1)];
    // Where changes go: half of the sessions are changed near their start, so that both parts get their share.
    let changes = proptest::collection::vec((change(), any::<bool>()), 0..6);
    (greeting, options, attach, requests, changes, 1..5000_usize).prop_map(
        |(greeting, options, attach, requests, changes, step)| {
            let mut head = [greeting.to_be_bytes().to_vec(), options.concat(), attach].concat();
            let mut tail = requests.concat();
            for (change, is_early) in changes {
                change.apply(if is_early { &mut head } else { &mut tail });
            }
            ([head, tail].concat(), step)
        },
    )
}

/// Plays a session to its end; how many bytes the server said.
async fn play(server: &Arc<Server>, bytes: Vec<u8>, step: usize) -> u64 {
    let (ours, theirs) = tokio::io::duplex(step);
    let serving = Arc::clone(server);
    let served = tokio::spawn(async move { serving.serve_stream(theirs).await });
    let (mut from, mut to) = tokio::io::split(ours);
    let talking = tokio::spawn(async move {
        // The server may hang up at any time.
        drop(to.write_all(&bytes).await);
        drop(to.shutdown().await);
    });
    let (mut said, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => said += u64::try_from(n).unwrap(),
        }
    }
    talking.await.unwrap();
    served.await.unwrap();
    said
}

fn seed() -> [u8; 32] {
    let seed = std::env::var("FERRY_SEED").ok().and_then(|s| s.parse::<u64>().ok()).unwrap_or(1);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes
}

#[test]
fn changed_sessions_end_cleanly_and_leave_nothing_behind() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let exports = Arc::new(Exports::default());
    let device = Arc::new(MemoryDevice::new(SIZE));
    exports.add(Export::new("a", "for tests", Arc::clone(&device) as _, false)).unwrap();
    let server = Server::new(Arc::clone(&exports), Options::default(), runtime.handle().clone());
    let cases = std::env::var("FERRY_STEPS").ok().and_then(|s| s.parse().ok()).unwrap_or(SESSIONS);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed());
    let (count, said) = (AtomicU64::new(0), AtomicU64::new(0));
    let outcome = TestRunner::new_with_rng(config, rng).run(&session(), |(bytes, step)| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        device.is_late.store(n % 4 == 3, Ordering::SeqCst);
        let played = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(20), play(&server, bytes, step)).await
        });
        said.fetch_add(played.expect("a session comes to its end"), Ordering::Relaxed);
        assert_eq!(server.bytes_in_flight(), 0);
        assert!(server.list_clients().is_empty());
        assert_eq!(exports.get("a").unwrap().clients(), 0);
        Ok(())
    });
    outcome.unwrap();
    // Sessions got somewhere: most were attached, and many requests of every sort were answered.
    let traffic = server.traffic();
    for sort in ferry_serve::traffic::SORTS {
        let counts = traffic.counts(sort);
        println!("{sort:?}: {} requests, {} of them failed", counts.requests, counts.errors);
        assert!(counts.requests > u64::from(cases) / 8, "{sort:?}: {counts:?}");
        assert!(counts.requests > counts.errors && counts.errors > 0, "{sort:?}: {counts:?}");
    }
    assert!(said.load(Ordering::Relaxed) > u64::from(cases) * 100);
}
