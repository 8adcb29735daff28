//! Real clients.

use ferry_serve::testing::MemoryDevice;

use crate::world::{World, run};

const MIB: u64 = 1 << 20;

#[test]
fn nbdinfo_sees_what_is_offered() {
    let world = World::new();
    world.add("a", MemoryDevice::new(64 * MIB));
    world.add("b", MemoryDevice::new(MIB + 1).read_only());
    let list: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--json", "--list", &world.uri("")])).unwrap();
    let exports = list["exports"].as_array().unwrap();
    let names: Vec<_> = exports.iter().map(|e| e["export-name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b"]);
    let info: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--json", &world.uri("b")])).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], MIB + 1);
    assert_eq!(export["is_read_only"], true);
    assert_eq!(export["can_multi_conn"], true);
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 * MIB);
    assert_eq!(export["contexts"][0], "base:allocation");
}

#[test]
fn nbdcopy_takes_out_what_it_brought() {
    let world = World::new();
    let device = world.add("a", MemoryDevice::new(70 * MIB));
    let (there, back) = (world.file("there"), world.file("back"));
    std::fs::write(&there, MemoryDevice::new(70 * MIB).filled(1).contents()).unwrap();
    run("nbdcopy", &["--flush", there.to_str().unwrap(), &world.uri("a")]);
    assert!(device.contents() == std::fs::read(&there).unwrap());
    run("nbdcopy", &[&world.uri("a"), back.to_str().unwrap()]);
    assert!(device.contents() == std::fs::read(&back).unwrap());
}
