//! Verbs on namespaces.

use ferry_node::api::{Command, NamespaceCommand};
use ferry_node::spec::PoolSpec;

use super::Plan;
use super::args::{Context, Parsed, Usage, Verb};
use super::spec::{self, FORMAT, POOL_ONLY, POOL_SPEC, POOL_SPEC_WORD, POOL_WORD};

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "namespace create",
        alias: None,
        about: "Create an RBD image namespace.",
        words: &[POOL_SPEC_WORD],
        flags: &[POOL_SPEC],
        remark: "",
        convert: |p, cx| Plan::run(Command::Namespace(NamespaceCommand::Create(named(p, cx)?))),
    },
    Verb {
        name: "namespace list",
        alias: Some("namespace ls"),
        about: "List RBD image namespaces.",
        words: &[POOL_WORD],
        flags: &[POOL_ONLY, FORMAT],
        remark: "",
        convert: |p, cx| {
            let pool = spec::pool_name(p, cx);
            Plan::run(Command::Namespace(NamespaceCommand::List { pool }))
        },
    },
    Verb {
        name: "namespace remove",
        alias: Some("namespace rm"),
        about: "Remove an RBD image namespace.",
        words: &[POOL_SPEC_WORD],
        flags: &[POOL_SPEC],
        remark: "",
        convert: |p, cx| Plan::run(Command::Namespace(NamespaceCommand::Remove(named(p, cx)?))),
    },
];

/// A pool with a namespace that is not the default one.
fn named(p: &mut Parsed, cx: &Context<'_>) -> Result<PoolSpec, Usage> {
    let pool = spec::pool(p, cx)?;
    if pool.namespace.is_empty() {
        return Err(Usage::invalid("namespace name was not specified"));
    }
    Ok(pool)
}
