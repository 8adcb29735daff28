//! Pools and stores: pool ls, pool stats, namespace ls, check, bench.

use ferry_core::size::format_size;
use ferry_node::api::{BenchResult, BenchRow, CheckReport, PoolListing, PoolState, PoolStatistics};

use super::super::output::{Align, Node, Table};

/// What can be done with a pool.
fn access(state: &PoolState) -> String {
    match state {
        PoolState::ReadWrite => "read-write".to_owned(),
        PoolState::ReadOnly => "read-only".to_owned(),
        PoolState::Unavailable(why) => format!("unavailable: {why}"),
    }
}

/// `pool ls`.
pub(crate) fn pools(pools: &[PoolListing]) -> String {
    if pools.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[("NAME", Align::Left), ("STORE", Align::Left), ("ACCESS", Align::Left)]);
    for pool in pools {
        table.row([pool.name.as_str(), &pool.store, &access(&pool.state)]);
    }
    table.text()
}

/// `pool ls`.
pub(crate) fn pools_tree(pools: &[PoolListing]) -> Node {
    let items = pools.iter().map(|pool| {
        Node::object(
            "pool",
            vec![
                Node::text("name", &pool.name),
                Node::number("id", pool.id),
                Node::text("store", &pool.store),
                Node::text("access", access(&pool.state)),
            ],
        )
    });
    Node::array("pools", items.collect())
}

/// `pool stats`.
pub(crate) fn statistics(s: &PoolStatistics) -> String {
    let trash = |text: String| if s.trash_images > 0 { format!(" ({text} in trash)") } else { String::new() };
    format!(
        "Total Images: {}{}\nTotal Snapshots: {}{}\nProvisioned Size: {}{}\n",
        s.images,
        trash(s.trash_images.to_string()),
        s.snaps,
        trash(s.trash_snaps.to_string()),
        format_size(s.provisioned),
        trash(format_size(s.trash_provisioned))
    )
}

/// `pool stats`.
pub(crate) fn statistics_tree(s: &PoolStatistics) -> Node {
    let part = |name: &str, count: u64, provisioned: u64, snaps: u64| {
        Node::object(
            name,
            vec![
                Node::number("count", count),
                Node::number("provisioned_bytes", provisioned),
                Node::number("snap_count", snaps),
            ],
        )
    };
    Node::object(
        "stats",
        vec![
            part("images", s.images, s.provisioned, s.snaps),
            part("trash", s.trash_images, s.trash_provisioned, s.trash_snaps),
        ],
    )
}

/// `namespace ls`.
pub(crate) fn namespaces(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[("NAME", Align::Left)]);
    for name in names {
        table.row([name]);
    }
    table.text()
}

/// `namespace ls`.
pub(crate) fn namespaces_tree(names: &[String]) -> Node {
    let items = names.iter().map(|name| Node::object("namespace", vec![Node::text("name", name)]));
    Node::array("namespaces", items.collect())
}

/// `check`.
pub(crate) fn check(report: &CheckReport) -> String {
    let mut text = format!("store {}\n", report.store);
    for (name, count) in &report.counts {
        text.push_str(&format!("\t{name}: {count}\n"));
    }
    for line in &report.damage {
        text.push_str(&format!("\tdamaged: {line}\n"));
    }
    text.push_str(if report.damage.is_empty() { "no damage found\n" } else { "DAMAGED\n" });
    text
}

/// `check`.
pub(crate) fn check_tree(report: &CheckReport) -> Node {
    let mut members = vec![Node::text("store", &report.store)];
    members.extend(report.counts.iter().map(|(name, count)| Node::number(&name.replace(' ', "_"), *count)));
    members.push(Node::names("damage", "damaged", &report.damage));
    Node::object("check", members)
}

/// A number with six digits that count, as C++ prints a double.
fn six_digits(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..6.0).contains(&magnitude) {
        let text = format!("{value:.5e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
        let exponent: i32 = exponent.parse().unwrap_or_default();
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let decimals =
        (0..=9_usize).find(|d| magnitude + f64::from(u8::try_from(*d).unwrap_or(9)) >= 5.0).unwrap_or(9);
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `21 MiB/s`.
fn rate(bytes_per_second: f64) -> String {
    // A rate below 2^63 fits; `as` saturates, which is right for a display.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people")]
    let whole = bytes_per_second.max(0.0) as u64;
    format!("{}/s", format_size(whole))
}

/// A row of `bench`.
pub(crate) fn bench_row(row: &BenchRow) -> String {
    format!(
        "{:>5} {:>9} {:>10}  {:>10}",
        row.seconds,
        row.ops,
        six_digits(row.ops_per_second),
        rate(row.bytes_per_second)
    )
}

/// The end of `bench`.
pub(crate) fn bench(result: &BenchResult) -> String {
    let line = |first: String, prefix: &str, row: &BenchRow| {
        format!(
            "{first}{prefix}ops: {}   {prefix}ops/sec: {}   {prefix}bytes/sec: {}\n",
            row.ops,
            six_digits(row.ops_per_second),
            rate(row.bytes_per_second)
        )
    };
    let whole = &result.whole;
    let mut text = line(format!("elapsed: {}   ", whole.seconds), "", whole);
    if let Some((reads, writes)) = &result.parts {
        text.push_str(&line(String::new(), "read_", reads));
        text.push_str(&line(String::new(), "write_", writes));
    }
    text
}
