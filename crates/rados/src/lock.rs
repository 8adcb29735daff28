//! Input of the object class `lock`: frames of version 1.

use bytes::Bytes;
use ferry_core::ClientId;
use ferry_core::denc::Encoder;
use ferry_core::lock::{LockKind, LockRequest, UnlockRequest};

#[cfg(test)]
mod tests;

/// `LOCK_FLAG_MAY_RENEW`.
const MAY_RENEW: u8 = 1;
/// `CEPH_ENTITY_TYPE_CLIENT`.
const CLIENT: u8 = 8;

/// `cls_lock_lock_op`.
pub(crate) fn lock_input(request: &LockRequest) -> Bytes {
    let mut e = Encoder::new();
    e.frame(1, 1, |e| {
        e.string(&request.name);
        e.u8(match request.kind {
            LockKind::None => 0,
            LockKind::Exclusive => 1,
            LockKind::Shared => 2,
            LockKind::ExclusiveEphemeral => 3,
        });
        e.string(&request.cookie);
        e.string(&request.tag);
        e.string(&request.description);
        // The duration: none, the hold lasts.
        e.u32(0);
        e.u32(0);
        e.u8(if request.renew { MAY_RENEW } else { 0 });
    });
    e.finish()
}

/// `cls_lock_unlock_op`.
pub(crate) fn unlock_input(request: &UnlockRequest) -> Bytes {
    let mut e = Encoder::new();
    e.frame(1, 1, |e| {
        e.string(&request.name);
        e.string(&request.cookie);
    });
    e.finish()
}

/// `cls_lock_break_op`.
pub(crate) fn break_input(request: &UnlockRequest, locker: ClientId) -> Bytes {
    let mut e = Encoder::new();
    e.frame(1, 1, |e| {
        e.string(&request.name);
        e.u8(CLIENT);
        e.u64(locker.0);
        e.string(&request.cookie);
    });
    e.finish()
}
