//! Configuration kept with a pool or an image, as `rbd config` shows and sets it.
//!
//! An image's value goes before its pool's, which goes before the default.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_core::size::parse_size;
use ferry_core::{Error, Result};

use super::{pool_get, pool_list, pool_remove, pool_set};
use crate::image::Image;
use crate::pool::Pool;

/// Before an option's name in the keys of metadata.
const PREFIX: &str = "conf_";

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Config,
    /// The pool.
    Pool,
    /// The image.
    Image,
}

impl Source {
    /// The word `rbd config … ls` prints.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Pool => "pool",
            Self::Image => "image",
        }
    }
}

/// Where an option may be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// With a pool only: it matters when an image is made.
    Pool,
    /// With a pool or an image.
    Image,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Number,
    Float,
    Text,
}

/// An option.
#[derive(Clone, Copy, Debug)]
struct Known {
    name: &'static str,
    default: &'static str,
    kind: Kind,
    level: Level,
}

const fn row(name: &'static str, default: &'static str, kind: Kind, level: Level) -> Known {
    Known { name, default, kind, level }
}

/// An option and what it is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// Who set it.
    pub source: Source,
}

/// The option called `name`, if it may be set there.
fn known(name: &str, level: Level) -> Result<&'static Known> {
    KNOWN
        .iter()
        .find(|k| k.name == name && (level == Level::Pool || k.level == Level::Image))
        .ok_or_else(|| Error::invalid("not rbd option").with("option", name))
}

