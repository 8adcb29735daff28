//! Verbs on what an image can do and who holds it: feature, object-map, lock, bench.

use ferry_node::api::{BenchPattern, BenchType, Command, FeatureChange, LockCommand, ObjectMapCommand};

use super::Plan;
use super::args::{Context, Flag, Kind, Parsed, Usage, Verb, Word, feature_bits};
use super::spec::{self, FORMAT, IMAGE, IMAGE_OR_SNAP_WORD, IMAGE_WORD, NO_PROGRESS, SNAP};

/// Names of features.
const FEATURES: Word =
    Word { name: "features", help: "image features\n[exclusive-lock, object-map, journaling]", many: true };

/// Most requests that are kept in flight: each needs memory of its own, and no device takes as many at once.
const IO_THREADS_MAX: u64 = 65_536;

/// A lock's cookie.
const LOCK_ID: Word = Word::new("lock-id", "unique lock id");

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "bench",
        alias: None,
        about: "Simple benchmark.",
        words: &[IMAGE_WORD],
        flags: &[
            IMAGE,
            &[
                Flag::new("io-size", Kind::Size, "IO size (in B/K/M/G/T) [default: 4K]"),
                Flag::new("io-threads", Kind::Number, "ios in flight [default: 16]"),
                Flag::new("io-total", Kind::Size, "total size for IO (in B/K/M/G/T) [default: 1G]"),
                Flag::new(
                    "io-pattern",
                    Kind::IoPattern,
                    "IO pattern (rand, seq, or full-seq) [default: seq]",
                ),
                Flag::new(
                    "rw-mix-read",
                    Kind::Percent,
                    "read proportion in readwrite (<= 100) [default: 50]",
                ),
                Flag::new("io-type", Kind::IoType, "IO type (read, write, or readwrite(rw))").required(),
            ],
        ],
        remark: "",
        convert: bench,
    },
    Verb {
        name: "feature disable",
        alias: None,
        about: "Disable the specified image feature.",
        words: &[IMAGE_WORD, FEATURES],
        flags: &[IMAGE],
        remark: "",
        convert: |p, cx| feature(p, cx, FeatureChange::Disable),
    },
    Verb {
        name: "feature enable",
        alias: None,
        about: "Enable the specified image feature.",
        words: &[IMAGE_WORD, FEATURES],
        flags: &[
            IMAGE,
            &[
                Flag::new("journal-splay-width", Kind::Number, "number of active journal objects"),
                Flag::new("journal-object-size", Kind::Size, "size of journal objects [4K <= size <= 64M]"),
                Flag::new("journal-pool", Kind::Text, "pool for journal objects"),
            ],
        ],
        remark: "",
        convert: |p, cx| feature(p, cx, FeatureChange::Enable),
    },
    Verb {
        name: "lock add",
        alias: None,
        about: "Take a lock on an image.",
        words: &[IMAGE_WORD, LOCK_ID],
        flags: &[IMAGE, &[Flag::new("shared", Kind::Text, "shared lock tag")]],
        remark: "",
        convert: |p, cx| {
            let image = spec::image(p, cx)?;
            let action = LockCommand::Add { id: lock_id(p)?, shared: p.text("shared") };
            Plan::run(Command::Lock { image, action })
        },
    },
    Verb {
        name: "lock list",
        alias: Some("lock ls"),
        about: "Show locks held on an image.",
        words: &[IMAGE_WORD],
        flags: &[IMAGE, FORMAT],
        remark: "",
        convert: |p, cx| Plan::run(Command::Lock { image: spec::image(p, cx)?, action: LockCommand::List }),
    },
    Verb {
        name: "lock remove",
        alias: Some("lock rm"),
        about: "Release a lock on an image.",
        words: &[IMAGE_WORD, LOCK_ID, Word::new("locker", "locker client")],
        flags: &[IMAGE],
        remark: "",
        convert: |p, cx| {
            let image = spec::image(p, cx)?;
            let id = lock_id(p)?;
            let locker = p.required_word("locker was not specified")?;
            Plan::run(Command::Lock { image, action: LockCommand::Remove { id, locker } })
        },
    },
    Verb {
        name: "object-map check",
        alias: None,
        about: "Verify the object map is correct.",
        words: &[IMAGE_OR_SNAP_WORD],
        flags: &[IMAGE, SNAP, NO_PROGRESS],
        remark: "",
        convert: |p, cx| {
            let image = spec::image_or_snap(p, cx)?;
            Plan::run(Command::ObjectMap { image, action: ObjectMapCommand::Check })
        },
    },
    Verb {
        name: "object-map rebuild",
        alias: None,
        about: "Rebuild an invalid object map.",
        words: &[IMAGE_OR_SNAP_WORD],
        flags: &[IMAGE, SNAP, NO_PROGRESS],
        remark: "",
        convert: |p, cx| {
            let image = spec::image_or_snap(p, cx)?;
            Plan::run(Command::ObjectMap { image, action: ObjectMapCommand::Rebuild })
        },
    },
];

fn lock_id(p: &mut Parsed) -> Result<String, Usage> {
    p.required_word("lock id was not specified")
}

fn feature(p: &mut Parsed, cx: &Context<'_>, change: FeatureChange) -> Result<Plan, Usage> {
    let image = spec::image(p, cx)?;
    let names = p.rest();
    if names.is_empty() {
        return Err(Usage::invalid("at least one feature name must be specified"));
    }
    let mut features = 0;
    for name in &names {
        features |= feature_bits(name).ok_or_else(|| Usage::syntax("the argument for option is invalid"))?;
    }
    Plan::run(Command::Feature { image, change, features })
}

fn bench(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let io_type = match p.value("io-type") {
        None => return Err(Usage::invalid("--io-type must be specified.")),
        Some("read") => BenchType::Read,
        Some("write") => BenchType::Write,
        Some(_) => BenchType::ReadWrite,
    };
    let image = spec::image(p, cx)?;
    let io_size = p.size("io-size", 1).unwrap_or(4096);
    if io_size == 0 {
        return Err(Usage::invalid("--io-size should be greater than zero."));
    }
    if io_size > 1 << 30 {
        return Err(Usage::invalid("--io-size should be less than 1G."));
    }
    let io_threads = p.number("io-threads").unwrap_or(16);
    if io_threads == 0 {
        return Err(Usage::invalid("--io-threads should be greater than zero."));
    }
    if io_threads > IO_THREADS_MAX {
        return Err(Usage::invalid(format!("--io-threads should be at most {IO_THREADS_MAX}.")));
    }
    Plan::run(Command::Bench {
        image,
        io_type,
        io_size,
        io_threads: u32::try_from(io_threads)
            .map_err(|_| Usage::syntax("the argument for option '--io-threads' is invalid"))?,
        io_total: p.size("io-total", 1).unwrap_or(1 << 30),
        pattern: match p.value("io-pattern") {
            Some("rand") => BenchPattern::Random,
            Some("full-seq") => BenchPattern::FullSequential,
            Some(_) | None => BenchPattern::Sequential,
        },
        read_percent: p.number("rw-mix-read").unwrap_or(50),
    })
}
