//! What clients of an image tell each other through its header object.

use bytes::Bytes;
use ferry_core::denc::{Decoder, Encoder};
use ferry_core::{Error, Result, SnapId};

use super::SnapshotNamespace;

/// Version written. Readers take 6 and 7: the older has no request ids in the snapshot operations.
const VERSION: u8 = 7;

/// A client as these messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotifyClient {
    /// The client's number in the store.
    pub client: u64,
    /// Its watch on the header.
    pub handle: u64,
}

/// One request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Who asked.
    pub client: NotifyClient,
    /// Which of its requests.
    pub request: u64,
}

/// A message on an image's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A client took the exclusive lock.
    AcquiredLock(NotifyClient),
    /// A client gave it back.
    ReleasedLock(NotifyClient),
    /// A client wants it.
    RequestLock {
        /// Who.
        client: NotifyClient,
        /// Whether the owner may not refuse.
        force: bool,
    },
    /// The header changed: read it again before answering.
    HeaderUpdate,
    /// How far a request is.
    AsyncProgress {
        /// Which.
        request: RequestId,
        /// Done.
        offset: u64,
        /// Of how much.
        total: u64,
    },
    /// A request is over.
    AsyncComplete {
        /// Which.
        request: RequestId,
        /// 0 or a negative errno.
        result: i32,
    },
    /// Make a snapshot.
    SnapCreate {
        /// Its name.
        name: String,
        /// Who it belongs to.
        namespace: SnapshotNamespace,
        /// Absent in version 6.
        request: Option<RequestId>,
        /// Bits: 1 skip quiesce, 2 ignore its errors.
        flags: u64,
    },
    /// Remove a snapshot.
    SnapRemove {
        /// Its name.
        name: String,
        /// Who it belongs to.
        namespace: SnapshotNamespace,
        /// Absent in version 6.
        request: Option<RequestId>,
    },
    /// Rename a snapshot.
    SnapRename {
        /// Which.
        snap: SnapId,
        /// The new name.
        name: String,
        /// Who it belongs to.
        namespace: SnapshotNamespace,
        /// Absent in version 6.
        request: Option<RequestId>,
    },
    /// Change the size.
    Resize {
        /// New size. Bytes.
        size: u64,
        /// Which request.
        request: RequestId,
        /// Whether data may be cut off.
        allow_shrink: bool,
    },
    /// Another operation the owner of the lock is asked to do; ferry has the asker do it.
    Other {
        /// Its number.
        op: u32,
        /// What follows.
        payload: Bytes,
    },
}

impl NotifyClient {
    fn decode_from(d: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self { client: d.u64()?, handle: d.u64()? })
    }

    fn encode_into(self, e: &mut Encoder) {
        e.u64(self.client);
        e.u64(self.handle);
    }
}

impl RequestId {
    fn decode_from(d: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self { client: NotifyClient::decode_from(d)?, request: d.u64()? })
    }

    fn decode_since_7(d: &mut Decoder<'_>, version: u8) -> Result<Option<Self>> {
        if version >= 7 { Ok(Some(Self::decode_from(d)?)) } else { Ok(None) }
    }

    fn encode_into(self, e: &mut Encoder) {
        self.client.encode_into(e);
        e.u64(self.request);
    }
}

/// Writes a request id, one of zeros where there is none.
fn encode_request(e: &mut Encoder, request: Option<RequestId>) {
    let none = RequestId { client: NotifyClient { client: 0, handle: 0 }, request: 0 };
    request.unwrap_or(none).encode_into(e);
}

impl Message {
    /// The operation's number.
    #[must_use]
    pub fn op(&self) -> u32 {
        match self {
            Self::AcquiredLock(_) => 0,
            Self::ReleasedLock(_) => 1,
            Self::RequestLock { .. } => 2,
            Self::HeaderUpdate => 3,
            Self::AsyncProgress { .. } => 4,
            Self::AsyncComplete { .. } => 5,
            Self::Resize { .. } => 7,
            Self::SnapCreate { .. } => 8,
            Self::SnapRemove { .. } => 9,
            Self::SnapRename { .. } => 11,
            Self::Other { op, .. } => *op,
        }
    }

