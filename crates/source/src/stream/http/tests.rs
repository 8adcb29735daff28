//! A server that misbehaves in one way at a time, and what comes of it: the right bytes or a clear error.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferry_core::{Errno, ErrorKind};

use super::{HttpOptions, HttpStream};
use crate::stream::{Patience, Stream};
use crate::testing::env;

/// What the server does to one request for a range, instead of answering it.
#[derive(Clone, Debug)]
enum Fault {
    /// Answers with this status, these headers (each line with its end) and a body.
    Status(u16, &'static str),
    /// Sends so many bytes of the body and closes.
    Cut(usize),
    /// Sends so many bytes of the body and then one a moment.
    Drip(usize, Duration),
    /// Does not answer.
    Stall,
    /// Closes before it answers.
    Close,
    /// 200 and the whole object.
    Whole,
    /// 206 with another range than asked for.
    OtherRange,
    /// 206 without a range.
    NoRange,
    /// Sends more than its range, without saying how much.
    TooMuch,
    /// Sends this tag with the bytes.
    Tag(&'static str),
    /// Names this length with the bytes.
    Total(u64),
    /// Says that the bytes are compressed.
    Encoded,
}

/// What the server has, and does.
struct World {
    body: Mutex<Vec<u8>>,
    tag: Mutex<Option<&'static str>>,
    modified: Mutex<Option<&'static str>>,
    /// For the next requests of ranges, in order; those of the opening are not counted.
    faults: Mutex<VecDeque<Fault>>,
    /// For every request until then.
    until: Mutex<Option<(Instant, Fault)>>,
    head: Mutex<Option<(u16, &'static str)>>,
    redirects: Mutex<Vec<(String, String)>>,
    heeds_conditions: Mutex<bool>,
    seen: Mutex<Vec<String>>,
}

struct Server {
    world: Arc<World>,
    address: SocketAddr,
}

impl Server {
    fn start(size: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let world = Arc::new(World {
            body: Mutex::new(pattern(size)),
            tag: Mutex::new(Some("\"one\"")),
            modified: Mutex::default(),
            faults: Mutex::default(),
            until: Mutex::default(),
            head: Mutex::default(),
            redirects: Mutex::default(),
            heeds_conditions: Mutex::new(true),
            seen: Mutex::default(),
        });
        let inner = Arc::clone(&world);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let world = Arc::clone(&inner);
                std::thread::spawn(move || world.serve(&stream.unwrap()));
            }
        });
        Self { world, address }
    }

    fn options(&self) -> HttpOptions {
        let mut options = HttpOptions::new(format!("http://{}/disk.raw?token=hush", self.address));
        options.patience = Patience {
            connect: Duration::from_secs(2),
            idle: Duration::from_millis(400),
            progress: 1000,
            retry: Duration::from_secs(2),
            open: Duration::from_millis(500),
        };
        options
    }

    fn open(&self) -> ferry_core::Result<Arc<HttpStream>> {
        super::open_with(&self.options(), &env().runtime).wait()
    }

    fn fault(&self, fault: Fault) {
        self.world.faults.lock().unwrap().push_back(fault);
    }

    fn faults_left(&self) -> usize {
        self.world.faults.lock().unwrap().len()
    }
}

