use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use ferry_core::{DeviceExtent, Error, ErrorKind, Reply, Result};
use futures_channel::oneshot;

use super::Pages;
use crate::limits::{PAGE_SIZE, PAGES_MAX};
use crate::stream::Stream;

/// A read that was not answered: offset, length, where to answer.
type Asked = (u64, u64, oneshot::Sender<Result<()>>);

/// A stream that answers when it is told to: byte by byte the number of its page.
#[derive(Debug)]
struct Slow {
    size: u64,
    asked: Mutex<Vec<Asked>>,
}

impl Slow {
    fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { size, asked: Mutex::default() })
    }

    /// What is asked and not answered: offset, length.
    fn asked(&self) -> Vec<(u64, u64)> {
        self.asked.lock().unwrap().iter().map(|(offset, length, _)| (*offset, *length)).collect()
    }

    fn answer(&self, result: Result<()>) {
        let (_, _, answer) = self.asked.lock().unwrap().remove(0);
        // Whoever asked may be gone.
        answer.send(result).unwrap_or_default();
    }
}

impl Stream for Slow {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, length: u64) -> Reply<Bytes> {
        let (answer, answered) = oneshot::channel();
        self.asked.lock().unwrap().push((offset, length, answer));
        Reply::pending(async move {
            answered.await.unwrap()?;
            let number = u8::try_from(offset / PAGE_SIZE % 251).unwrap();
            Ok(Bytes::from(vec![number; usize::try_from(length).unwrap()]))
        })
    }

    fn extents(&self, _: u64, _: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(Err(Error::unsupported("not asked here")))
    }

    fn gap(&self) -> u64 {
        0
    }

    fn pin(&self) -> String {
        String::new()
    }

    fn describe(&self) -> String {
        "slow".to_owned()
    }
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_page_that_several_want_is_fetched_once() {
    let stream = Slow::new(10 * PAGE_SIZE);
    let pages = Pages::new(Arc::clone(&stream) as Arc<dyn Stream>);
    let mut first = pin!(pages.bytes(PAGE_SIZE, 4));
    let mut second = pin!(pages.bytes(PAGE_SIZE + 100, 4));
    assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
    assert_eq!(stream.asked(), [(PAGE_SIZE, PAGE_SIZE)]);
    stream.answer(Ok(()));
    assert!(poll(second.as_mut()).is_pending(), "not before the one that fetches it has it");
    let Poll::Ready(got) = poll(first.as_mut()) else { panic!("it is there") };
    assert_eq!(got.unwrap(), [1; 4]);
    let Poll::Ready(got) = poll(second.as_mut()) else { panic!("it is there") };
    assert_eq!(got.unwrap(), [1; 4]);
    assert_eq!(stream.asked(), []);
}

#[test]
fn who_waits_for_a_page_fetches_it_when_the_other_gives_up_or_fails() {
    let stream = Slow::new(10 * PAGE_SIZE);
    let pages = Pages::new(Arc::clone(&stream) as Arc<dyn Stream>);
    let mut second = pin!(pages.bytes(0, 4));
    {
        let mut first = pin!(pages.bytes(0, 4));
        assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
    }
    stream.answer(Ok(()));
    assert!(poll(second.as_mut()).is_pending());
    assert_eq!(stream.asked(), [(0, PAGE_SIZE)], "asked again");
    let mut third = pin!(pages.bytes(8, 4));
    assert!(poll(third.as_mut()).is_pending());
    stream.answer(Err(Error::busy("not now")));
    let Poll::Ready(got) = poll(second.as_mut()) else { panic!("it failed") };
    assert_eq!(got.unwrap_err().kind(), ErrorKind::Busy);
    assert!(poll(third.as_mut()).is_pending());
    stream.answer(Ok(()));
    let Poll::Ready(got) = poll(third.as_mut()) else { panic!("it is there") };
    assert_eq!(got.unwrap(), [0; 4]);
}

#[test]
fn no_more_pages_are_kept_than_there_may_be_and_the_ones_used_last() {
    let count = u64::try_from(PAGES_MAX).unwrap() + 10;
    let stream = Slow::new(count * PAGE_SIZE);
    let pages = Pages::new(Arc::clone(&stream) as Arc<dyn Stream>);
    let get = |page: u64| {
        let mut getting = pin!(pages.bytes(page * PAGE_SIZE, 1));
        let fetched = poll(getting.as_mut()).is_pending();
        if fetched {
            stream.answer(Ok(()));
            assert!(poll(getting.as_mut()).is_ready());
        }
        fetched
    };
    for page in 0..count {
        assert!(get(page));
        // Wanted all the time, and so never forgotten.
        assert!(!get(0));
    }
    assert_eq!(pages.kept().slots.len(), PAGES_MAX);
    assert!(!get(count - 1) && get(1));
}

#[test]
fn a_number_may_lie_across_two_pages_and_none_behind_the_end() {
    let stream = Slow::new(2 * PAGE_SIZE + 3);
    let pages = Pages::new(Arc::clone(&stream) as Arc<dyn Stream>);
    let mut entries = pages.entries();
    let mut across = pin!(entries.u64(PAGE_SIZE - 4));
    for _ in 0..2 {
        assert!(poll(across.as_mut()).is_pending());
        stream.answer(Ok(()));
    }
    let Poll::Ready(got) = poll(across.as_mut()) else { panic!("it is there") };
    assert_eq!(got.unwrap(), 0x0101_0101);
    for at in [2 * PAGE_SIZE - 4, 2 * PAGE_SIZE + 3, u64::MAX - 7, u64::MAX] {
        let mut entries = pages.entries();
        let mut behind = pin!(entries.u64(at));
        let Poll::Ready(got) = poll(behind.as_mut()) else { panic!("nothing to wait for") };
        assert_eq!(got.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
