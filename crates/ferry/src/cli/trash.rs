//! Verbs on the trash.

use std::process::{Command as Process, Stdio};

use ferry_core::Errno;
use ferry_node::api::{Command, Detail, TrashCommand, TrashScope};

use super::Plan;
use super::args::{Context, Flag, Kind, Parsed, Usage, Verb, Word};
use super::spec::{self, FORMAT, IMAGE, IMAGE_ID, IMAGE_WORD, NO_PROGRESS, POOL_SPEC, POOL_SPEC_WORD};

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "trash list",
        alias: Some("trash ls"),
        about: "List trash images.",
        words: &[POOL_SPEC_WORD],
        flags: &[
            POOL_SPEC,
            &[
                Flag::new("all", Kind::Switch, "list images from all sources").short('a'),
                Flag::new("long", Kind::Switch, "long listing format").short('l'),
            ],
            FORMAT,
        ],
        remark: "",
        convert: list,
    },
    Verb {
        name: "trash move",
        alias: Some("trash mv"),
        about: "Move an image to the trash.",
        words: &[IMAGE_WORD],
        flags: &[
            IMAGE,
            &[Flag::new(
                "expires-at",
                Kind::Text,
                "set the expiration time of an image so it can be purged when it is stale",
            )
            .value_name("arg (=now)")],
        ],
        remark: "",
        convert: |p, cx| {
            let image = spec::image(p, cx)?;
            let expires_at = match p.value("expires-at") {
                None | Some("now") => None,
                Some(text) => Some(date(text)?),
            };
            Plan::run(Command::Trash(TrashCommand::Move { image, expires_at }))
        },
    },
    Verb {
        name: "trash purge",
        alias: None,
        about: "Remove all expired images from trash.",
        words: &[POOL_SPEC_WORD],
        flags: &[
            POOL_SPEC,
            NO_PROGRESS,
            &[
                Flag::new("expired-before", Kind::Text, "purges images that expired before the given date")
                    .value_name("date"),
                Flag::new(
                    "threshold",
                    Kind::Fraction,
                    "purges images until the current pool data usage is reduced to X%, value range: 0.0-1.0",
                ),
            ],
        ],
        remark: "",
        convert: |p, cx| {
            let pool = spec::pool(p, cx)?;
            let expired_before = p.value("expired-before").map(date).transpose()?;
            let threshold = p.value("threshold").and_then(|t| t.parse().ok());
            Plan::run(Command::Trash(TrashCommand::Purge { pool, expired_before, threshold }))
        },
    },
    Verb {
        name: "trash remove",
        alias: Some("trash rm"),
        about: "Remove an image from trash.",
        words: &[Word::new("image-id", "image id\n(example: [<pool-name>/[<namespace>/]]<image-id>)")],
        flags: &[
            POOL_SPEC,
            IMAGE_ID,
            NO_PROGRESS,
            &[Flag::new("force", Kind::Switch, "force remove of non-expired delayed images")],
        ],
        remark: "",
        convert: |p, cx| {
            let (pool, id) = spec::trash_id(p, cx)?;
            Plan::run(Command::Trash(TrashCommand::Remove { pool, id, force: p.is_set("force") }))
        },
    },
    Verb {
        name: "trash restore",
        alias: None,
        about: "Restore an image from trash.",
        words: &[Word::new("image-id", "image id\n(example: [<pool-name>/]<image-id>)")],
        flags: &[POOL_SPEC, IMAGE_ID, &[Flag::new("image", Kind::Text, "image name")]],
        remark: "",
        convert: |p, cx| {
            let (pool, id) = spec::trash_id(p, cx)?;
            let name = p.text("image").filter(|n| !n.is_empty());
            Plan::run(Command::Trash(TrashCommand::Restore { pool, id, name }))
        },
    },
];

fn list(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    Plan::run(Command::Trash(TrashCommand::List {
        pool: spec::pool(p, cx)?,
        scope: if p.is_set("all") { TrashScope::All } else { TrashScope::User },
        detail: if p.is_set("long") { Detail::Long } else { Detail::Names },
    }))
}

/// Seconds since 1970 of a date as `date -d` reads it: `tomorrow`, `2 hours`, `2027-01-31 12:00`.
///
/// `rbd` runs the same program, so that the same words mean the same.
fn date(text: &str) -> Result<u64, Usage> {
    let bad = || Usage::invalid(format!("error calling /bin/date: {}", Errno::EINVAL));
    let output = Process::new("/bin/date")
        .args(["-d", text, "+%s"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|_| bad())?;
    let seconds = String::from_utf8_lossy(&output.stdout);
    if output.status.success() { seconds.trim().parse().map_err(|_| bad()) } else { Err(bad()) }
}
