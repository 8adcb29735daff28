//! Migrations whose process dies after every change it makes. Afterwards the same command finishes, or abort restores, every byte
//! is there and nothing is left over.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::device::until;
use crate::durability::setting;
use crate::harness::{Home, Name, noise};

/// SIGKILL.
const KILLED: i32 = 9;

/// Bytes of the image: 4 objects of 1 MiB, the last one short.
pub(crate) const SIZE: u64 = 3_500_000;

/// Changes after which no command is still at work.
pub(crate) const CHANGES_MAX: u64 = 1000;

/// Writes to an image by way of a diff.
fn write(home: &Home, image: &str, offset: u64, data: &[u8]) {
    let mut diff = b"rbd diff v1\n".to_vec();
    diff.push(b's');
    diff.extend(SIZE.to_le_bytes());
    diff.push(b'w');
    diff.extend(offset.to_le_bytes());
    diff.extend((data.len() as u64).to_le_bytes());
    diff.extend(data);
    diff.push(b'e');
    fs::write(home.path("diff"), diff).unwrap();
    home.ok(&format!("import-diff diff {image} --no-progress"));
}

/// What an image holds at each of its snapshots, oldest first, and at HEAD.
#[derive(Clone)]
pub(crate) struct Wanted(Vec<(&'static str, Vec<u8>)>);

impl Wanted {
    /// A new image: nothing.
    pub(crate) fn zeros() -> Self {
        Self(vec![("", vec![0; usize::try_from(SIZE).unwrap()])])
    }

    /// Changes HEAD.
    pub(crate) fn write(&mut self, home: &Home, image: &str, offset: u64, data: &[u8]) {
        write(home, image, offset, data);
        let at = usize::try_from(offset).unwrap();
        self.0.last_mut().unwrap().1[at..at + data.len()].copy_from_slice(data);
    }

    pub(crate) fn snapshot(&mut self, home: &Home, image: &str, name: &'static str) {
        home.ok(&format!("snap create {image}@{name} --no-progress"));
        let head = self.0.last().unwrap().1.clone();
        let n = self.0.len() - 1;
        self.0.insert(n, (name, head));
    }

    pub(crate) fn check(&self, home: &Home, image: &str, what: &str) {
        for (snap, bytes) in &self.0 {
            let spec = if snap.is_empty() { image.to_owned() } else { format!("{image}@{snap}") };
            let out = home.path("out");
            drop(fs::remove_file(&out));
            home.ok(&format!("export {spec} out --no-progress"));
            assert!(fs::read(&out).unwrap() == *bytes, "{what}: {spec}");
        }
    }
}

/// Where an image moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    OneStore,
    TwoStores,
}

impl Way {
    fn target(self) -> &'static str {
        match self {
            Self::OneStore => "fast/b",
            Self::TwoStores => "far/b",
        }
    }
}

/// Makes the image `rbd/a`, with a clone where that may move along.
fn with_image(home: &Home, way: Way) -> Wanted {
    for line in ["pool create rbd", "pool create fast", "pool create far --path elsewhere"] {
        home.ok(line);
    }
    home.ok(&format!("create rbd/a --size {SIZE}B --object-size 1M"));
    let mut wanted = Wanted::zeros();
    wanted.write(home, "rbd/a", 0, &noise(1, 1_300_000));
    wanted.snapshot(home, "rbd/a", "s1");
    wanted.write(home, "rbd/a", 900_000, &noise(2, 600_000));
    wanted.snapshot(home, "rbd/a", "s2");
    wanted.write(home, "rbd/a", 3_300_000, &noise(3, 200_000));
    if way == Way::OneStore {
        home.ok("snap protect rbd/a@s1");
        home.ok("clone rbd/a@s1 rbd/child");
    }
    wanted
}

