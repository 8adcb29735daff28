//! Verbs on clones: clone, children, flatten.

use ferry_node::api::{CloneCommand, Command, SnapBy, TrashScope};
use ferry_node::spec::Validation;

use super::Plan;
use super::args::{Context, Flag, Kind, Parsed, Usage, Verb};
use super::image::{FEATURES_REMARK, LAYOUT, layout};
use super::spec::{
    self, FORMAT, IMAGE, IMAGE_OR_SNAP_WORD, IMAGE_WORD, NO_PROGRESS, SNAP, SOURCE_IMAGE, SOURCE_SNAP,
    SOURCE_SNAP_WORD, TARGET_IMAGE, TARGET_IMAGE_WORD,
};

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "children",
        alias: None,
        about: "Display children of an image or its snapshot.",
        words: &[IMAGE_OR_SNAP_WORD],
        flags: &[
            IMAGE,
            SNAP,
            &[
                Flag::new("snap-id", Kind::Number, "snapshot id"),
                Flag::new("all", Kind::Switch, "list all children (include trash)").short('a'),
                Flag::new("descendants", Kind::Switch, "include all descendants"),
            ],
            FORMAT,
        ],
        remark: "",
        convert: children,
    },
    Verb {
        name: "clone",
        alias: None,
        about: "Clone a snapshot into a CoW child image.",
        words: &[SOURCE_SNAP_WORD, TARGET_IMAGE_WORD],
        flags: &[SOURCE_IMAGE, SOURCE_SNAP, TARGET_IMAGE, LAYOUT],
        remark: FEATURES_REMARK,
        convert: clone,
    },
    Verb {
        name: "flatten",
        alias: None,
        about: "Fill clone with parent data (make it independent).",
        words: &[IMAGE_WORD],
        flags: &[IMAGE, NO_PROGRESS],
        remark: "",
        convert: |p, cx| Plan::run(Command::Clone(CloneCommand::Flatten { image: spec::image(p, cx)? })),
    },
];

fn clone(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let (parent, snap) = spec::snap(p, cx, Validation::Relaxed)?;
    let target = spec::target(p, cx)?;
    Plan::run(Command::Clone(CloneCommand::Create { parent, snap, target, layout: layout(p)? }))
}

fn children(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let id = p.number("snap-id");
    let spec = spec::image_or_snap(p, cx)?;
    let snap = match (id, spec.snap) {
        (Some(_), Some(_)) => {
            return Err(Usage::invalid("trying to access snapshot using both name and id."));
        }
        (Some(id), None) => Some(SnapBy::Id(id)),
        (None, name) => name.map(SnapBy::Name),
    };
    Plan::run(Command::Clone(CloneCommand::Children {
        image: spec.image,
        snap,
        scope: if p.is_set("all") { TrashScope::All } else { TrashScope::User },
        descendants: p.is_set("descendants"),
    }))
}