impl World {
    fn serve(&self, mut stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        loop {
            let mut request = String::new();
            while !request.ends_with("\r\n\r\n") {
                if reader.read_line(&mut request).unwrap_or(0) == 0 {
                    return;
                }
            }
            self.seen.lock().unwrap().push(request.clone());
            let Some(reply) = self.reply(&request, stream) else { return };
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
    }

    /// The bytes of the answer; none closes the connection.
    #[allow(clippy::too_many_lines)]
    fn reply(&self, request: &str, mut stream: &TcpStream) -> Option<Vec<u8>> {
        let path = request.split(' ').nth(1).unwrap().to_owned();
        let redirects = self.redirects.lock().unwrap().clone();
        if let Some((_, to)) = redirects.iter().find(|(from, _)| *from == path) {
            let to = to.replace("METHOD", request.split(' ').next().unwrap());
            return Some(
                format!("HTTP/1.1 302 F\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").into_bytes(),
            );
        }
        if request.starts_with("GET ") && path.contains("for=HEAD") {
            return Some(b"HTTP/1.1 403 F\r\nContent-Length: 0\r\n\r\n".to_vec());
        }
        let body = self.body.lock().unwrap().clone();
        let mut about = String::new();
        if let Some(tag) = *self.tag.lock().unwrap() {
            about.push_str(&format!("ETag: {tag}\r\n"));
        }
        if let Some(modified) = *self.modified.lock().unwrap() {
            about.push_str(&format!("Last-Modified: {modified}\r\n"));
        }
        if request.starts_with("HEAD ") {
            if let Some((status, headers)) = *self.head.lock().unwrap() {
                return Some(format!("HTTP/1.1 {status} X\r\n{headers}\r\n").into_bytes());
            }
            return Some(
                format!("HTTP/1.1 200 OK\r\n{about}Content-Length: {}\r\n\r\n", body.len()).into_bytes(),
            );
        }
        let header = |name: &str| {
            let line = request.lines().find(|l| l.to_ascii_lowercase().starts_with(name))?;
            Some(line[name.len()..].trim().to_owned())
        };
        let demanded = header("if-match:");
        if *self.heeds_conditions.lock().unwrap()
            && (demanded.is_some_and(|d| Some(d.as_str()) != *self.tag.lock().unwrap())
                || header("if-unmodified-since:")
                    .is_some_and(|d| Some(d.as_str()) != *self.modified.lock().unwrap()))
        {
            return Some(b"HTTP/1.1 412 P\r\nContent-Length: 0\r\n\r\n".to_vec());
        }
        let range = header("range: bytes=").unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        if first >= body.len() {
            let total = body.len();
            return Some(
                format!("HTTP/1.1 416 R\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\n\r\n")
                    .into_bytes(),
            );
        }
        let piece = &body[first..=last.min(body.len() - 1)];
        let fault = if range == "0-0" { None } else { self.faults.lock().unwrap().pop_front() };
        let until = self.until.lock().unwrap().clone();
        let fault = until.filter(|(end, _)| Instant::now() < *end).map(|(_, f)| f).or(fault);
        let mut total = body.len() as u64;
        let (mut from, mut to) = (first, last.min(body.len() - 1));
        let mut sent = piece.to_vec();
        let mut cut = None;
        match fault {
            None => {}
            Some(Fault::Status(status, headers)) => {
                let text = "<html>zeros would be worse</html>";
                let length = text.len();
                return Some(
                    format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{text}")
                        .into_bytes(),
                );
            }
            Some(Fault::Whole) => {
                let mut all =
                    format!("HTTP/1.1 200 OK\r\n{about}Content-Length: {total}\r\n\r\n").into_bytes();
                all.extend(body);
                return Some(all);
            }
            Some(Fault::Stall) => {
                std::thread::sleep(Duration::from_secs(20));
                return None;
            }
            Some(Fault::Close) => return None,
            Some(Fault::Cut(at)) => cut = Some((at, None)),
            Some(Fault::Drip(at, pause)) => cut = Some((at, Some(pause))),
            Some(Fault::OtherRange) => (from, to) = (first + 1, to + 1),
            Some(Fault::NoRange) => {
                let mut all =
                    format!("HTTP/1.1 206 P\r\n{about}Content-Length: {}\r\n\r\n", sent.len()).into_bytes();
                all.extend(sent);
                return Some(all);
            }
            Some(Fault::TooMuch) => {
                let range = format!("Content-Range: bytes {from}-{to}/{total}\r\n");
                let mut all =
                    format!("HTTP/1.1 206 P\r\n{about}{range}Connection: close\r\n\r\n").into_bytes();
                sent.extend(vec![7; 1 << 20]);
                all.extend(sent);
                stream.write_all(&all).ok();
                return None;
            }
            Some(Fault::Tag(tag)) => about = format!("ETag: {tag}\r\n"),
            Some(Fault::Total(other)) => total = other,
            Some(Fault::Encoded) => about.push_str("Content-Encoding: gzip\r\n"),
        }
        let head = format!(
            "HTTP/1.1 206 P\r\n{about}Content-Range: bytes {from}-{to}/{total}\r\nContent-Length: {}\r\n\r\n",
            sent.len()
        );
        let mut all = head.into_bytes();
        let Some((at, pause)) = cut else {
            all.extend(sent);
            return Some(all);
        };
        all.extend(&sent[..at.min(sent.len())]);
        stream.write_all(&all).ok();
        if let Some(pause) = pause {
            for byte in &sent[at.min(sent.len())..] {
                std::thread::sleep(pause);
                stream.write_all(&[*byte]).ok()?;
            }
        }
        None
    }
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1).collect()
}

