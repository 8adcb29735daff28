//! Verbs on migrations.

use ferry_node::api::{Command, ImportSource, Manner, MigrationCommand};
use ferry_node::spec::{ImageSpec, SnapPresence, SnapSpec, Validation, Wanted};

use super::Plan;
use super::args::{Context, Flag, Kind, Parsed, Usage, Verb};
use super::files::Files;
use super::image::{FEATURES_REMARK, LAYOUT, layout};
use super::output::Program;
use super::spec::{
    self, IMAGE, IMAGE_WORD, NO_PROGRESS, SOURCE_IMAGE, SOURCE_IMAGE_OR_SNAP_WORD, SOURCE_SNAP, SOURCE_SPEC,
    TARGET_IMAGE, TARGET_IMAGE_WORD,
};

/// How long clients may wait.
const PAUSE_LIMIT: &[Flag] = &[Flag::new(
    "pause-limit",
    Kind::Number,
    "how long clients may wait while the image is switched [default: 10000]",
)
.value_name("ms")];

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "migration abort",
        alias: None,
        about: "Cancel interrupted image migration.",
        words: &[IMAGE_WORD],
        flags: &[
            IMAGE,
            NO_PROGRESS,
            &[Flag::new("accept-loss", Kind::Switch, "go on although something of the target is lost")],
            PAUSE_LIMIT,
        ],
        remark: "What was written to the target goes back to the source before the target is removed.\n",
        convert: |p, cx| {
            // `rbd` loses what it cannot carry back.
            let accept_loss = p.is_set("accept-loss") || cx.program == Program::Rbd;
            let pause_limit_ms = p.number("pause-limit");
            run(MigrationCommand::Abort { image: spec::image(p, cx)?, accept_loss, pause_limit_ms })
        },
    },
    Verb {
        name: "migration commit",
        alias: None,
        about: "Commit image migration.",
        words: &[IMAGE_WORD],
        flags: &[
            IMAGE,
            NO_PROGRESS,
            &[
                Flag::new("force", Kind::Switch, "proceed even if the image has children"),
                Flag::new("unverified", Kind::Switch, "do not compare source and target first"),
            ],
        ],
        remark: "Source and target are compared first, and nothing is removed where they differ.\n",
        convert: |p, cx| {
            let unverified = p.is_set("unverified") || cx.program == Program::Rbd;
            let force = p.is_set("force");
            run(MigrationCommand::Commit { image: spec::image(p, cx)?, force, unverified })
        },
    },
    Verb {
        name: "migration execute",
        alias: None,
        about: "Execute image migration.",
        words: &[IMAGE_WORD],
        flags: &[
            IMAGE,
            NO_PROGRESS,
            &[Flag::new("limit", Kind::Size, "bytes copied in a second").value_name("size")],
        ],
        remark: "`ferry job limit` changes the limit while a node does it.\n",
        convert: |p, cx| {
            let rate = p.size("limit", 1);
            run(MigrationCommand::Execute { image: spec::image(p, cx)?, rate })
        },
    },
    Verb {
        name: "migration prepare",
        alias: None,
        about: "Prepare image migration.",
        words: &[SOURCE_IMAGE_OR_SNAP_WORD, TARGET_IMAGE_WORD],
        flags: &[
            &[Flag::new("import-only", Kind::Switch, "only import data from source")],
            SOURCE_SPEC,
            SOURCE_IMAGE,
            SOURCE_SNAP,
            TARGET_IMAGE,
            LAYOUT,
            &[Flag::new("flatten", Kind::Switch, "fill clone with parent data (make it independent)")],
            PAUSE_LIMIT,
        ],
        remark: FEATURES_REMARK,
        convert: prepare,
    },
    Verb {
        name: "migration verify",
        alias: None,
        about: "Compare source and target of an executed image migration.",
        words: &[IMAGE_WORD],
        flags: &[
            IMAGE,
            NO_PROGRESS,
            &[Flag::new("reread", Kind::Switch, "read the source again too, whatever is known of it")],
        ],
        remark: "The target is read, and compared with digests of what was copied to it; where there are none, with the source.\n",
        convert: |p, cx| {
            let reread = p.is_set("reread");
            run(MigrationCommand::Verify { image: spec::image(p, cx)?, reread })
        },
    },
];

fn run(command: MigrationCommand) -> Result<Plan, Usage> {
    Plan::run(Command::Migration(command))
}

/// Who is asked decides how.
fn manner(cx: &Context<'_>) -> Manner {
    match cx.program {
        Program::Ferry => Manner::Ferry,
        Program::Rbd => Manner::Rbd,
    }
}

fn prepare(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let has_spec = p.is_set("source-spec") || p.is_set("source-spec-path");
    if p.is_set("import-only") {
        return import(p, cx);
    }
    if has_spec {
        let text = "--import-only must be used in combination with source-spec/source-spec-path";
        return Err(Usage::invalid(text));
    }
    let from = spec::image_or_snap(p, cx)?;
    if from.snap.is_some() {
        return Err(Usage::invalid("snapshot name specified for a command that doesn't use it"));
    }
    let source = from.image;
    let target = target(p, cx, &source)?;
    let flatten = p.is_set("flatten");
    let manner = manner(cx);
    let (layout, pause_limit_ms) = (layout(p)?, p.number("pause-limit"));
    run(MigrationCommand::Prepare { source, target, layout, flatten, manner, pause_limit_ms })
}

/// The target, which may be left out.
fn target(p: &mut Parsed, cx: &Context<'_>, source: &ImageSpec) -> Result<ImageSpec, Usage> {
    let names_pool = p.is_set("dest-pool") || p.is_set("dest-namespace");
    let wanted = Wanted { snap: SnapPresence::None, ..Wanted::target() }.or_nothing();
    let target = spec::resolve(p, cx, wanted)?.image;
    Ok(match (target.image.is_empty(), cx.program) {
        (false, _) => target,
        // `rbd` takes its default pool, which is hardly ever meant.
        (true, Program::Ferry) if !names_pool => source.clone(),
        (true, _) => ImageSpec { image: source.image.clone(), ..target },
    })
}

fn import(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let named = spec::source(p)?;
    let layout = layout(p)?;
    let manner = manner(cx);
    let Some((source, path)) = named else {
        let (image, snap) = spec::snap(p, cx, Validation::Relaxed)?;
        let target = target(p, cx, &image)?;
        let source = ImportSource::Snapshot(SnapSpec { image, snap: Some(snap) });
        return run(MigrationCommand::Import { source, target, layout, manner });
    };
    // The one image of the command is the target, however it is named.
    let names_target = ["dest", "dest-pool", "dest-namespace"].iter().any(|name| p.is_set(name));
    let target = if names_target { spec::target(p, cx)? } else { spec::new_image(p, cx)? };
    if p.next_word().is_some() {
        return Err(Usage::invalid("a source-spec and a source image cannot be given together"));
    }
    let command = Command::Migration(MigrationCommand::Import { source, target, layout, manner });
    Plan::run_on(command, Files { input: path, ..Files::default() })
}
