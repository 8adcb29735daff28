//! SIGINT and SIGTERM for commands that go on until they are stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use ferry_node::cancel::Cancel;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

/// Asks `cancel` at the first signal; the second one ends the process as if nobody had caught it.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn ask_at_signals(cancel: &Cancel) -> io::Result<()> {
    let caught = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag down and then puts it up.
        flag::register_conditional_default(signal, Arc::clone(&caught))?;
        flag::register(signal, Arc::clone(&caught))?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let cancel = cancel.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.forever().next().is_some() {
            cancel.ask();
        }
    })?;
    Ok(())
}

/// Asks `cancel` when a line, or the end, comes from standard input.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn ask_at_enter(cancel: &Cancel) -> io::Result<()> {
    let cancel = cancel.clone();
    thread::Builder::new().name("enter".to_owned()).spawn(move || {
        // What cannot be read has ended.
        io::stdin().read_line(&mut String::new()).ok();
        cancel.ask();
    })?;
    Ok(())
}
