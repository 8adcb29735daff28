//! Images: ls -l, info, status, du, children, diff, lock ls.

use ferry_core::size::format_size;
use ferry_node::api::{
    ChildImage, DiffExtent, ImageInfo, ImageStatus, ListedImage, LockList, Migration, MigrationEnd,
    MigrationSource, Usage,
};

use super::super::output::{Align, Node, Table, local};
use super::{parent_text, parent_tree};

/// `ls -l`.
pub(crate) fn images(images: &[ListedImage]) -> String {
    if images.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("PARENT", Align::Left),
        ("FMT", Align::Right),
        ("PROT", Align::Left),
        ("LOCK", Align::Left),
    ]);
    for image in images {
        let name = match &image.snap {
            Some((snap, _)) => format!("{}@{snap}", image.image),
            None => image.image.clone(),
        };
        let parent = image.parent.as_ref().map(parent_text).unwrap_or_default();
        let lock = match image.lock.as_deref() {
            Some("exclusive") => "excl",
            Some(_) => "shr",
            None => "",
        };
        let protected = if image.protected { "yes" } else { "" };
        table.row([&name, &format_size(image.size), &parent, &image.format.to_string(), protected, lock]);
    }
    table.text()
}

/// `ls -l`.
pub(crate) fn images_tree(images: &[ListedImage]) -> Node {
    let items = images.iter().map(|image| {
        let mut members = vec![Node::text("image", &image.image), Node::text("id", &image.id)];
        if let Some((snap, id)) = &image.snap {
            members.push(Node::text("snapshot", snap));
            members.push(Node::number("snapshot_id", *id));
        }
        members.push(Node::number("size", image.size));
        members.extend(image.parent.as_ref().map(parent_tree));
        members.push(Node::number("format", image.format));
        if image.snap.is_some() {
            members.push(Node::bool_text("protected", image.protected));
        }
        members.extend(image.lock.as_ref().map(|kind| Node::text("lock_type", kind)));
        Node::object(if image.snap.is_some() { "snapshot" } else { "image" }, members)
    });
    Node::array("images", items.collect())
}

/// `info`.
pub(crate) fn info(info: &ImageInfo) -> String {
    let mut lines = vec![
        format!("size {} in {} objects", format_size(info.size), info.objects),
        format!("order {} ({} objects)", info.order, format_size(info.object_size)),
        format!("snapshot_count: {}", info.snapshot_count),
    ];
    lines.extend((!info.id.is_empty()).then(|| format!("id: {}", info.id)));
    lines.extend(info.data_pool.as_ref().map(|pool| format!("data_pool: {pool}")));
    lines.push(format!("block_name_prefix: {}", info.block_name_prefix));
    lines.push(format!("format: {}", info.format));
    if info.format > 1 {
        lines.push(format!("features: {}", info.features.join(", ")));
        lines.push(format!("op_features: {}", info.op_features.join(", ")));
        lines.push(format!("flags: {}", info.flags.join(", ")));
    }
    for (name, time) in times(info) {
        lines.push(format!("{name}: {}", local(time)));
    }
    lines.extend(info.protected.map(|p| format!("protected: {}", if p { "True" } else { "False" })));
    lines.extend(info.snapshot_limit.map(|limit| format!("snapshot_limit: {limit}")));
    if let Some(parent) = &info.parent {
        let trash = if parent.in_trash { format!(" (trash {})", parent.id) } else { String::new() };
        lines.push(format!("parent: {}{trash}", parent_text(parent)));
        lines.push(format!("overlap: {}", format_size(parent.overlap)));
    }
    if let Some(striping) = info.striping {
        lines.push(format!("stripe unit: {}", format_size(striping.unit)));
        lines.push(format!("stripe count: {}", striping.count));
    }
    let mut text = format!("rbd image '{}':\n", info.name.as_ref().unwrap_or(&info.id));
    for line in lines {
        text.push_str(&format!("\t{line}\n"));
    }
    text
}

/// When an image was made and used, as far as that is known; of one of format 1 it is not.
fn times(info: &ImageInfo) -> impl Iterator<Item = (&'static str, u64)> {
    let times = [
        ("create_timestamp", info.created),
        ("access_timestamp", info.accessed),
        ("modify_timestamp", info.modified),
    ];
    let is_known = info.format > 1;
    times.into_iter().filter(move |(_, time)| is_known && *time != 0)
}

