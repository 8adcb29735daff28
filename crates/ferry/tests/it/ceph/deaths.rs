//! Migrations into a cluster, out of one and inside, whose process dies after one of its changes: the same command finishes, or an
//! abort restores, every byte is there and nothing is left over. As [`crate::kills`] does in directories, where each change is tried.
//!
//! The cluster counts a dead process among the watchers of an image for ten seconds here (thirty elsewhere); so long it is busy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Cluster;
use crate::durability::setting;
use crate::harness::{Home, Name, noise, promised};
use crate::kills::{CHANGES_MAX, SIZE, Wanted, dies, has_receipt};

/// Every so many changes of a command are tried, where `FERRY_KILL_STRIDE` does not say how many.
const STRIDE: u64 = 12;

/// Longest time an image may be busy with a process that died.
const BUSY_MAX: Duration = Duration::from_secs(60);

/// Where an image is, and where it moves.
const WAYS: [(&str, &str); 3] = [("rbd", "far"), ("far", "rbd"), ("far", "far")];

/// What a process dies in.
const VERBS: [&str; 4] = ["prepare", "execute", "commit", "abort"];

/// A home with the local pool `rbd` and the pool `far` of the cluster.
fn home_at(cluster: &Cluster, pool: &str) -> Home {
    let home = Home::empty();
    home.ok("pool create rbd");
    let conf = cluster.conf().display();
    let made = home.run(Name::Ferry, &format!("-c {conf} pool create far --rados --rados-pool {pool}"));
    assert_eq!(made.code, 0, "{made:?}");
    home
}

/// Runs what may be done already, as soon as nobody counts the dead any more.
fn finish(home: &Home, line: &str, what: &str) {
    let began = Instant::now();
    loop {
        let run = home.run(Name::Ferry, line);
        if run.code == 16 && run.err.contains("watchers") && began.elapsed() < BUSY_MAX {
            thread::sleep(Duration::from_millis(500));
            continue;
        }
        // Not migrating any more, gone, or executed already: the death came after the last change that matters.
        assert!([0, 2, 22].contains(&run.code), "{what}: {line} once more: {run:?}");
        return;
    }
}

/// Makes an image with two snapshots.
fn make(home: &Home, image: &str) -> Wanted {
    home.ok(&format!("create {image} --size {SIZE}B --object-size 1M"));
    let mut wanted = Wanted::zeros();
    wanted.write(home, image, 0, &noise(1, 1_300_000));
    wanted.snapshot(home, image, "s1");
    wanted.write(home, image, 900_000, &noise(2, 600_000));
    wanted.snapshot(home, image, "s2");
    wanted.write(home, image, 3_300_000, &noise(3, 200_000));
    wanted
}

fn remove(home: &Home, image: &str, what: &str) {
    for line in [format!("snap purge {image} --no-progress"), format!("rm {image} --no-progress")] {
        finish(home, &line, what);
    }
}

/// Lets one verb die after one change, and goes on from there, to the one end or to the other; whether it died.
fn round(cluster: &Cluster, pool: &str, way: (&str, &str), verb: usize, change: u64) -> bool {
    let home = home_at(cluster, pool);
    let tag = format!("{}{}-{verb}-{change}", way.0, way.1);
    let what = format!("{way:?}: {}, change {change}", VERBS[verb]);
    let (source, target) = (format!("{}/a-{tag}", way.0), format!("{}/b-{tag}", way.1));
    let lines = [
        format!("migration prepare {source} {target} --object-size 512K"),
        format!("migration execute {target} --no-progress"),
        format!("migration commit {target} --force --no-progress"),
        // By the name that is there whatever was done.
        format!("migration abort {source} --no-progress"),
    ];
    let mut wanted = make(&home, &source);
    let write_between = |wanted: &mut Wanted| wanted.write(&home, &target, 1_000_000, &noise(9, 400_000));
    if verb > 0 {
        home.ok(&lines[0]);
        write_between(&mut wanted);
    }
    if verb == 2 || (verb == 3 && change.is_multiple_of(2)) {
        home.ok(&lines[1]);
    }
    let died = dies(&home, &lines[verb], change);
    // In turn to the one end and to the other, where both can be reached.
    let goes_back = verb == 3 || (verb < 2 && change.is_multiple_of(2));
    finish(&home, &lines[if goes_back { 3 } else { verb }], &what);
    if !goes_back {
        if verb == 0 {
            write_between(&mut wanted);
        }
        lines[verb + 1..3].iter().for_each(|line| finish(&home, line, &what));
    }
    let left = if goes_back { &source } else { &target };
    wanted.check(&home, left, &what);
    assert_eq!(has_receipt(&home), !goes_back, "{what}");
    for pool in ["rbd", "far"] {
        let trash = home.ok(&format!("trash ls --all {pool}"));
        assert!(!trash.contains(&tag), "{what}: {trash}");
    }
    assert!(home.ok("check rbd").ends_with("no damage found\n"), "{what}");
    remove(&home, left, &what);
    died
}

