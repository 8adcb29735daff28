//! Names of images, snapshots and pools on the command line: the options and words that make one up.

use ferry_node::api::{ImageBy, ImageRef, ImportSource, SpecText};
use ferry_node::spec::{
    ImageSpec, PoolSpec, Side, SnapInput, SnapPresence, SnapSpec, SpecError, Validation, Wanted, resolve_pool,
};

use super::args::{Context, Flag, Kind, Parsed, Usage, Word};

/// `--pool`.
const POOL: Flag = Flag::new("pool", Kind::Text, "pool name").short('p');
/// `--namespace`.
const NAMESPACE: Flag = Flag::new("namespace", Kind::Text, "namespace name");

/// A pool.
pub(crate) const POOL_ONLY: &[Flag] = &[POOL];
/// A pool and a namespace.
pub(crate) const POOL_SPEC: &[Flag] = &[POOL, NAMESPACE];
/// The one image of a command.
pub(crate) const IMAGE: &[Flag] = &[POOL, NAMESPACE, Flag::new("image", Kind::Text, "image name")];
/// A snapshot of that image.
pub(crate) const SNAP: &[Flag] = &[Flag::new("snap", Kind::Text, "snapshot name")];
/// The image by id.
pub(crate) const IMAGE_ID: &[Flag] = &[Flag::new("image-id", Kind::Text, "image id")];
/// The source of two images.
pub(crate) const SOURCE_IMAGE: &[Flag] = &[
    Flag::new("pool", Kind::Text, "source pool name").short('p'),
    Flag::new("namespace", Kind::Text, "source namespace name"),
    Flag::new("image", Kind::Text, "source image name"),
];
/// A snapshot of the source.
pub(crate) const SOURCE_SNAP: &[Flag] = &[Flag::new("snap", Kind::Text, "source snapshot name")];
/// The target of two images.
pub(crate) const TARGET_IMAGE: &[Flag] = &[
    Flag::new("dest-pool", Kind::Text, "destination pool name"),
    Flag::new("dest-namespace", Kind::Text, "destination namespace name"),
    Flag::new("dest", Kind::Text, "destination image name"),
];
/// A snapshot of the target.
pub(crate) const TARGET_SNAP: &[Flag] = &[Flag::new("dest-snap", Kind::Text, "destination snapshot name")];
/// What names a foreign source.
pub(crate) const SOURCE_SPEC: &[Flag] = &[
    Flag::new("source-spec-path", Kind::Text, "source-spec file (or '-' for stdin)"),
    Flag::new("source-spec", Kind::Text, "source-spec"),
];
/// Result format.
pub(crate) const FORMAT: &[Flag] = &[
    Flag::new("format", Kind::Format, "output format (plain, json, or xml) [default: plain]"),
    Flag::new("pretty-format", Kind::Switch, "pretty formatting (json and xml)"),
];
/// No progress.
pub(crate) const NO_PROGRESS: &[Flag] = &[Flag::new("no-progress", Kind::Switch, "disable progress output")];
/// Sparse size.
pub(crate) const SPARSE_SIZE: &[Flag] =
    &[Flag::new("sparse-size", Kind::ObjectSize, "sparse size in B/K/M [default: 4K]")];

/// The word for a pool and namespace.
pub(crate) const POOL_SPEC_WORD: Word =
    Word::new("pool-spec", "pool specification\n(example: <pool-name>[/<namespace>]");
/// The word for a pool.
pub(crate) const POOL_WORD: Word = Word::new("pool-name", "pool name");
/// The word for an image.
pub(crate) const IMAGE_WORD: Word =
    Word::new("image-spec", "image specification\n(example: [<pool-name>/[<namespace>/]]<image-name>)");
/// The word for a snapshot.
pub(crate) const SNAP_WORD: Word = Word::new(
    "snap-spec",
    "snapshot specification\n(example: [<pool-name>/[<namespace>/]]<image-name>@<snap-name>)",
);
/// The word for either.
pub(crate) const IMAGE_OR_SNAP_WORD: Word = Word::new(
    "image-or-snap-spec",
    "image or snapshot specification\n(example: [<pool-name>/[<namespace>/]]<image-name>[@<snap-name>])",
);
/// The word for a source image.
pub(crate) const SOURCE_IMAGE_WORD: Word = Word::new(
    "source-image-spec",
    "source image specification\n(example: [<pool-name>/[<namespace>/]]<image-name>)",
);
/// The word for a source snapshot.
pub(crate) const SOURCE_SNAP_WORD: Word = Word::new(
    "source-snap-spec",
    "source snapshot specification\n(example: [<pool-name>/[<namespace>/]]<image-name>@<snap-name>)",
);
/// The word for either.
pub(crate) const SOURCE_IMAGE_OR_SNAP_WORD: Word = Word::new(
    "source-image-or-snap-spec",
    "source image or snapshot specification\n(example: [<pool-name>/[<namespace>/]]<image-name>[@<snap-name>])",
);
/// The word for a target image.
pub(crate) const TARGET_IMAGE_WORD: Word = Word::new(
    "dest-image-spec",
    "destination image specification\n(example: [<pool-name>/[<namespace>/]]<image-name>)",
);
/// The word for a target snapshot.
pub(crate) const TARGET_SNAP_WORD: Word = Word::new(
    "dest-snap-spec",
    "destination snapshot specification\n(example: [<pool-name>/[<namespace>/]]<image-name>@<snap-name>)",
);

