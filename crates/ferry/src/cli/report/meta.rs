//! Keys and values: image-meta ls, config ls.

use ferry_node::api::{Setting, SettingsOwner};

use super::super::output::{Align, Node, Table};

/// `image-meta ls`.
pub(crate) fn meta(pairs: &[(String, String)]) -> String {
    let one = pairs.len() == 1;
    let mut text = format!(
        "There {} {} {} on this image{}\n",
        if one { "is" } else { "are" },
        pairs.len(),
        if one { "metadatum" } else { "metadata" },
        if pairs.is_empty() { "." } else { ":" }
    );
    if !pairs.is_empty() {
        let mut table = Table::new(&[("Key", Align::Left), ("Value", Align::Left)]);
        for (key, value) in pairs {
            table.row([key, value]);
        }
        text.push('\n');
        text.push_str(&table.text());
    }
    text
}

/// `image-meta ls`.
pub(crate) fn meta_tree(pairs: &[(String, String)]) -> Node {
    Node::object("metadatas", pairs.iter().map(|(key, value)| Node::text(key, value)).collect())
}

/// Heading of the third column.
fn third_column(owner: SettingsOwner) -> &'static str {
    match owner {
        SettingsOwner::Global => "Section",
        SettingsOwner::Pool | SettingsOwner::Image => "Source",
    }
}

/// `config … ls`.
pub(crate) fn settings(settings: &[Setting], owner: SettingsOwner) -> String {
    if owner == SettingsOwner::Global && settings.is_empty() {
        return String::new();
    }
    let columns = ["Name", "Value", third_column(owner)].map(|heading| (heading, Align::Left));
    let mut table = Table::new(&columns);
    for s in settings {
        table.row([&s.name, &s.value, &s.source]);
    }
    match owner {
        SettingsOwner::Global | SettingsOwner::Pool => table.text(),
        SettingsOwner::Image => format!("There are {} values:\n{}", settings.len(), table.text()),
    }
}

/// `config … ls`.
pub(crate) fn settings_tree(settings: &[Setting], owner: SettingsOwner) -> Node {
    let third = third_column(owner).to_lowercase();
    let items = settings.iter().map(|s| {
        Node::object(
            "option",
            vec![Node::text("name", &s.name), Node::text("value", &s.value), Node::text(&third, &s.source)],
        )
    });
    Node::array("config", items.collect())
}
