//! Commands of a cluster's daemons, in JSON, waiting on the calling thread.

use std::ffi::c_char;
use std::ptr::{null, null_mut};

use ferry_core::Result;

use super::{Cluster, c_string, copied};
use crate::errno::check;
use crate::ffi::Api;

/// What a command gave, and what was said about it: in librados' memory, freed with this.
struct Answer {
    api: &'static Api,
    given: *mut c_char,
    given_length: usize,
    said: *mut c_char,
    said_length: usize,
}

impl Answer {
    fn none(api: &'static Api) -> Self {
        Self { api, given: null_mut(), given_length: 0, said: null_mut(), said_length: 0 }
    }

    /// Where librados puts all of it.
    fn places(&mut self) -> (*mut *mut c_char, *mut usize, *mut *mut c_char, *mut usize) {
        (&raw mut self.given, &raw mut self.given_length, &raw mut self.said, &raw mut self.said_length)
    }

    fn bytes(&self) -> Vec<u8> {
        copied(self.given, self.given_length)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        for buffer in [self.given, self.said] {
            if !buffer.is_null() {
                // SAFETY: librados gave it, and it is not used after.
                unsafe { (self.api.rados_buffer_free)(buffer) };
            }
        }
    }
}

impl Cluster {
    /// Has the monitors do a command; what it gives.
    pub(crate) fn ask_monitors(&self, command: &str) -> Result<Vec<u8>> {
        let (command, mut answer) = (c_string(command)?, Answer::none(self.api));
        let (given, length, said, said_length) = answer.places();
        let ask = self.api.rados_mon_command;
        // SAFETY: one command that ends in NUL, no input, and four places to fill.
        let done =
            unsafe { ask(self.raw, &command.as_ptr(), 1, null(), 0, given, length, said, said_length) };
        check(done, "asking the monitors").map(|_| answer.bytes())
    }

    /// Has an OSD do a command; what it gives.
    pub(crate) fn ask_osd(&self, osd: i32, command: &str) -> Result<Vec<u8>> {
        let (command, mut answer) = (c_string(command)?, Answer::none(self.api));
        let (given, length, said, said_length) = answer.places();
        let ask = self.api.rados_osd_command;
        // SAFETY: as above.
        let done =
            unsafe { ask(self.raw, osd, &command.as_ptr(), 1, null(), 0, given, length, said, said_length) };
        check(done, "asking an OSD").map_err(|e| e.with("osd", osd)).map(|_| answer.bytes())
    }
}
