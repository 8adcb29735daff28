//! A server that breaks the protocol in one way at a time.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferry_core::{DeviceExtent, Errno, ErrorKind, ExtentState};

use super::{NbdOptions, NbdPlace, NbdStream, open_with};
use crate::stream::{Patience, Stream};
use crate::testing::env;

const SIZE: u64 = 3 << 20;

/// What the server does to one request for bytes, instead of answering it. Numbers are relative to the request.
#[derive(Clone, Debug)]
enum Fault {
    /// These chunks: flags, kind, payload.
    Chunks(Vec<(u16, u16, Vec<u8>)>),
    /// These bytes.
    Bytes(Vec<u8>),
    /// The head of a chunk that says it is so long, and then nothing.
    Length(u16, u32),
    /// The reply to another request.
    Cookie,
    /// A simple reply with data.
    Simple,
    /// Chunks that hold nothing, without end.
    Endless,
    /// Closes.
    Close,
    /// Half of the reply, and closes.
    Half,
    /// Does not answer.
    Stall,
    /// An error.
    Error(u32),
}

#[derive(Default)]
struct World {
    faults: Mutex<VecDeque<Fault>>,
    /// The size from now on.
    size: Mutex<Option<u64>>,
    /// Sent instead of what answers an option: number of the option, bytes.
    answers: Mutex<Vec<(u32, Vec<u8>)>>,
    /// Block sizes told: least and most.
    blocks: Mutex<Option<(u32, u32)>>,
    /// Extents to tell: length and flags.
    extents: Mutex<Vec<(u32, u32)>>,
    requests: Mutex<Vec<(u64, u32)>>,
}

struct Server {
    world: Arc<World>,
    address: SocketAddr,
}

fn byte(at: u64) -> u8 {
    u8::try_from(at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).unwrap() | 1
}

fn pattern(offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length).map(byte).collect()
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let world = Arc::new(World::default());
        let inner = Arc::clone(&world);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let world = Arc::clone(&inner);
                // A client that goes away ends it.
                std::thread::spawn(move || world.serve(&mut stream.unwrap()));
            }
        });
        Self { world, address }
    }

    fn options(&self) -> NbdOptions {
        let patience = Patience {
            connect: Duration::from_secs(2),
            idle: Duration::from_millis(400),
            progress: 1000,
            retry: Duration::from_secs(2),
            open: Duration::from_millis(500),
        };
        NbdOptions { patience, ..NbdOptions::parse(&format!("nbd://{}/disk", self.address)).unwrap() }
    }

    fn open(&self) -> ferry_core::Result<Arc<NbdStream>> {
        open_with(self.options(), &env().runtime).wait()
    }

    fn fault(&self, fault: Fault) {
        self.world.faults.lock().unwrap().push_back(fault);
    }
}

fn number<const N: usize>(stream: &mut TcpStream) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).ok().map(|()| bytes)
}

fn chunk(stream: &mut TcpStream, cookie: u64, flags: u16, kind: u16, payload: &[u8]) -> Option<()> {
    let mut out = 0x668e_33ef_u32.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    out.extend(payload);
    stream.write_all(&out).ok()
}

fn data(at: u64, bytes: &[u8]) -> Vec<u8> {
    [&at.to_be_bytes()[..], bytes].concat()
}

fn hole(at: u64, length: u32) -> Vec<u8> {
    [&at.to_be_bytes()[..], &length.to_be_bytes()].concat()
}

fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    out.extend(data);
    out
}

