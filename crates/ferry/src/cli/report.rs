//! What each result looks like: a text for people and a tree for programs, side by side.

mod device;
mod export;
mod image;
mod job;
mod meta;
mod pool;
mod snap;

pub(crate) use device::{devices, devices_tree};
pub(crate) use export::{exports, exports_tree};
pub(crate) use image::{
    children, children_tree, diff, diff_tree, images, images_tree, info, info_tree, locks, locks_tree,
    status, status_tree, usage, usage_tree,
};
pub(crate) use job::{jobs, jobs_tree};
pub(crate) use meta::{meta, meta_tree, settings, settings_tree};
pub(crate) use pool::{
    bench, bench_row, check, check_tree, namespaces, namespaces_tree, pools, pools_tree, statistics,
    statistics_tree,
};
pub(crate) use snap::{snaps, snaps_tree, trash, trash_tree};

use ferry_node::api::ParentInfo;

use super::output::Node;

/// One a line.
pub(crate) fn lines(texts: &[String]) -> String {
    texts.iter().fold(String::new(), |all, text| all + text + "\n")
}

/// `pool/[namespace/]image@snap`.
fn parent_text(parent: &ParentInfo) -> String {
    let namespace =
        if parent.namespace.is_empty() { String::new() } else { format!("{}/", parent.namespace) };
    format!("{}/{namespace}{}@{}", parent.pool, parent.image, parent.snap)
}

/// A parent in lists.
fn parent_tree(parent: &ParentInfo) -> Node {
    Node::object(
        "parent",
        vec![
            Node::text("pool", &parent.pool),
            Node::text("pool_namespace", &parent.namespace),
            Node::text("image", &parent.image),
            Node::text("snapshot", &parent.snap),
        ],
    )
}

#[cfg(test)]
mod tests;
