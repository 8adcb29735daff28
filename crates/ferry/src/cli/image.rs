//! Verbs on images as wholes: create, ls, info, status, rename, resize, rm, cp, deep cp, du, sparsify.

use ferry_node::api::{Command, Detail, ImageCommand, LayoutOptions, UsageCommand};
use ferry_node::spec::{SnapPresence, Wanted};

use super::Plan;
use super::args::{Context, Flag, Kind, Parsed, Usage, Verb, object_order};
use super::spec::{self, FORMAT, IMAGE, IMAGE_ID, NO_PROGRESS, SNAP, SOURCE_IMAGE, SOURCE_SNAP, SPARSE_SIZE};
use super::spec::{
    IMAGE_OR_SNAP_WORD, IMAGE_WORD, POOL_SPEC, POOL_SPEC_WORD, SOURCE_IMAGE_OR_SNAP_WORD, SOURCE_IMAGE_WORD,
    TARGET_IMAGE, TARGET_IMAGE_WORD,
};

/// Image format, where one can be chosen.
pub(crate) const IMAGE_FORMAT: &[Flag] = &[
    Flag::new("image-format", Kind::ImageFormat, "image format [default: 2]"),
    Flag::new("new-format", Kind::Switch, ""),
];

/// How an image is laid out.
pub(crate) const LAYOUT: &[Flag] = &[
    Flag::new("order", Kind::Order, ""),
    Flag::new("object-size", Kind::ObjectSize, "object size in B/K/M [4K <= object size <= 32M]"),
    Flag::new(
        "image-feature",
        Kind::Features,
        "image features\n[layering(+), exclusive-lock(+*), object-map(+*), deep-flatten(+-), journaling(*)]",
    ),
    Flag::new("image-shared", Kind::Switch, "shared image"),
    Flag::new("stripe-unit", Kind::Size, "stripe unit in B/K/M"),
    Flag::new("stripe-count", Kind::Number, "stripe count"),
    Flag::new("data-pool", Kind::Text, "data pool"),
    Flag::new("mirror-image-mode", Kind::Text, "mirror image mode [journal or snapshot]"),
    Flag::new("journal-splay-width", Kind::Number, "number of active journal objects"),
    Flag::new("journal-object-size", Kind::Size, "size of journal objects [4K <= size <= 64M]"),
    Flag::new("journal-pool", Kind::Text, "pool for journal objects"),
];

/// What the help of verbs that make an image says about features.
pub(crate) const FEATURES_REMARK: &str = "\
Image Features:
  (*) supports enabling/disabling on existing images
  (-) supports disabling-only on existing images
  (+) enabled by default for new images if features not specified

";

