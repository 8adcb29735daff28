//! A tree of results that can be written as JSON or XML, with the spacing of Ceph's formatters.

use super::Spread;

/// A named value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    name: String,
    value: Value,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Text(String),
    Number(i128),
    Bool(bool),
    Object(Vec<Node>),
    Array(Vec<Node>),
}

impl Node {
    /// A text.
    pub(crate) fn text(name: &str, text: impl Into<String>) -> Self {
        Self { name: name.to_owned(), value: Value::Text(text.into()) }
    }

    /// A whole number.
    pub(crate) fn number(name: &str, number: impl Into<i128>) -> Self {
        Self { name: name.to_owned(), value: Value::Number(number.into()) }
    }

    /// Yes or no, bare.
    pub(crate) fn bool(name: &str, value: bool) -> Self {
        Self { name: name.to_owned(), value: Value::Bool(value) }
    }

    /// Yes or no as a text, which is how `rbd` writes most of them.
    pub(crate) fn bool_text(name: &str, value: bool) -> Self {
        Self::text(name, if value { "true" } else { "false" })
    }

    /// An object.
    pub(crate) fn object(name: &str, members: Vec<Self>) -> Self {
        Self { name: name.to_owned(), value: Value::Object(members) }
    }

    /// A list; the names of its items show only in XML.
    pub(crate) fn array(name: &str, items: Vec<Self>) -> Self {
        Self { name: name.to_owned(), value: Value::Array(items) }
    }

    /// A list of texts.
    pub(crate) fn names(name: &str, item: &str, texts: &[String]) -> Self {
        Self::array(name, texts.iter().map(|t| Self::text(item, t)).collect())
    }

    /// As JSON: one line, or a line for each thing, indented by four.
    pub(crate) fn json(&self, spread: Spread) -> String {
        let mut out = String::new();
        self.value.json(&mut out, spread, 0);
        out.push('\n');
        out
    }

    /// As XML: one line, or a line for each thing, indented by one, and an empty one at the end.
    pub(crate) fn xml(&self, spread: Spread) -> String {
        let mut out = String::new();
        self.write_xml(&mut out, spread, 0);
        out.push('\n');
        out
    }

    fn write_xml(&self, out: &mut String, spread: Spread, depth: usize) {
        let pretty = spread == Spread::Pretty;
        let indent = |out: &mut String| {
            if pretty {
                out.extend(std::iter::repeat_n(' ', depth));
            }
        };
        indent(out);
        out.push_str(&format!("<{}>", self.name));
        match &self.value {
            Value::Text(text) => xml_escape(out, text),
            Value::Number(number) => out.push_str(&number.to_string()),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Object(nodes) | Value::Array(nodes) => {
                if pretty {
                    out.push('\n');
                }
                for node in nodes {
                    node.write_xml(out, spread, depth + 1);
                }
                indent(out);
            }
        }
        out.push_str(&format!("</{}>", self.name));
        if pretty {
            out.push('\n');
        }
    }
}

impl Value {
    fn json(&self, out: &mut String, spread: Spread, depth: usize) {
        match self {
            Self::Text(text) => json_escape(out, text),
            Self::Number(number) => out.push_str(&number.to_string()),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Object(nodes) => json_list(out, ['{', '}'], nodes, spread, depth, |out, node| {
                json_escape(out, &node.name);
                out.push_str(if spread == Spread::Pretty { ": " } else { ":" });
                node.value.json(out, spread, depth + 1);
            }),
            Self::Array(nodes) => json_list(out, ['[', ']'], nodes, spread, depth, |out, node| {
                node.value.json(out, spread, depth + 1);
            }),
        }
    }
}

/// Items between brackets.
fn json_list(
    out: &mut String,
    [open, close]: [char; 2],
    nodes: &[Node],
    spread: Spread,
    depth: usize,
    mut item: impl FnMut(&mut String, &Node),
) {
    let line = |out: &mut String, depth: usize| {
        if spread == Spread::Pretty {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', 4 * depth));
        }
    };
    out.push(open);
    for (i, node) in nodes.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        line(out, depth + 1);
        item(out, node);
    }
    if !nodes.is_empty() {
        line(out, depth);
    }
    out.push(close);
}

/// A JSON string.
fn json_escape(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Text inside an XML element.
fn xml_escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            c if u32::from(c) < 0x20 && !matches!(c, '\n' | '\t') => {
                out.push_str(&format!("&#x{:02x};", u32::from(c)));
            }
            c => out.push(c),
        }
    }
}
