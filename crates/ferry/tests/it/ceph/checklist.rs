//! What `docs/format/rbd-metadata.md` asks of two programs on one image: each group is played twice, once with stock `rbd` beginning and
//! ferry going on, once the other way round.

use std::fs;
use std::process::Output;

use super::{Cluster, ours, seen, stock};
use crate::harness::{Home, root};

/// A line: who does it (`1` the first, `2` the second, `rbd`, `both` one after the other with the same answer), the exit code that is
/// expected where it is not 0 (`=16`), and the command; `%` is the pool. `same IMAGE` compares what both read of an image, `map IMAGE`
/// has stock `rbd` check its object map.
const GROUPS: &[(&str, &str)] = &[
    (
        "images and layouts",
        "1 create %/a --size 64M
         2 bench %/a --io-type write --io-size 4K --io-total 1M --io-pattern rand
         1 bench %/a --io-type write --io-size 64K --io-total 4M --io-pattern seq
         same %/a
         map %/a
         both info %/a
         both du %/a --format json
         2 create %/st --size 12M --object-size 1M --stripe-unit 64K --stripe-count 4 --data-pool ecdata
         1 bench %/st --io-type write --io-size 192K --io-total 6M --io-pattern rand
         2 bench %/st --io-type write --io-size 4K --io-total 256K --io-pattern rand
         same %/st
         map %/st
         2 rm %/st
         1 rm %/a",
    ),
    (
        "namespaces",
        "1 namespace create %/n
         2 create %/n/i --size 8M
         1 bench %/n/i --io-type write --io-total 256K --io-pattern rand
         2 snap create %/n/i@s
         1 bench %/n/i --io-type write --io-total 256K --io-pattern rand
         same %/n/i
         same %/n/i@s
         both ls -l %/n
         1 =39 rm %/n/i
         2 snap rm %/n/i@s
         1 =16 namespace rm %/n
         2 =16 namespace rm %/n
         1 rm %/n/i
         2 namespace rm %/n
         both namespace ls %",
    ),
    (
        "names",
        "1 create %/a --size 8M
         2 rename %/a %/b
         1 rename %/b %/c
         both ls %
         2 =17 create %/c --size 8M
         1 image-meta set %/c key value
         2 image-meta set %/c other thing
         both image-meta ls %/c
         2 config image set %/c rbd_cache false
         1 config image get %/c rbd_cache
         1 rm %/c
         both ls %",
    ),
    (
        "snapshots",
        "1 create %/a --size 16M --object-size 1M
         1 bench %/a --io-type write --io-total 1M --io-pattern rand
         2 snap create %/a@s1
         1 snap protect %/a@s1
         2 =16 snap rm %/a@s1
         2 snap unprotect %/a@s1
         2 snap rename %/a@s1 %/a@s2
         1 bench %/a --io-type write --io-total 1M --io-pattern rand
         2 snap create %/a@s3
         2 bench %/a --io-type write --io-total 1M --io-pattern rand
         same %/a@s2
         same %/a@s3
         map %/a
         map %/a@s2
         map %/a@s3
         both diff --whole-object --from-snap s2 %/a
         2 snap rollback %/a@s2
         same %/a
         map %/a
         1 snap rm %/a@s2
         map %/a@s3
         map %/a
         1 snap limit set %/a --limit 1
         2 =122 snap create %/a@s4
         1 snap limit clear %/a
         both snap ls %/a --all --format json
         2 snap purge %/a
         map %/a
         1 rm %/a",
    ),
    (
        "clones",
        "1 create %/a --size 16M --object-size 1M
         1 bench %/a --io-type write --io-total 2M --io-pattern rand
         2 snap create %/a@c
         1 snap protect %/a@c
         2 clone %/a@c %/v1 --rbd-default-clone-format 1
         1 =16 snap unprotect %/a@c
         2 =16 snap unprotect %/a@c
         1 clone %/a@c %/v2 --rbd-default-clone-format 2
         both children %/a --all
         2 bench %/v1 --io-type write --io-total 512K --io-pattern rand
         1 bench %/v1 --io-type write --io-total 512K --io-pattern rand
         1 bench %/v2 --io-type write --io-total 512K --io-pattern rand
         2 bench %/v2 --io-type write --io-total 512K --io-pattern rand
         same %/v1
         same %/v2
         map %/v1
         map %/v2
         2 flatten %/v1
         same %/v1
         1 snap unprotect %/a@c
         1 snap rm %/a@c
         both snap ls %/a --all
         both info %/a
         2 flatten %/v2
         same %/v2
         map %/v2
         both snap ls %/a --all
         both info %/a
         1 rm %/v1
         2 rm %/v2
         1 rm %/a",
    ),
    (
        "clones that keep their parent for a snapshot",
        "1 create %/a --size 8M --object-size 1M
         1 bench %/a --io-type write --io-total 1M --io-pattern rand
         2 snap create %/a@c
         2 clone %/a@c %/k --rbd-default-clone-format 2 --image-feature layering --image-feature exclusive-lock
         1 snap create %/k@x
         2 flatten %/k
         same %/k
         same %/k@x
         both info %/k
         both info %/k@x
         both children %/a@c --all
         1 snap rm %/k@x
         both children %/a@c --all
         2 snap rm %/a@c
         both info %/a
         2 rm %/k
         1 rm %/a",
    ),
    (
        "clones cut and grown",
        "1 create %/a --size 16M --object-size 1M
         1 bench %/a --io-type write --io-total 4M --io-pattern seq
         1 snap create %/a@c
         2 clone %/a@c %/k --rbd-default-clone-format 2
         1 resize %/k --size 3500K --allow-shrink
         2 resize %/k --size 16M
         same %/k
         both info %/k
         map %/k
         2 rm %/k
         1 snap rm %/a@c
         1 rm %/a",
    ),
    (
        "trash",
        "1 create %/t --size 8M
         1 bench %/t --io-type write --io-size 4K --io-total 64K --io-pattern rand
         2 trash mv %/t
         both trash ls % --all
         both ls %
         1 trash purge %
         2 create %/u --size 8M
         1 trash mv %/u
         2 trash purge %
         both trash ls % --all",
    ),
    (
        "object maps and features",
        "1 create %/big --size 68G
         2 bench %/big --io-type write --io-size 4K --io-total 128K --io-pattern rand
         1 bench %/big --io-type write --io-size 4K --io-total 128K --io-pattern rand
         2 resize %/big --size 66G --allow-shrink
         map %/big
         both diff --whole-object %/big
         1 rm %/big
         1 create %/f --size 16M --object-size 64K
         1 feature disable %/f object-map
         2 bench %/f --io-type write --io-size 4K --io-total 64K --io-pattern rand
         both info %/f
         2 feature enable %/f object-map fast-diff
         both info %/f
         1 object-map rebuild %/f
         map %/f
         2 feature disable %/f exclusive-lock object-map fast-diff
         1 bench %/f --io-type write --io-size 4K --io-total 64K --io-pattern rand
         2 bench %/f --io-type write --io-size 4K --io-total 64K --io-pattern rand
         1 feature enable %/f exclusive-lock object-map
         2 object-map rebuild %/f
         map %/f
         1 rm %/f",
    ),
    (
        "migrations",
        "1 create %/m --size 16M --object-size 1M
         1 bench %/m --io-type write --io-total 2M --io-pattern rand
         2 snap create %/m@one
         1 bench %/m --io-type write --io-total 1M --io-pattern rand
         2 snap create %/m@two
         2 clone %/m@two %/k2 --rbd-default-clone-format 2
         1 snap protect %/m@one
         1 clone %/m@one %/k1 --rbd-default-clone-format 1
         1 migration prepare %/m %/n --data-pool ecdata
         both status %/n
         same %/n
         same %/n@one
         same %/k1
         same %/k2
         2 bench %/n --io-type write --io-size 4K --io-total 128K --io-pattern rand
         1 bench %/n --io-type write --io-size 4K --io-total 128K --io-pattern rand
         same %/n
         same %/n@one
         same %/n@two
         2 migration abort %/n
         same %/m
         same %/m@one
         map %/m
         same %/k1
         same %/k2
         2 migration prepare %/m %/n --object-size 4M
         1 bench %/n --io-type write --io-size 4K --io-total 128K --io-pattern rand
         1 migration execute %/n
         same %/n
         same %/n@one
         same %/n@two
         1 migration commit %/n --force
         same %/n
         same %/n@one
         same %/n@two
         same %/k1
         same %/k2
         map %/n
         both children %/n --all
         1 flatten %/k1
         2 flatten %/k2
         1 rm %/k1
         2 rm %/k2
         2 snap unprotect %/n@one
         1 snap purge %/n
         2 rm %/n
         both trash ls % --all",
    ),
    (
        "images of format 1",
        "rbd create %/o --image-format 1 --size 6M --order 20
         1 create %/a --size 1M
         1 bench %/o --io-type write --io-size 64K --io-total 1M --io-pattern rand
         2 bench %/o --io-type write --io-size 4K --io-total 256K --io-pattern rand
         same %/o
         1 snap create %/o@one
         2 bench %/o --io-type write --io-size 4K --io-total 256K --io-pattern rand
         1 bench %/o --io-type write --io-size 4K --io-total 256K --io-pattern rand
         2 snap create %/o@two
         1 =17 snap create %/o@two
         2 resize %/o --size 5M --allow-shrink
         1 bench %/o --io-type write --io-size 4K --io-total 256K --io-pattern rand
         same %/o
         same %/o@one
         same %/o@two
         both ls %
         both ls % --format json
         both ls -l %
         both ls -l % --format json
         both info %/o
         both info %/o --format json
         both info %/o@two
         both info %/o@one --format xml
         both snap ls %/o
         both snap ls %/o --format json
         both du %/o --format json
         both diff --whole-object --from-snap one %/o
         both status %/o --format json
         both feature enable %/o exclusive-lock
         both trash mv %/o
         both snap protect %/o@one
         both create %/o --size 1M
         1 snap rename %/o@two %/o@deux
         2 snap rollback %/o@deux
         same %/o
         1 image-meta set %/o k v
         2 image-meta get %/o k
         1 migration prepare %/o %/p
         both ls %
         both info %/o
         both status %/p
         both status %/p --format json
         same %/p
         same %/p@one
         same %/p@deux
         1 =30 bench %/o --io-type write --io-size 4K --io-total 4K
         2 =30 bench %/o --io-type write --io-size 4K --io-total 4K
         2 bench %/p --io-type write --io-size 4K --io-total 256K --io-pattern rand
         1 bench %/p --io-type write --io-size 4K --io-total 256K --io-pattern rand
         same %/p
         1 migration execute %/p
         2 bench %/p --io-type write --io-size 4K --io-total 256K --io-pattern rand
         same %/p
         same %/p@one
         same %/p@deux
         2 migration abort %/p
         same %/o
         same %/o@one
         same %/o@deux
         both ls -l % --format json
         1 migration prepare %/o %/o
         2 bench %/o --io-type write --io-size 4K --io-total 256K --io-pattern rand
         both ls %
         same %/o
         same %/o@one
         1 migration execute %/o
         1 migration abort %/o
         same %/o
         2 migration prepare %/o %/o
         1 bench %/o --io-type write --io-size 4K --io-total 256K --io-pattern rand
         2 migration execute %/o
         1 migration commit %/o
         same %/o
         same %/o@one
         same %/o@deux
         both ls -l % --format json
         both info %/o@one
         rbd create %/q --image-format 1 --size 3M
         1 bench %/q --io-type write --io-size 4K --io-total 64K --io-pattern rand
         2 snap create %/q@s
         1 =39 rm %/q
         2 =39 rm %/q
         1 migration prepare %/q %/r
         2 migration execute %/r
         same %/r
         same %/r@s
         2 migration commit %/r
         rbd create %/q --image-format 1 --size 3M
         2 bench %/q --io-type write --io-size 4K --io-total 64K --io-pattern rand
         2 snap create %/q@s
         1 snap purge %/q
         2 rm %/q
         1 snap purge %/o
         1 rm %/o
         2 snap purge %/r
         2 rm %/r
         1 rm %/a
         both ls %",
    ),
];

