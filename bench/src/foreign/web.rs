//! A web server that takes its time: each answer comes later by as much as a long way adds.

use std::fs::File;
use std::io::{BufRead, BufReader, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// A server of one file, until the process ends.
pub(super) struct SlowWeb {
    port: u16,
}

impl SlowWeb {
    /// Serves a file.
    pub(super) fn start(path: &Path, latency: Duration) -> Result<Self> {
        let file = Arc::new(File::open(path)?);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let file = Arc::clone(&file);
                // A client that goes away ends it.
                thread::spawn(move || drop(serve(&file, &stream, latency)));
            }
        });
        Ok(Self { port })
    }

    /// Where it listens, on the loopback.
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

/// Answers one client.
fn serve(file: &File, mut stream: &TcpStream, latency: Duration) -> Result<()> {
    let total = file.metadata()?.len();
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            if reader.read_line(&mut request)? == 0 {
                return Ok(());
            }
        }
        thread::sleep(latency);
        let tag = "ETag: \"bench\"\r\nAccept-Ranges: bytes";
        if request.starts_with("HEAD ") {
            write!(stream, "HTTP/1.1 200 OK\r\n{tag}\r\nContent-Length: {total}\r\n\r\n")?;
            continue;
        }
        let lower = request.to_ascii_lowercase();
        let range = lower.lines().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
        let numbers = range.and_then(|(a, b)| Some((a.parse::<u64>().ok()?, b.trim().parse::<u64>().ok()?)));
        let Some((first, last)) = numbers.filter(|(first, last)| first <= last && *last < total) else {
            write!(stream, "HTTP/1.1 416 Range\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let mut body = vec![0; usize::try_from(last - first + 1).unwrap_or(0)];
        file.read_exact_at(&mut body, first)?;
        let head = format!(
            "HTTP/1.1 206 P\r\n{tag}\r\nContent-Range: bytes {first}-{last}/{total}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(&body)?;
    }
}
