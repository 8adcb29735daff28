//! What this room needs from the world: a runtime, and where secrets are kept.

use std::fmt;
use std::sync::Arc;

use ferry_core::{Error, ErrorKind, Reply, Result};
use tokio::runtime::Handle;

/// Where `config://KEY` leads.
pub trait Secrets: Send + Sync + fmt::Debug {
    /// The value kept under `key`. `NotFound` where there is none.
    fn secret(&self, key: &str) -> Reply<String>;
}

/// Keeps no secrets.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn secret(&self, key: &str) -> Reply<String> {
        Reply::ready(Err(Error::not_found("there is no such key").with("key", key)))
    }
}

/// What an open source runs on. Cheap to clone.
///
/// The replies of streams and sources may be waited for anywhere, also without a runtime: their work is done by the tasks and
/// threads of this one.
#[derive(Clone, Debug)]
pub struct Env {
    /// Carries connections and, on its threads for what blocks, reads of files and decompression. It has to have threads of its
    /// own: a runtime that only moves while somebody blocks on it would never answer.
    pub runtime: Handle,
    /// Where `config://` keys are looked up.
    pub secrets: Arc<dyn Secrets>,
}

impl Env {
    /// Does what blocks or computes on a thread that is meant for it.
    ///
    /// # Cancel safety
    /// The work goes on when the reply is dropped.
    pub fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Reply<T> {
        let running = self.runtime.spawn_blocking(work);
        Reply::pending(async move {
            running.await.unwrap_or_else(|lost| {
                Err(Error::new(ErrorKind::Internal, "the work on a source was lost").because(lost))
            })
        })
    }
}