/// `info`.
pub(crate) fn info_tree(info: &ImageInfo) -> Node {
    let mut members: Vec<Node> = info.name.iter().map(|name| Node::text("name", name)).collect();
    members.extend([
        Node::text("id", &info.id),
        Node::number("size", info.size),
        Node::number("objects", info.objects),
        Node::number("order", info.order),
        Node::number("object_size", info.object_size),
    ]);
    members.push(Node::number("snapshot_count", info.snapshot_count));
    members.extend(info.data_pool.as_ref().map(|pool| Node::text("data_pool", pool)));
    members.extend([
        Node::text("block_name_prefix", &info.block_name_prefix),
        Node::number("format", info.format),
    ]);
    if info.format > 1 {
        members.extend([
            Node::names("features", "feature", &info.features),
            Node::names("op_features", "op_feature", &info.op_features),
            Node::names("flags", "flag", &info.flags),
        ]);
    }
    members.extend(times(info).map(|(name, time)| Node::text(name, local(time))));
    members.extend(info.protected.map(|p| Node::bool_text("protected", p)));
    members.extend(info.snapshot_limit.map(|limit| Node::number("snapshot_limit", limit)));
    if let Some(parent) = &info.parent {
        members.push(Node::object(
            "parent",
            vec![
                Node::text("pool", &parent.pool),
                Node::text("pool_namespace", &parent.namespace),
                Node::text("image", &parent.image),
                Node::text("id", &parent.id),
                Node::text("snapshot", &parent.snap),
                Node::bool("trash", parent.in_trash),
                Node::number("overlap", parent.overlap),
            ],
        ));
    }
    if let Some(striping) = info.striping {
        members.push(Node::number("stripe_unit", striping.unit));
        members.push(Node::number("stripe_count", striping.count));
    }
    Node::object("image", members)
}

/// One end of a migration.
fn end_text(end: &MigrationEnd) -> String {
    let namespace = if end.namespace.is_empty() { String::new() } else { format!("{}/", end.namespace) };
    let id = if end.id.is_empty() { String::new() } else { format!(" ({})", end.id) };
    format!("{}/{namespace}{}{id}", end.pool, end.image)
}

/// `status`.
pub(crate) fn status(status: &ImageStatus) -> String {
    let mut text =
        if status.watchers.is_empty() { "Watchers: none\n".to_owned() } else { "Watchers:\n".to_owned() };
    for w in &status.watchers {
        text.push_str(&format!("\twatcher={} client.{} cookie={}\n", w.address, w.client, w.cookie));
    }
    if let Some(migration) = &status.migration {
        let description = if migration.description.is_empty() {
            String::new()
        } else {
            format!(" ({})", migration.description)
        };
        text.push_str(&format!(
            "Migration:\n\tsource: {}\n\tdestination: {}\n\tstate: {}{description}\n",
            match &migration.source {
                MigrationSource::Image(end) => end_text(end),
                MigrationSource::Spec(spec) => spec.clone(),
            },
            end_text(&migration.target),
            migration.state
        ));
    }
    text
}

/// `status`.
pub(crate) fn status_tree(status: &ImageStatus) -> Node {
    let watchers = status.watchers.iter().map(|w| {
        Node::object(
            "watcher",
            vec![
                Node::text("address", &w.address),
                Node::number("client", w.client),
                Node::number("cookie", w.cookie),
            ],
        )
    });
    let mut members = vec![Node::array("watchers", watchers.collect())];
    members.extend(status.migration.as_ref().map(migration_tree));
    Node::object("status", members)
}

fn migration_tree(migration: &Migration) -> Node {
    let end = |side: &str, end: &MigrationEnd| {
        [
            ("pool_name", &end.pool),
            ("pool_namespace", &end.namespace),
            ("image_name", &end.image),
            ("image_id", &end.id),
        ]
        .map(|(key, value)| Node::text(&format!("{side}_{key}"), value))
    };
    let mut members = match &migration.source {
        MigrationSource::Image(source) => end("source", source).to_vec(),
        MigrationSource::Spec(spec) => vec![Node::text("source_spec", spec)],
    };
    members.extend(end("dest", &migration.target));
    members.push(Node::text("state", &migration.state));
    members.push(Node::text("state_description", &migration.description));
    Node::object("migration", members)
}

