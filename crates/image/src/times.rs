//! When an image was last read and last written, as its header tells it: to about a minute, as librbd does.
//!
//! - A request only leaves a mark; no clock is read for it. Whoever keeps an image open for long takes the marks now and then
//!   ([`Times::note`]), and closing it does.
//! - A time in the header that is younger than the interval stays (`rbd_atime_update_interval`, `rbd_mtime_update_interval`;
//!   0 for never); an older one is replaced by an op that sets that key alone. Nobody is told, and no request fails because of it.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ferry_core::size::parse_size;
use ferry_core::{Effect, Guard, Result, Timestamp, WriteOp};

use crate::encoding::{encode_timestamp, header as key};
use crate::image::Image;
use crate::metadata::config;

/// What was done with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// It was read.
    Read,
    /// It was changed.
    Written,
}

impl Used {
    fn bit(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Written => 2,
        }
    }

    /// The setting that says how old the time in the header may be.
    fn setting(self) -> &'static str {
        match self {
            Self::Read => "rbd_atime_update_interval",
            Self::Written => "rbd_mtime_update_interval",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Read => key::ACCESS_TIMESTAMP,
            Self::Written => key::MODIFY_TIMESTAMP,
        }
    }
}

/// A time that is to be in the header, and one that is known to be.
#[derive(Clone, Copy, Debug, Default)]
struct Noted {
    last: Option<Timestamp>,
    stored: Timestamp,
}

/// What an open image was used for.
#[derive(Debug, Default)]
pub struct Times {
    marks: AtomicU8,
    /// Of reads and of writes.
    noted: Mutex<[Noted; 2]>,
}

impl Times {
    /// Leaves a mark. Costs a load where there is one already.
    pub fn mark(&self, used: Used) {
        if self.marks.load(Ordering::Relaxed) & used.bit() == 0 {
            self.marks.fetch_or(used.bit(), Ordering::Relaxed);
        }
    }

    /// Takes the marks: what they are of happened just now, and is put into the header of `image` where the time there is too
    /// old.
    ///
    /// # Errors
    /// Those of the store; the next call tries again.
    ///
    /// # Cancel safety
    /// As an error.
    pub async fn note(&self, image: &Image) -> Result<()> {
        let marks = self.marks.swap(0, Ordering::Relaxed);
        let mut noted = *self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if marks == 0 && noted.iter().all(|n| n.last.is_none()) {
            return Ok(());
        }
        let now = image.pool.env.clock.now();
        for (noted, used) in noted.iter_mut().zip([Used::Read, Used::Written]) {
            if marks & used.bit() != 0 {
                noted.last = Some(now);
            }
        }
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = noted;
        let header = &image.header;
        for (n, in_header) in [header.accessed, header.modified].into_iter().enumerate() {
            noted[n].stored = noted[n].stored.max(in_header);
        }
        store(image, &mut noted, now).await?;
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = noted;
        Ok(())
    }
}

/// Notes that an image that is open for a moment only was used.
///
/// # Errors
/// Those of the store.
pub async fn note(image: &Image, used: Used) -> Result<()> {
    let times = Times::default();
    times.mark(used);
    times.note(image).await
}

/// Puts the times into the header that are due: newer than those there, which are older than the interval.
async fn store(image: &Image, noted: &mut [Noted; 2], now: Timestamp) -> Result<()> {
    if image.pool.is_read_only() {
        return Ok(());
    }
    let settings = config::of_image(image).await?;
    let mut set: Vec<(Bytes, Bytes)> = Vec::new();
    for (noted, used) in noted.iter_mut().zip([Used::Read, Used::Written]) {
        let Some(last) = noted.last.filter(|last| *last > noted.stored) else { continue };
        let setting = settings.iter().find(|s| s.name == used.setting());
        let seconds = setting.and_then(|s| parse_size(&s.value, 1)).unwrap_or(0);
        if seconds == 0 || now < noted.stored.after(Duration::from_secs(seconds)) {
            continue;
        }
        set.push((used.key().into(), encode_timestamp(last)));
        *noted = Noted { last: None, stored: last };
    }
    if set.is_empty() {
        return Ok(());
    }
    let op = WriteOp::new().guard(Guard::AssertExists).effect(Effect::OmapSet(set));
    image.pool.store.write(&image.header_object(), op).await.map(drop)
}
