//! Verbs on the jobs of a node.

use ferry_node::api::{Command, JobCommand};

use super::Plan;
use super::args::{Flag, Kind, Parsed, Usage, Verb, Word};
use super::spec::{FORMAT, NO_PROGRESS};

/// A job.
const JOB_WORD: Word = Word::new("job-id", "number of the job, as `job ls` shows it");

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "job attach",
        alias: None,
        about: "Show what a job does until it ends.",
        words: &[JOB_WORD],
        flags: &[NO_PROGRESS],
        remark: "Interrupting this leaves the job running.\n",
        convert: |p, _| Plan::run(Command::Job(JobCommand::Attach { id: job(p)? })),
    },
    Verb {
        name: "job cancel",
        alias: None,
        about: "Ask a job to end. What it did so far stays; the command can be run again.",
        words: &[JOB_WORD],
        flags: &[],
        remark: "",
        convert: |p, _| Plan::run(Command::Job(JobCommand::Cancel { id: job(p)? })),
    },
    Verb {
        name: "job limit",
        alias: None,
        about: "Set how fast a job may copy; it looks before each object.",
        words: &[JOB_WORD],
        flags: &[&[
            Flag::new("rate", Kind::Size, "bytes in a second; 0 lifts the limit").value_name("size"),
            Flag::new("in-flight", Kind::Number, "objects at once; 0 for the usual number"),
        ]],
        remark: "Limits are those of this run of the job: the next node begins with those of its command.\n",
        convert: |p, _| {
            let in_flight = p.number("in-flight").and_then(|n| usize::try_from(n).ok());
            let (id, rate) = (job(p)?, p.size("rate", 1));
            Plan::run(Command::Job(JobCommand::Limit { id, rate, in_flight }))
        },
    },
    Verb {
        name: "job list",
        alias: Some("job ls"),
        about: "List the long operations of the node.",
        words: &[],
        flags: &[FORMAT],
        remark: "",
        convert: |_, _| Plan::run(Command::Job(JobCommand::List)),
    },
    Verb {
        name: "job pause",
        alias: None,
        about: "Let a job that copies begin nothing more.",
        words: &[JOB_WORD],
        flags: &[],
        remark: "",
        convert: |p, _| Plan::run(Command::Job(JobCommand::Pause { id: job(p)?, paused: true })),
    },
    Verb {
        name: "job resume",
        alias: None,
        about: "Let a paused job go on.",
        words: &[JOB_WORD],
        flags: &[],
        remark: "",
        convert: |p, _| Plan::run(Command::Job(JobCommand::Pause { id: job(p)?, paused: false })),
    },
];

/// The number of a job.
fn job(p: &mut Parsed) -> Result<u64, Usage> {
    let word = p.required_word("job id was not specified")?;
    word.parse().map_err(|_| Usage::invalid(format!("'{word}' is not the number of a job")))
}
