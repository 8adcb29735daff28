//! A client that says what it is told to say, right or wrong.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::world::World;

/// Options.
pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const LIST: u32 = 3;
pub(crate) const GO: u32 = 7;
pub(crate) const STRUCTURED_REPLY: u32 = 8;
pub(crate) const SET_META_CONTEXT: u32 = 10;

/// Replies to options.
pub(crate) const ACK: u32 = 1;

/// Requests.
pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

/// Flags of requests.
pub(crate) const FUA: u16 = 1;
pub(crate) const DF: u16 = 4;

/// See the module.
pub(crate) struct Client(pub(crate) UnixStream);

/// A reply, simple or one chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple { error: u32, cookie: u64 },
    Chunk { kind: u16, is_done: bool, cookie: u64, data: Vec<u8> },
}

/// The bytes of an option.
pub(crate) fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [b"IHAVEOPT".as_slice(), &option.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

/// The bytes of a request.
pub(crate) fn request_bytes(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

/// Data of GO for an export.
pub(crate) fn go_bytes(name: &str) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap();
    [length.to_be_bytes().as_slice(), name.as_bytes(), &[0, 0]].concat()
}

impl Client {
    /// Connects and says nothing.
    pub(crate) fn mute(world: &World) -> Self {
        let stream = UnixStream::connect(world.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(stream)
    }

    /// Connects and greets.
    pub(crate) fn greeted(world: &World) -> Self {
        let mut client = Self::mute(world);
        assert_eq!(client.take::<18>()[..8], *b"NBDMAGIC");
        client.send(&3_u32.to_be_bytes());
        client
    }

    /// Attaches.
    pub(crate) fn attached(world: &World, export: &str) -> Self {
        let mut client = Self::greeted(world);
        client.go(export);
        client
    }

    /// Attaches to be answered in chunks.
    pub(crate) fn structured(world: &World, export: &str) -> Self {
        let mut client = Self::greeted(world);
        assert_eq!(client.option(STRUCTURED_REPLY, b"").last().unwrap().0, ACK);
        client.go(export);
        client
    }

    pub(crate) fn go(&mut self, export: &str) {
        assert_eq!(self.option(GO, &go_bytes(export)).last().unwrap().0, ACK);
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Sends an option; the replies to it, up to the last.
    pub(crate) fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send(&option_bytes(option, data));
        let mut replies = Vec::new();
        loop {
            assert_eq!(u64::from_be_bytes(self.take()), 0x0003_e889_0455_65a9);
            assert_eq!(u32::from_be_bytes(self.take()), option);
            let kind = u32::from_be_bytes(self.take());
            let mut data = vec![0; usize::try_from(u32::from_be_bytes(self.take())).unwrap()];
            self.0.read_exact(&mut data).unwrap();
            replies.push((kind, data));
            if kind == ACK || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    pub(crate) fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
        self.send(&request_bytes(flags, command, cookie, offset, length));
    }

    /// The head of a reply, or a whole chunk.
    pub(crate) fn reply(&mut self) -> Reply {
        match u32::from_be_bytes(self.take()) {
            0x6744_6698 => Reply::Simple {
                error: u32::from_be_bytes(self.take()),
                cookie: u64::from_be_bytes(self.take()),
            },
            0x668e_33ef => {
                let is_done = u16::from_be_bytes(self.take()) == 1;
                let kind = u16::from_be_bytes(self.take());
                let cookie = u64::from_be_bytes(self.take());
                let mut data = vec![0; usize::try_from(u32::from_be_bytes(self.take())).unwrap()];
                self.0.read_exact(&mut data).unwrap();
                Reply::Chunk { kind, is_done, cookie, data }
            }
            other => panic!("a reply starts with {other:x}"),
        }
    }

    /// The error number of a simple reply to a request.
    pub(crate) fn outcome(&mut self, flags: u16, command: u16, offset: u64, length: u32) -> u32 {
        self.request(flags, command, 77, offset, length);
        match self.reply() {
            Reply::Simple { error, cookie: 77 } => error,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the server hangs up, having said nothing more.
    pub(crate) fn is_cut_off(&mut self) -> bool {
        // A server that closes with bytes unread resets the connection.
        let mut rest = Vec::new();
        let ended = self.0.read_to_end(&mut rest);
        rest.is_empty() && ended.is_ok_and(|n| n == 0)
    }

    /// Whether the server hangs up, whatever it says before.
    pub(crate) fn ends(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