    /// Whether the owner of the exclusive lock must answer with a result, and everybody else with nothing.
    #[must_use]
    pub fn wants_owner(&self) -> bool {
        matches!(self.op(), 2 | 6..=17 | 20)
    }

    /// Reads a message.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Decoder::new(bytes).frame(VERSION, |d, version| {
            Ok(match d.u32()? {
                0 => Self::AcquiredLock(NotifyClient::decode_from(d)?),
                1 => Self::ReleasedLock(NotifyClient::decode_from(d)?),
                2 => Self::RequestLock { client: NotifyClient::decode_from(d)?, force: d.bool()? },
                3 => Self::HeaderUpdate,
                4 => Self::AsyncProgress {
                    request: RequestId::decode_from(d)?,
                    offset: d.u64()?,
                    total: d.u64()?,
                },
                5 => Self::AsyncComplete { request: RequestId::decode_from(d)?, result: d.i32()? },
                7 => Self::Resize {
                    size: d.u64()?,
                    request: RequestId::decode_from(d)?,
                    allow_shrink: d.bool()?,
                },
                8 => Self::SnapCreate {
                    name: d.string()?,
                    namespace: SnapshotNamespace::decode_from(d)?.0,
                    request: RequestId::decode_since_7(d, version)?,
                    flags: if version >= 7 { d.u64()? } else { 0 },
                },
                9 => Self::SnapRemove {
                    name: d.string()?,
                    namespace: SnapshotNamespace::decode_from(d)?.0,
                    request: RequestId::decode_since_7(d, version)?,
                },
                11 => Self::SnapRename {
                    snap: SnapId(d.u64()?),
                    name: d.string()?,
                    namespace: SnapshotNamespace::decode_from(d)?.0,
                    request: RequestId::decode_since_7(d, version)?,
                },
                op => Self::Other { op, payload: Bytes::copy_from_slice(d.rest()) },
            })
        })
    }

    /// The message to send.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut e = Encoder::new();
        e.frame(VERSION, 1, |e| {
            e.u32(self.op());
            match self {
                Self::AcquiredLock(client) | Self::ReleasedLock(client) => client.encode_into(e),
                Self::RequestLock { client, force } => {
                    client.encode_into(e);
                    e.bool(*force);
                }
                Self::HeaderUpdate => {}
                Self::AsyncProgress { request, offset, total } => {
                    request.encode_into(e);
                    e.u64(*offset);
                    e.u64(*total);
                }
                Self::AsyncComplete { request, result } => {
                    request.encode_into(e);
                    e.i32(*result);
                }
                Self::Resize { size, request, allow_shrink } => {
                    e.u64(*size);
                    request.encode_into(e);
                    e.bool(*allow_shrink);
                }
                Self::SnapCreate { name, namespace, request, flags } => {
                    e.string(name);
                    namespace.encode_into(e);
                    encode_request(e, *request);
                    e.u64(*flags);
                }
                Self::SnapRemove { name, namespace, request } => {
                    e.string(name);
                    namespace.encode_into(e);
                    encode_request(e, *request);
                }
                Self::SnapRename { snap, name, namespace, request } => {
                    e.u64(snap.0);
                    e.string(name);
                    namespace.encode_into(e);
                    encode_request(e, *request);
                }
                Self::Other { payload, .. } => e.raw(payload),
            }
        });
        e.finish()
    }
}

/// The answer of the lock's owner: 0 or a negative errno.
#[must_use]
pub fn encode_response(result: i32) -> Bytes {
    let mut e = Encoder::new();
    e.frame(1, 1, |e| e.i32(result));
    e.finish()
}

/// The result in an answer; `None` for the empty answer of a client that does not own the lock.
///
/// # Errors
/// `Corrupt`.
pub fn decode_response(bytes: &[u8]) -> Result<Option<i32>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    Decoder::new(bytes)
        .frame(1, |d, _| d.i32())
        .map(Some)
        .map_err(|e| Error::corrupt("an answer to a notify is not one").because(e))
}
