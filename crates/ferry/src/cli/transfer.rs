//! Verbs that move images to and from files: import, export, export-diff, import-diff, merge-diff, diff.

use ferry_node::api::{Command, ExportFormat, ImportSource, TransferCommand};
use ferry_node::spec::{ImageSpec, SnapInput, SnapPresence, Validation, Wanted};

use super::args::{Context, Flag, Kind, Parsed, Usage, Verb, Word};
use super::image::{FEATURES_REMARK, IMAGE_FORMAT, LAYOUT, layout};
use super::spec::{
    self, FORMAT, IMAGE, IMAGE_OR_SNAP_WORD, IMAGE_WORD, NO_PROGRESS, SNAP, SOURCE_IMAGE,
    SOURCE_IMAGE_OR_SNAP_WORD, SOURCE_SNAP, SOURCE_SPEC, SPARSE_SIZE, TARGET_IMAGE, TARGET_IMAGE_WORD,
};
use super::{Files, Plan};

/// `--path` of a file that is read.
const IMPORT_PATH: &[Flag] = &[Flag::new("path", Kind::Text, "import file (or '-' for stdin)")];
/// `--path` of a file that is written.
const EXPORT_PATH: &[Flag] = &[Flag::new("path", Kind::Text, "export file (or '-' for stdout)")];
/// `--export-format`.
const EXPORT_FORMAT: &[Flag] = &[Flag::new("export-format", Kind::ExportFormat, "format of image file")];
/// Since when, and how fine.
const DIFF: &[Flag] = &[
    Flag::new("from-snap", Kind::Text, "snapshot starting point"),
    Flag::new("whole-object", Kind::Switch, "compare whole object"),
];
/// The word for a file that is read.
const IMPORT_WORD: Word = Word::new("path-name", "import file (or '-' for stdin)");
/// The word for a file that is written.
const EXPORT_WORD: Word = Word::new("path-name", "export file (or '-' for stdout)");

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "diff",
        alias: None,
        about: "Print extents that differ since a previous snap, or image creation.",
        words: &[IMAGE_OR_SNAP_WORD],
        flags: &[IMAGE, SNAP, DIFF, FORMAT],
        remark: "",
        convert: diff,
    },
    Verb {
        name: "export",
        alias: None,
        about: "Export image to file.",
        words: &[SOURCE_IMAGE_OR_SNAP_WORD, EXPORT_WORD],
        flags: &[SOURCE_IMAGE, SOURCE_SNAP, EXPORT_PATH, NO_PROGRESS, EXPORT_FORMAT],
        remark: "",
        convert: export,
    },
    Verb {
        name: "export-diff",
        alias: None,
        about: "Export incremental diff to file.",
        words: &[SOURCE_IMAGE_OR_SNAP_WORD, EXPORT_WORD],
        flags: &[SOURCE_IMAGE, SOURCE_SNAP, EXPORT_PATH, DIFF, NO_PROGRESS],
        remark: "",
        convert: export_diff,
    },
    Verb {
        name: "import",
        alias: None,
        about: "Import image from file.",
        words: &[IMPORT_WORD, TARGET_IMAGE_WORD],
        flags: &[
            IMPORT_PATH,
            TARGET_IMAGE,
            IMAGE_FORMAT,
            LAYOUT,
            SPARSE_SIZE,
            NO_PROGRESS,
            EXPORT_FORMAT,
            &[Flag::new("source-format", Kind::Text, "format of the file: raw, qcow2, vmdk, ...")],
            SOURCE_SPEC,
            &[Flag::new("pool", Kind::Text, "").short('p'), Flag::new("image", Kind::Text, "")],
        ],
        remark: FEATURES_REMARK,
        convert: import,
    },
    Verb {
        name: "import-diff",
        alias: None,
        about: "Import an incremental diff.",
        words: &[IMPORT_WORD, IMAGE_WORD],
        flags: &[IMPORT_PATH, IMAGE, SPARSE_SIZE, NO_PROGRESS],
        remark: "",
        convert: import_diff,
    },
    Verb {
        name: "merge-diff",
        alias: None,
        about: "Merge two diff exports together.",
        words: &[
            Word::new("diff1-path", "path to first diff (or '-' for stdin)"),
            Word::new("diff2-path", "path to second diff"),
            Word::new("path-name", "path to merged diff (or '-' for stdout)"),
        ],
        flags: &[&[Flag::new("path", Kind::Text, "path to merged diff (or '-' for stdout)")], NO_PROGRESS],
        remark: "",
        convert: merge_diff,
    },
];

