//! Replays seeds: `ferry-sim crash FROM COUNT [STEPS IMAGES]`. Loads a store until it is killed, printing what is durable, and
//! checks it afterwards: `ferry-sim load DIRECTORY FROM`, `ferry-sim verify DIRECTORY DURABLE`.

use std::io::Write;
use std::process::ExitCode;

use ferry_sim::crash::{Outcome, Plan, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: u64| arguments.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let mut out = std::io::stdout().lock();
    let directory = std::path::Path::new(arguments.get(1).map_or("", String::as_str));
    let done = match arguments.first().map(String::as_str) {
        Some("load") => {
            Some(ferry_sim::load::write(directory, number(2, 0), &mut out).map(|()| String::new()))
        }
        Some("verify") => Some(ferry_sim::load::verify(directory, number(2, 0))),
        _ => None,
    };
    if let Some(done) = done {
        let (code, text) =
            done.map_or_else(|e| (ExitCode::FAILURE, e.chain()), |text| (ExitCode::SUCCESS, text));
        return if writeln!(out, "{text}").is_ok() { code } else { ExitCode::FAILURE };
    }
    let mut failures = 0;
    let mut outcome = Outcome::default();
    let (from, count) = (number(1, 0), number(2, 1));
    let plan = Plan { steps: number(3, 120), images: number(4, 25) };
    for seed in from..from + count {
        if let Err(what) = run(seed, plan, &mut outcome) {
            failures += 1;
            if writeln!(out, "{what}").is_err() {
                return ExitCode::FAILURE;
            }
        }
    }
    let printed = writeln!(
        out,
        "{} workloads, {} crashes, {} segments cleaned, {} freed by records, {} found some of them used again, {} replayed a tail, {} gave up un-flushed bytes, digest {:08x}\n{:?}",
        outcome.workloads,
        outcome.images,
        outcome.cleaned_segments,
        outcome.freed_segments,
        outcome.reused,
        outcome.replayed,
        outcome.dropped,
        outcome.digest,
        outcome.moments
    );
    if failures == 0 && printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
