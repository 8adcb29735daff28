//! Advisory locks on objects, in the encoding RADOS keeps in the xattr `lock.<name>`.
//!
//! The engine and the in-memory store apply [`LockInfo`]'s transitions natively; on RADOS the class `lock` does.

use bytes::Bytes;

use crate::denc::{Decoder, Encoder};
use crate::env::Timestamp;
use crate::error::{Errno, Error, Result};
use crate::ident::ClientId;

/// How a lock may be held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockKind {
    /// Not at all.
    #[default]
    None,
    /// By one holder.
    Exclusive,
    /// By all who use the same tag.
    Shared,
    /// By one holder; the object is removed on release. Read, never written here.
    ExclusiveEphemeral,
}

/// One holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locker {
    /// Who.
    pub client: ClientId,
    /// Which of the client's holds: for RBD `auto <watch handle>`.
    pub cookie: String,
    /// When it ends by itself; zero for never.
    pub expiration: Timestamp,
    /// The holder's address, as encoded by [`encode_address`].
    pub address: String,
    /// Free text.
    pub description: String,
}

/// State of a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockInfo {
    /// Holders, ordered by client and cookie.
    pub lockers: Vec<Locker>,
    /// How they hold it.
    pub kind: LockKind,
    /// The tag they agree on.
    pub tag: String,
}

/// Asks for a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// Name of the lock; the xattr is `lock.<name>`.
    pub name: String,
    /// Exclusive or shared.
    pub kind: LockKind,
    /// Which of the client's holds.
    pub cookie: String,
    /// All holders must use the same.
    pub tag: String,
    /// Free text.
    pub description: String,
    /// Whether holding it already renews it instead of failing.
    pub renew: bool,
}

/// Gives a lock back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnlockRequest {
    /// Name of the lock.
    pub name: String,
    /// Which of the client's holds.
    pub cookie: String,
}

impl LockInfo {
    /// Takes the lock for `client` at `address`.
    ///
    /// # Errors
    /// `Busy` (16) where another holds it in a way that excludes this, `Exists` (17) where this hold exists.
    pub fn take(&mut self, client: ClientId, address: &str, request: &LockRequest) -> Result<()> {
        if request.kind == LockKind::None || request.name.is_empty() {
            return Err(Error::invalid("a lock needs a name and a kind"));
        }
        let mine = |l: &Locker| l.client == client && l.cookie == request.cookie;
        let held = self.lockers.iter().any(mine);
        if held && !request.renew {
            return Err(Error::exists("this client holds the lock already"));
        }
        let others = self.lockers.iter().any(|l| !mine(l));
        if others
            && (request.kind != LockKind::Shared || self.kind != LockKind::Shared || self.tag != request.tag)
        {
            return Err(Error::busy("the lock is held by someone else"));
        }
        self.lockers.retain(|l| !mine(l));
        self.lockers.push(Locker {
            client,
            cookie: request.cookie.clone(),
            expiration: Timestamp::default(),
            address: address.to_owned(),
            description: request.description.clone(),
        });
        self.lockers.sort_by(|a, b| (a.client, &a.cookie).cmp(&(b.client, &b.cookie)));
        self.kind = request.kind;
        self.tag.clone_from(&request.tag);
        Ok(())
    }

    /// Drops the hold of `client` and `cookie`.
    ///
    /// # Errors
    /// `NotFound` (2) where there is none.
    pub fn drop_hold(&mut self, client: ClientId, cookie: &str) -> Result<()> {
        let before = self.lockers.len();
        self.lockers.retain(|l| l.client != client || l.cookie != cookie);
        if self.lockers.len() == before {
            return Err(Error::not_found("the lock is not held by this client"));
        }
        Ok(())
    }

