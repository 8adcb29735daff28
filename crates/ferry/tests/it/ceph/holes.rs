//! Objects of a cluster with holes inside: what clients hear of them, and what a migration makes of them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::stores::Ground;
use crate::harness::{Name, noise, promised};

const SIZE: u64 = 40 << 20;

/// Where there is data: blocks of 4 to 64 KiB, some in each object of 4 MiB but the last.
fn pieces() -> impl Iterator<Item = (u64, u64)> {
    let at = |object: u64| {
        [(300 << 10, 4 << 10), (1 << 20, 64 << 10), ((3 << 20) + 512, 5000)].map(|(o, n)| (object + o, n))
    };
    (0..9).flat_map(move |object| at(object << 22))
}

/// An offer of an image, stopped when this goes.
struct Offer(Child, String);

impl Offer {
    fn start(ground: &Ground, image: &str) -> Self {
        let socket = ground.home.path("nbd.sock");
        drop(fs::remove_file(&socket));
        let mut command = ground.home.command(Name::Ferry);
        command.args(["nbd", image, "--socket"]).arg(&socket).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let uri = lines.next().unwrap().unwrap();
        Self(child, uri)
    }

    /// What a client hears of holes: offset, length and whether it is data.
    fn map(&self) -> Vec<(u64, u64, bool)> {
        let output = Command::new("nbdinfo").args(["--json", "--map", &self.1]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let map: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |part: &serde_json::Value, name: &str| part[name].as_u64().unwrap();
        let part = |p| (number(p, "offset"), number(p, "length"), number(p, "type") == 0);
        map.as_array().unwrap().iter().map(part).collect()
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        // Killed, it would leave a watch, for whose end others wait.
        drop(Command::new("kill").args(["-INT", &self.0.id().to_string()]).status());
        drop(self.0.wait());
    }
}

/// That each byte that is not zero is in a part told to be data, and how many bytes such parts have.
fn told(disk: &[u8], map: &[(u64, u64, bool)]) -> u64 {
    let mut data = 0;
    for (offset, length, is_data) in map {
        let range = usize::try_from(*offset).unwrap()..usize::try_from(offset + length).unwrap();
        assert!(*is_data || disk[range].iter().all(|b| *b == 0), "data in a hole at {offset}+{length}");
        data += if *is_data { *length } else { 0 };
    }
    data
}

#[test]
fn holes_inside_objects_are_told_to_clients_and_stay_holes_in_a_migration() {
    let Some(ground) = Ground::new("holes_inside_objects_are_told_to_clients_and_stay_holes_in_a_migration")
    else {
        return;
    };
    promised("NBD clients hear of what the OSDs hold");
    let parts: Vec<_> = pieces().map(|(at, n)| (at, noise(at, usize::try_from(n).unwrap()))).collect();
    let slices: Vec<(u64, &[u8])> = parts.iter().map(|(at, data)| (*at, &data[..])).collect();
    let disk = fs::read(ground.home.sparse_file("disk", SIZE, &slices)).unwrap();
    let written: u64 = pieces().map(|(_, n)| n).sum();
    let made = ground.stock("import --no-progress --sparse-size 4K disk far/a");
    assert!(made.status.success(), "{made:?}");
    let map = Offer::start(&ground, "far/a").map();
    let data = told(&disk, &map);
    assert!((written..2 * written).contains(&data), "{data} bytes are told for {written}: {map:?}");
    // To other objects of the cluster, with a snapshot, and on to a directory and back.
    ground.home.ok("snap create far/a@s --no-progress");
    for target in ["far/b", "rbd/c", "far/d"] {
        let source = match target {
            "far/b" => "far/a",
            "rbd/c" => "far/b",
            _ => "rbd/c",
        };
        ground.home.ok(&format!("migration prepare {source} {target}"));
        ground.home.ok(&format!("migration execute {target} --no-progress"));
        ground.home.ok(&format!("migration commit {target} --no-progress"));
        for spec in [target.to_owned(), format!("{target}@s")] {
            let out = ground.home.path("out");
            drop(fs::remove_file(&out));
            ground.home.ok(&format!("export {spec} out --no-progress"));
            assert!(fs::read(out).unwrap() == disk, "{spec}");
        }
        let data = told(&disk, &Offer::start(&ground, target).map());
        assert!((written..2 * written).contains(&data), "{target}: {data} bytes are told for {written}");
    }
    assert!(ground.stock_bytes("far/d") == disk && ground.stock_bytes("far/d@s") == disk);
    ground.home.ok("snap rm far/d@s --no-progress");
    ground.home.ok("rm far/d --no-progress");
}
