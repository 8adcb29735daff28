//! What every `Store` must do, as a list of named cases.
//!
//! `run_all(|| my_store())` is the one line of test an implementation needs. Where making pools is slow or not allowed,
//! [`run_in`] runs the cases that need no pool of their own, each in its own namespace. [`differential()`] compares an
//! implementation with [`MemStore`](crate::testing::MemStore) over random operations.

mod copying;
mod data;
mod differential;
mod guards;
mod listing;
mod locks;
mod metadata;
mod pools;
mod sharing;
mod snapshots;
mod watches;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;

pub use self::differential::differential;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::ident::{Namespace, ObjectId, PoolId, SnapId};
use crate::store::{Effect, OmapRead, ReadOp, SnapContext, Store, WriteOp};

/// Where a case works: nobody else writes there.
#[derive(Clone, Debug)]
pub struct Place {
    /// The store under test.
    pub store: Arc<dyn Store>,
    /// A pool of it.
    pub pool: PoolId,
    /// A namespace nobody else uses.
    pub namespace: Namespace,
}

/// One fact about stores.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The fact.
    pub name: &'static str,
    /// Panics where the store does not behave so.
    pub run: fn(&Place),
}

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$(Case { name: stringify!($name), run: $module::$name }),*]
    };
}

/// Cases that work in any pool.
pub const CASES: &[Case] = cases![
    guards::create_exclusive_makes_an_object_once,
    data::a_stamp_stays_until_the_next_change_or_is_not_kept_at_all,
    guards::assert_exists_needs_the_object,
    guards::assert_version_knows_older_newer_and_missing,
    guards::omap_compare_takes_absent_for_empty,
    guards::xattr_compare_takes_absent_for_empty,
    guards::omap_compare_on_a_missing_object_needs_a_create_first,
    guards::xattr_compare_needs_the_object,
    guards::guards_see_the_state_before_the_op,
    guards::the_first_guard_that_fails_names_the_error,
    guards::a_refused_op_changes_nothing,
    guards::guards_alone_change_nothing,
    data::a_missing_object_is_not_found,
    data::create_makes_an_empty_object_and_spares_an_old_one,
    data::writes_grow_the_object_and_leave_holes,
    data::overlapping_writes_read_as_the_last_wrote,
    data::reads_past_the_end_are_short,
    data::data_asked_for_alone_is_the_same,
    data::extents_are_cut_to_the_range_asked_for,
    data::what_holds_bytes_is_told_without_them,
    data::write_full_replaces_everything,
    data::zero_makes_holes_and_cuts_at_the_end,
    data::zero_and_truncate_leave_a_missing_object_missing,
    data::truncate_cuts_and_growing_again_reads_zeros,
    data::effects_follow_in_order_and_see_each_other,
    data::a_removed_object_leaves_nothing_to_its_successor,
    data::removing_a_missing_object_is_not_found,
    data::every_change_raises_the_version,
    data::a_large_object_reads_back,
    data::a_long_read_of_an_object_with_holes_shows_one_moment,
    data::ranges_past_the_largest_object_are_invalid,
    data::names_and_keys_past_their_limits_are_invalid,
    data::effects_after_a_removal_are_invalid,
    data::namespaces_keep_objects_apart,
    data::flush_keeps_everything,
    metadata::omap_keys_are_bytes_in_order,
    metadata::omap_reads_by_key_give_those_that_exist,
    metadata::omap_pages_continue_and_say_whether_there_is_more,
    metadata::omap_pages_are_bounded,
    metadata::omap_pages_by_prefix_hold_only_it,
    metadata::omap_removal_forgives_absent_keys,
    metadata::omap_effects_follow_in_order,
    metadata::removing_metadata_of_a_missing_object_is_not_found,
    metadata::xattrs_hold_bytes,
    metadata::metadata_and_data_change_together,
    metadata::whatever_is_not_data_changes_the_generation_or_there_is_none,
    snapshots::a_write_under_a_newer_context_preserves,
    snapshots::a_write_under_no_or_an_older_context_preserves_nothing,
    snapshots::an_object_not_written_since_reads_as_it_is,
    snapshots::an_object_made_after_a_snapshot_is_missing_at_it,
    snapshots::snapshots_between_two_writes_share_a_version,
    snapshots::every_data_effect_preserves,
    snapshots::a_removed_object_is_read_at_its_snapshots,
    snapshots::metadata_is_never_preserved,
    snapshots::a_context_without_snapshots_preserves_nothing,
    snapshots::contexts_out_of_order_are_invalid,
    snapshots::rollback_brings_back_bytes_and_size,
    snapshots::rollback_under_a_newer_context_preserves,
    snapshots::rollback_to_before_the_object_removes_it,
    snapshots::rollback_brings_back_a_removed_object,
    snapshots::rollback_of_an_unchanged_object_does_nothing,
    snapshots::rollback_stands_alone,
    snapshots::released_snapshots_leave_the_others_alone,
    snapshots::snapshot_ids_grow,
    snapshots::what_is_known_to_be_the_same_reads_the_same,
    snapshots::list_snaps_tells_versions_and_their_overlap,
    snapshots::list_snaps_of_a_removed_object_has_no_head,
    listing::objects_are_listed_once_by_namespace,
    listing::listing_all_namespaces_finds_each_object,
    listing::objects_listed_exist_at_head_or_at_a_snapshot,
    locks::an_exclusive_lock_excludes_others,
    locks::a_held_lock_is_renewed_only_when_asked,
    locks::shared_locks_need_one_tag,
    locks::unlocking_needs_the_holder,
    locks::a_lock_can_be_broken,
    locks::a_lock_is_an_xattr_anyone_can_read,
    locks::lock_makes_the_object_and_lock_info_does_not,
    watches::a_notify_reaches_each_watcher_and_brings_answers,
    watches::a_dropped_notification_answers_empty,
    watches::a_dropped_watch_is_not_asked,
    watches::nobody_watching_answers_at_once,
    watches::a_missing_object_is_neither_watched_nor_notified,
    watches::watchers_are_listed,
    watches::watching_changes_no_version,
    sharing::shared_ranges_read_the_same_and_part_on_write,
    sharing::a_share_nobody_has_looked_at_shows_the_source_as_it_was,
    sharing::shared_ranges_at_a_snapshot,
    sharing::sharing_past_the_source_leaves_holes,
    sharing::what_lies_behind_a_shared_end_stays,
    sharing::sharing_refuses_what_it_must,
    sharing::a_store_without_sharing_says_so,
    copying::a_copied_object_has_the_bytes_and_the_size_of_its_source,
    copying::what_follows_a_copy_in_its_op_lies_over_it,
    copying::an_object_is_copied_as_it_was_at_a_snapshot_and_preserved_under_it,
    copying::copying_refuses_what_it_must,
    copying::a_store_that_cannot_copy_says_so,
];