/// Reads all, at three offsets that fit nothing.
fn assert_reads_right(stream: &dyn Stream, size: usize) {
    let all = stream.read(0, size as u64).wait().unwrap();
    assert!(all == pattern(size), "all bytes are right");
    for (offset, length) in [(1, 4096), (size / 2 - 7, 70_000), (size - 1, 1)] {
        let read = stream.read(offset as u64, length as u64).wait().unwrap();
        assert!(read == pattern(size)[offset..offset + length], "bytes at {offset} are right");
    }
}

const SIZE: usize = 3_500_001;

#[test]
fn a_large_read_goes_in_pieces_over_several_connections() {
    let server = Server::start(SIZE);
    let stream = server.open().unwrap();
    assert_eq!((stream.size(), stream.pin().as_str()), (SIZE as u64, "http size=3500001 etag=\"one\""));
    assert_reads_right(&*stream, SIZE);
    let count = stream.traffic();
    assert_eq!(count.requests, 2 + 4 + 3, "HEAD, a first byte, four pieces, three small reads");
    assert!(count.connections <= 4, "connections are kept: {}", count.connections);
    assert_eq!(
        count.bytes,
        (1 + SIZE + 4096 + 70_000 + 1) as u64,
        "nothing is fetched that was not asked for"
    );
    assert_eq!(stream.read(10, SIZE as u64).wait().unwrap_err().kind(), ErrorKind::Invalid);
    assert!(stream.read(SIZE as u64, 0).wait().unwrap().is_empty());
}

#[test]
fn what_passes_is_repeated_and_the_bytes_are_right() {
    let faults = [
        Fault::Cut(0),
        Fault::Cut(1),
        Fault::Cut(99_999),
        Fault::Close,
        Fault::Stall,
        Fault::Drip(2000, Duration::from_millis(50)),
        Fault::Status(500, ""),
        Fault::Status(502, ""),
        Fault::Status(503, "Retry-After: 1\r\n"),
        Fault::Status(429, "Retry-After: 0\r\n"),
        Fault::Status(404, ""),
        Fault::Status(403, ""),
        Fault::Status(200, ""),
        Fault::Whole,
        Fault::OtherRange,
        Fault::NoRange,
        Fault::TooMuch,
        Fault::Encoded,
    ];
    std::thread::scope(|scope| {
        for fault in faults {
            scope.spawn(move || {
                let server = Server::start(SIZE);
                let stream = server.open().unwrap();
                server.fault(fault.clone());
                server.fault(Fault::Cut(5));
                assert_reads_right(&*stream, SIZE);
                assert_eq!(server.faults_left(), 0, "the server did {fault:?}");
                assert!(stream.traffic().failures >= 2, "the server did {fault:?}");
            });
        }
    });
}