#[test]
fn a_death_after_a_change_of_a_migration_to_or_from_a_cluster_costs_nothing() {
    let test = "a_death_after_a_change_of_a_migration_to_or_from_a_cluster_costs_nothing";
    let home = Home::empty();
    let Some(cluster) = Cluster::for_test(&home, test) else { return };
    let pool = Cluster::own("deaths");
    cluster.make_pool(&pool);
    let stride = setting("FERRY_KILL_STRIDE", STRIDE);
    let kills = AtomicU64::new(0);
    thread::scope(|scope| {
        for (n, way) in WAYS.into_iter().enumerate() {
            for verb in 0..VERBS.len() {
                let (cluster, pool, kills) = (&cluster, &pool, &kills);
                scope.spawn(move || {
                    // Not the same ones of each.
                    let first = 1 + (n as u64 * 5 + verb as u64 * 3) % stride;
                    let mut changes = (first..CHANGES_MAX).step_by(usize::try_from(stride).unwrap());
                    while changes.next().is_some_and(|change| round(cluster, pool, way, verb, change)) {
                        kills.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
    });
    let kills = kills.into_inner();
    println!("{kills} deaths");
    assert!(kills >= 12, "{kills} deaths");
    // Of no image anything is left.
    assert_eq!(cluster.ceph("rbd", &format!("ls {pool}")), "");
    let of_images = ["rbd_data.", "rbd_header.", "rbd_id.", "rbd_object_map."];
    cluster.wait_until_none(&pool, |name| of_images.iter().any(|start| name.starts_with(start)));
    cluster.remove_pool(&pool);
}

#[test]
fn a_death_in_the_removal_of_a_snapshot_keeps_no_image_from_moving() {
    let test = "a_death_in_the_removal_of_a_snapshot_keeps_no_image_from_moving";
    let ground = Home::empty();
    let Some(cluster) = Cluster::for_test(&ground, test) else { return };
    promised("Prepare ends the removal of a snapshot of the source that was cut off");
    let pool = Cluster::own("removal");
    cluster.make_pool(&pool);
    let home = home_at(&cluster, &pool);
    let mut left = 0;
    for change in 1..CHANGES_MAX {
        let (source, target) = (format!("far/a{change}"), format!("far/b{change}"));
        let mut wanted = Wanted::zeros();
        home.ok(&format!("create {source} --size {SIZE}B --object-size 1M"));
        wanted.write(&home, &source, 0, &noise(1, 1_300_000));
        home.ok(&format!("snap create {source}@s --no-progress"));
        wanted.write(&home, &source, 900_000, &noise(2, 600_000));
        let what = format!("change {change}");
        let died = dies(&home, &format!("snap rm {source}@s --no-progress"), change);
        left += u64::from(home.ok(&format!("snap ls {source} --all")).contains("trash (s)"));
        finish(&home, &format!("migration prepare {source} {target}"), &what);
        assert!(!home.ok(&format!("snap ls {target} --all")).contains("trash"), "{what}");
        wanted.check(&home, &target, &what);
        for verb in ["execute", "commit"] {
            home.ok(&format!("migration {verb} {target} --no-progress"));
        }
        remove(&home, &target, &what);
        if !died {
            break;
        }
    }
    assert!(left > 0, "no removal was cut off between its steps");
    cluster.remove_pool(&pool);
}
