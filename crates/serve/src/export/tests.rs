use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ferry_core::{BlockDevice, DeviceExtent, ErrorKind, Reply};

use super::{Export, Exports};

/// A device of which only the size matters.
#[derive(Debug)]
struct Sized(u64);

impl BlockDevice for Sized {
    fn size(&self) -> u64 {
        self.0
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, _: u64, length: u64) -> Reply<Bytes> {
        Reply::ready(Ok(Bytes::from(vec![0; usize::try_from(length).unwrap()])))
    }
    fn write(&self, _: u64, _: Bytes) -> Reply<()> {
        Reply::ready(Ok(()))
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Reply<()> {
        Reply::ready(Ok(()))
    }
    fn discard(&self, _: u64, _: u64) -> Reply<()> {
        Reply::ready(Ok(()))
    }
    fn flush(&self) -> Reply<()> {
        Reply::ready(Ok(()))
    }
    fn extents(&self, _: u64, _: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(Ok(Vec::new()))
    }
}

fn export(size: u64) -> Arc<Export> {
    Arc::new(Export::new("a", "", Arc::new(Sized(size)), false))
}

#[tokio::test]
async fn a_switch_waits_for_requests_under_way_and_requests_wait_for_the_switch() {
    let export = export(1);
    let under_way = export.enter().await;
    let other = Arc::clone(&export);
    let switch = tokio::spawn(async move {
        let paused = other.pause(Duration::from_secs(10)).await.unwrap();
        paused.replace(Arc::new(Sized(2))).unwrap();
    });
    while export.try_enter().is_some() {
        tokio::task::yield_now().await;
    }
    assert!(!switch.is_finished());
    assert_eq!(under_way.size(), 1);
    drop(under_way);
    assert_eq!(export.enter().await.size(), 2);
    switch.await.unwrap();
}

#[tokio::test]
async fn a_switch_that_takes_too_long_gives_way() {
    let export = export(1);
    let under_way = export.enter().await;
    let late = export.pause(Duration::from_millis(10)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    drop(under_way);
    assert_eq!(export.try_enter().unwrap().size(), 1);
    // And can be tried again.
    let paused = export.pause(Duration::from_secs(10)).await.unwrap();
    assert!(export.try_enter().is_none());
    drop(paused);
    assert!(export.try_enter().is_some());
}

#[tokio::test]
async fn a_smaller_device_is_refused() {
    let export = export(2);
    let paused = export.pause(Duration::from_secs(1)).await.unwrap();
    assert_eq!(paused.replace(Arc::new(Sized(1))).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(export.size(), 2);
}

#[test]
fn the_empty_name_is_the_only_export() {
    let exports = Exports::default();
    assert!(exports.get("").is_none());
    exports.add(Export::new("a", "", Arc::new(Sized(1)), false)).unwrap();
    assert_eq!(exports.get("").unwrap().name(), "a");
    exports.add(Export::new("b", "", Arc::new(Sized(1)), false)).unwrap();
    assert!(exports.get("").is_none());
    let again = exports.add(Export::new("b", "", Arc::new(Sized(1)), false));
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Exists);
}