impl World {
    fn serve(&self, stream: &mut TcpStream) -> Option<()> {
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").ok()?;
        number::<4>(stream)?;
        loop {
            number::<8>(stream)?;
            let option = u32::from_be_bytes(number(stream)?);
            let mut payload = vec![0; usize::try_from(u32::from_be_bytes(number(stream)?)).unwrap()];
            stream.read_exact(&mut payload).ok()?;
            let other =
                self.answers.lock().unwrap().iter().find(|(o, _)| *o == option).map(|(_, b)| b.clone());
            if let Some(bytes) = other {
                stream.write_all(&bytes).ok()?;
                if option == 7 {
                    return None;
                }
                continue;
            }
            match option {
                8 => stream.write_all(&answer(8, 1, &[])).ok()?,
                10 => {
                    let context = [&7_u32.to_be_bytes()[..], b"base:allocation"].concat();
                    stream.write_all(&answer(10, 4, &context)).ok()?;
                    stream.write_all(&answer(10, 1, &[])).ok()?;
                }
                7 => {
                    let size = self.size.lock().unwrap().unwrap_or(SIZE);
                    let info = [&[0, 0][..], &size.to_be_bytes(), &[1, 3]].concat();
                    stream.write_all(&answer(7, 3, &info)).ok()?;
                    if let Some((least, most)) = *self.blocks.lock().unwrap() {
                        let sizes = [least, 4096, most].map(u32::to_be_bytes).concat();
                        stream.write_all(&answer(7, 3, &[&[0, 3][..], &sizes].concat())).ok()?;
                    }
                    stream.write_all(&answer(7, 1, &[])).ok()?;
                    break;
                }
                other => panic!("option {other}"),
            }
        }
        loop {
            self.request(stream)?;
        }
    }

    fn request(&self, stream: &mut TcpStream) -> Option<()> {
        number::<6>(stream)?;
        let command = u16::from_be_bytes(number(stream)?);
        let cookie = u64::from_be_bytes(number(stream)?);
        let offset = u64::from_be_bytes(number(stream)?);
        let length = u32::from_be_bytes(number(stream)?);
        match command {
            0 => {}
            7 => {
                let extents = self.extents.lock().unwrap().clone();
                let told =
                    extents.into_iter().flat_map(|(l, f)| [l.to_be_bytes(), f.to_be_bytes()]).flatten();
                let payload: Vec<u8> = 7_u32.to_be_bytes().into_iter().chain(told).collect();
                return chunk(stream, cookie, 1, 5, &payload);
            }
            _ => return None,
        }
        self.requests.lock().unwrap().push((offset, length));
        let good = data(offset, &pattern(offset, u64::from(length)));
        let fault = self.faults.lock().unwrap().pop_front();
        match fault {
            None => chunk(stream, cookie, 1, 1, &good),
            Some(Fault::Chunks(chunks)) => {
                for (flags, kind, mut payload) in chunks {
                    if matches!(kind, 1 | 2) && payload.len() > 8 {
                        let at = u64::from_be_bytes(payload[..8].try_into().unwrap()).wrapping_add(offset);
                        payload[..8].copy_from_slice(&at.to_be_bytes());
                    }
                    chunk(stream, cookie, flags, kind, &payload)?;
                }
                Some(())
            }
            Some(Fault::Bytes(bytes)) => stream.write_all(&bytes).ok(),
            Some(Fault::Length(kind, length)) => {
                let mut head = Vec::new();
                head.extend(0x668e_33ef_u32.to_be_bytes());
                head.extend([0, 1]);
                head.extend(kind.to_be_bytes());
                head.extend(cookie.to_be_bytes());
                head.extend(length.to_be_bytes());
                stream.write_all(&head).ok()
            }
            Some(Fault::Cookie) => chunk(stream, cookie + 1000, 1, 1, &good),
            Some(Fault::Simple) => {
                let mut out = 0x6744_6698_u32.to_be_bytes().to_vec();
                out.extend([0; 4]);
                out.extend(cookie.to_be_bytes());
                out.extend(&good[8..]);
                stream.write_all(&out).ok()
            }
            Some(Fault::Endless) => loop {
                chunk(stream, cookie, 0, 0, &[])?;
            },
            Some(Fault::Close) => None,
            Some(Fault::Half) => {
                chunk(stream, cookie, 0, 1, &good[..good.len() / 2])?;
                None
            }
            Some(Fault::Stall) => {
                std::thread::sleep(Duration::from_secs(10));
                None
            }
            Some(Fault::Error(number)) => {
                let payload = [&number.to_be_bytes()[..], &[0, 4], b"disk"].concat();
                chunk(stream, cookie, 1, (1 << 15) + 1, &payload)
            }
        }
    }
}