/// Cases that make pools of their own.
pub const POOL_CASES: &[Case] = cases![
    pools::pools_are_made_listed_and_removed,
    pools::pool_names_are_taken_once,
    pools::an_unknown_pool_is_not_found,
    pools::pools_keep_objects_apart,
    pools::a_read_only_pool_refuses_every_write,
    pools::pool_stats_count_objects,
];

/// Runs every case, each in a store and a pool of its own.
///
/// # Panics
/// If a case does, after all have run.
pub fn run_all(make: impl Fn() -> Arc<dyn Store>) {
    run(CASES.iter().chain(POOL_CASES), |_| {
        let store = make();
        let pool = store.create_pool("contract").wait().expect("a pool is made");
        Place { store, pool, namespace: Namespace::default() }
    });
}

/// Runs [`CASES`] in a pool of a store, each in a namespace whose name begins with `prefix`.
///
/// # Panics
/// If a case does, after all have run.
pub fn run_in(store: &Arc<dyn Store>, pool: PoolId, prefix: &str) {
    run(CASES.iter(), |case| {
        let namespace = Namespace::new(&format!("{prefix}{}", case.name));
        Place { store: Arc::clone(store), pool, namespace }
    });
}

/// Runs cases and names all that failed.
fn run<'a>(cases: impl Iterator<Item = &'a Case>, place: impl Fn(&Case) -> Place) {
    let mut failed = Vec::new();
    for case in cases {
        if catch_unwind(AssertUnwindSafe(|| (case.run)(&place(case)))).is_err() {
            failed.push(case.name);
        }
    }
    assert!(failed.is_empty(), "{} of the contract's cases failed:\n  {}", failed.len(), failed.join("\n  "));
}

/// A block's length, for offsets.
const BLOCK: u64 = crate::limits::BLOCK_SIZE;

/// All there is to see of an object at HEAD.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sight {
    data: Vec<u8>,
    xattrs: BTreeMap<String, Bytes>,
    omap: Vec<(Bytes, Bytes)>,
}

/// `n` bytes of one value.
fn filled(value: u8, n: u64) -> Bytes {
    Bytes::from(vec![value; usize::try_from(n).expect("fits memory")])
}

/// Bytes of a text.
fn text(value: &'static str) -> Bytes {
    Bytes::from_static(value.as_bytes())
}

/// The context after these snapshots were taken, oldest first, all still there.
fn context(snaps: &[SnapId]) -> SnapContext {
    let newest_first: Vec<SnapId> = snaps.iter().rev().copied().collect();
    SnapContext { seq: newest_first.first().map_or(0, |s| s.0), snaps: newest_first.into() }
}

/// `None` for `NotFound`, so that absence can be compared.
fn present<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) if e.kind() == ErrorKind::NotFound && e.errno() == Errno::ENOENT => None,
        Err(e) => panic!("neither there nor missing: {}", e.chain()),
    }
}