/// Copies a home with its stores.
fn copy(from: &Path) -> Home {
    let made = tempfile::tempdir().unwrap().keep();
    for name in ["home", "elsewhere"].into_iter().filter(|name| from.join(name).exists()) {
        let copied = Command::new("cp").arg("-a").arg(from.join(name)).arg(&made).status().unwrap();
        assert!(copied.success());
    }
    // Its stores are named by their full paths.
    let config = made.join("home/ferry.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace(from.to_str().unwrap(), made.to_str().unwrap())).unwrap();
    Home::at(&made)
}

/// Runs a command that dies after the change number `change`; whether it did.
pub(crate) fn dies(home: &Home, line: &str, change: u64) -> bool {
    let output = home
        .command(Name::Ferry)
        .args(line.split_whitespace())
        .env("FERRY_FAULT", format!("die-after-change:{change}"))
        .output()
        .unwrap();
    if output.status.signal() == Some(KILLED) {
        return true;
    }
    assert!(output.status.success(), "{line}, change {change}: {output:?}");
    false
}

/// Runs what may have been done before its process died.
fn again(home: &Home, line: &str) {
    let run = home.run(Name::Ferry, line);
    // Not migrating any more, gone, or executed already: the death came after the last change that matters.
    assert!([0, 2, 22].contains(&run.code), "{line} once more: {run:?}");
}

/// Whether the migration left its one receipt, which tells what was verified, and nothing half written.
pub(crate) fn has_receipt(home: &Home) -> bool {
    let Ok(found) = fs::read_dir(home.path("home/receipts")) else { return false };
    let found: Vec<_> = found.map(|f| f.unwrap().path()).collect();
    if found.is_empty() {
        return false;
    }
    let receipt: serde_json::Value = serde_json::from_slice(&fs::read(&found[0]).unwrap()).unwrap();
    assert!(found.len() == 1 && found[0].extension().unwrap() == "json", "{found:?}");
    assert_eq!(receipt["verified"].as_array().unwrap().len(), 3, "{receipt}");
    true
}

/// Objects of the data and metadata of a store.
fn objects(home: &Home, pool: &str) -> u64 {
    let report = home.ok(&format!("check {pool}"));
    assert!(report.ends_with("no damage found\n"), "{report}");
    let line = report.lines().find(|l| l.contains("objects: ")).unwrap();
    line.trim().trim_start_matches("objects: ").parse().unwrap()
}

/// Removes all images; what is left in the stores then.
fn emptied(home: &Home, image: &str, way: Way) -> [u64; 2] {
    for pool in ["rbd", "fast", "far"] {
        assert_eq!(home.ok(&format!("trash ls --all {pool}")), "", "{pool}");
    }
    if way == Way::OneStore {
        home.ok("rm rbd/child --no-progress");
        home.ok(&format!("snap unprotect {image}@s1"));
    }
    home.ok(&format!("snap purge {image} --no-progress"));
    home.ok(&format!("rm {image} --no-progress"));
    ["rbd", "far"].map(|pool| objects(home, pool))
}

/// What is left where nothing died.
fn usual_rest(template: &Path, way: Way, ends: &[&str], image: &str) -> [u64; 2] {
    let home = copy(template);
    for line in ends {
        home.ok(line);
    }
    let rest = emptied(&home, image, way);
    fs::remove_dir_all(home.dir()).unwrap();
    rest
}

/// Lets each verb die after each of its changes.
fn every_change(way: Way) -> Vec<u64> {
    let target = way.target();
    let made = Home::empty();
    let mut wanted = with_image(&made, way);
    let template = made.dir().to_owned();
    let prepare = format!("migration prepare rbd/a {target} --object-size 512K");
    let execute = format!("migration execute {target} --no-progress");
    let commit = format!("migration commit {target} --force --no-progress");
    // By the name that is there whatever was done.
    let abort = "migration abort rbd/a --no-progress".to_owned();
    let verbs = [&*prepare, &*execute, &*commit, &*abort];
    let stride = usize::try_from(setting("FERRY_KILL_STRIDE", 1)).unwrap();
    let (mut kills, mut deaths) = (0, Vec::new());
    for (n, verb) in verbs.into_iter().enumerate() {
        // What is left when nothing died, for each of the two ends.
        let ahead: Vec<&str> = verbs[n.min(3)..3].to_vec();
        let back: Vec<&str> = if n == 0 { vec![&*prepare, &*abort] } else { vec![&*abort] };
        let usual = [
            if n < 3 { usual_rest(&template, way, &ahead, target) } else { Default::default() },
            if n == 2 { Default::default() } else { usual_rest(&template, way, &back, "rbd/a") },
        ];
        let mut rounds = 0;
        for change in (1..CHANGES_MAX).step_by(stride) {
            let home = copy(&template);
            let what = format!("{way:?}: {verb}, change {change}");
            let died = dies(&home, verb, change);
            kills += u64::from(died);
            rounds += 1;
            // In turn to the one end and to the other, where both can be reached.
            let goes_back = n == 3 || (n < 2 && change % 2 == 0);
            let rest = if goes_back { &abort } else { verb };
            if died || rest != verb {
                again(&home, rest);
            }
            if !goes_back {
                ahead[1..].iter().for_each(|line| drop(home.ok(line)));
            }
            let image = if goes_back { "rbd/a" } else { target };
            wanted.check(&home, image, &what);
            assert_eq!(has_receipt(&home), !goes_back, "{what}");
            let left = emptied(&home, image, way);
            // Fewer where it died before a pool's own objects were made.
            let most = usual[usize::from(goes_back)];
            assert!(
                left[0] <= most[0] && left[1] <= most[1],
                "{what}: {left:?} objects are left over, not {most:?}"
            );
            fs::remove_dir_all(home.dir()).unwrap();
            if !died {
                break;
            }
        }
        assert!(rounds > 5 || stride > 1, "{verb} makes {rounds} changes");
        deaths.push(rounds - 1);
        // On to the next verb.
        match n {
            0 => {
                made.ok(&prepare);
                wanted.write(&made, target, 1_000_000, &noise(9, 400_000));
            }
            1 => drop(made.ok(&execute)),
            _ => {}
        }
    }
    assert!(stride > 1 || kills >= 100, "{kills} kills");
    deaths
}

#[test]
fn e18_a_death_after_any_change_inside_a_store_costs_nothing() {
    println!("deaths in prepare, execute, commit, abort: {:?}", every_change(Way::OneStore));
}

#[test]
fn e18_a_death_after_any_change_between_stores_costs_nothing() {
    println!("deaths in prepare, execute, commit, abort: {:?}", every_change(Way::TwoStores));
}

/// The image and its target have one name, so what is offered under it is the target at one moment and the source at the next.
#[test]
fn a_node_that_dies_after_any_change_of_an_abort_under_an_export_finishes_it() {
    let made = Home::empty();
    made.ok("pool create rbd");
    made.ok(&format!("create rbd/a --size {SIZE}B --object-size 1M"));
    let mut wanted = Wanted::zeros();
    wanted.write(&made, "rbd/a", 0, &noise(1, 1_300_000));
    let node = made.serve();
    made.ok("export add rbd/a --export-name vm");
    made.ok("migration prepare rbd/a rbd/a --object-size 512K");
    wanted.write(&made, "rbd/a", 1_000_000, &noise(9, 400_000));
    assert_eq!(node.stop(), 0, "{}", made.log());
    let stride = usize::try_from(setting("FERRY_KILL_STRIDE", 1)).unwrap();
    let mut kills = 0;
    for change in (1..CHANGES_MAX).step_by(stride) {
        let home = copy(made.dir());
        let fault = format!("FERRY_FAULT=die-after-change:{change}");
        // It may die while it starts.
        let aborted = home.try_serve(&["env", &fault], &[]).map(|node| {
            let run = home.run(Name::Ferry, "migration abort rbd/a --no-progress");
            // What it changes when it stops counts too.
            drop(node);
            run.code == 0
        });
        let what = format!("change {change}: {aborted:?}");
        let node = home.serve();
        until("the abort that was cut off", || !home.ok("job ls").contains("running"));
        let run = home.run(Name::Ferry, "migration abort rbd/a --no-progress");
        assert!([0, 22].contains(&run.code), "{what}: {run:?}\n{}", home.log());
        let info = home.ok("info rbd/a");
        assert!(info.contains("order 20") && !home.ok("status rbd/a").contains("igrat"), "{what}: {info}");
        assert!(home.ok("export ls").contains("vm"), "{what}: {}", home.log());
        wanted.check(&home, "rbd/a", &what);
        assert_eq!(home.ok("trash ls --all rbd"), "", "{what}");
        assert_eq!(node.stop(), 0, "{what}: {}", home.log());
        assert!(home.ok("check rbd").ends_with("no damage found\n"), "{what}");
        fs::remove_dir_all(home.dir()).unwrap();
        if aborted == Ok(true) {
            break;
        }
        kills += 1;
    }
    println!("{kills} deaths");
    assert!(stride > 1 || kills >= 20, "{kills} deaths");
}

#[test]
fn e19_a_prepare_that_was_cut_off_keeps_nobody_waiting() {
    let made = Home::empty();
    let wanted = with_image(&made, Way::TwoStores);
    let template = made.dir().to_owned();
    let prepare = "migration prepare rbd/a far/b";
    let mut found = [0; 2];
    for change in 1..CHANGES_MAX {
        let home = copy(&template);
        if !dies(&home, prepare, change) {
            break;
        }
        let began = Instant::now();
        for image in ["rbd/a", "far/b"] {
            let run = home.run(Name::Ferry, &format!("export {image} out --no-progress"));
            drop(fs::remove_file(home.path("out")));
            // Open to all, closed as the source of a migration, being prepared, or not there.
            assert!([0, 30, 16, 2].contains(&run.code), "change {change}: {image}: {run:?}");
            found[0] += u64::from(run.code == 16);
        }
        assert!(began.elapsed() < Duration::from_secs(10), "change {change}: {:?}", began.elapsed());
        // Prepared again, or given up: either leads out of it.
        if change % 2 == 0 {
            home.ok(prepare);
            wanted.check(&home, "far/b", &format!("change {change}"));
        } else {
            let run = home.run(Name::Ferry, "migration abort rbd/a --no-progress");
            // Where nothing was written yet, nothing is migrating.
            assert!([0, 22].contains(&run.code), "change {change}: {run:?}");
            wanted.check(&home, "rbd/a", &format!("change {change}"));
        }
        found[1] += 1;
        fs::remove_dir_all(home.dir()).unwrap();
    }
    assert!(found[0] > 0 && found[1] > 5, "{found:?}");
}