/// Refuses a value the option cannot have.
fn check(option: &Known, value: &str) -> Result<()> {
    let fits = match option.kind {
        Kind::Bool => matches!(value, "true" | "false" | "yes" | "no" | "1" | "0" | "on" | "off"),
        Kind::Number => parse_size(value, 1).is_some(),
        Kind::Float => value.parse::<f64>().is_ok_and(f64::is_finite),
        Kind::Text => true,
    };
    if fits {
        return Ok(());
    }
    Err(Error::invalid("not a value of this option").with("option", option.name).with("value", value))
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// Puts the values of `metadata` over those of `settings`.
fn apply(settings: &mut [Setting], metadata: &BTreeMap<String, Bytes>, source: Source) {
    for setting in settings {
        if let Some(value) = metadata.get(&key(setting.name)) {
            setting.value = String::from_utf8_lossy(value).into_owned();
            setting.source = source;
        }
    }
}

fn defaults(level: Level) -> Vec<Setting> {
    KNOWN
        .iter()
        .filter(|k| level == Level::Pool || k.level == Level::Image)
        .map(|k| Setting { name: k.name, value: k.default.to_owned(), source: Source::Config })
        .collect()
}

/// All options of a pool, by name.
///
/// # Errors
/// Those of the store.
pub async fn of_pool(pool: &Pool) -> Result<Vec<Setting>> {
    let mut settings = defaults(Level::Pool);
    apply(&mut settings, &pool_list(pool).await?, Source::Pool);
    Ok(settings)
}

/// All options of an image, by name.
///
/// # Errors
/// Those of the store.
pub async fn of_image(image: &Image) -> Result<Vec<Setting>> {
    let mut settings = defaults(Level::Image);
    apply(&mut settings, &pool_list(&image.pool).await?, Source::Pool);
    apply(&mut settings, &image.header.metadata, Source::Image);
    Ok(settings)
}

/// What a pool sets an option to; `None` where it does not.
///
/// # Errors
/// `Invalid` (22) for an unknown option.
pub async fn pool_value(pool: &Pool, name: &str) -> Result<Option<String>> {
    let option = known(name, Level::Pool)?;
    match pool_get(pool, &key(option.name)).await {
        Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        Err(e) if e.kind() == ferry_core::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets an option with a pool.
///
/// # Errors
/// `Invalid` (22) for an unknown option or a value it cannot have; `ReadOnly` (30).
pub async fn set_in_pool(pool: &Pool, name: &str, value: &str) -> Result<()> {
    check(known(name, Level::Pool)?, value)?;
    pool_set(pool, &key(name), value.as_bytes()).await
}

/// Forgets what a pool sets an option to.
///
/// # Errors
/// `Invalid` (22) for an unknown option; `NotFound` (2) where the pool does not set it.
pub async fn remove_from_pool(pool: &Pool, name: &str) -> Result<()> {
    pool_remove(pool, &key(known(name, Level::Pool)?.name)).await
}

/// What an image sets an option to; `None` where it does not.
///
/// # Errors
/// `Invalid` (22) for an unknown option.
pub fn image_value(image: &Image, name: &str) -> Result<Option<String>> {
    let option = known(name, Level::Image)?;
    let value = image.header.metadata.get(&key(option.name));
    Ok(value.map(|v| String::from_utf8_lossy(v).into_owned()))
}

/// Sets an option with an image.
///
/// # Errors
/// `Invalid` (22) for an unknown option or a value it cannot have; `ReadOnly` (30).
pub async fn set_in_image(image: &mut Image, name: &str, value: &str) -> Result<()> {
    check(known(name, Level::Image)?, value)?;
    super::set(image, &key(name), value.as_bytes()).await
}

/// Forgets what an image sets an option to.
///
/// # Errors
/// `Invalid` (22) for an unknown option; `NotFound` (2) where the image does not set it.
pub async fn remove_from_image(image: &mut Image, name: &str) -> Result<()> {
    super::remove(image, &key(known(name, Level::Image)?.name)).await
}

/// The options of Ceph 16.2.15 that can be set with a pool or an image, by name, with their defaults.
#[rustfmt::skip]
const KNOWN: &[Known] = &[
    row("rbd_atime_update_interval", "60", Kind::Number, Level::Image),
    row("rbd_balance_parent_reads", "false", Kind::Bool, Level::Image),
    row("rbd_balance_snap_reads", "false", Kind::Bool, Level::Image),
    row("rbd_blkin_trace_all", "false", Kind::Bool, Level::Image),
    row("rbd_blocklist_expire_seconds", "0", Kind::Number, Level::Image),
    row("rbd_blocklist_on_break_lock", "true", Kind::Bool, Level::Image),
    row("rbd_cache", "true", Kind::Bool, Level::Image),
    row("rbd_cache_block_writes_upfront", "false", Kind::Bool, Level::Image),
    row("rbd_cache_max_dirty", "25165824", Kind::Number, Level::Image),
    row("rbd_cache_max_dirty_age", "1.000000", Kind::Float, Level::Image),
    row("rbd_cache_max_dirty_object", "0", Kind::Number, Level::Image),
    row("rbd_cache_policy", "writearound", Kind::Text, Level::Image),
    row("rbd_cache_size", "33554432", Kind::Number, Level::Image),
    row("rbd_cache_target_dirty", "16777216", Kind::Number, Level::Image),
    row("rbd_cache_writethrough_until_flush", "true", Kind::Bool, Level::Image),
    row("rbd_clone_copy_on_read", "false", Kind::Bool, Level::Image),
    row("rbd_compression_hint", "none", Kind::Text, Level::Image),
    row("rbd_concurrent_management_ops", "10", Kind::Number, Level::Image),
    row("rbd_config_pool_override_update_timestamp", "0", Kind::Number, Level::Image),
    row("rbd_default_clone_format", "auto", Kind::Text, Level::Pool),
    row("rbd_default_data_pool", "", Kind::Text, Level::Pool),
    row("rbd_default_features", "61", Kind::Text, Level::Pool),
    row("rbd_default_order", "22", Kind::Number, Level::Pool),
    row("rbd_default_snapshot_quiesce_mode", "required", Kind::Text, Level::Image),
    row("rbd_default_stripe_count", "0", Kind::Number, Level::Pool),
    row("rbd_default_stripe_unit", "0", Kind::Number, Level::Pool),
    row("rbd_disable_zero_copy_writes", "true", Kind::Bool, Level::Image),
    row("rbd_discard_granularity_bytes", "65536", Kind::Number, Level::Image),
    row("rbd_enable_alloc_hint", "true", Kind::Bool, Level::Image),
    row("rbd_invalidate_object_map_on_timeout", "true", Kind::Bool, Level::Image),
    row("rbd_io_scheduler", "simple", Kind::Text, Level::Image),
    row("rbd_io_scheduler_simple_max_delay", "0", Kind::Number, Level::Image),
    row("rbd_journal_commit_age", "5.000000", Kind::Float, Level::Image),
    row("rbd_journal_max_concurrent_object_sets", "0", Kind::Number, Level::Image),
    row("rbd_journal_max_payload_bytes", "16384", Kind::Number, Level::Image),
    row("rbd_journal_object_flush_age", "0.000000", Kind::Float, Level::Image),
    row("rbd_journal_object_flush_bytes", "1048576", Kind::Number, Level::Image),
    row("rbd_journal_object_flush_interval", "0", Kind::Number, Level::Image),
    row("rbd_journal_object_max_in_flight_appends", "0", Kind::Number, Level::Image),
    row("rbd_journal_object_writethrough_until_flush", "true", Kind::Bool, Level::Image),
    row("rbd_journal_order", "24", Kind::Number, Level::Pool),
    row("rbd_journal_pool", "", Kind::Text, Level::Pool),
    row("rbd_journal_splay_width", "4", Kind::Number, Level::Pool),
    row("rbd_localize_parent_reads", "false", Kind::Bool, Level::Image),
    row("rbd_localize_snap_reads", "false", Kind::Bool, Level::Image),
    row("rbd_mirror_concurrent_image_deletions", "1", Kind::Number, Level::Pool),
    row("rbd_mirror_concurrent_image_syncs", "5", Kind::Number, Level::Pool),
    row("rbd_mirror_delete_retry_interval", "30.000000", Kind::Float, Level::Pool),
    row("rbd_mirror_image_perf_stats_prio", "5", Kind::Number, Level::Pool),
    row("rbd_mirror_image_policy_migration_throttle", "300", Kind::Number, Level::Pool),
    row("rbd_mirror_image_policy_rebalance_timeout", "0.000000", Kind::Float, Level::Pool),
    row("rbd_mirror_image_policy_type", "simple", Kind::Text, Level::Pool),
    row("rbd_mirror_image_policy_update_throttle_interval", "1.000000", Kind::Float, Level::Pool),
    row("rbd_mirror_image_state_check_interval", "30", Kind::Number, Level::Pool),
    row("rbd_mirror_journal_commit_age", "5.000000", Kind::Float, Level::Pool),
    row("rbd_mirror_journal_poll_age", "5.000000", Kind::Float, Level::Pool),
    row("rbd_mirror_leader_heartbeat_interval", "5", Kind::Number, Level::Pool),
    row("rbd_mirror_leader_max_acquire_attempts_before_break", "3", Kind::Number, Level::Pool),
    row("rbd_mirror_leader_max_missed_heartbeats", "2", Kind::Number, Level::Pool),
    row("rbd_mirror_memory_autotune", "true", Kind::Bool, Level::Pool),
    row("rbd_mirror_memory_base", "805306368", Kind::Number, Level::Pool),
    row("rbd_mirror_memory_cache_autotune_interval", "30.000000", Kind::Float, Level::Pool),
    row("rbd_mirror_memory_cache_min", "134217728", Kind::Number, Level::Pool),
    row("rbd_mirror_memory_cache_resize_interval", "5.000000", Kind::Float, Level::Pool),
    row("rbd_mirror_memory_expected_fragmentation", "0.150000", Kind::Float, Level::Pool),
    row("rbd_mirror_memory_target", "4294967296", Kind::Number, Level::Pool),
    row("rbd_mirror_perf_stats_prio", "5", Kind::Number, Level::Pool),
    row("rbd_mirror_sync_point_update_age", "30.000000", Kind::Float, Level::Pool),
    row("rbd_mirroring_delete_delay", "0", Kind::Number, Level::Image),
    row("rbd_mirroring_max_mirroring_snapshots", "5", Kind::Number, Level::Image),
    row("rbd_mirroring_replay_delay", "0", Kind::Number, Level::Image),
    row("rbd_mirroring_resync_after_disconnect", "false", Kind::Bool, Level::Image),
    row("rbd_move_parent_to_trash_on_remove", "false", Kind::Bool, Level::Image),
    row("rbd_move_to_trash_on_remove", "false", Kind::Bool, Level::Image),
    row("rbd_move_to_trash_on_remove_expire_seconds", "0", Kind::Number, Level::Image),
    row("rbd_mtime_update_interval", "60", Kind::Number, Level::Image),
    row("rbd_non_blocking_aio", "true", Kind::Bool, Level::Image),
    row("rbd_parent_cache_enabled", "false", Kind::Bool, Level::Image),
    row("rbd_persistent_cache_mode", "disabled", Kind::Text, Level::Image),
    row("rbd_persistent_cache_path", "/tmp", Kind::Text, Level::Image),
    row("rbd_persistent_cache_size", "1073741824", Kind::Number, Level::Image),
    row("rbd_plugins", "", Kind::Text, Level::Image),
    row("rbd_qos_bps_burst", "0", Kind::Number, Level::Image),
    row("rbd_qos_bps_burst_seconds", "1", Kind::Number, Level::Image),
    row("rbd_qos_bps_limit", "0", Kind::Number, Level::Image),
    row("rbd_qos_iops_burst", "0", Kind::Number, Level::Image),
    row("rbd_qos_iops_burst_seconds", "1", Kind::Number, Level::Image),
    row("rbd_qos_iops_limit", "0", Kind::Number, Level::Image),
    row("rbd_qos_read_bps_burst", "0", Kind::Number, Level::Image),
    row("rbd_qos_read_bps_burst_seconds", "1", Kind::Number, Level::Image),
    row("rbd_qos_read_bps_limit", "0", Kind::Number, Level::Image),
    row("rbd_qos_read_iops_burst", "0", Kind::Number, Level::Image),
    row("rbd_qos_read_iops_burst_seconds", "1", Kind::Number, Level::Image),
    row("rbd_qos_read_iops_limit", "0", Kind::Number, Level::Image),
    row("rbd_qos_schedule_tick_min", "50", Kind::Number, Level::Image),
    row("rbd_qos_write_bps_burst", "0", Kind::Number, Level::Image),
    row("rbd_qos_write_bps_burst_seconds", "1", Kind::Number, Level::Image),
    row("rbd_qos_write_bps_limit", "0", Kind::Number, Level::Image),
    row("rbd_qos_write_iops_burst", "0", Kind::Number, Level::Image),
    row("rbd_qos_write_iops_burst_seconds", "1", Kind::Number, Level::Image),
    row("rbd_qos_write_iops_limit", "0", Kind::Number, Level::Image),
    row("rbd_quiesce_notification_attempts", "10", Kind::Number, Level::Image),
    row("rbd_read_from_replica_policy", "default", Kind::Text, Level::Image),
    row("rbd_readahead_disable_after_bytes", "52428800", Kind::Number, Level::Image),
    row("rbd_readahead_max_bytes", "524288", Kind::Number, Level::Image),
    row("rbd_readahead_trigger_requests", "10", Kind::Number, Level::Image),
    row("rbd_request_timed_out_seconds", "30", Kind::Number, Level::Image),
    row("rbd_skip_partial_discard", "true", Kind::Bool, Level::Image),
    row("rbd_sparse_read_threshold_bytes", "65536", Kind::Number, Level::Image),
];
