//! The program: `ferry`, and `rbd` when it is called by that name.
#![forbid(unsafe_code)]

mod cli;
mod demo;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