/// What a pool is left with when all is gone.
const STAYS: &[&str] =
    &["rbd_directory", "rbd_info", "rbd_trash", "rbd_children", "rbd_namespace", "rbd_mirroring"];

type Program = fn(&Home, &Cluster, &str) -> Output;

/// Plays one line; what is wrong about it.
fn play(
    home: &Home,
    cluster: &Cluster,
    (first, second): (Program, Program),
    line: &str,
) -> Result<(), String> {
    let (who, command) = line.split_once(' ').unwrap();
    let (wanted, command) = match command.strip_prefix('=').and_then(|rest| rest.split_once(' ')) {
        Some((code, command)) => (code.parse().unwrap(), command),
        None => (0, command),
    };
    let one = |program: Program| {
        let output = program(home, cluster, command);
        if output.status.code() == Some(wanted) { Ok(()) } else { Err(format!("{line}: {output:?}")) }
    };
    match who {
        "rbd" => one(stock),
        "1" => one(first),
        "2" => one(second),
        "both" => {
            let (theirs, mine) = (seen(&stock(home, cluster, command)), seen(&ours(home, cluster, command)));
            if theirs == mine {
                Ok(())
            } else {
                Err(format!("{line}\n  stock: {theirs:?}\n  ferry: {mine:?}"))
            }
        }
        "same" => {
            let read = |program: Program| {
                drop(fs::remove_file(home.path("read")));
                let output = program(home, cluster, &format!("export --no-progress {command} read"));
                if !output.status.success() {
                    return Err(format!("{line}: {output:?}"));
                }
                Ok(fs::read(home.path("read")).unwrap())
            };
            let (theirs, mine) = (read(stock)?, read(ours)?);
            match theirs.iter().zip(&mine).position(|(a, b)| a != b) {
                None if theirs.len() == mine.len() => Ok(()),
                at => Err(format!("{line}: differs at {at:?}, {} and {} bytes", theirs.len(), mine.len())),
            }
        }
        "map" => {
            let info = stock(home, cluster, &format!("info {command}"));
            let checked = stock(home, cluster, &format!("object-map check {command}"));
            let is_valid = !String::from_utf8_lossy(&info.stdout).contains("invalid");
            if checked.status.success() && is_valid {
                Ok(())
            } else {
                Err(format!("{line}: {info:?} {checked:?}"))
            }
        }
        other => panic!("nobody is called {other}"),
    }
}

