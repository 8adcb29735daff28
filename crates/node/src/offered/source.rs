//! A foreign source as a device that is only read.

use std::sync::Arc;

use bytes::Bytes;
use ferry_core::source::SourcePoint;
use ferry_core::{BlockDevice, BlockSource, DeviceExtent, Error, ErrorKind, Reply, Result};

/// The newest point of a source.
#[derive(Debug)]
pub(super) struct SourceDevice(pub(super) Arc<dyn BlockSource>);

fn refused<T>() -> Reply<T> {
    Reply::ready(Err(Error::new(ErrorKind::ReadOnly, "a foreign source is only read")))
}

impl SourceDevice {
    fn check(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.0.size()) {
            return Err(Error::invalid("a range is not inside the source"));
        }
        Ok(())
    }
}

impl BlockDevice for SourceDevice {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        if let Err(e) = self.check(offset, length) {
            return Reply::ready(Err(e));
        }
        let source = Arc::clone(&self.0);
        Reply::pending(async move {
            let data = source.read(SourcePoint::Head, offset, length).await?;
            Ok(Bytes::from(data.to_vec(offset, length)))
        })
    }

    fn write(&self, _: u64, _: Bytes) -> Reply<()> {
        refused()
    }

    fn write_zeroes(&self, _: u64, _: u64) -> Reply<()> {
        refused()
    }

    fn discard(&self, _: u64, _: u64) -> Reply<()> {
        refused()
    }

    fn flush(&self) -> Reply<()> {
        Reply::ready(Ok(()))
    }

    fn extents(&self, offset: u64, length: u64) -> Reply<Vec<DeviceExtent>> {
        match self.check(offset, length) {
            Ok(()) => self.0.extents(SourcePoint::Head, offset, length),
            Err(e) => Reply::ready(Err(e)),
        }
    }
}
