//! `cargo xtask test`: everything that must hold, and one line that says whether it does.

use std::io::{self, Write};
use std::process::Command;

use crate::cluster::{self, Cluster};
use crate::count::{Count, count, skips};
use crate::install;
use crate::step::{self, Done, Shown};

/// Whether missing programs are installed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Install {
    /// They are.
    Yes,
    /// They are not.
    No,
}

/// A run of cargo.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

/// All tests, with the runner there is.
fn tests() -> io::Result<Vec<Done>> {
    let with_ceph = install::has_ceph();
    // Kept until the last test is done.
    let shared = if with_ceph { Cluster::start()? } else { None };
    let prepared = |arguments: &[&str]| {
        let mut command = cargo(arguments);
        if with_ceph {
            command.env("FERRY_TEST_CEPH", "1");
        }
        if let Some(cluster) = &shared {
            command.env(cluster::VARIABLE, cluster.conf());
        }
        command
    };
    let mut done = Vec::new();
    if install::has("cargo-nextest") {
        let mut nextest =
            prepared(&["nextest", "run", "--workspace", "--no-fail-fast", "--success-output", "immediate"]);
        nextest.args(["--failure-output", "final", "--color", "never"]);
        done.push(step::run("tests", &mut nextest, Shown::Verdicts)?);
    } else {
        let mut plain = prepared(&["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests"]);
        plain.args(["--", "--show-output"]);
        done.push(step::run("tests", &mut plain, Shown::Verdicts)?);
    }
    // The same commands once more, executed by a node: they must come out the same. Those that start nodes of their own, and
    // would do the same again, are left out for the time they take.
    let mut served = prepared(&["test", "--package", "ferry", "--test", "it", "--", "--show-output"]);
    served.env("FERRY_TEST_SERVED", "1");
    for of_their_own in [
        "ceph::",
        "demo::",
        "device::",
        "durability::",
        "foreign_job::",
        "guest::",
        "kills::",
        "live::",
        "main_job::",
        "nbd::",
        "owner::",
        "served::",
        "tidy::",
    ] {
        served.args(["--skip", of_their_own]);
    }
    done.push(step::run("served tests", &mut served, Shown::Verdicts)?);
    done.push(step::run("doc tests", &mut cargo(&["test", "--workspace", "--doc"]), Shown::Verdicts)?);
    Ok(done)
}

/// Runs all steps, also where one fails. Whether all held.
///
/// # Errors
/// Those of starting a step.
pub(crate) fn run(install: Install) -> io::Result<bool> {
    if install == Install::Yes {
        install::missing()?;
    }
    let mut steps = vec![
        step::run("format", &mut cargo(&["fmt", "--all", "--check"]), Shown::All)?,
        step::run(
            "lints",
            &mut cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
            Shown::All,
        )?,
    ];
    steps.extend(tests()?);
    let mut documentation = cargo(&["doc", "--quiet", "--workspace", "--no-deps"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    steps.push(step::run("documentation", &mut documentation, Shown::All)?);
    report(&steps)
}

/// Tells how long each step took and whether it held, then counts.
fn report(steps: &[Done]) -> io::Result<bool> {
    let mut err = io::stderr().lock();
    writeln!(err)?;
    for step in steps {
        let minutes = step.took.as_secs_f64() / 60.0;
        writeln!(err, "{:<14} {minutes:>6.2} min  {}", step.name, if step.ok { "ok" } else { "FAILED" })?;
    }
    let mut total = Count::default();
    for step in steps.iter().filter(|s| s.name.ends_with("tests")) {
        for skip in skips(&step.lines) {
            writeln!(err, "{skip}")?;
        }
        total = total.and(count(&step.lines));
    }
    drop(err);
    let holds = steps.iter().all(|s| s.ok) && total.failed == 0 && total.passed > 0;
    let Count { passed, failed, skipped } = total;
    writeln!(io::stdout(), "{passed} passed, {failed} failed, {skipped} skipped")?;
    Ok(holds)
}