#[test]
fn a_cut_body_is_continued_where_it_broke() {
    let server = Server::start(SIZE);
    let stream = server.open().unwrap();
    let before = stream.traffic().bytes;
    for _ in 0..3 {
        server.fault(Fault::Cut(30_000));
    }
    assert!(stream.read(0, 100_000).wait().unwrap() == pattern(SIZE)[..100_000]);
    assert_eq!(stream.traffic().bytes - before, 100_000, "no byte comes twice");
    let ranges: Vec<_> = server
        .world
        .seen
        .lock()
        .unwrap()
        .iter()
        .filter_map(|r| r.split("bytes=").nth(1)?.lines().next().map(str::to_owned))
        .collect();
    assert_eq!(ranges, ["0-0", "0-99999", "30000-99999", "60000-99999", "90000-99999"]);
}

#[test]
fn a_404_for_a_while_is_waited_for_and_one_for_good_is_an_error_that_is_not_absence() {
    let server = Server::start(SIZE);
    let stream = server.open().unwrap();
    let end = Instant::now() + Duration::from_millis(1200);
    *server.world.until.lock().unwrap() = Some((end, Fault::Status(404, "")));
    assert!(stream.read(0, 4096).wait().unwrap() == pattern(SIZE)[..4096]);
    assert!(Instant::now() >= end);

    for fault in
        [Fault::Status(404, ""), Fault::Status(500, ""), Fault::Status(403, ""), Fault::Whole, Fault::Stall]
    {
        *server.world.until.lock().unwrap() = Some((Instant::now() + Duration::from_secs(60), fault.clone()));
        let error = stream.read(0, 4096).wait().unwrap_err();
        assert_eq!(
            (error.kind(), error.errno()),
            (ErrorKind::Unavailable, Errno::EIO),
            "the server did {fault:?}"
        );
        assert!(!error.chain().contains("hush"), "{}", error.chain());
    }
    *server.world.until.lock().unwrap() = None;
    assert!(stream.read(0, 4096).wait().unwrap() == pattern(SIZE)[..4096], "it goes on when the server does");
}

#[test]
fn a_slow_drip_is_not_waited_for_for_ever() {
    let server = Server::start(SIZE);
    let stream = server.open().unwrap();
    let drip = Fault::Drip(0, Duration::from_millis(20));
    *server.world.until.lock().unwrap() = Some((Instant::now() + Duration::from_secs(60), drip));
    let begun = Instant::now();
    let error = stream.read(0, 100_000).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().contains("far too slowly"), "{}", error.chain());
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_object_that_changed_is_a_conflict_for_good() {
    type Change = fn(&World);
    let changes: [(&str, Change); 6] = [
        ("tag", |w| *w.tag.lock().unwrap() = Some("\"two\"")),
        ("tag, heedless", |w| {
            *w.heeds_conditions.lock().unwrap() = false;
            *w.tag.lock().unwrap() = Some("\"two\"");
        }),
        ("shrunk, heedless", |w| {
            *w.heeds_conditions.lock().unwrap() = false;
            w.body.lock().unwrap().truncate(1000);
        }),
        ("grown", |w| w.body.lock().unwrap().push(1)),
        ("tag of one answer", |w| w.faults.lock().unwrap().push_back(Fault::Tag("\"two\""))),
        ("length of one answer", |w| w.faults.lock().unwrap().push_back(Fault::Total(5_000_000))),
    ];
    for (name, change) in changes {
        let server = Server::start(SIZE);
        let stream = server.open().unwrap();
        assert!(stream.read(5000, 10).wait().is_ok());
        change(&server.world);
        for _ in 0..2 {
            let error = stream.read(5000, 100_000).wait().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{name}: {}", error.chain());
            assert!(error.fact("changed").is_some());
        }
    }
}

