//! Images served to clients of NBD, while the node is killed and the power is cut: what was flushed is there.

pub(crate) mod client;
mod fio;
pub(crate) mod ledger;
pub(crate) mod load;
mod power;

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::harness::{Home, Name, promised};
use ledger::{Content, Ledger, pattern};
use load::{Load, Numbers, Subject, check};

/// Blocks of an image under load.
const BLOCKS: usize = 2048;

/// A number from the environment.
pub(crate) fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// A seed that differs from run to run, unless `FERRY_SEED` says which.
pub(crate) fn seed() -> u64 {
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    setting("FERRY_SEED", fresh.into())
}

/// Makes the images of a test in a home: one of zeros, and a clone of one that is full of the pattern 1.
fn prepare(home: &Home) -> Vec<Subject> {
    let full: Vec<u8> = (0..BLOCKS).flat_map(|at| pattern(Content::Numbered(1), at)).collect();
    fs::write(home.path("full"), full).unwrap();
    home.ok(&format!("create plain --size {}M", (BLOCKS * 4096) >> 20));
    home.ok("import full parent");
    home.ok("snap create parent@s");
    home.ok("clone parent@s clone");
    let node = home.serve();
    home.ok("export add plain --name plain");
    home.ok("export add clone --name clone");
    assert_eq!(node.stop(), 0, "{}", home.log());
    let of = |export, content| Subject { export, ledger: Arc::new(Ledger::new(BLOCKS, content)) };
    vec![of("plain", Content::Zero), of("clone", Content::Numbered(1))]
}

#[test]
fn what_a_client_flushed_is_there_when_the_node_is_killed_again_and_again() {
    promised("What a client of NBD has flushed, or written with FUA, is there after");
    let (rounds, seed) = (setting("FERRY_ROUNDS", 100), seed());
    println!("FERRY_SEED={seed} FERRY_ROUNDS={rounds}");
    let home = Home::new();
    let subjects = prepare(&home);
    let socket = home.path("home/nbd.sock");
    let mut numbers = Numbers(seed);
    let (mut old, mut new) = (0, 0);
    for round in 0..rounds {
        if numbers.below(5) == 0 {
            // It may also die while it starts.
            let mut command = home.command(Name::Ferry);
            let mut starting =
                command.arg("serve").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            thread::sleep(Duration::from_millis(numbers.below(30)));
            starting.kill().unwrap();
            starting.wait().unwrap();
        }
        let node = home.serve();
        for subject in &subjects {
            let (found, image) = check(&socket, subject, &subject.ledger.durable())
                .unwrap_or_else(|e| panic!("round {round} of seed {seed}: {e}"));
            subject.ledger.take_over(&image);
            (old, new) = (old + found.old, new + found.new);
        }
        let load = Load::start(&socket, &subjects, numbers.below(u64::MAX));
        // Now and then before anything is done, mostly in the middle.
        thread::sleep(Duration::from_millis(numbers.below(250)));
        node.kill();
        load.end_without_server();
    }
    let _node = home.serve();
    for subject in &subjects {
        check(&socket, subject, &subject.ledger.durable()).unwrap();
    }
    home.check();
    let (writes, flushes) =
        subjects.iter().map(|s| s.ledger.acknowledged()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!(
        "{rounds} kills under {writes} writes and {flushes} flushes: of the blocks written since their last flush, {new} new, {old} old"
    );
    assert!(writes > rounds * 10 && flushes > rounds, "{writes} writes, {flushes} flushes: no load");
}
