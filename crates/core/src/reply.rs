//! An answer that is there at once or comes later.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::Result;

/// The answer of a [`crate::Store`]: ready (an engine hit, inline) or pending (a cluster, a slow disk).
///
/// # Cancel safety
/// Dropping a pending reply does not undo the request: a write may still happen.
pub enum Reply<T> {
    /// It is here; `None` once it was taken.
    Ready(Option<Result<T>>),
    /// It will come.
    Pending(Pin<Box<dyn Future<Output = Result<T>> + Send>>),
}

impl<T> Reply<T> {
    /// An answer that is known already.
    #[must_use]
    pub fn ready(result: Result<T>) -> Self {
        Self::Ready(Some(result))
    }

    /// An answer that `future` will give.
    #[must_use]
    pub fn pending(future: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self::Pending(Box::pin(future))
    }

    /// Waits on the calling thread. Not for use inside an async runtime.
    ///
    /// # Errors
    /// Those of the request.
    pub fn wait(self) -> Result<T> {
        match self {
            Self::Ready(result) => result.expect("a reply is taken once"),
            Self::Pending(future) => futures_executor::block_on(future),
        }
    }
}

impl<T: Unpin> Future for Reply<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Ready(result) => Poll::Ready(result.take().expect("a reply is polled once")),
            Self::Pending(future) => future.as_mut().poll(cx),
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Reply::Ready",
            Self::Pending(_) => "Reply::Pending",
        })
    }
}