/// Checks that a request failed, and how.
#[track_caller]
fn fails<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, errno: Errno) {
    match result {
        Ok(value) => panic!("expected {kind:?} {errno}, but it went through: {value:?}"),
        Err(e) => assert_eq!((e.kind(), e.errno()), (kind, errno), "{}", e.chain()),
    }
}

/// The value, or a panic with the whole chain of causes.
#[track_caller]
fn done<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|e: Error| panic!("{}", e.chain()))
}

impl Place {
    /// The object `name` here.
    fn id(&self, name: &str) -> ObjectId {
        ObjectId::new(self.pool, &self.namespace, name)
    }

    /// Performs an op that must go through; the version after it.
    #[track_caller]
    fn write(&self, name: &str, op: WriteOp) -> u64 {
        done(self.store.write(&self.id(name), op).wait()).version
    }

    /// Performs an op that must be refused in this way.
    #[track_caller]
    fn refuses(&self, name: &str, op: WriteOp, kind: ErrorKind, errno: Errno) {
        fails(self.store.write(&self.id(name), op).wait(), kind, errno);
    }

    /// The version and size of HEAD, or `None`.
    #[track_caller]
    fn stat(&self, name: &str) -> Option<(u64, u64)> {
        present(self.store.read(&self.id(name), SnapId::HEAD, ReadOp::stat()).wait())
            .map(|r| (r.version, r.size))
    }

    /// The version of an object that must exist.
    #[track_caller]
    fn version(&self, name: &str) -> u64 {
        self.stat(name).expect("the object exists").0
    }

    /// All bytes at a snapshot or HEAD, or `None`.
    #[track_caller]
    fn bytes_at(&self, name: &str, at: SnapId) -> Option<Vec<u8>> {
        let op = ReadOp::data(0, crate::limits::OBJECT_SIZE_MAX);
        let reply = present(self.store.read(&self.id(name), at, op).wait())?;
        for (offset, bytes) in &reply.data.extents {
            assert!(!bytes.is_empty(), "an empty extent at {offset}");
            assert!(offset + bytes.len() as u64 <= reply.size, "an extent past the end at {offset}");
        }
        let ends = reply.data.extents.iter().map(|(o, b)| o + b.len() as u64);
        let starts = reply.data.extents.iter().skip(1).map(|(o, _)| *o);
        assert!(ends.zip(starts).all(|(end, start)| end <= start), "extents overlap or are out of order");
        Some(reply.data.to_vec(0, reply.size))
    }

    /// All bytes of HEAD, which must exist.
    #[track_caller]
    fn bytes(&self, name: &str) -> Vec<u8> {
        self.bytes_at(name, SnapId::HEAD).expect("the object exists")
    }

    /// Offsets and lengths of the extents in a range.
    #[track_caller]
    fn extents(&self, name: &str, offset: u64, length: u64) -> Vec<(u64, u64)> {
        let reply = done(self.store.read(&self.id(name), SnapId::HEAD, ReadOp::data(offset, length)).wait());
        reply.data.extents.iter().map(|(o, b)| (*o, b.len() as u64)).collect()
    }

    /// A page of omap entries and whether there are more.
    #[track_caller]
    fn page(&self, name: &str, after: &[u8], prefix: &[u8], max: usize) -> (Vec<(Bytes, Bytes)>, bool) {
        let page = OmapRead::Page {
            after: Bytes::copy_from_slice(after),
            prefix: Bytes::copy_from_slice(prefix),
            max,
        };
        let op = ReadOp { omap: Some(page), ..ReadOp::default() };
        let omap = done(self.store.read(&self.id(name), SnapId::HEAD, op).wait()).omap;
        (omap.entries, omap.more)
    }

    /// The first page of omap entries.
    #[track_caller]
    fn omap(&self, name: &str) -> Vec<(Bytes, Bytes)> {
        self.page(name, b"", b"", crate::limits::OMAP_PAGE_MAX).0
    }

    /// All xattrs.
    #[track_caller]
    fn xattrs(&self, name: &str) -> BTreeMap<String, Bytes> {
        let op = ReadOp { xattrs: true, ..ReadOp::default() };
        done(self.store.read(&self.id(name), SnapId::HEAD, op).wait()).xattrs
    }

    /// Everything to see at HEAD, or `None`.
    #[track_caller]
    fn sight(&self, name: &str) -> Option<Sight> {
        let data = self.bytes_at(name, SnapId::HEAD)?;
        Some(Sight { data, xattrs: self.xattrs(name), omap: self.omap(name) })
    }

    /// Takes a snapshot id.
    #[track_caller]
    fn snap(&self) -> SnapId {
        done(self.store.allocate_snap(self.pool).wait())
    }

    /// Replaces an object's data under a context; the commonest change in these cases.
    #[track_caller]
    fn put(&self, name: &str, value: &'static str, snaps: &[SnapId]) {
        self.write(name, WriteOp::new().effect(Effect::WriteFull(text(value))).under(context(snaps)));
    }
}