#[test]
fn weak_tags_and_times_tell_too_and_without_either_the_length_is_all() {
    let server = Server::start(SIZE);
    *server.world.tag.lock().unwrap() = Some("W/\"one\"");
    let stream = server.open().unwrap();
    assert_reads_right(&*stream, SIZE);
    *server.world.tag.lock().unwrap() = Some("W/\"two\"");
    assert_eq!(stream.read(0, 10).wait().unwrap_err().kind(), ErrorKind::Conflict);

    let server = Server::start(SIZE);
    *server.world.tag.lock().unwrap() = None;
    *server.world.modified.lock().unwrap() = Some("Sat, 21 Nov 2026 20:09:54 GMT");
    let stream = server.open().unwrap();
    assert_eq!(stream.pin(), "http size=3500001 modified=Sat, 21 Nov 2026 20:09:54 GMT");
    assert_reads_right(&*stream, SIZE);
    *server.world.modified.lock().unwrap() = Some("Sat, 21 Nov 2026 20:09:55 GMT");
    assert_eq!(stream.read(0, 10).wait().unwrap_err().kind(), ErrorKind::Conflict);

    let server = Server::start(SIZE);
    *server.world.tag.lock().unwrap() = None;
    let stream = server.open().unwrap();
    assert_eq!(stream.pin(), "http size=3500001");
    assert_reads_right(&*stream, SIZE);
    server.world.body.lock().unwrap().pop();
    assert_eq!(stream.read(0, 10).wait().unwrap_err().kind(), ErrorKind::Conflict);
}

#[test]
fn the_size_comes_from_a_range_where_head_is_refused_or_says_nothing() {
    for head in [
        (405, "Content-Length: 0\r\n"),
        (403, "Content-Length: 0\r\n"),
        (200, "Transfer-Encoding: chunked\r\n"),
    ] {
        let server = Server::start(SIZE);
        *server.world.head.lock().unwrap() = Some(head);
        assert_eq!(server.open().unwrap().size(), SIZE as u64, "HEAD answered with {head:?}");
    }
    let server = Server::start(0);
    assert_eq!(server.open().unwrap().size(), 0);
    *server.world.head.lock().unwrap() = Some((405, "Content-Length: 0\r\n"));
    assert_eq!(server.open().unwrap().size(), 0);
}

#[test]
fn what_is_wrong_when_it_is_opened_is_told_at_once() {
    let long = Duration::from_secs(60);
    let cases = [
        (Fault::Status(404, ""), ErrorKind::NotFound, Errno::ENOENT),
        (Fault::Status(403, ""), ErrorKind::Denied, Errno::EACCES),
        (Fault::Status(401, ""), ErrorKind::Denied, Errno::EACCES),
        (Fault::Status(500, ""), ErrorKind::Unavailable, Errno::EIO),
        (Fault::Status(503, "Retry-After: 3600\r\n"), ErrorKind::Unavailable, Errno::EIO),
        (Fault::Status(302, ""), ErrorKind::Unavailable, Errno::EIO),
        (Fault::Status(200, ""), ErrorKind::Unsupported, Errno::EIO),
        (Fault::Whole, ErrorKind::Unsupported, Errno::EIO),
        (Fault::OtherRange, ErrorKind::Unavailable, Errno::EIO),
        (Fault::NoRange, ErrorKind::Unavailable, Errno::EIO),
        (Fault::Encoded, ErrorKind::Unsupported, Errno::EIO),
        (Fault::Stall, ErrorKind::TimedOut, Errno::ETIMEDOUT),
        (Fault::Total(7), ErrorKind::Unavailable, Errno::EIO),
    ];
    for (fault, kind, errno) in cases {
        let server = Server::start(SIZE);
        *server.world.until.lock().unwrap() = Some((Instant::now() + long, fault.clone()));
        let begun = Instant::now();
        let error = server.open().unwrap_err();
        assert_eq!(
            (error.kind(), error.errno()),
            (kind, errno),
            "the server did {fault:?}: {}",
            error.chain()
        );
        assert!(begun.elapsed() < Duration::from_secs(3), "the server did {fault:?}");
        assert!(!error.chain().contains("hush"), "{}", error.chain());
    }
    let server = Server::start(SIZE);
    *server.world.head.lock().unwrap() = Some((404, "Content-Length: 0\r\n"));
    assert_eq!(server.open().unwrap_err().errno(), Errno::ENOENT);
}

