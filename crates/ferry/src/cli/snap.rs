//! Verbs on snapshots.

use ferry_node::api::{Command, SnapBy, SnapCommand, SnapScope};
use ferry_node::spec::{SnapPresence, Validation, Wanted};

use super::Plan;
use super::args::{Context, Flag, Kind, Parsed, Usage, Verb};
use super::spec::{
    self, FORMAT, IMAGE, IMAGE_ID, IMAGE_WORD, NO_PROGRESS, SNAP, SNAP_WORD, SOURCE_IMAGE, SOURCE_SNAP,
    SOURCE_SNAP_WORD, TARGET_IMAGE, TARGET_SNAP, TARGET_SNAP_WORD,
};

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "snap create",
        alias: Some("snap add"),
        about: "Create a snapshot.",
        words: &[SNAP_WORD],
        flags: &[
            IMAGE,
            SNAP,
            &[
                Flag::new("skip-quiesce", Kind::Switch, "do not run quiesce hooks"),
                Flag::new("ignore-quiesce-error", Kind::Switch, "ignore quiesce hook error"),
            ],
            NO_PROGRESS,
        ],
        remark: "",
        convert: |p, cx| {
            let (image, snap) = spec::snap(p, cx, Validation::Snap)?;
            Plan::run(Command::Snap(SnapCommand::Create { image, snap }))
        },
    },
    Verb {
        name: "snap limit clear",
        alias: None,
        about: "Remove snapshot limit.",
        words: &[IMAGE_WORD],
        flags: &[IMAGE],
        remark: "",
        convert: |p, cx| {
            Plan::run(Command::Snap(SnapCommand::Limit { image: spec::image(p, cx)?, limit: None }))
        },
    },
    Verb {
        name: "snap limit set",
        alias: None,
        about: "Limit the number of snapshots.",
        words: &[IMAGE_WORD],
        flags: &[IMAGE, &[Flag::new("limit", Kind::Number, "maximum allowed snapshot count")]],
        remark: "",
        convert: limit_set,
    },
    Verb {
        name: "snap list",
        alias: Some("snap ls"),
        about: "Dump list of image snapshots.",
        words: &[IMAGE_WORD],
        flags: &[
            IMAGE,
            IMAGE_ID,
            FORMAT,
            &[Flag::new("all", Kind::Switch, "list snapshots from all namespaces").short('a')],
        ],
        remark: "",
        convert: |p, cx| {
            let scope = if p.is_set("all") { SnapScope::All } else { SnapScope::User };
            let (image, _) = spec::image_ref(p, cx, SnapPresence::None)?;
            Plan::run(Command::Snap(SnapCommand::List { image, scope }))
        },
    },
    Verb {
        name: "snap protect",
        alias: None,
        about: "Prevent a snapshot from being deleted.",
        words: &[SNAP_WORD],
        flags: &[IMAGE, SNAP],
        remark: "",
        convert: |p, cx| {
            let (image, snap) = spec::snap(p, cx, Validation::Relaxed)?;
            Plan::run(Command::Snap(SnapCommand::Protect { image, snap }))
        },
    },
    Verb {
        name: "snap purge",
        alias: None,
        about: "Delete all unprotected snapshots.",
        words: &[IMAGE_WORD],
        flags: &[IMAGE, IMAGE_ID, NO_PROGRESS],
        remark: "",
        convert: |p, cx| {
            let (image, _) = spec::image_ref(p, cx, SnapPresence::None)?;
            Plan::run(Command::Snap(SnapCommand::Purge { image }))
        },
    },
    Verb {
        name: "snap remove",
        alias: Some("snap rm"),
        about: "Delete a snapshot.",
        words: &[SNAP_WORD],
        flags: &[
            IMAGE,
            SNAP,
            IMAGE_ID,
            &[Flag::new("snap-id", Kind::Number, "snapshot id")],
            NO_PROGRESS,
            &[Flag::new("force", Kind::Switch, "flatten children and unprotect snapshot if needed.")],
        ],
        remark: "",
        convert: remove,
    },
    Verb {
        name: "snap rename",
        alias: None,
        about: "Rename a snapshot.",
        words: &[SOURCE_SNAP_WORD, TARGET_SNAP_WORD],
        flags: &[SOURCE_IMAGE, SOURCE_SNAP, TARGET_IMAGE, TARGET_SNAP],
        remark: "",
        convert: rename,
    },
    Verb {
        name: "snap rollback",
        alias: Some("snap revert"),
        about: "Rollback image to snapshot.",
        words: &[SNAP_WORD],
        flags: &[IMAGE, SNAP, NO_PROGRESS],
        remark: "",
        convert: |p, cx| {
            let (image, snap) = spec::snap(p, cx, Validation::Relaxed)?;
            Plan::run(Command::Snap(SnapCommand::Rollback { image, snap }))
        },
    },
    Verb {
        name: "snap unprotect",
        alias: None,
        about: "Allow a snapshot to be deleted.",
        words: &[SNAP_WORD],
        flags: &[IMAGE, SNAP, IMAGE_ID],
        remark: "",
        convert: |p, cx| {
            let (image, snap) = spec::image_ref(p, cx, SnapPresence::Required)?;
            let snap = snap.unwrap_or_default();
            Plan::run(Command::Snap(SnapCommand::Unprotect { image, snap }))
        },
    },
];

fn limit_set(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let image = spec::image(p, cx)?;
    let limit = p
        .number("limit")
        // `rbd` gives this one as ERANGE.
        .ok_or_else(|| Usage { exit: 34, text: "must specify --limit <num>".to_owned() })?;
    Plan::run(Command::Snap(SnapCommand::Limit { image, limit: Some(limit) }))
}

fn remove(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let id = p.number("snap-id");
    let presence = if id.is_some() { SnapPresence::Permitted } else { SnapPresence::Required };
    let (image, name) = spec::image_ref(p, cx, presence)?;
    let snap = match (id, name) {
        (Some(_), Some(_)) => {
            return Err(Usage::invalid("trying to access snapshot using both name and id."));
        }
        (Some(id), None) => SnapBy::Id(id),
        (None, name) => SnapBy::Name(name.unwrap_or_default()),
    };
    Plan::run(Command::Snap(SnapCommand::Remove { image, snap, force: p.is_set("force") }))
}

fn rename(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let (image, source) = spec::snap(p, cx, Validation::Relaxed)?;
    let mut wanted = Wanted::target().read(Validation::Snap);
    wanted.snap = SnapPresence::Required;
    let target = spec::resolve(p, cx, wanted)?;
    if image.pool != target.image.pool {
        return Err(Usage::invalid("source and destination pool must be the same"));
    }
    if image.namespace != target.image.namespace {
        return Err(Usage::invalid("source and destination namespace must be the same"));
    }
    if image.image != target.image.image {
        return Err(Usage::invalid("source and destination image name must be the same"));
    }
    let target = target.snap.unwrap_or_default();
    Plan::run(Command::Snap(SnapCommand::Rename { image, source, target }))
}
