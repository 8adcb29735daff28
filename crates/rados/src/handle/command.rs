//! Commands of a cluster's daemons, in JSON, waiting on the calling thread.

use std::ffi::{c_char, c_int};
use std::ptr::{null, null_mut};

use ferry_core::Result;

use super::{Cluster, c_string, copied};
use crate::errno::check;

/// The four places a command's outcome is told in: what it gives and what it says, each with its length.
type Places = (*mut *mut c_char, *mut usize, *mut *mut c_char, *mut usize);

impl Cluster {
    /// Has the monitors do a command; what it gives.
    pub(crate) fn ask_monitors(&self, command: &str) -> Result<Vec<u8>> {
        let ask = |commands: &[*const c_char], (found, length, said, said_length): Places| {
            let (first, count) = (commands.as_ptr(), commands.len());
            // SAFETY: commands that end in NUL, no input, and four places to fill.
            unsafe {
                (self.api.rados_mon_command)(
                    self.raw,
                    first,
                    count,
                    null(),
                    0,
                    found,
                    length,
                    said,
                    said_length,
                )
            }
        };
        answer(self, command, "asking the monitors", ask)
    }

    /// Has an OSD do a command; what it gives.
    pub(crate) fn ask_osd(&self, osd: i32, command: &str) -> Result<Vec<u8>> {
        let ask = |commands: &[*const c_char], (found, length, said, said_length): Places| {
            let (first, count) = (commands.as_ptr(), commands.len());
            // SAFETY: commands that end in NUL, no input, and four places to fill.
            unsafe {
                (self.api.rados_osd_command)(
                    self.raw,
                    osd,
                    first,
                    count,
                    null(),
                    0,
                    found,
                    length,
                    said,
                    said_length,
                )
            }
        };
        answer(self, command, "asking an OSD", ask).map_err(|e| e.with("osd", osd))
    }
}

/// What a command gives that `ask` has done.
fn answer(
    cluster: &Cluster,
    command: &str,
    what: &'static str,
    ask: impl FnOnce(&[*const c_char], Places) -> c_int,
) -> Result<Vec<u8>> {
    let command = c_string(command)?;
    let (mut found, mut length, mut said, mut said_length) = (null_mut(), 0, null_mut(), 0);
    let places = (&raw mut found, &raw mut length, &raw mut said, &raw mut said_length);
    let done = ask(&[command.as_ptr()], places);
    let bytes = copied(found, length);
    for buffer in [found, said] {
        if !buffer.is_null() {
            // SAFETY: librados gave it, and it is not used after.
            unsafe { (cluster.api.rados_buffer_free)(buffer) };
        }
    }
    check(done, what)?;
    Ok(bytes)
}
