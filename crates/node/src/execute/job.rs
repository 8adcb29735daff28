//! Jobs of the node: ls, attach, cancel.

use std::sync::Arc;

use ferry_core::Errno;

use super::Run;
use crate::api::{Done, Failure, JobCommand, Response};
use crate::jobs::Jobs;

impl Run<'_> {
    /// Executes one of them.
    pub(super) fn job_command(&self, command: JobCommand) -> Done<Response> {
        match command {
            JobCommand::List => {
                Ok(Response::Jobs(self.host.jobs().map_or_else(Vec::new, |jobs| jobs.list())))
            }
            JobCommand::Attach { id } => self.jobs()?.attach(id, self.events, self.cancel),
            JobCommand::Cancel { id } => self.jobs()?.cancel(id).map(|()| Response::Done),
        }
    }

    fn jobs(&self) -> Done<&Arc<Jobs>> {
        self.host.jobs().ok_or_else(|| {
            Failure::plain(Errno::ENOENT, "no node serves this home, so there are no jobs")
                .advise("`ferry serve` starts one; jobs it was stopped in go on then")
        })
    }
}