    /// The xattr's value.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut e = Encoder::new();
        e.frame(1, 1, |e| {
            e.u32(u32::try_from(self.lockers.len()).expect("few lockers"));
            for l in &self.lockers {
                e.frame(1, 1, |e| {
                    e.u8(8);
                    e.u64(l.client.0);
                    e.string(&l.cookie);
                });
                e.frame(1, 1, |e| {
                    e.timestamp(l.expiration);
                    encode_address(e, &l.address);
                    e.string(&l.description);
                });
            }
            e.u8(match self.kind {
                LockKind::None => 0,
                LockKind::Exclusive => 1,
                LockKind::Shared => 2,
                LockKind::ExclusiveEphemeral => 3,
            });
            e.string(&self.tag);
        });
        e.finish()
    }

    /// Reads the xattr's value.
    ///
    /// # Errors
    /// `Corrupt` where it is not one.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(bytes);
        d.frame(1, |d, _| {
            let n = d.u32()?;
            let mut lockers = Vec::new();
            for _ in 0..n {
                let (client, cookie) = d.frame(1, |d, _| {
                    let kind = d.u8()?;
                    let number = d.u64()?;
                    if kind != 8 {
                        return Err(Error::corrupt("a locker that is no client").errno_is(Errno::EINVAL));
                    }
                    Ok((ClientId(number), d.string()?))
                })?;
                let (expiration, address, description) =
                    d.frame(1, |d, _| Ok((d.timestamp()?, decode_address(d)?, d.string()?)))?;
                lockers.push(Locker { client, cookie, expiration, address, description });
            }
            let kind = match d.u8()? {
                0 => LockKind::None,
                1 => LockKind::Exclusive,
                2 => LockKind::Shared,
                3 => LockKind::ExclusiveEphemeral,
                other => return Err(Error::corrupt("unknown kind of lock").with("kind", other)),
            };
            Ok(Self { lockers, kind, tag: d.string()? })
        })
    }
}

/// Writes `a.b.c.d:port/nonce` as Ceph's `entity_addr`. Anything else is written as address 0.0.0.0:0/0.
pub fn encode_address(e: &mut Encoder, text: &str) {
    let (ip, port, nonce) = parse_address(text).unwrap_or(([0; 4], 0, 0));
    e.u8(1);
    e.frame(1, 1, |e| {
        e.u32(1);
        e.u32(nonce);
        e.u32(16);
        e.u16(2);
        e.raw(&port.to_be_bytes());
        e.raw(&ip);
        e.raw(&[0; 8]);
    });
}

/// Splits `a.b.c.d:port/nonce`.
fn parse_address(text: &str) -> Option<([u8; 4], u16, u32)> {
    let (host, nonce) = text.split_once('/')?;
    let (ip, port) = host.rsplit_once(':')?;
    let ip: std::net::Ipv4Addr = ip.parse().ok()?;
    Some((ip.octets(), port.parse().ok()?, nonce.parse().ok()?))
}

/// Reads an `entity_addr` as text.
///
/// # Errors
/// `Corrupt` where it is not one.
pub fn decode_address(d: &mut Decoder<'_>) -> Result<String> {
    let marker = d.u8()?;
    if marker != 1 {
        return Err(Error::corrupt("unknown form of address").with("marker", marker));
    }
    d.frame(1, |d, _| {
        let _kind = d.u32()?;
        let nonce = d.u32()?;
        let length = d.u32()?;
        let raw = d.raw(length as usize)?;
        let family = raw.get(..2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
        Ok(match (family, raw.len()) {
            (2, 8..) => {
                let port = u16::from_be_bytes([raw[2], raw[3]]);
                format!("{}.{}.{}.{}:{port}/{nonce}", raw[4], raw[5], raw[6], raw[7])
            }
            (10, 24..) => {
                let port = u16::from_be_bytes([raw[2], raw[3]]);
                let mut ip = [0_u8; 16];
                ip.copy_from_slice(&raw[8..24]);
                format!("[{}]:{port}/{nonce}", std::net::Ipv6Addr::from(ip))
            }
            _ => format!("-/{nonce}"),
        })
    })
}
