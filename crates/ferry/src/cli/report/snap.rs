//! Snapshots and the trash: snap ls, trash ls.

use ferry_core::size::format_size;
use ferry_node::api::{Detail, ListedSnap, SnapNamespace, TrashEntry};

use super::super::output::{Align, Node, Table, local};
use super::{parent_text, parent_tree};

/// The word for a namespace.
fn namespace_word(namespace: &SnapNamespace) -> &'static str {
    match namespace {
        SnapNamespace::User => "user",
        SnapNamespace::Group => "group",
        SnapNamespace::Trash { .. } => "trash",
        SnapNamespace::Mirror => "mirror",
    }
}

/// `snap ls`.
pub(crate) fn snaps(snaps: &[ListedSnap], all: bool) -> String {
    if snaps.is_empty() {
        return String::new();
    }
    let mut columns = vec![
        ("SNAPID", Align::Right),
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("PROTECTED", Align::Left),
        ("TIMESTAMP", Align::Right),
    ];
    if all {
        columns.push(("NAMESPACE", Align::Left));
    }
    let mut table = Table::new(&columns);
    for snap in snaps {
        let mut row = vec![
            snap.id.to_string(),
            snap.name.clone(),
            format_size(snap.size),
            if snap.protected { "yes" } else { "" }.to_owned(),
            local(snap.created),
        ];
        if all {
            let word = namespace_word(&snap.namespace);
            row.push(match &snap.namespace {
                SnapNamespace::Trash { original_name } => format!("{word} ({original_name})"),
                SnapNamespace::User | SnapNamespace::Group | SnapNamespace::Mirror => word.to_owned(),
            });
        }
        table.row(row);
    }
    table.text()
}

/// `snap ls`.
pub(crate) fn snaps_tree(snaps: &[ListedSnap], all: bool) -> Node {
    let items = snaps.iter().map(|snap| {
        let mut members = vec![
            Node::number("id", snap.id),
            Node::text("name", &snap.name),
            Node::number("size", snap.size),
            Node::bool_text("protected", snap.protected),
            Node::text("timestamp", local(snap.created)),
        ];
        if all {
            let mut inner = vec![Node::text("type", namespace_word(&snap.namespace))];
            if let SnapNamespace::Trash { original_name } = &snap.namespace {
                inner.push(Node::text("original_name", original_name));
            }
            members.push(Node::object("namespace", inner));
        }
        Node::object("snapshot", members)
    });
    Node::array("snapshots", items.collect())
}

/// Whether an entry may be removed yet.
fn deferment(entry: &TrashEntry, now: u64) -> String {
    let word = if now < entry.deferred_until { "protected until" } else { "expired at" };
    format!("{word} {}", local(entry.deferred_until))
}

/// `trash ls`.
pub(crate) fn trash(entries: &[TrashEntry], detail: Detail, now: u64) -> String {
    match detail {
        Detail::Names => entries.iter().fold(String::new(), |t, e| t + &format!("{} {}\n", e.id, e.name)),
        Detail::Long if entries.is_empty() => String::new(),
        Detail::Long => {
            let columns =
                ["ID", "NAME", "SOURCE", "DELETED_AT", "STATUS", "PARENT"].map(|h| (h, Align::Left));
            let mut table = Table::new(&columns);
            for entry in entries {
                table.row([
                    entry.id.clone(),
                    entry.name.clone(),
                    entry.source.clone(),
                    local(entry.deleted_at),
                    deferment(entry, now),
                    entry.parent.as_ref().map(parent_text).unwrap_or_default(),
                ]);
            }
            table.text()
        }
    }
}

/// `trash ls`.
pub(crate) fn trash_tree(entries: &[TrashEntry], detail: Detail, now: u64) -> Node {
    let items = entries.iter().map(|entry| {
        let mut members = vec![Node::text("id", &entry.id), Node::text("name", &entry.name)];
        if detail == Detail::Long {
            members.extend([
                Node::text("source", &entry.source),
                Node::text("deleted_at", local(entry.deleted_at)),
                Node::text("status", deferment(entry, now)),
            ]);
            members.extend(entry.parent.as_ref().map(parent_tree));
        }
        Node::object("image", members)
    });
    Node::array("trash", items.collect())
}
