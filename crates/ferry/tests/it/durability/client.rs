//! A client of NBD that keeps many requests in flight. Written for these tests alone, so that nothing is shared with the server.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A server that keeps a client waiting longer hangs.
const HANG: Duration = Duration::from_secs(60);

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const COMMAND_WRITE_ZEROES: u16 = 6;
const FLAG_FUA: u16 = 1;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Read { offset: u64, length: u32 },
    Write { offset: u64, data: Vec<u8>, is_durable: bool },
    Zero { offset: u64, length: u32, is_durable: bool },
    Flush,
}

/// An answer: the number of the request, and the error (0 where there is none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    pub(crate) error: u32,
}

/// A connection to one export.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    pub(crate) size: u64,
}

fn broken(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn take<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Client {
    /// Attaches to an export: fixed newstyle, `NBD_OPT_EXPORT_NAME`, simple replies.
    pub(crate) fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(HANG))?;
        stream.set_write_timeout(Some(HANG))?;
        if take::<16>(&mut stream)? != *b"NBDMAGICIHAVEOPT" {
            return Err(broken("no server of NBD".to_owned()));
        }
        take::<2>(&mut stream)?;
        let mut hello = Vec::new();
        hello.extend(3_u32.to_be_bytes());
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend(u32::try_from(export.len()).unwrap().to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello)?;
        let size = u64::from_be_bytes(take(&mut stream)?);
        let flags = u16::from_be_bytes(take(&mut stream)?);
        // Has flags, flush, FUA, write zeroes; several connections see each other's flushes.
        let for_writers = 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8;
        let is_read_only = flags & 1 << 1 != 0;
        let needed = 1 | if is_read_only { 0 } else { for_writers };
        if flags & needed != needed {
            return Err(broken(format!("the server does not offer what is needed: {flags:#x}")));
        }
        Ok(Self { stream, size })
    }

    /// Sends a request without waiting.
    pub(crate) fn send(&mut self, cookie: u64, request: &Request) -> io::Result<()> {
        let fua = |is_durable: bool| if is_durable { FLAG_FUA } else { 0 };
        let (flags, command, offset, length, data): (u16, u16, u64, u32, &[u8]) = match request {
            Request::Read { offset, length } => (0, COMMAND_READ, *offset, *length, &[]),
            Request::Write { offset, data, is_durable } => {
                (fua(*is_durable), COMMAND_WRITE, *offset, u32::try_from(data.len()).unwrap(), data)
            }
            Request::Zero { offset, length, is_durable } => {
                (fua(*is_durable), COMMAND_WRITE_ZEROES, *offset, *length, &[])
            }
            Request::Flush => (0, COMMAND_FLUSH, 0, 0, &[]),
        };
        let mut bytes = Vec::with_capacity(28 + data.len());
        bytes.extend(0x2560_9513_u32.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes)
    }

    /// Waits for the next answer, without data: not for reads.
    pub(crate) fn receive(&mut self) -> io::Result<Reply> {
        let magic = u32::from_be_bytes(take(&mut self.stream)?);
        if magic != 0x6744_6698 {
            return Err(broken(format!("no reply: {magic:#x}")));
        }
        let error = u32::from_be_bytes(take(&mut self.stream)?);
        Ok(Reply { cookie: u64::from_be_bytes(take(&mut self.stream)?), error })
    }

    /// Reads, with nothing else in flight.
    pub(crate) fn read(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.send(7, &Request::Read { offset, length: u32::try_from(length).unwrap() })?;
        let reply = self.receive()?;
        if reply != (Reply { cookie: 7, error: 0 }) {
            return Err(broken(format!("{reply:?} to a read of {length} bytes at {offset}")));
        }
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Goes away in good order.
    pub(crate) fn disconnect(mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        bytes.extend(0x2560_9513_u32.to_be_bytes());
        bytes.extend(0_u16.to_be_bytes());
        bytes.extend(COMMAND_DISCONNECT.to_be_bytes());
        bytes.extend([0; 20]);
        self.stream.write_all(&bytes)
    }
}
