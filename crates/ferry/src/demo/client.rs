//! A client of NBD that writes all the time and knows what it was promised.
//!
//! - It reconnects when the server goes and repeats the request that was not answered, as QEMU does with `reconnect-delay`.
//! - A block that was flushed must read as written. One that was written and not flushed before the server went may be old or
//!   new: it is written again.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes of a block that is written at once.
pub(super) const BLOCK: usize = 4096;

/// Writes between flushes.
const FLUSH_EVERY: u64 = 16;

/// How long a server may be away.
const PATIENCE: Duration = Duration::from_secs(20);

/// Commands of NBD's transmission phase.
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;

/// A connection to one export.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    handle: u64,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server answered {what}"))
}

impl Connection {
    /// Connects and asks for an export, by the oldest of the fixed handshakes.
    pub(super) fn open(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(broken("no greeting"));
        }
        // Fixed newstyle, no padding of zeros; then the option EXPORT_NAME.
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend(u32::try_from(export.len()).map_err(|_| broken("a name too long"))?.to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello)?;
        // Size and flags; the connection ends where there is no such export.
        stream.read_exact(&mut [0; 10])?;
        Ok(Self { stream, handle: 0 })
    }

    fn request(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) -> io::Result<()> {
        self.handle += 1;
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(0_u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(self.handle.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        let word = |at: usize| u32::from_be_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
        if word(0) != 0x6744_6698 || reply[8..] != self.handle.to_be_bytes() {
            return Err(broken("nonsense"));
        }
        match word(4) {
            0 => Ok(()),
            error => Err(broken(&format!("error {error}"))),
        }
    }

    /// Reads a block.
    pub(super) fn read(&mut self, block: u64) -> io::Result<[u8; BLOCK]> {
        self.request(READ, block * BLOCK as u64, BLOCK_LENGTH, &[])?;
        let mut data = [0; BLOCK];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    fn write(&mut self, block: u64, data: &[u8; BLOCK]) -> io::Result<()> {
        self.request(WRITE, block * BLOCK as u64, BLOCK_LENGTH, data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.request(FLUSH, 0, 0, &[])
    }
}

/// [`BLOCK`] as requests say it.
const BLOCK_LENGTH: u32 = 4096;

/// What a block holds after the write of a number.
pub(super) fn content(block: u64, write: u64) -> [u8; BLOCK] {
    let mut data = [0; BLOCK];
    let mut state = block.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ write.wrapping_mul(0xD1B5_4A32_D192_ED03) | 1;
    for chunk in data.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    data
}

/// What a writer did and was promised.
#[derive(Clone, Debug, Default)]
pub(super) struct Promises {
    /// The last flushed write of each block.
    pub(super) flushed: BTreeMap<u64, u64>,
    /// Writes answered.
    pub(super) writes: u64,
    /// Times the server was gone.
    pub(super) reconnects: u64,
    /// The longest time one request took while the server was there.
    pub(super) slowest: Duration,
    /// The longest time the server was gone.
    pub(super) longest_gap: Duration,
}

/// A thread that writes until it is stopped.
#[derive(Debug)]
pub(super) struct Writer {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<Promises>>,
}

impl Writer {
    /// Starts to write to `blocks` blocks of an export.
    pub(super) fn start(socket: PathBuf, export: &'static str, blocks: u64) -> io::Result<Self> {
        let (stop, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut run = Run {
            connection: Connection::open(&socket, export)?,
            socket,
            export,
            promises: Promises::default(),
            pending: BTreeMap::new(),
        };
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&writes));
        let thread = thread::Builder::new().name("client".to_owned()).spawn(move || {
            let mut state = 0x2545_F491_4F6C_DD1D_u64;
            while !stopped.load(Ordering::Acquire) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                run.write(state % blocks)?;
                counted.store(run.promises.writes, Ordering::Release);
            }
            run.flush()?;
            Ok(run.promises)
        })?;
        Ok(Self { stop, writes, thread })
    }

    /// Writes answered so far.
    pub(super) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Acquire)
    }

    /// Whether it gave up.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops it after a last flush.
    pub(super) fn stop(self) -> io::Result<Promises> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the client broke off")))
    }
}

/// A writer at work.
#[derive(Debug)]
struct Run {
    socket: PathBuf,
    export: &'static str,
    connection: Connection,
    promises: Promises,
    /// Writes since the last flush.
    pending: BTreeMap<u64, u64>,
}

impl Run {
    fn write(&mut self, block: u64) -> io::Result<()> {
        let number = self.promises.writes + 1;
        let data = content(block, number);
        self.insist(|c| c.write(block, &data))?;
        self.promises.writes = number;
        self.pending.insert(block, number);
        if number.is_multiple_of(FLUSH_EVERY) {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.insist(Connection::flush)?;
        self.promises.flushed.append(&mut self.pending);
        Ok(())
    }

    /// Makes a request until it is answered.
    fn insist(&mut self, request: impl Fn(&mut Connection) -> io::Result<()>) -> io::Result<()> {
        loop {
            let began = Instant::now();
            match request(&mut self.connection) {
                Ok(()) => {
                    self.promises.slowest = self.promises.slowest.max(began.elapsed());
                    return Ok(());
                }
                // What the server says is wrong is not made right by asking again.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(e),
                Err(e) => self.reconnect(&e, began)?,
            }
        }
    }

    fn reconnect(&mut self, error: &io::Error, began: Instant) -> io::Result<()> {
        while began.elapsed() < PATIENCE {
            if let Ok(connection) = Connection::open(&self.socket, self.export) {
                self.connection = connection;
                self.promises.reconnects += 1;
                self.promises.longest_gap = self.promises.longest_gap.max(began.elapsed());
                // The server may have lost what it was not told to keep.
                for (block, number) in self.pending.clone() {
                    self.connection.write(block, &content(block, number))?;
                }
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(io::Error::new(error.kind(), format!("the server does not come back: {error}")))
    }
}
