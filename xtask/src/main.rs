//! Chores of this workspace. `cargo xtask test` proves all there is to prove.
#![forbid(unsafe_code)]

mod cluster;
mod count;
mod install;
mod step;
mod test;

use std::io::{self, Write};
use std::process::ExitCode;

/// What is printed where no chore is named.
const USAGE: &str = "\
usage: cargo xtask test [--no-install]

    test    install what the tests need (as root, on Debian), then check formatting and lints,
            run all tests and build the documentation
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["test"] => test::run(test::Install::Yes),
        ["test", "--no-install"] => test::run(test::Install::No),
        _ => io::stderr().write_all(USAGE.as_bytes()).map(|()| false),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            // Nobody may be left to read it.
            drop(writeln!(io::stderr(), "xtask: {e}"));
            ExitCode::FAILURE
        }
    }
}
