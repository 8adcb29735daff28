//! Advisory locks.

use super::{Place, done, fails};
use crate::error::{Errno, ErrorKind, Result};
use crate::ident::ClientId;
use crate::lock::{LockInfo, LockKind, LockRequest, UnlockRequest};
use crate::store::{Effect, WriteOp};

const NAME: &str = "rbd_lock";

fn request(kind: LockKind, cookie: &str, tag: &str) -> LockRequest {
    LockRequest {
        name: NAME.to_owned(),
        kind,
        cookie: cookie.to_owned(),
        tag: tag.to_owned(),
        description: String::new(),
        renew: false,
    }
}

fn take(place: &Place, kind: LockKind, cookie: &str, tag: &str) -> Result<()> {
    place.store.lock(&place.id("o"), request(kind, cookie, tag)).wait()
}

fn hold(cookie: &str) -> UnlockRequest {
    UnlockRequest { name: NAME.to_owned(), cookie: cookie.to_owned() }
}

fn info(place: &Place) -> LockInfo {
    done(place.store.lock_info(&place.id("o"), NAME).wait())
}

fn cookies(place: &Place) -> Vec<String> {
    info(place).lockers.into_iter().map(|l| l.cookie).collect()
}

pub(super) fn an_exclusive_lock_excludes_others(place: &Place) {
    place.write("o", WriteOp::new().effect(Effect::Create));
    assert_eq!(info(place).lockers, []);
    done(take(place, LockKind::Exclusive, "auto 1", "internal"));
    let held = info(place);
    assert_eq!((held.kind, held.tag.as_str()), (LockKind::Exclusive, "internal"));
    assert_eq!(held.lockers.len(), 1);
    assert_eq!((held.lockers[0].client, held.lockers[0].cookie.as_str()), (place.store.client(), "auto 1"));
    assert_eq!(held.lockers[0].address, place.store.address(), "a lock shows where its holder is");
    fails(take(place, LockKind::Exclusive, "auto 2", "internal"), ErrorKind::Busy, Errno::EBUSY);
    fails(take(place, LockKind::Shared, "auto 2", "internal"), ErrorKind::Busy, Errno::EBUSY);
    assert_eq!(info(place), held, "a refused request changes nothing");
    let other = LockRequest { name: "other".to_owned(), ..request(LockKind::Exclusive, "auto 2", "") };
    done(place.store.lock(&place.id("o"), other).wait());
    done(place.store.unlock(&place.id("o"), hold("auto 1")).wait());
    assert_eq!(info(place).lockers, []);
    done(take(place, LockKind::Exclusive, "auto 2", "internal"));
}

pub(super) fn a_held_lock_is_renewed_only_when_asked(place: &Place) {
    done(take(place, LockKind::Exclusive, "c", "t"));
    fails(take(place, LockKind::Exclusive, "c", "t"), ErrorKind::Exists, Errno::EEXIST);
    let again =
        LockRequest { renew: true, description: "anew".to_owned(), ..request(LockKind::Exclusive, "c", "t") };
    done(place.store.lock(&place.id("o"), again).wait());
    let held = info(place);
    assert_eq!(held.lockers.len(), 1);
    assert_eq!(held.lockers[0].description, "anew");
}

pub(super) fn shared_locks_need_one_tag(place: &Place) {
    done(take(place, LockKind::Shared, "b", "t"));
    done(take(place, LockKind::Shared, "a", "t"));
    assert_eq!(cookies(place), ["a", "b"]);
    assert_eq!(info(place).kind, LockKind::Shared);
    fails(take(place, LockKind::Shared, "c", "other"), ErrorKind::Busy, Errno::EBUSY);
    fails(take(place, LockKind::Exclusive, "c", "t"), ErrorKind::Busy, Errno::EBUSY);
    done(place.store.unlock(&place.id("o"), hold("a")).wait());
    assert_eq!(cookies(place), ["b"]);
    done(place.store.unlock(&place.id("o"), hold("b")).wait());
    done(take(place, LockKind::Exclusive, "c", "other"));
}

pub(super) fn unlocking_needs_the_holder(place: &Place) {
    place.write("o", WriteOp::new().effect(Effect::Create));
    let unlock = |cookie| place.store.unlock(&place.id("o"), hold(cookie)).wait();
    fails(unlock("c"), ErrorKind::NotFound, Errno::ENOENT);
    done(take(place, LockKind::Exclusive, "c", "t"));
    fails(unlock("d"), ErrorKind::NotFound, Errno::ENOENT);
    assert_eq!(cookies(place), ["c"]);
    done(unlock("c"));
    fails(unlock("c"), ErrorKind::NotFound, Errno::ENOENT);
}

pub(super) fn a_lock_can_be_broken(place: &Place) {
    done(take(place, LockKind::Exclusive, "c", "t"));
    let me = place.store.client();
    let break_lock = |cookie, who| place.store.break_lock(&place.id("o"), hold(cookie), who).wait();
    fails(break_lock("d", me), ErrorKind::NotFound, Errno::ENOENT);
    fails(break_lock("c", ClientId(me.0 + 1_000_000)), ErrorKind::NotFound, Errno::ENOENT);
    assert_eq!(cookies(place), ["c"]);
    done(break_lock("c", me));
    assert_eq!(info(place).lockers, []);
    done(take(place, LockKind::Exclusive, "d", "t"));
}

pub(super) fn a_lock_is_an_xattr_anyone_can_read(place: &Place) {
    let before = place.write("o", WriteOp::new().write(0, super::text("data")));
    done(take(place, LockKind::Exclusive, "auto 5", "internal"));
    let xattrs = place.xattrs("o");
    let decoded = done(LockInfo::decode(&xattrs["lock.rbd_lock"]));
    assert_eq!(decoded, info(place));
    assert!(place.version("o") > before, "taking a lock is a change");
    assert_eq!(place.bytes("o"), b"data");
    let broken = Effect::XattrSet("lock.rbd_lock".into(), done_unlocked(&decoded));
    place.write("o", WriteOp::new().effect(broken));
    done(take(place, LockKind::Exclusive, "auto 6", "internal"));
}

/// The lock's attribute after its holders went.
fn done_unlocked(held: &LockInfo) -> bytes::Bytes {
    LockInfo { lockers: Vec::new(), ..held.clone() }.encode()
}

pub(super) fn lock_makes_the_object_and_lock_info_does_not(place: &Place) {
    let asked = place.store.lock_info(&place.id("o"), NAME).wait();
    fails(asked, ErrorKind::NotFound, Errno::ENOENT);
    assert_eq!(place.stat("o"), None);
    done(take(place, LockKind::Exclusive, "c", "t"));
    assert_eq!(place.bytes("o"), b"");
    assert_eq!(cookies(place), ["c"]);
}