#[test]
fn what_one_program_began_the_other_goes_on_with() {
    let home = Home::empty();
    let Some(cluster) = Cluster::for_test(&home, "what_one_program_began_the_other_goes_on_with") else {
        return;
    };
    let pool = Cluster::own("list");
    cluster.make_pool(&pool);
    let mut wrong = Vec::new();
    let asked = std::env::var("FERRY_CHECKLIST").unwrap_or_default();
    for (name, script) in GROUPS.iter().filter(|(name, _)| name.contains(&asked)) {
        for (order, programs) in
            [("rbd first", (stock as Program, ours as Program)), ("ferry first", (ours, stock))]
        {
            let began = std::time::Instant::now();
            let played = script
                .lines()
                .map(str::trim)
                .try_for_each(|line| play(&home, &cluster, programs, &line.replace('%', &pool)));
            println!(
                "{:5.1} s  {name}, {order}: {}",
                began.elapsed().as_secs_f64(),
                if played.is_ok() { "ok" } else { "FAILED" }
            );
            if let Err(e) = played {
                println!("{e}");
                wrong.push(format!("{name}, {order}: {e}"));
                // What is left would be in the way of the next.
                cluster.remove_pool(&pool);
                cluster.make_pool(&pool);
            }
        }
    }
    broken_images_are_cleared_away(&home, &cluster, &pool);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.wait_until_none(&pool, |name| !STAYS.contains(&name));
    for object in ["rbd_directory", "rbd_trash"] {
        assert_eq!(cluster.ceph("rados", &format!("-p {pool} listomapkeys {object}")), "", "{object}");
    }
    cluster.remove_pool(&pool);
}

