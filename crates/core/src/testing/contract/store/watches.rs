//! Watch and notify.

use std::time::Duration;

use super::{Place, done, fails, text};
use crate::error::{Errno, ErrorKind};
use crate::store::{Effect, WriteOp};
use crate::watch::{Notification, NotifyReply, WatchEvent, WatchReceiver};

/// Long enough that only a lost answer runs into it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for the next notify.
fn next(watch: &WatchReceiver) -> Notification {
    match futures_executor::block_on(watch.next()) {
        WatchEvent::Notify(n) => n,
        WatchEvent::Lost => panic!("the watch was lost"),
    }
}

fn watch(place: &Place, name: &str) -> WatchReceiver {
    done(place.store.watch(&place.id(name)).wait())
}

/// Notifies `o` and lets `answer` act before waiting for the reply.
fn notify(place: &Place, payload: &'static str, answer: impl FnOnce()) -> NotifyReply {
    let reply = place.store.notify(&place.id("o"), text(payload), PATIENCE);
    answer();
    done(reply.wait())
}

fn made(place: &Place) {
    for name in ["o", "p"] {
        place.write(name, WriteOp::new().effect(Effect::Create));
    }
}

pub(super) fn a_notify_reaches_each_watcher_and_brings_answers(place: &Place) {
    made(place);
    let (a, b, other) = (watch(place, "o"), watch(place, "o"), watch(place, "p"));
    assert_ne!(a.handle, b.handle);
    let reply = notify(place, "hello", || {
        for (watch, answer) in [(&a, "from a"), (&b, "")] {
            let notification = next(watch);
            assert_eq!(notification.payload, text("hello"));
            assert_eq!(notification.notifier, place.store.client());
            notification.answer(text(answer));
        }
    });
    let mut answers = reply.answers;
    answers.sort_by_key(|(_, handle, _)| *handle);
    let me = place.store.client();
    let mut expected = vec![(me, a.handle, text("from a")), (me, b.handle, text(""))];
    expected.sort_by_key(|(_, handle, _)| *handle);
    assert_eq!(answers, expected);
    assert_eq!(reply.timed_out, []);
    assert!(other.try_next().is_none(), "another object's watcher hears nothing");
    let again = notify(place, "again", || {
        next(&a).answer(text("1"));
        next(&b).answer(text("2"));
    });
    assert_eq!(again.answers.len(), 2);
}

pub(super) fn a_dropped_notification_answers_empty(place: &Place) {
    made(place);
    let watch = watch(place, "o");
    let reply = notify(place, "hello", || drop(next(&watch)));
    assert_eq!(reply.answers, [(place.store.client(), watch.handle, text(""))]);
}

pub(super) fn a_dropped_watch_is_not_asked(place: &Place) {
    made(place);
    let (stays, goes) = (watch(place, "o"), watch(place, "o"));
    drop(goes);
    let reply = notify(place, "hello", || next(&stays).answer(text("here")));
    let answered: Vec<_> =
        reply.answers.into_iter().filter(|(_, handle, _)| *handle == stays.handle).collect();
    assert_eq!(answered, [(place.store.client(), stays.handle, text("here"))]);
    assert_eq!(reply.timed_out, []);
}

pub(super) fn nobody_watching_answers_at_once(place: &Place) {
    made(place);
    assert_eq!(notify(place, "hello", || {}), NotifyReply::default());
}

pub(super) fn a_missing_object_is_neither_watched_nor_notified(place: &Place) {
    fails(place.store.watch(&place.id("o")).wait(), ErrorKind::NotFound, Errno::ENOENT);
    let reply = place.store.notify(&place.id("o"), text("x"), PATIENCE);
    fails(reply.wait(), ErrorKind::NotFound, Errno::ENOENT);
    assert_eq!(place.stat("o"), None);
}

pub(super) fn watchers_are_listed(place: &Place) {
    made(place);
    let watch = watch(place, "o");
    let listed = place.store.list_watchers(&place.id("o")).wait();
    if !place.store.capabilities().list_watchers && listed.is_err() {
        fails(listed, ErrorKind::Unsupported, Errno::EOPNOTSUPP);
        return;
    }
    let listed = done(listed);
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].client, listed[0].handle), (place.store.client(), watch.handle));
    assert_eq!(listed[0].address, place.store.address());
    drop(watch);
    // One that is told by others hears of it a little later.
    if place.store.capabilities().list_watchers {
        assert_eq!(done(place.store.list_watchers(&place.id("o")).wait()), []);
    }
}

pub(super) fn watching_changes_no_version(place: &Place) {
    made(place);
    let before = place.version("o");
    let watch = watch(place, "o");
    let reply = notify(place, "hello", || next(&watch).answer(text("")));
    assert_eq!(reply.answers.len(), 1);
    drop(watch);
    assert_eq!(place.version("o"), before);
}
