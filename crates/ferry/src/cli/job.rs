//! Verbs on the jobs of a node.

use ferry_node::api::{Command, JobCommand};

use super::Plan;
use super::args::{Parsed, Usage, Verb, Word};
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
        name: "job list",
        alias: Some("job ls"),
        about: "List the long operations of the node.",
        words: &[],
        flags: &[FORMAT],
        remark: "",
        convert: |_, _| Plan::run(Command::Job(JobCommand::List)),
    },
];

/// The number of a job.
fn job(p: &mut Parsed) -> Result<u64, Usage> {
    let word = p.required_word("job id was not specified")?;
    word.parse().map_err(|_| Usage::invalid(format!("'{word}' is not the number of a job")))
}
