//! Exports: export add, export ls.

use super::super::output::{Align, Node, Table, local};
use ferry_core::size::format_size;
use ferry_node::api::ExportLine;

/// `export add`: how to attach. `export ls`: a table.
pub(crate) fn exports(exports: &[ExportLine], added: bool) -> String {
    if added {
        return exports
            .iter()
            .flat_map(ExportLine::invitation)
            .fold(String::new(), |all, line| all + &line + "\n");
    }
    if exports.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("IMAGE", Align::Left),
        ("SIZE", Align::Right),
        ("ACCESS", Align::Left),
        ("CLIENTS", Align::Left),
    ]);
    for export in exports {
        let access = if export.is_read_only { "read-only" } else { "read-write" };
        let clients: Vec<&str> = export.clients.iter().map(|c| c.peer.as_str()).collect();
        let size = format_size(export.size);
        let shown = export.source.as_ref().unwrap_or(&export.image).clone();
        table.row([export.name.clone(), shown, size, access.to_owned(), clients.join(", ")]);
    }
    table.text()
}

/// `export add`, `export ls`.
pub(crate) fn exports_tree(exports: &[ExportLine]) -> Node {
    let items = exports.iter().map(|export| {
        let clients = export.clients.iter().map(|client| {
            Node::object(
                "client",
                vec![
                    Node::text("peer", &client.peer),
                    Node::text("since", local(client.since)),
                    Node::bool("encrypted", client.is_encrypted),
                ],
            )
        });
        let mut parts = vec![Node::text("name", &export.name), Node::text("image", &export.image)];
        parts.extend(export.source.as_ref().map(|source| Node::text("source", source)));
        parts.extend([
            Node::number("size", export.size),
            Node::bool("read_only", export.is_read_only),
            Node::names("uris", "uri", &export.uris),
            Node::array("clients", clients.collect()),
        ]);
        Node::object("export", parts)
    });
    Node::array("exports", items.collect())
}
