//! A web server for tests: counts what it sends, can be held to a rate, and fails when it is told to.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes sent at once where there is a rate.
const PIECE: usize = 16 << 10;

#[derive(Debug)]
struct World {
    content: Vec<u8>,
    /// Bytes in a second, of all connections together; 0 is no limit.
    rate: u64,
    sent: AtomicU64,
    /// When the next bytes may go.
    free: Mutex<Instant>,
    tag: Mutex<String>,
    /// The heads of all requests.
    requests: Mutex<Vec<String>>,
    /// Answered to requests of ranges instead, where it is not 206, after so many more bytes were sent.
    status: Mutex<Option<(u64, u16)>>,
}

/// A server of one object. It ends with the process.
#[derive(Clone, Debug)]
pub(crate) struct Web {
    world: Arc<World>,
    port: u16,
}

impl Web {
    pub(crate) fn start(content: Vec<u8>, rate: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let world = Arc::new(World {
            content,
            rate,
            sent: AtomicU64::new(0),
            free: Mutex::new(Instant::now()),
            tag: Mutex::new("\"one\"".into()),
            requests: Mutex::default(),
            status: Mutex::default(),
        });
        let inner = Arc::clone(&world);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let world = Arc::clone(&inner);
                // A client that goes away ends it.
                thread::spawn(move || world.serve(&stream));
            }
        });
        Self { world, port }
    }

    /// Where the object is.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/bucket/disk", self.port)
    }

    /// The heads of all requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.world.requests.lock().unwrap().clone()
    }

    /// The spec of an image in it.
    pub(super) fn spec(&self, format: &str) -> String {
        let url = self.url();
        format!(r#"{{"stream":{{"type":"http","url":"{url}"}},"type":"{format}"}}"#)
    }

    /// Bytes of the object sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.world.sent.load(Ordering::SeqCst)
    }

    /// The same, once nothing is on its way any more.
    pub(super) fn sent_in_all(&self) -> u64 {
        loop {
            let before = self.sent();
            thread::sleep(Duration::from_millis(300));
            if self.sent() == before {
                return before;
            }
        }
    }

    /// Answers with this status once so many more bytes were sent, until it is told otherwise.
    pub(super) fn fail_after(&self, bytes: u64, status: u16) {
        *self.world.status.lock().unwrap() = Some((self.sent() + bytes, status));
    }

    /// Answers as it should again.
    pub(super) fn recover(&self) {
        *self.world.status.lock().unwrap() = None;
    }

    /// Has another object of the same length from now on.
    pub(super) fn change(&self) {
        *self.world.tag.lock().unwrap() = "\"two\"".into();
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
            self.requests.lock().unwrap().push(request.clone());
            let (head, body) = self.answer(&request);
            let is_object = head.starts_with("HTTP/1.1 206");
            if stream.write_all(head.as_bytes()).is_err() || self.send(stream, body, is_object).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &str) -> (String, &[u8]) {
        let (tag, total) = (self.tag.lock().unwrap().clone(), self.content.len());
        if request.starts_with("HEAD ") {
            return (format!("HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Length: {total}\r\n\r\n"), &[]);
        }
        let wrong = *self.status.lock().unwrap();
        if let Some((_, status)) = wrong.filter(|(after, _)| self.sent.load(Ordering::SeqCst) >= *after) {
            return (format!("HTTP/1.1 {status} X\r\nContent-Length: 4\r\n\r\n"), b"oops");
        }
        let header = |name: &str| {
            let line = request.lines().find(|l| l.to_ascii_lowercase().starts_with(name));
            line.map(|l| l[name.len()..].trim().to_owned())
        };
        if header("if-match:").is_some_and(|t| t != tag) {
            return ("HTTP/1.1 412 P\r\nContent-Length: 0\r\n\r\n".to_owned(), &[]);
        }
        let range = header("range: bytes=").unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let length = last - first + 1;
        let range = format!("Content-Range: bytes {first}-{last}/{total}\r\nContent-Length: {length}");
        (format!("HTTP/1.1 206 P\r\nETag: {tag}\r\n{range}\r\n\r\n"), &self.content[first..=last])
    }

    fn send(&self, mut stream: &TcpStream, body: &[u8], is_object: bool) -> std::io::Result<()> {
        for piece in body.chunks(if self.rate == 0 { usize::MAX } else { PIECE }) {
            if self.rate > 0 {
                let turn = {
                    let mut free = self.free.lock().unwrap();
                    let turn = (*free).max(Instant::now());
                    *free = turn + Duration::from_secs_f64(piece.len() as f64 / self.rate as f64);
                    turn
                };
                thread::sleep(turn.saturating_duration_since(Instant::now()));
            }
            stream.write_all(piece)?;
            if is_object {
                self.sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
            }
        }
        Ok(())
    }
}