/// Images that lost a part are removed by both with the same code, and nothing is left.
fn broken_images_are_cleared_away(home: &Home, cluster: &Cluster, pool: &str) {
    for part in ["id", "header", "name"] {
        let mut codes = Vec::new();
        for program in [stock as Program, ours as Program] {
            let made = stock(home, cluster, &format!("create {pool}/w --size 8M"));
            assert!(made.status.success(), "{made:?}");
            drop(stock(
                home,
                cluster,
                &format!("bench {pool}/w --io-type write --io-total 64K --io-pattern rand"),
            ));
            let info = stock(home, cluster, &format!("info {pool}/w --format json"));
            let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
            let id = info["id"].as_str().unwrap();
            match part {
                "id" => cluster.ceph("rados", &format!("-p {pool} rm rbd_id.w")),
                "header" => cluster.ceph("rados", &format!("-p {pool} rm rbd_header.{id}")),
                _ => {
                    cluster.ceph("rados", &format!("-p {pool} rmomapkey rbd_directory name_w"));
                    cluster.ceph("rados", &format!("-p {pool} rmomapkey rbd_directory id_{id}"))
                }
            };
            codes.push(program(home, cluster, &format!("rm {pool}/w")).status.code());
            let left = cluster.ceph("rados", &format!("-p {pool} ls"));
            let left: Vec<&str> = left.lines().filter(|name| !STAYS.contains(name)).collect();
            if part != "header" {
                assert_eq!(left, [""; 0], "without its {part}, removed with {:?}", codes.last());
            }
            for name in left {
                cluster.ceph("rados", &format!("-p {pool} rm {name}"));
            }
        }
        if part == "name" {
            // `rbd` removes it too, and says then that it is not there.
            assert_eq!(codes, [Some(2), Some(0)], "an image without its {part}");
        } else {
            assert_eq!(codes[0], codes[1], "an image without its {part}");
        }
    }
}

#[test]
fn what_the_script_of_interoperation_says_holds() {
    let home = Home::empty();
    let Some(cluster) = Cluster::for_test(&home, "what_the_script_of_interoperation_says_holds") else {
        return;
    };
    let pool = Cluster::own("interop");
    cluster.make_pool(&pool);
    let mut script = std::process::Command::new(root().join("tests/ceph/interop.sh"));
    script.arg(home.path("ferry")).arg(&pool).current_dir(home.dir()).stdin(std::process::Stdio::null());
    script.env("CEPH_CONF", cluster.conf()).env("FERRY_HOME", home.path("home"));
    let said = script.output().unwrap();
    let facts = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && !facts.contains("SKIPPED"), "{facts}");
    println!("{facts}");
    assert_eq!(facts.lines().filter(|l| l.starts_with("    ok  ")).count(), 26, "{facts}");
    cluster.remove_pool(&pool);
}