impl From<SpecError> for Usage {
    fn from(error: SpecError) -> Self {
        Self::invalid(error.0)
    }
}

/// Resolves what `wanted` says from the options of its side and the next word.
pub(crate) fn resolve(p: &mut Parsed, cx: &Context<'_>, wanted: Wanted) -> Result<SnapSpec, Usage> {
    let names = match wanted.side {
        Side::Source => ["pool", "namespace", "image", "snap"],
        Side::Target => ["dest-pool", "dest-namespace", "dest", "dest-snap"],
    };
    let [pool, namespace, image, snap] = names.map(|name| p.text(name));
    let input = SnapInput { pool, namespace, image, snap };
    Ok(input.resolve(|| p.next_word(), cx.default_pool(), wanted)?)
}

/// The one image of a command, or the source.
pub(crate) fn image(p: &mut Parsed, cx: &Context<'_>) -> Result<ImageSpec, Usage> {
    Ok(resolve(p, cx, Wanted::source(SnapPresence::None))?.image)
}

/// The name of an image about to be made, where a command has only one.
pub(crate) fn new_image(p: &mut Parsed, cx: &Context<'_>) -> Result<ImageSpec, Usage> {
    Ok(resolve(p, cx, Wanted::source(SnapPresence::None).read(Validation::Full))?.image)
}

/// The image, or a snapshot of it.
pub(crate) fn image_or_snap(p: &mut Parsed, cx: &Context<'_>) -> Result<SnapSpec, Usage> {
    resolve(p, cx, Wanted::source(SnapPresence::Permitted))
}

/// A snapshot of the image.
pub(crate) fn snap(
    p: &mut Parsed,
    cx: &Context<'_>,
    validation: Validation,
) -> Result<(ImageSpec, String), Usage> {
    let spec = resolve(p, cx, Wanted::source(SnapPresence::Required).read(validation))?;
    Ok((spec.image, spec.snap.unwrap_or_default()))
}

/// The name of the second image, about to be made.
pub(crate) fn target(p: &mut Parsed, cx: &Context<'_>) -> Result<ImageSpec, Usage> {
    Ok(resolve(p, cx, Wanted::target())?.image)
}

/// A pool and namespace.
pub(crate) fn pool(p: &mut Parsed, cx: &Context<'_>) -> Result<PoolSpec, Usage> {
    let word = if p.is_set("pool") { None } else { p.next_word() };
    Ok(resolve_pool(word.as_deref(), p.value("pool"), p.value("namespace"), cx.default_pool())?)
}

/// A pool.
pub(crate) fn pool_name(p: &mut Parsed, cx: &Context<'_>) -> String {
    let word = if p.is_set("pool") { None } else { p.next_word() };
    p.text("pool").or(word).filter(|w| !w.is_empty()).unwrap_or_else(|| cx.default_pool().to_owned())
}

/// The source that `--source-spec` or `--source-spec-path` names, and the file that is read for it; `None` where neither is
/// given.
pub(crate) fn source(p: &Parsed) -> Result<Option<(ImportSource, Option<String>)>, Usage> {
    let (text, path) = (p.text("source-spec"), p.text("source-spec-path"));
    let base = || std::env::current_dir().map_err(|_| Usage::invalid("the current directory is gone"));
    match (text, path) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Usage::invalid("cannot specify both source-spec and source-spec-path")),
        (Some(text), None) => Ok(Some((ImportSource::Spec { text: SpecText(text), base: base()? }, None))),
        (None, Some(path)) => Ok(Some((ImportSource::File { base: base()? }, Some(path)))),
    }
}

/// An image by name or by `--image-id`, and its snapshot as `snap` wants it.
pub(crate) fn image_ref(
    p: &mut Parsed,
    cx: &Context<'_>,
    snap: SnapPresence,
) -> Result<(ImageRef, Option<String>), Usage> {
    let id = p.text("image-id").filter(|id| !id.is_empty());
    let mut wanted = Wanted::source(snap);
    if id.is_some() {
        wanted = wanted.or_nothing();
    }
    let spec = resolve(p, cx, wanted)?;
    let image = match id {
        None => ImageRef::from(spec.image),
        Some(_) if !spec.image.image.is_empty() => {
            return Err(Usage::invalid("trying to access image using both name and id. "));
        }
        Some(id) => ImageRef { pool: spec.image.pool_spec(), by: ImageBy::Id(id) },
    };
    Ok((image, spec.snap))
}

/// An id in the trash, with its pool.
pub(crate) fn trash_id(p: &mut Parsed, cx: &Context<'_>) -> Result<(PoolSpec, String), Usage> {
    let input = SnapInput {
        pool: p.text("pool"),
        namespace: p.text("namespace"),
        image: p.text("image-id"),
        snap: None,
    };
    let wanted = Wanted::source(SnapPresence::None).read(Validation::Full).or_nothing();
    let spec = input.resolve(|| p.next_word(), cx.default_pool(), wanted)?;
    if spec.image.image.is_empty() {
        return Err(Usage::invalid("image id was not specified"));
    }
    Ok((spec.image.pool_spec(), spec.image.image))
}
