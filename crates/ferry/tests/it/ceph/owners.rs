//! Who owns an image's lock, where its owner dies, stops or does not let go.

use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::access::reader;
use super::{Cluster, stock};
use crate::harness::{Home, Name, promised};

/// Longest time until a dead owner's lock is another's: the watch ends after 10 s here, 30 s elsewhere, and messages take their time.
const TAKEN_OVER_MAX: Duration = Duration::from_secs(75);

/// Signals a process of ours.
fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// Writes without an end, as stock `rbd` or as ferry, and waits until it owns the lock.
fn writer(home: &Home, cluster: &Cluster, program: &str, image: &str) -> Child {
    let line =
        format!("bench {image} --io-type write --io-size 4K --io-threads 1 --io-total 1T --io-pattern rand");
    let mut command = match program {
        "stock" => Command::new("rbd"),
        _ => home.command(Name::Rbd),
    };
    command.env("CEPH_CONF", cluster.conf()).args(line.split_whitespace()).stdin(Stdio::null());
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !lock_of(home, cluster, image).contains("auto ") {
        assert!(began.elapsed() < Duration::from_secs(20), "{program} does not write");
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(Duration::from_millis(500));
    child
}

fn lock_of(home: &Home, cluster: &Cluster, image: &str) -> String {
    String::from_utf8(stock(home, cluster, &format!("lock ls {image}")).stdout).unwrap()
}

/// The address in what `rbd lock ls` says.
fn address(lock: &str) -> String {
    lock.split_whitespace().last().unwrap().to_owned()
}

/// A short write must go well now; how long it took.
fn takes_over(home: &Home, cluster: &Cluster, program: &str, image: &str) -> Duration {
    let line =
        format!("bench {image} --io-type write --io-size 4K --io-threads 1 --io-total 64K --io-pattern seq");
    let began = Instant::now();
    let output = match program {
        "stock" => stock(home, cluster, &line),
        _ => super::ours(home, cluster, &line),
    };
    assert!(output.status.success(), "{program} does not take the lock: {output:?}");
    assert!(began.elapsed() < TAKEN_OVER_MAX, "{program} took {:?}", began.elapsed());
    began.elapsed()
}

#[test]
fn the_lock_of_a_dead_owner_is_taken_after_it_was_cut_off() {
    let test = "the_lock_of_a_dead_owner_is_taken_after_it_was_cut_off";
    let home = Home::empty();
    let Some(cluster) = Cluster::for_test(&home, test) else { return };
    promised("The lock of an owner that died is taken after that owner was cut off from the cluster");
    let pool = Cluster::own("owners");
    cluster.make_pool(&pool);
    let image = format!("{pool}/i");
    cluster.ceph("rbd", &format!("create {image} --size 16M"));
    for (first, second) in [("stock", "ferry"), ("ferry", "stock"), ("ferry", "ferry")] {
        let mut owner = writer(&home, &cluster, first, &image);
        let owners_address = address(&lock_of(&home, &cluster, &image));
        signal(&owner, "-KILL");
        owner.wait().unwrap();
        let took = takes_over(&home, &cluster, second, &image);
        let cut_off = cluster.ceph("ceph", "osd blocklist ls");
        assert!(cut_off.contains(&owners_address), "{owners_address} is not among {cut_off}");
        println!("{second} after {first} was killed: {:.1} s", took.as_secs_f64());
    }
    // One that only stopped comes back and must not write any more.
    let mut owner = writer(&home, &cluster, "stock", &image);
    signal(&owner, "-STOP");
    let took = takes_over(&home, &cluster, "ferry", &image);
    println!("ferry after rbd stopped: {:.1} s", took.as_secs_f64());
    let export = |name: &str| {
        cluster.ceph("rbd", &format!("export --no-progress {image} {}", home.path(name).display()));
        std::fs::read(home.path(name)).unwrap()
    };
    let before = export("before");
    signal(&owner, "-CONT");
    thread::sleep(Duration::from_secs(2));
    assert!(export("after") == before, "an owner that was cut off has written");
    // It may wait for ever for an answer that it does not get.
    drop(owner.kill());
    drop(owner.wait());
    let checked = stock(&home, &cluster, &format!("object-map check {image}"));
    assert!(checked.status.success(), "{checked:?}");
    // A person's lock is nobody's to break.
    cluster.ceph("rbd", &format!("lock add {image} mine"));
    let line = format!("bench {image} --io-type write --io-size 4K --io-total 4K");
    assert_eq!(super::ours(&home, &cluster, &line).status.code(), Some(16));
    cluster.remove_pool(&pool);
}

#[test]
fn an_owner_that_dies_while_it_hands_its_lock_over_is_not_waited_for() {
    let test = "an_owner_that_dies_while_it_hands_its_lock_over_is_not_waited_for";
    let home = Home::empty();
    let Some(cluster) = Cluster::for_test(&home, test) else { return };
    promised("or promised the lock and did not give it, is waited for as long as the cluster counts it");
    let pool = Cluster::own("promise");
    cluster.make_pool(&pool);
    let image = format!("{pool}/i");
    cluster.ceph("rbd", &format!("create {image} --size 16M"));
    // It dies before it is asked, while it is, or when it has promised: whatever the moment, the lock is had.
    for (program, delay) in [("ferry", 40), ("stock", 80), ("ferry", 120)] {
        let mut owner = writer(&home, &cluster, program, &image);
        let took = thread::scope(|scope| {
            let asks = scope.spawn(|| takes_over(&home, &cluster, "ferry", &image));
            thread::sleep(Duration::from_millis(delay));
            signal(&owner, "-KILL");
            asks.join().unwrap()
        });
        owner.wait().unwrap();
        println!(
            "{program} killed {delay} ms after ferry began: taken over after {:.1} s",
            took.as_secs_f64()
        );
    }
    cluster.remove_pool(&pool);
}

#[test]
fn status_tells_the_addresses_of_watchers_as_rbd_does() {
    let test = "status_tells_the_addresses_of_watchers_as_rbd_does";
    let home = Home::empty();
    let Some(cluster) = Cluster::for_test(&home, test) else { return };
    promised("of a user who may not ask them it asks the image's clients who they are");
    let pool = Cluster::own("status");
    cluster.make_pool(&pool);
    let image = format!("{pool}/i");
    cluster.ceph("rbd", &format!("create {image} --size 16M"));
    let mut owner = writer(&home, &cluster, "stock", &image);
    let watch = || {
        let mut command = Command::new("rbd");
        // It ends when its input does.
        command.env("CEPH_CONF", cluster.conf()).args(["watch", &image]).stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut watchers = [watch(), watch()];
    let text = |output: Output| String::from_utf8(output.stdout).unwrap();
    let status = |options: &str| {
        let line = format!("status {image}{options}");
        (text(super::ours(&home, &cluster, &line)), text(stock(&home, &cluster, &line)))
    };
    let began = Instant::now();
    while status("").1.matches("watcher=").count() < 3 {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", status(""));
    }
    for options in ["", " --format json", " --format xml"] {
        let (ours, stocks) = status(options);
        assert_eq!(ours, stocks);
        assert!(ours.contains("127.0.0.1"), "{ours}");
    }
    let user = reader(&home, &cluster, &pool, &pool);
    let seen = text(super::ours(&home, &cluster, &format!("status {image} {user}")));
    assert_eq!((seen.matches("watcher=").count(), seen.matches("watcher=- ").count()), (3, 2), "{seen}");
    // One that stopped keeps nobody waiting, as the OSD tells.
    signal(&watchers[0], "-STOP");
    let began = Instant::now();
    let (ours, stocks) = status("");
    assert_eq!(ours, stocks);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    signal(&watchers[0], "-CONT");
    for child in watchers.iter_mut().chain([&mut owner]) {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    cluster.remove_pool(&pool);
}
