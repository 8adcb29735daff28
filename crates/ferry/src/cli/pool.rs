//! Verbs on pools and stores: pool, check.

use std::path::PathBuf;

use ferry_node::api::{Command, PoolAccess, PoolCommand};

use super::Plan;
use super::args::{Context, Flag, Kind, Parsed, Usage, Verb, Word};
use super::spec::{self, FORMAT, POOL_ONLY, POOL_SPEC, POOL_SPEC_WORD, POOL_WORD};

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "check",
        alias: None,
        about: "Read every byte of a store and compare checksums.",
        words: &[Word::new("pool-name", "a pool of the store; the default store where none is named")],
        flags: &[FORMAT, spec::NO_PROGRESS],
        remark: "",
        convert: |p, _| Plan::run(Command::Check { pool: p.next_word() }),
    },
    Verb {
        name: "pool create",
        alias: None,
        about: "Make a pool.",
        words: &[POOL_WORD],
        flags: &[&[
            Flag::new("path", Kind::Text, "directory of the store the pool lives in"),
            Flag::new(
                "rados",
                Kind::Switch,
                "use a pool of a Ceph cluster: that of -c, or /etc/ceph/ceph.conf",
            ),
            Flag::new("rados-pool", Kind::Text, "what the cluster calls the pool [default: as here]"),
        ]],
        remark: "",
        convert: create,
    },
    Verb {
        name: "pool init",
        alias: None,
        about: "Initialize pool for use by RBD.",
        words: &[POOL_WORD],
        flags: &[
            POOL_ONLY,
            &[Flag::new(
                "force",
                Kind::Switch,
                "force initialize pool for RBD use if registered by another application",
            )],
        ],
        remark: "",
        convert: |p, cx| Plan::run(Command::Pool(PoolCommand::Init { name: spec::pool_name(p, cx) })),
    },
    Verb {
        name: "pool list",
        alias: Some("pool ls"),
        about: "List pools and their stores.",
        words: &[],
        flags: &[FORMAT],
        remark: "",
        convert: |_, _| Plan::run(Command::Pool(PoolCommand::List)),
    },
    Verb {
        name: "pool remove",
        alias: Some("pool rm"),
        about: "Remove a pool that holds no image.",
        words: &[POOL_WORD],
        flags: &[],
        remark: "",
        convert: |p, _| {
            let name = p.required_word("pool name was not specified")?;
            Plan::run(Command::Pool(PoolCommand::Remove { name }))
        },
    },
    Verb {
        name: "pool set",
        alias: None,
        about: "Allow or forbid writes to a pool.",
        words: &[POOL_WORD, Word::new("property", "read-only"), Word::new("value", "on or off")],
        flags: &[],
        remark: "",
        convert: set,
    },
    Verb {
        name: "pool stats",
        alias: None,
        about: "Display pool statistics.",
        words: &[POOL_SPEC_WORD],
        flags: &[POOL_SPEC, FORMAT],
        remark: "Note: legacy v1 images are not included in stats\n",
        convert: |p, cx| Plan::run(Command::Pool(PoolCommand::Stats { pool: spec::pool(p, cx)? })),
    },
    Verb {
        name: "version",
        alias: None,
        about: "Say which program this is.",
        words: &[],
        flags: &[],
        remark: "",
        convert: |_, _| Ok(Plan::Version),
    },
];

fn create(p: &mut Parsed, _: &Context<'_>) -> Result<Plan, Usage> {
    let name = p.required_word("pool name was not specified")?;
    if name.contains(['/', '@']) {
        return Err(Usage::invalid(format!("invalid pool name '{name}'")));
    }
    if p.is_set("rados") {
        if p.is_set("path") {
            return Err(Usage::invalid("a pool lies in a directory or in a cluster, not in both"));
        }
        let rados_pool = p.text("rados-pool").unwrap_or_else(|| name.clone());
        return Plan::run(Command::Pool(PoolCommand::Take { name, rados_pool }));
    }
    if p.is_set("rados-pool") {
        return Err(Usage::invalid("--rados-pool goes with --rados"));
    }
    let path = p.text("path").map(PathBuf::from);
    // What is kept must not depend on where the command was run.
    let path = path.map(std::path::absolute).transpose().map_err(|e| Usage::invalid(e.to_string()))?;
    Plan::run(Command::Pool(PoolCommand::Create { name, path }))
}

fn set(p: &mut Parsed, _: &Context<'_>) -> Result<Plan, Usage> {
    let name = p.required_word("pool name was not specified")?;
    let property = p.required_word("property was not specified")?;
    if property != "read-only" {
        return Err(Usage::invalid(format!("pools have no property '{property}', only read-only")));
    }
    let access = match p.next_word().as_deref() {
        Some("on" | "true" | "1") => PoolAccess::ReadOnly,
        Some("off" | "false" | "0") => PoolAccess::ReadWrite,
        Some(_) | None => return Err(Usage::invalid("read-only is on or off")),
    };
    Plan::run(Command::Pool(PoolCommand::Set { name, access }))
}