#[test]
fn replies_that_do_not_fit_are_never_believed_and_the_next_connection_gives_the_bytes() {
    let half = |at: u64| data(at, &[7; 2048]);
    let faults = [
        Fault::Chunks(vec![(1, 0, vec![])]),
        Fault::Chunks(vec![(1, 1, half(0))]),
        Fault::Chunks(vec![(0, 1, half(0)), (1, 1, half(0))]),
        Fault::Chunks(vec![(0, 1, half(0)), (1, 1, half(1024))]),
        Fault::Chunks(vec![(0, 1, half(0)), (0, 1, half(2048)), (1, 1, half(4096))]),
        Fault::Chunks(vec![(1, 1, half(u64::MAX))]),
        Fault::Chunks(vec![(1, 1, data(0, &[]))]),
        Fault::Chunks(vec![(1, 2, hole(0, 0))]),
        Fault::Chunks(vec![(1, 2, hole(0, 2048))]),
        Fault::Chunks(vec![(1, 2, hole(0, 8192))]),
        Fault::Chunks(vec![(1, 2, hole(4000, u32::MAX))]),
        Fault::Chunks(vec![(1, 5, vec![0; 12])]),
        Fault::Chunks(vec![(1, 77, vec![0; 12])]),
        Fault::Chunks(vec![(1, (1 << 15) + 1, vec![0; 2])]),
        Fault::Bytes(vec![0xff; 4096]),
        Fault::Length(1, u32::MAX),
        Fault::Length(2, u32::MAX),
        Fault::Length((1 << 15) + 9, u32::MAX),
        Fault::Cookie,
        Fault::Simple,
        Fault::Endless,
        Fault::Close,
        Fault::Half,
        Fault::Stall,
        Fault::Error(5),
        Fault::Error(108),
    ];
    std::thread::scope(|scope| {
        for fault in faults {
            scope.spawn(move || {
                let server = Server::start();
                let stream = server.open().unwrap();
                server.fault(fault.clone());
                let read = stream.read(8192, 4096).wait();
                assert!(
                    read.unwrap_or_else(|e| panic!("{fault:?}: {}", e.chain())) == pattern(8192, 4096),
                    "{fault:?}"
                );
                assert!(stream.traffic().failures > 0, "{fault:?}");
                assert!(stream.read(0, SIZE).wait().unwrap() == pattern(0, SIZE), "{fault:?}");
            });
        }
    });
}

#[test]
fn chunks_and_holes_in_any_order_are_put_where_they_belong() {
    let server = Server::start();
    let stream = server.open().unwrap();
    server.fault(Fault::Chunks(vec![
        (0, 1, data(3000, &[3; 1096])),
        (0, 2, hole(0, 2000)),
        (1, 1, data(2000, &[2; 1000])),
    ]));
    let read = stream.read(0, 4096).wait().unwrap();
    assert!(read == [vec![0; 2000], vec![2; 1000], vec![3; 1096]].concat());
    assert_eq!(stream.traffic().failures, 0);
}

#[test]
fn an_error_that_stays_is_told_and_is_not_absence() {
    let server = Server::start();
    let stream = server.open().unwrap();
    (0..100).for_each(|_| server.fault(Fault::Error(5)));
    let error = stream.read(0, 4096).wait().unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Unavailable, Errno::EIO));
    assert!(error.chain().contains("message disk"), "{}", error.chain());
    server.world.faults.lock().unwrap().clear();
    server.fault(Fault::Error(22));
    assert_eq!(stream.read(0, 4096).wait().unwrap_err().kind(), ErrorKind::Invalid, "not repeated");
}

#[test]
fn an_export_of_another_size_is_a_conflict_for_good() {
    let server = Server::start();
    let stream = server.open().unwrap();
    assert_eq!(stream.pin(), "nbd size=3145728 export=\"disk\"");
    *server.world.size.lock().unwrap() = Some(SIZE + 512);
    server.fault(Fault::Close);
    for _ in 0..2 {
        assert_eq!(stream.read(0, 512).wait().unwrap_err().kind(), ErrorKind::Conflict);
    }
}

#[test]
fn requests_keep_to_the_sizes_of_blocks_that_the_server_told() {
    let server = Server::start();
    *server.world.blocks.lock().unwrap() = Some((4096, 65536));
    let stream = server.open().unwrap();
    assert!(stream.read(5000, 100_000).wait().unwrap() == pattern(5000, 100_000));
    let requests = server.world.requests.lock().unwrap().clone();
    assert_eq!(requests, [(4096, 65536), (69632, 36864)]);
    for wrong in [(0, 4096), (3, 4096), (4096, 512), (1 << 20, 1 << 20)] {
        *server.world.blocks.lock().unwrap() = Some(wrong);
        assert_eq!(server.open().unwrap_err().kind(), ErrorKind::Corrupt, "blocks of {wrong:?}");
    }
}

