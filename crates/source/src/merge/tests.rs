use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ferry_core::source::{BlockSource, SourcePoint, SourceSnapshot};
use ferry_core::{DeviceExtent, Error, Reply, Result, SparseData};
use futures_channel::oneshot::{Sender, channel};

use super::Merged;

/// A source that answers when it is told to.
#[derive(Debug, Default)]
struct Told {
    asked: Mutex<Vec<Sender<Result<SparseData>>>>,
}

impl Told {
    fn answer(&self, n: usize, answer: Result<SparseData>) {
        self.asked.lock().unwrap().remove(n).send(answer).unwrap();
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl BlockSource for Told {
    fn snapshots(&self) -> &[SourceSnapshot] {
        &[]
    }

    fn size(&self) -> u64 {
        1 << 20
    }

    fn read(&self, _: SourcePoint, _: u64, _: u64) -> Reply<SparseData> {
        let (sender, receiver) = channel();
        self.asked.lock().unwrap().push(sender);
        Reply::pending(async move { receiver.await.unwrap() })
    }

    fn extents(&self, _: SourcePoint, _: u64, _: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(Ok(Vec::new()))
    }

    fn changes(&self, _: SourcePoint, _: SourcePoint, _: u64, _: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(Ok(Vec::new()))
    }

    fn pin(&self) -> String {
        String::new()
    }

    fn describe(&self) -> String {
        String::new()
    }
}

fn data() -> SparseData {
    SparseData { extents: vec![(0, Bytes::from_static(b"data"))] }
}

#[test]
fn reads_of_one_range_at_once_are_one_and_a_later_one_is_another() {
    let told = Arc::new(Told::default());
    let merged = Merged::new(Arc::<Told>::clone(&told));
    let read = |offset| merged.read(SourcePoint::Head, offset, 4096);
    let (a, b, other) = (read(0), read(0), read(4096));
    assert_eq!(told.asked(), 2);
    told.answer(1, Ok(SparseData { extents: Vec::new() }));
    told.answer(0, Ok(data()));
    // The one who asked first need not be the one who waits first.
    assert_eq!(b.wait().unwrap().extents, data().extents);
    let later = read(0);
    assert_eq!(told.asked(), 1, "the answer is there: it is asked again");
    assert_eq!(a.wait().unwrap().extents, data().extents);
    assert!(other.wait().unwrap().extents.is_empty());
    told.answer(0, Ok(data()));
    assert_eq!(later.wait().unwrap().extents, data().extents);
    drop(read(0));
    let again = read(0);
    assert_eq!(told.asked(), 2, "nobody waits for the one that was given up");
    told.answer(1, Ok(data()));
    again.wait().unwrap();
}

#[test]
fn an_error_is_one_readers_and_the_others_ask_again() {
    let told = Arc::new(Told::default());
    let merged = Merged::new(Arc::<Told>::clone(&told));
    let (a, b) = (merged.read(SourcePoint::Head, 0, 1), merged.read(SourcePoint::Head, 0, 1));
    told.answer(0, Err(Error::not_found("gone")));
    let waiting = std::thread::spawn(move || a.wait());
    while told.asked() == 0 {
        std::thread::yield_now();
    }
    told.answer(0, Ok(data()));
    assert_eq!(waiting.join().unwrap().unwrap().extents, data().extents);
    assert!(b.wait().unwrap_err().to_string().contains("gone"));
}