#[test]
fn who_does_not_listen_and_who_is_not_known_are_told_apart() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = super::open_with(&HttpOptions::new(format!("http://{free}/x")), &env().runtime).wait();
    assert_eq!(refused.unwrap_err().errno(), Errno::ECONNREFUSED);
    let unknown = super::open_with(&HttpOptions::new("http://no-such-host.invalid/x"), &env().runtime).wait();
    assert_eq!(unknown.unwrap_err().errno(), Errno::ENOENT);
}

#[test]
fn a_server_that_restarts_is_waited_for() {
    let server = Server::start(SIZE);
    let stream = server.open().unwrap();
    *server.world.until.lock().unwrap() = Some((Instant::now() + Duration::from_millis(800), Fault::Close));
    assert_reads_right(&*stream, SIZE);
}

#[test]
fn redirects_are_followed_and_what_authorises_stays_with_the_first_server() {
    let (first, second) = (Server::start(1), Server::start(SIZE));
    let to = |server: &Server, path: &str| format!("http://{}{path}", server.address);
    *first.world.redirects.lock().unwrap() =
        vec![("/disk.raw?token=hush".into(), "/b".into()), ("/b".into(), to(&second, "/signed?s=1"))];
    let mut options = first.options();
    options.authorization = Some("Bearer hush".into());
    options.headers.push(("X-Key".into(), "hush".into()));
    let stream = super::open_with(&options, &env().runtime).wait().unwrap();
    assert_reads_right(&*stream, SIZE);
    let seen = |server: &Server| server.world.seen.lock().unwrap().clone();
    assert!(seen(&first).iter().all(|r| r.contains("Bearer hush") && r.contains("x-key: hush")));
    assert!(seen(&second).iter().all(|r| !r.contains("hush") && r.contains("/signed?s=1 ")));
    assert!(seen(&first).len() <= 4, "where it led is remembered: {}", seen(&first).len());

    // The place it led to is good for a time only: the way is asked for again.
    second.fault(Fault::Status(403, ""));
    let asked = seen(&first).len();
    assert!(stream.read(0, 10).wait().is_ok());
    assert_eq!(seen(&first).len(), asked + 2);

    *first.world.redirects.lock().unwrap() =
        vec![("/disk.raw?token=hush".into(), "/disk.raw?token=hush".into())];
    let error = super::open_with(&options, &env().runtime).wait().unwrap_err();
    assert!(error.chain().contains("circles"), "{}", error.chain());
}

#[test]
fn a_place_that_is_signed_for_one_method_is_used_for_that_method() {
    let (first, second) = (Server::start(1), Server::start(SIZE));
    let to = format!("http://{}/signed?for=METHOD", second.address);
    *first.world.redirects.lock().unwrap() = vec![("/disk.raw?token=hush".into(), to)];
    assert_reads_right(&*first.open().unwrap(), SIZE);
}

#[test]
fn a_reply_that_is_dropped_ends_its_request() {
    let server = Server::start(SIZE);
    let stream = server.open().unwrap();
    server.fault(Fault::Stall);
    drop(stream.read(0, 4096));
    assert_reads_right(&*stream, SIZE);
}

#[test]
fn small_reads_do_not_wait_behind_large_ones() {
    let server = Server::start(SIZE);
    let stream = server.open().unwrap();
    for _ in 0..4 {
        server.fault(Fault::Drip(0, Duration::from_millis(1)));
    }
    let large = stream.read(0, SIZE as u64);
    while server.faults_left() > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let begun = Instant::now();
    assert!(stream.read(1 << 20, 4096).wait().unwrap() == pattern(SIZE)[1 << 20..(1 << 20) + 4096]);
    assert!(begun.elapsed() < Duration::from_millis(300), "it took {:?}", begun.elapsed());
    drop(large);
}