/// `du`.
pub(crate) fn usage(usage: &Usage) -> String {
    if !usage.any_image {
        return String::new();
    }
    let mut table =
        Table::new(&[("NAME", Align::Left), ("PROVISIONED", Align::Right), ("USED", Align::Right)]);
    for row in &usage.rows {
        let name = match &row.snap {
            Some((snap, _)) => format!("{}@{snap}", row.image),
            None => row.image.clone(),
        };
        table.row([name, format_size(row.provisioned), format_size(row.used)]);
    }
    if usage.counted > 1 {
        let (provisioned, used) = (format_size(usage.total_provisioned), format_size(usage.total_used));
        table.row(["<TOTAL>".to_owned(), provisioned, used]);
    }
    table.text()
}

/// `du`.
pub(crate) fn usage_tree(usage: &Usage) -> Node {
    let rows = usage.rows.iter().map(|row| {
        let mut members = vec![Node::text("name", &row.image), Node::text("id", &row.id)];
        if let Some((snap, id)) = &row.snap {
            members.push(Node::text("snapshot", snap));
            members.push(Node::number("snapshot_id", *id));
        }
        members.push(Node::number("provisioned_size", row.provisioned));
        members.push(Node::number("used_size", row.used));
        Node::object("image", members)
    });
    let mut members = vec![Node::array("images", rows.collect())];
    if usage.whole_pool {
        members.push(Node::number("total_provisioned_size", usage.total_provisioned));
        members.push(Node::number("total_used_size", usage.total_used));
    }
    Node::object("stats", members)
}

/// `children`.
pub(crate) fn children(children: &[ChildImage]) -> String {
    children.iter().fold(String::new(), |mut text, child| {
        let namespace =
            if child.namespace.is_empty() { String::new() } else { format!("{}/", child.namespace) };
        let trash = if child.in_trash { format!(" (trash {})", child.id) } else { String::new() };
        text.push_str(&format!("{}/{namespace}{}{trash}\n", child.pool, child.image));
        text
    })
}

/// `children`.
pub(crate) fn children_tree(children: &[ChildImage], all: bool) -> Node {
    let items = children.iter().map(|child| {
        let mut members = vec![
            Node::text("pool", &child.pool),
            Node::text("pool_namespace", &child.namespace),
            Node::text("image", &child.image),
        ];
        if all {
            members.push(Node::text("id", &child.id));
            members.push(Node::bool("trash", child.in_trash));
        }
        Node::object("child", members)
    });
    Node::array("children", items.collect())
}

/// `diff`.
pub(crate) fn diff(extents: &[DiffExtent]) -> String {
    if extents.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[("Offset", Align::Left), ("Length", Align::Left), ("Type", Align::Left)]);
    for e in extents {
        table.row([
            e.offset.to_string(),
            e.length.to_string(),
            if e.exists { "data" } else { "zero" }.to_owned(),
        ]);
    }
    table.text()
}

/// `diff`.
pub(crate) fn diff_tree(extents: &[DiffExtent]) -> Node {
    let items = extents.iter().map(|e| {
        Node::object(
            "extent",
            vec![
                Node::number("offset", e.offset),
                Node::number("length", e.length),
                Node::bool_text("exists", e.exists),
            ],
        )
    });
    Node::array("extents", items.collect())
}

/// `lock ls`.
pub(crate) fn locks(locks: &LockList) -> String {
    if locks.holders.is_empty() {
        return String::new();
    }
    let one = locks.holders.len() == 1;
    let mut text = format!(
        "There {} {} {} lock{} on this image.\n",
        if one { "is" } else { "are" },
        locks.holders.len(),
        if locks.shared_tag.is_some() { "shared" } else { "exclusive" },
        if one { "" } else { "s" }
    );
    if let Some(tag) = &locks.shared_tag {
        text.push_str(&format!("Lock tag: {tag}\n"));
    }
    let mut table = Table::new(&[("Locker", Align::Left), ("ID", Align::Left), ("Address", Align::Left)]);
    for holder in &locks.holders {
        table.row([&format!("client.{}", holder.client), &holder.id, &holder.address]);
    }
    text + &table.text()
}

/// `lock ls`.
pub(crate) fn locks_tree(locks: &LockList) -> Node {
    let items = locks.holders.iter().map(|holder| {
        Node::object(
            "lock",
            vec![
                Node::text("id", &holder.id),
                Node::text("locker", format!("client.{}", holder.client)),
                Node::text("address", &holder.address),
            ],
        )
    });
    Node::array("locks", items.collect())
}
