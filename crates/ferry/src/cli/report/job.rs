//! Jobs: job ls.

use ferry_node::api::{JobLine, JobState};

use super::super::output::{Align, Node, Table, local};

/// Where a job stands, in a word.
fn word(state: &JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Failed(_) => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// The word, with how far it is or why it failed.
fn standing(job: &JobLine) -> String {
    match (&job.state, job.percent) {
        (JobState::Failed(why), _) => format!("failed: {why}"),
        (JobState::Running, Some(percent)) => {
            let word = if job.is_paused { "paused" } else { "running" };
            let copy = job.copy.as_ref().map(|copy| format!(", {copy}")).unwrap_or_default();
            format!("{word} {percent}%{copy}")
        }
        (JobState::Running, None) if job.is_paused => "paused".to_owned(),
        (state, _) => word(state).to_owned(),
    }
}

/// `job ls`.
pub(crate) fn jobs(jobs: &[JobLine]) -> String {
    if jobs.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("STARTED", Align::Left),
        ("COMMAND", Align::Left),
        ("STATE", Align::Left),
    ]);
    for job in jobs {
        table.row([job.id.to_string(), local(job.started), job.command.clone(), standing(job)]);
    }
    table.text()
}

/// `job ls`.
pub(crate) fn jobs_tree(jobs: &[JobLine]) -> Node {
    let items = jobs.iter().map(|job| {
        let mut fields = vec![
            Node::number("id", job.id),
            Node::text("command", &job.command),
            Node::text("state", word(&job.state)),
            Node::number("started", job.started),
        ];
        fields.extend(job.percent.map(|percent| Node::number("percent", percent)));
        if job.state == JobState::Running {
            fields.push(Node::bool("paused", job.is_paused));
        }
        if let Some(copy) = &job.copy {
            fields.push(Node::number("done_bytes", copy.done_bytes));
            fields.push(Node::number("total_bytes", copy.total_bytes));
            fields.push(Node::number("bytes_per_second", copy.bytes_per_second));
            fields.extend(copy.seconds_left.map(|seconds| Node::number("seconds_left", seconds)));
            fields.extend(copy.rate_limit.map(|rate| Node::number("rate_limit", rate)));
            fields.extend(copy.in_flight.map(|objects| Node::number("in_flight", objects as u64)));
        }
        if let JobState::Failed(why) = &job.state {
            fields.push(Node::text("error", why));
        }
        Node::object("job", fields)
    });
    Node::array("jobs", items.collect())
}
