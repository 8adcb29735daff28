//! Mapped images: device list.

use super::super::output::{Align, Node, Table};
use ferry_node::api::DeviceLine;

/// The snapshot, or what stands for none.
fn snap(line: &DeviceLine) -> &str {
    line.snap.as_deref().unwrap_or("-")
}

/// `device list`.
pub(crate) fn devices(lines: &[DeviceLine]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(&["id", "pool", "namespace", "image", "snap", "device"].map(|name| (name, Align::Left)));
    for line in lines {
        table.row([
            line.id.to_string(),
            line.pool.clone(),
            line.namespace.clone(),
            line.image.clone(),
            snap(line).to_owned(),
            line.device.clone(),
        ]);
    }
    table.text()
}

/// `device list`.
pub(crate) fn devices_tree(lines: &[DeviceLine]) -> Node {
    let items = lines.iter().map(|line| {
        Node::object(
            "device",
            vec![
                Node::text("id", line.id.to_string()),
                Node::text("pool", &line.pool),
                Node::text("namespace", &line.namespace),
                Node::text("name", &line.image),
                Node::text("snap", snap(line)),
                Node::text("device", &line.device),
            ],
        )
    });
    Node::array("devices", items.collect())
}