/// `--size`.
const SIZE: &[Flag] =
    &[Flag::new("size", Kind::ImageSize, "image size (in M/G/T) [default: M]").short('s').required()];

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "copy",
        alias: Some("cp"),
        about: "Copy src image to dest.",
        words: &[SOURCE_IMAGE_OR_SNAP_WORD, TARGET_IMAGE_WORD],
        flags: &[SOURCE_IMAGE, SOURCE_SNAP, TARGET_IMAGE, LAYOUT, SPARSE_SIZE, NO_PROGRESS],
        remark: FEATURES_REMARK,
        convert: copy,
    },
    Verb {
        name: "create",
        alias: None,
        about: "Create an empty image.",
        words: &[IMAGE_WORD],
        flags: &[
            IMAGE,
            IMAGE_FORMAT,
            LAYOUT,
            &[Flag::new("thick-provision", Kind::Switch, "fully allocate storage and zero image")],
            SIZE,
            NO_PROGRESS,
        ],
        remark: FEATURES_REMARK,
        convert: create,
    },
    Verb {
        name: "deep copy",
        alias: Some("deep cp"),
        about: "Deep copy src image to dest.",
        words: &[SOURCE_IMAGE_OR_SNAP_WORD, TARGET_IMAGE_WORD],
        flags: &[
            SOURCE_IMAGE,
            SOURCE_SNAP,
            TARGET_IMAGE,
            LAYOUT,
            &[Flag::new("flatten", Kind::Switch, "fill clone with parent data (make it independent)")],
            NO_PROGRESS,
        ],
        remark: FEATURES_REMARK,
        convert: deep_copy,
    },
    Verb {
        name: "disk-usage",
        alias: Some("du"),
        about: "Show disk usage stats for pool, image or snapshot.",
        words: &[IMAGE_OR_SNAP_WORD],
        flags: &[
            IMAGE,
            SNAP,
            FORMAT,
            &[
                Flag::new("from-snap", Kind::Text, "snapshot starting point"),
                Flag::new("exact", Kind::Switch, "compute exact disk usage (slow)"),
                Flag::new("merge-snapshots", Kind::Switch, "merge snapshot sizes with its image"),
            ],
        ],
        remark: "",
        convert: usage,
    },
    Verb {
        name: "info",
        alias: None,
        about: "Show information about image size, striping, etc.",
        words: &[IMAGE_OR_SNAP_WORD],
        flags: &[IMAGE, SNAP, IMAGE_ID, FORMAT],
        remark: "",
        convert: info,
    },
    Verb {
        name: "list",
        alias: Some("ls"),
        about: "List rbd images.",
        words: &[POOL_SPEC_WORD],
        flags: &[&[Flag::new("long", Kind::Switch, "long listing format").short('l')], POOL_SPEC, FORMAT],
        remark: "",
        convert: list,
    },
    Verb {
        name: "remove",
        alias: Some("rm"),
        about: "Delete an image.",
        words: &[IMAGE_WORD],
        flags: &[IMAGE, NO_PROGRESS],
        remark: "",
        convert: |p, cx| Plan::run(Command::Image(ImageCommand::Remove { image: spec::image(p, cx)? })),
    },
    Verb {
        name: "rename",
        alias: Some("mv"),
        about: "Rename image within pool.",
        words: &[SOURCE_IMAGE_WORD, TARGET_IMAGE_WORD],
        flags: &[SOURCE_IMAGE, TARGET_IMAGE],
        remark: "",
        convert: rename,
    },
    Verb {
        name: "resize",
        alias: None,
        about: "Resize (expand or shrink) image.",
        words: &[IMAGE_WORD],
        flags: &[IMAGE, SIZE, &[Flag::new("allow-shrink", Kind::Switch, "permit shrinking")], NO_PROGRESS],
        remark: "",
        convert: resize,
    },
    Verb {
        name: "sparsify",
        alias: None,
        about: "Reclaim space for zeroed image extents.",
        words: &[IMAGE_WORD],
        flags: &[IMAGE, NO_PROGRESS, SPARSE_SIZE],
        remark: "",
        convert: |p, cx| {
            let sparse_size = p.size("sparse-size", 1);
            Plan::run(Command::Image(ImageCommand::Sparsify { image: spec::image(p, cx)?, sparse_size }))
        },
    },
    Verb {
        name: "status",
        alias: None,
        about: "Show the status of this image.",
        words: &[IMAGE_WORD],
        flags: &[IMAGE, FORMAT],
        remark: "",
        convert: |p, cx| Plan::run(Command::Image(ImageCommand::Status { image: spec::image(p, cx)? })),
    },
    Verb {
        name: "watch",
        alias: None,
        about: "Watch events on image.",
        words: &[IMAGE_WORD],
        flags: &[IMAGE],
        remark: "",
        convert: |p, cx| Plan::run(Command::Watch { image: spec::image(p, cx)? }),
    },
];

