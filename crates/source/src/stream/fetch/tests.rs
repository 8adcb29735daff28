//! Patience, without a network.

use std::time::{Duration, Instant};

use ferry_core::{Error, ErrorKind};

use super::{Again, Attempts, Failure, Patience, Phase, Traffic};

fn patience() -> Patience {
    Patience { retry: Duration::from_millis(300), open: Duration::ZERO, progress: 100, ..Patience::default() }
}

fn failure(again: Again) -> Failure {
    Failure { error: Error::not_found("gone"), again }
}

#[tokio::test]
async fn an_attempt_is_repeated_until_patience_is_over() {
    let (traffic, patience) = (Traffic::default(), patience());
    let mut attempts = Attempts::new(Phase::Open, &patience, &traffic);
    let begun = Instant::now();
    let error = loop {
        attempts.came(1);
        if let Err(e) = attempts.after(failure(Again::Later)).await {
            break e;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "what was there once is not absent");
    assert!((300..3000).contains(&begun.elapsed().as_millis()));
    assert!(traffic.count().failures >= 3);
}

#[tokio::test]
async fn progress_gives_all_the_time_again() {
    let (traffic, patience) = (Traffic::default(), patience());
    let mut attempts = Attempts::new(Phase::Open, &patience, &traffic);
    for _ in 0..8 {
        attempts.came(100);
        attempts.after(failure(Again::Later)).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_wrong_while_opening_is_told_as_it_is() {
    let (traffic, patience) = (Traffic::default(), patience());
    for again in [Again::Never, Again::Later, Again::Soon(None)] {
        let mut attempts = Attempts::new(Phase::Opening, &patience, &traffic);
        assert_eq!(attempts.after(failure(again)).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    let mut attempts = Attempts::new(Phase::Opening, &patience, &traffic);
    attempts.after(failure(Again::Now)).await.unwrap();
}
