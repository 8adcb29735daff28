//! Comparison benchmarks: ferry beside its peers, in one run, as ratios.
//!
//! `ferry-bench DIRECTORY [NAME …]` runs all, or those named, five times each and prints medians. Nothing else should be
//! running. Needs a few GiB in DIRECTORY.

mod ceph;
mod engine;
mod foreign;
mod image;
mod measure;
mod migration;
mod nbd;
mod served;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use measure::Report;

/// A benchmark: its name and what runs it.
type Bench = (&'static str, fn(&std::path::Path, &mut Report) -> Result<(), String>);

const BENCHES: &[Bench] = &[
    ("random-writes", engine::random_writes),
    ("sequential-writes", engine::sequential_writes),
    ("fragmented-reads", engine::fragmented_reads),
    ("cached-reads", engine::cached_reads),
    ("snapshot", engine::snapshot),
    ("first-write", engine::first_write),
    ("recovery", engine::recovery),
    ("cleaner", engine::cleaner),
    ("large-index", engine::large_index),
    ("clone-chain", image::clone_chain),
    ("import-export", image::import_export),
    ("foreign", foreign::foreign),
    ("nbd-overhead", nbd::overhead),
    ("served", served::served),
    ("served-memory", served::served_memory),
    ("ceph", ceph::requests),
    ("ceph-first-writes", ceph::first_writes),
    ("ceph-migration", ceph::migrations),
    ("migration", migration::migration),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut out = std::io::stdout();
    let Some(directory) = arguments.next().map(PathBuf::from) else {
        let names: Vec<&str> = BENCHES.iter().map(|b| b.0).collect();
        let printed = writeln!(out, "usage: ferry-bench DIRECTORY [{}]", names.join("|"));
        return if printed.is_ok() { ExitCode::from(2) } else { ExitCode::FAILURE };
    };
    let wanted: Vec<String> = arguments.collect();
    if directory.as_os_str() == "--serve-memory" {
        let served = wanted.first().ok_or_else(String::new).and_then(|socket| nbd::serve(socket.as_ref()));
        return if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let mut code = ExitCode::SUCCESS;
    for (name, run) in BENCHES {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        let mut report = Report::default();
        let place = directory.join(name);
        // What is there already is not ours to remove.
        let made = std::fs::create_dir_all(&directory).and_then(|()| std::fs::create_dir(&place));
        let done = match made {
            Err(e) => Err(format!("{}: {e}", place.display())),
            Ok(()) => {
                let done = run(&place, &mut report);
                let removed =
                    std::fs::remove_dir_all(&place).map_err(|e| format!("{}: {e}", place.display()));
                done.and(removed)
            }
        };
        if let Err(e) = done {
            report.line(format!("{name}: {e}"));
            code = ExitCode::FAILURE;
        }
        if report.is_lost() {
            code = ExitCode::FAILURE;
        }
    }
    code
}