/// Layout options as typed.
///
/// # Errors
/// Image format 1, journals and mirroring are refused: ferry makes format 2 without them.
pub(crate) fn layout(p: &Parsed) -> Result<LayoutOptions, Usage> {
    if p.number("image-format").is_some_and(|f| f != 2) {
        return Err(Usage::invalid("image format must be 2: format 1 is not supported"));
    }
    for name in ["mirror-image-mode", "journal-splay-width", "journal-object-size", "journal-pool"] {
        if p.is_set(name) {
            return Err(Usage::invalid(format!(
                "--{name} is not supported: images have no journal or mirror"
            )));
        }
    }
    let order = p.number("order").and_then(|o| u8::try_from(o).ok());
    Ok(LayoutOptions {
        order: order.or_else(|| p.size("object-size", 1).and_then(object_order)),
        features: p.features("image-feature"),
        shared: p.is_set("image-shared"),
        stripe_unit: p.size("stripe-unit", 1),
        stripe_count: p.number("stripe-count"),
        data_pool: p.text("data-pool"),
    })
}

/// `--size`, which must be given.
fn size(p: &Parsed) -> Result<u64, Usage> {
    p.size("size", 1 << 20).ok_or_else(|| Usage::invalid("must specify --size <M/G/T>"))
}

fn create(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let image = spec::new_image(p, cx)?;
    let layout = layout(p)?;
    let thick = p.is_set("thick-provision");
    Plan::run(Command::Image(ImageCommand::Create { image, size: size(p)?, layout, thick }))
}

fn list(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let detail = if p.is_set("long") { Detail::Long } else { Detail::Names };
    Plan::run(Command::Image(ImageCommand::List { pool: spec::pool(p, cx)?, detail }))
}

fn info(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let (image, snap) = spec::image_ref(p, cx, SnapPresence::Permitted)?;
    Plan::run(Command::Image(ImageCommand::Info { image, snap }))
}

fn rename(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let source = spec::image(p, cx)?;
    // A target without a pool is meant in the source's pool and namespace.
    let names_pool =
        p.is_set("dest-pool") || p.value("dest").or(p.peek_word()).is_some_and(|t| t.contains('/'));
    let mut target = spec::target(p, cx)?;
    if !names_pool {
        target.pool.clone_from(&source.pool);
        if !p.is_set("dest-namespace") {
            target.namespace.clone_from(&source.namespace);
        }
    }
    if source.pool != target.pool {
        return Err(Usage::invalid(format!(
            "mv/rename across pools not supported\nsource pool: {} dest pool: {}",
            source.pool, target.pool
        )));
    }
    if source.namespace != target.namespace {
        return Err(Usage::invalid(format!(
            "mv/rename across namespaces not supported\nsource namespace: {} dest namespace: {}",
            source.namespace, target.namespace
        )));
    }
    Plan::run(Command::Image(ImageCommand::Rename { source, target }))
}

fn resize(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let image = spec::image(p, cx)?;
    let allow_shrink = p.is_set("allow-shrink");
    Plan::run(Command::Image(ImageCommand::Resize { image, size: size(p)?, allow_shrink }))
}

fn copy(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let source = spec::image_or_snap(p, cx)?;
    let target = spec::target(p, cx)?;
    let sparse_size = p.size("sparse-size", 1);
    Plan::run(Command::Image(ImageCommand::Copy { source, target, layout: layout(p)?, sparse_size }))
}

fn deep_copy(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let source = spec::image_or_snap(p, cx)?;
    let target = spec::target(p, cx)?;
    let flatten = p.is_set("flatten");
    Plan::run(Command::Image(ImageCommand::DeepCopy { source, target, layout: layout(p)?, flatten }))
}

fn usage(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let from_snap = p.text("from-snap");
    let mut wanted = Wanted::source(SnapPresence::Permitted);
    if from_snap.is_none() {
        wanted = wanted.or_nothing();
    }
    let spec = spec::resolve(p, cx, wanted)?;
    Plan::run(Command::Usage(UsageCommand {
        pool: spec.image.pool_spec(),
        image: Some(spec.image.image).filter(|i| !i.is_empty()),
        snap: spec.snap,
        from_snap,
        exact: p.is_set("exact"),
        merge_snapshots: p.is_set("merge-snapshots"),
    }))
}