/// The form of an image in a file.
fn format(p: &Parsed) -> ExportFormat {
    if p.value("export-format") == Some("2") { ExportFormat::Stream } else { ExportFormat::Raw }
}

/// `--path`, or the next word.
fn path(p: &mut Parsed) -> Result<String, Usage> {
    match p.text("path").filter(|path| !path.is_empty()) {
        Some(path) => Ok(path),
        None => p.required_word("path was not specified"),
    }
}

/// The last part of a path.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn import(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let layout = layout(p)?;
    if let Some((source, file)) = spec::source(p)? {
        let target = import_target(p, cx, "")?;
        let command = Command::Transfer(TransferCommand::ImportFrom { source, target, layout });
        return Plan::run_on(command, Files { input: file, ..Files::default() });
    }
    let path = path(p)?;
    let target = import_target(p, cx, &path)?;
    if let Some(format) = p.text("source-format") {
        let path = std::path::absolute(&path).map_err(|e| Usage::invalid(e.to_string()))?;
        let source = ImportSource::Image { format, path };
        return Plan::run(Command::Transfer(TransferCommand::ImportFrom { source, target, layout }));
    }
    let format = format(p);
    let sparse_size = p.size("sparse-size", 1);
    let command = Command::Transfer(TransferCommand::Import { target, layout, format, sparse_size });
    Plan::run_on(command, Files { input: Some(path), ..Files::default() })
}

/// The image an import makes; called like the file where nothing is said.
fn import_target(p: &mut Parsed, cx: &Context<'_>, path: &str) -> Result<ImageSpec, Usage> {
    // `--pool` and `--image` are old words for `--dest-pool` and `--dest`.
    let input = SnapInput {
        pool: p.text("dest-pool").or_else(|| p.text("pool")),
        namespace: p.text("dest-namespace"),
        image: p.text("dest").or_else(|| p.text("image")),
        snap: None,
    };
    let mut target = input
        .resolve(|| p.next_word(), cx.default_pool(), Wanted::target().or_nothing())
        .map_err(Usage::from)?
        .image;
    if target.image.is_empty() {
        if path == "-" || path.is_empty() {
            return Err(Usage::invalid("destination image name was not specified"));
        }
        file_name(path).clone_into(&mut target.image);
    }
    Ok(target)
}

fn export(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let source = spec::image_or_snap(p, cx)?;
    let path = path(p)?;
    let command = Command::Transfer(TransferCommand::Export { source, format: format(p) });
    Plan::run_on(command, Files { output: Some(path), ..Files::default() })
}

fn export_diff(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let source = spec::image_or_snap(p, cx)?;
    let path = path(p)?;
    let (from_snap, whole_object) = (p.text("from-snap"), p.is_set("whole-object"));
    let command = Command::Transfer(TransferCommand::ExportDiff { source, from_snap, whole_object });
    Plan::run_on(command, Files { output: Some(path), ..Files::default() })
}

fn import_diff(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let path = path(p)?;
    let wanted = Wanted::source(SnapPresence::None).read(Validation::Relaxed);
    let image = spec::resolve(p, cx, wanted)?.image;
    let sparse_size = p.size("sparse-size", 1);
    let command = Command::Transfer(TransferCommand::ImportDiff { image, sparse_size });
    Plan::run_on(command, Files { input: Some(path), ..Files::default() })
}

fn merge_diff(p: &mut Parsed, _: &Context<'_>) -> Result<Plan, Usage> {
    let input = p.required_word("first diff was not specified")?;
    let second = p.required_word("second diff was not specified")?;
    let output = path(p)?;
    if second == "-" {
        return Err(Usage::invalid("second diff must be a file"));
    }
    let files = Files { input: Some(input), second: Some(second), output: Some(output) };
    Plan::run_on(Command::Transfer(TransferCommand::MergeDiff), files)
}

fn diff(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let source = spec::image_or_snap(p, cx)?;
    let (from_snap, whole_object) = (p.text("from-snap"), p.is_set("whole-object"));
    Plan::run(Command::Transfer(TransferCommand::Diff { source, from_snap, whole_object }))
}