#[test]
fn what_holds_nothing_is_told_in_order_and_inside_the_range() {
    let server = Server::start();
    let stream = server.open().unwrap();
    let extents = |offset, length| stream.extents(offset, length).wait().unwrap();
    let extent = |offset, length, state| DeviceExtent { offset, length, state };
    // A hole that does not read as zeros is data.
    *server.world.extents.lock().unwrap() = vec![(1000, 0), (1000, 1), (2000, 3), (u32::MAX, 2)];
    assert_eq!(
        extents(10_000, 5000),
        [extent(10_000, 2000, ExtentState::Data), extent(12_000, 3000, ExtentState::Zero)]
    );
    // Told a little at a time.
    *server.world.extents.lock().unwrap() = vec![(700, 2)];
    assert_eq!(extents(100, 3000), [extent(100, 3000, ExtentState::Zero)]);
    *server.world.extents.lock().unwrap() = vec![(0, 2)];
    let error = stream.extents(0, 512).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
}

#[test]
fn a_negotiation_that_makes_no_sense_ends_at_once() {
    let endless = answer(7, 3, &[0, 1, 9]).repeat(1000);
    let long = [&answer(7, 3, &[])[..16], &u32::MAX.to_be_bytes()].concat();
    let without_size = answer(7, 1, &[]);
    let cut = answer(7, 3, &[0, 0, 1]);
    let other = answer(8, 1, &[]);
    for (name, bytes) in
        [("endless", endless), ("long", long), ("without size", without_size), ("cut", cut), ("other", other)]
    {
        let server = Server::start();
        server.world.answers.lock().unwrap().push((7, bytes));
        let begun = Instant::now();
        let error = server.open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {}", error.chain());
        assert!(begun.elapsed() < Duration::from_secs(1), "{name}");
    }
    const ERROR: u32 = 1 << 31;
    for (number, errno) in [(2, Errno::EACCES), (5, Errno::EACCES), (6, Errno::ENOENT), (7, Errno::EAGAIN)] {
        let server = Server::start();
        server.world.answers.lock().unwrap().push((7, answer(7, ERROR + number, b"why")));
        assert_eq!(server.open().unwrap_err().errno(), errno);
    }
}

#[test]
fn a_server_without_chunks_or_contexts_is_spoken_to_plainly() {
    let server = Server::start();
    server.world.answers.lock().unwrap().push((8, answer(8, (1 << 31) + 1, &[])));
    let stream = server.open().unwrap();
    server.fault(Fault::Simple);
    assert!(stream.read(0, 4096).wait().unwrap() == pattern(0, 4096));
    assert_eq!(stream.traffic().failures, 0);
    let all = DeviceExtent { offset: 0, length: 4096, state: ExtentState::Data };
    assert_eq!(stream.extents(0, 4096).wait().unwrap(), [all]);
}

#[test]
fn addresses_are_those_of_the_nbd_uri_specification() {
    let place = |uri: &str| NbdOptions::parse(uri).map(|o| (o.place, o.export)).map_err(|e| e.errno());
    let tcp = |host: &str, port| NbdPlace::Tcp(host.to_owned(), port);
    assert_eq!(place("nbd://"), Ok((tcp("localhost", 10809), String::new())));
    assert_eq!(place("nbd://h.example:77/a%2Fb"), Ok((tcp("h.example", 77), "a/b".into())));
    assert_eq!(place("nbds://[::1]/x"), Ok((tcp("[::1]", 10809), "x".into())));
    assert_eq!(place("nbd+unix:///x?socket=/run/a%20b"), Ok((NbdPlace::Unix("/run/a b".into()), "x".into())));
    for wrong in ["nbd+unix:///x", "nbd+unix://h/x?socket=/a", "nbd://u:p@h/", "http://h/", "x"] {
        assert_eq!(place(wrong), Err(Errno::EINVAL), "{wrong}");
    }
}
