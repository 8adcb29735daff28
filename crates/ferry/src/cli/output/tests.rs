use jiff::tz::TimeZone;

use super::time::at;
use super::{Align, Node, Spread, Table};

fn tree() -> Node {
    Node::object(
        "image",
        vec![
            Node::text("name", "a\"b<c"),
            Node::number("size", 10_u64 << 30),
            Node::array("features", vec![Node::text("feature", "layering")]),
            Node::array("flags", vec![]),
            Node::bool_text("protected", false),
            Node::bool("trash", true),
        ],
    )
}

#[test]
fn compact_json_is_one_line_without_blanks() {
    assert_eq!(
        tree().json(Spread::Compact),
        r#"{"name":"a\"b<c","size":10737418240,"features":["layering"],"flags":[],"protected":"false","trash":true}"#.to_owned() + "\n"
    );
}

#[test]
fn pretty_json_is_indented_by_four() {
    assert_eq!(
        tree().json(Spread::Pretty),
        "{\n    \"name\": \"a\\\"b<c\",\n    \"size\": 10737418240,\n    \"features\": [\n        \"layering\"\n    ],\n    \
         \"flags\": [],\n    \"protected\": \"false\",\n    \"trash\": true\n}\n"
    );
}

#[test]
fn xml_names_the_items_of_lists() {
    assert_eq!(
        tree().xml(Spread::Compact),
        "<image><name>a&quot;b&lt;c</name><size>10737418240</size><features><feature>layering</feature></features>\
         <flags></flags><protected>false</protected><trash>true</trash></image>\n"
    );
    let small = Node::names("images", "name", &["a".to_owned()]);
    assert_eq!(small.xml(Spread::Pretty), "<images>\n <name>a</name>\n</images>\n\n");
}

#[test]
fn tables_pad_every_cell() {
    let mut table =
        Table::new(&[("NAME", Align::Left), ("PROVISIONED", Align::Right), ("USED", Align::Right)]);
    table.row(["i2", "9 MiB", "5 MiB"]);
    assert_eq!(table.text(), "NAME  PROVISIONED  USED \ni2          9 MiB  5 MiB\n");
}

#[test]
fn times_look_as_ctime_prints_them() {
    assert_eq!(at(1_795_293_447, &TimeZone::UTC), "Sat Nov 21 20:37:27 2026");
    assert_eq!(at(1_793_491_200, &TimeZone::UTC), "Sun Nov  1 00:00:00 2026");
    assert_eq!(at(0, &TimeZone::UTC), "");
}
