//! What the kernel's NBD client is told, over generic netlink (`linux/nbd-netlink.h`).

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkMessage, NetlinkPayload, Nla, NlasIterator, Parseable, ParseableParametrized, parse_u32,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

/// The name under which the client listens.
const FAMILY: &str = "nbd";
/// The only version there has been.
const VERSION: u8 = 1;

/// What may be asked for.
mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
}

/// What it is asked with.
mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
    /// One of [`SOCKETS`].
    pub(super) const SOCKET_ITEM: u16 = 1;
    /// A part of [`SOCKET_ITEM`].
    pub(super) const SOCKET_FD: u16 = 1;
}

/// A device that is wanted.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// Bytes.
    pub(super) size: u64,
    /// Bytes of a logical block.
    pub(super) block_size: u32,
    /// What the server can do, as the NBD protocol tells it.
    pub(super) flags: u16,
    /// The way to the server; the kernel keeps it.
    pub(super) socket: BorrowedFd<'a>,
    /// What the kernel is to say of the device: `/sys/block/nbdN/backend`.
    pub(super) identity: &'a str,
}

/// A way to the kernel's NBD client.
pub(super) struct Control {
    socket: Socket,
    /// The number it has on this system.
    family: u16,
}

impl Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("family", &self.family).finish_non_exhaustive()
    }
}

impl Control {
    /// The way, where the kernel has such a client.
    ///
    /// # Errors
    /// `NotFound` where it has none; others of the system.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let asked = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
        };
        let answer = exchange(&socket, GenlMessage::from_payload(asked))?;
        let family = answer.iter().flat_map(|family| &family.nlas).find_map(|nla| match nla {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
        let family = family.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { socket, family })
    }

    /// Makes a device; the number it got.
    ///
    /// # Errors
    /// `PermissionDenied` without the rights of root; `InvalidInput` for a size of blocks that the kernel does not take.
    pub(super) fn connect(&self, wanted: &Wanted<'_>) -> io::Result<u32> {
        let descriptor = u32::try_from(wanted.socket.as_raw_fd()).map_err(io::Error::other)?;
        let socket = nested(attribute::SOCKET_ITEM, &[number(attribute::SOCKET_FD, descriptor)]);
        let answer = self.ask(
            command::CONNECT,
            vec![
                long(attribute::SIZE_BYTES, wanted.size),
                long(attribute::BLOCK_SIZE_BYTES, wanted.block_size.into()),
                long(attribute::SERVER_FLAGS, wanted.flags.into()),
                nested(attribute::SOCKETS, &[socket]),
                text(attribute::BACKEND_IDENTIFIER, wanted.identity),
            ],
        )?;
        answer.and_then(|answer| answer.index()).ok_or_else(|| broken("no number of a device"))
    }

    /// Gives a device another size, where it is the one that says `identity`.
    ///
    /// # Errors
    /// `InvalidInput` where it is another; others of the kernel.
    pub(super) fn resize(&self, index: u32, identity: &str, size: u64) -> io::Result<()> {
        let attributes = vec![
            number(attribute::INDEX, index),
            long(attribute::SIZE_BYTES, size),
            text(attribute::BACKEND_IDENTIFIER, identity),
        ];
        self.ask(command::RECONFIGURE, attributes).map(drop)
    }

    /// Takes a device from its server: requests under way and later ones fail. It is gone once nobody has it open.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn disconnect(&self, index: u32) -> io::Result<()> {
        self.ask(command::DISCONNECT, vec![number(attribute::INDEX, index)]).map(drop)
    }

    fn ask(&self, command: u8, attributes: Vec<DefaultNla>) -> io::Result<Option<Message>> {
        let mut message = GenlMessage::from_payload(Message { command, attributes });
        message.set_resolved_family_id(self.family);
        exchange(&self.socket, message)
    }
}

/// What is said to the client, and by it.
#[derive(Clone, Debug)]
struct Message {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl Message {
    /// The number of the device that it is about.
    fn index(&self) -> Option<u32> {
        let found = self.attributes.iter().find(|nla| nla.kind() == attribute::INDEX)?;
        let mut bytes = vec![0; found.value_len()];
        found.emit_value(&mut bytes);
        // None where it is not as long as a number is.
        parse_u32(&bytes).ok()
    }
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(buffer: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(buffer).map(|nla| DefaultNla::parse(&nla?));
        Ok(Self { command: header.cmd, attributes: attributes.collect::<Result<_, _>>()? })
    }
}

#[expect(clippy::host_endian_bytes, reason = "the kernel is of this machine, and has its order of bytes")]
fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

#[expect(clippy::host_endian_bytes, reason = "the kernel is of this machine, and has its order of bytes")]
fn long(kind: u16, value: u64) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

fn text(kind: u16, text: &str) -> DefaultNla {
    DefaultNla::new(kind, [text.as_bytes(), b"\0"].concat())
}

fn nested(kind: u16, parts: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; parts.buffer_len()];
    parts.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

/// Sends a request; what the kernel answered beside that it is done.
fn exchange<F>(socket: &Socket, request: GenlMessage<F>) -> io::Result<Option<F>>
where
    F: GenlFamily + Emitable + Debug + ParseableParametrized<[u8], GenlHeader>,
    GenlMessage<F>: NetlinkDeserializable,
{
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answer = None;
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = &received[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<GenlMessage<F>>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => answer = Some(inner.payload),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answer),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                other => return Err(broken(&format!("{other:?}"))),
            }
            // A message ends where four bytes do.
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("an answer that is none: {what}"))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DefaultNla, Emitable, ParseableParametrized, parse_u16};
    use netlink_packet_generic::{GenlFamily, GenlHeader};

    use super::{Message, attribute, nested, number, text};

    #[test]
    fn messages_are_as_the_kernel_reads_them() {
        let socket = nested(attribute::SOCKET_ITEM, &[number(attribute::SOCKET_FD, 7)]);
        let message = Message {
            command: super::command::CONNECT,
            attributes: vec![
                number(attribute::INDEX, 3),
                nested(attribute::SOCKETS, &[socket]),
                text(attribute::BACKEND_IDENTIFIER, "ab"),
            ],
        };
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        // Lengths with the header, kinds, and what is in them, each filled up to four bytes.
        let words: Vec<u16> = bytes[..20].chunks(2).map(|two| parse_u16(two).unwrap()).collect();
        assert_eq!(words[..2], [8, 1]);
        assert_eq!(bytes[4..8], bytes_of(&number(1, 3))[4..]);
        assert_eq!(words[4..8], [16, 0x8007, 12, 0x8001]);
        assert_eq!(bytes[16..24], bytes_of(&number(1, 7)));
        assert_eq!(bytes[24..], bytes_of(&text(10, "ab")));
        assert_eq!(bytes[28..], *b"ab\0\0");
        let header = GenlHeader { cmd: message.command(), version: message.version() };
        let again = Message::parse_with_param(&bytes, header).unwrap();
        assert_eq!((again.command, again.index()), (1, Some(3)));
    }

    fn bytes_of(attribute: &DefaultNla) -> Vec<u8> {
        let mut bytes = vec![0; attribute.buffer_len()];
        attribute.emit(&mut bytes);
        bytes
    }

    #[test]
    fn an_answer_without_a_whole_number_has_none() {
        let short = DefaultNla::new(attribute::INDEX, vec![1, 0]);
        for attributes in [vec![], vec![short], vec![number(attribute::SIZE_BYTES, 1)]] {
            assert_eq!(Message { command: 1, attributes }.index(), None);
        }
    }
}
