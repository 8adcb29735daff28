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
            JobCommand::Cancel { id } => {
                self.jobs()?.control(id)?.ask();
                Ok(Response::Done)
            }
            JobCommand::Pause { id, paused } => {
                self.jobs()?.control(id)?.limits().pause(paused);
                Ok(Response::Done)
            }
            JobCommand::Limit { id, rate, in_flight } => {
                let control = self.jobs()?.control(id)?;
                if let Some(rate) = rate {
                    control.limits().set_rate(rate);
                }
                if let Some(objects) = in_flight {
                    control.limits().set_in_flight(objects);
                }
                Ok(Response::Done)
            }
        }
    }

    fn jobs(&self) -> Done<&Arc<Jobs>> {
        self.host.jobs().ok_or_else(|| {
            Failure::plain(Errno::ENOENT, "no node serves this home, so there are no jobs")
                .advise("`ferry serve` starts one; jobs it was stopped in go on then")
        })
    }
}
