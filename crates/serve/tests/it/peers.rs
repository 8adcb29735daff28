//! Real clients.

use std::path::Path;

use ferry_serve::testing::MemoryDevice;

use crate::world::{World, attempt, run};

const MIB: u64 = 1 << 20;

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    let world = World::new();
    world.add("a", MemoryDevice::new(64 * MIB));
    world.add("b", MemoryDevice::new(MIB + 1).read_only());
    let list = json(&run("nbdinfo", &["--json", "--list", &world.uri("")]));
    let exports = list["exports"].as_array().unwrap();
    let names: Vec<_> = exports.iter().map(|e| e["export-name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b"]);
    let info = json(&run("nbdinfo", &["--json", &world.uri("b")]));
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
    assert!(!attempt("nbdinfo", &[&world.uri("c")]).status.success());
}

#[test]
fn nbdinfo_and_qemu_img_see_the_same_map() {
    let world = World::new();
    let device = world.add("a", MemoryDevice::new(9 * 1024 * MIB));
    let at = |offset: u64, length: u64| {
        let command = format!("write -P 1 {offset} {length}");
        run("qemu-io", &["-f", "raw", "-c", &command, &world.uri("a")]);
    };
    at(0, 4096);
    at(5 * 1024 * MIB, 3 * MIB);
    at(9 * 1024 * MIB - 4096, 4096);
    let map = json(&run("nbdinfo", &["--map", "--json", &world.uri("a")]));
    let data = |parts: &serde_json::Value, key: &str, is_data: &dyn Fn(&serde_json::Value) -> bool| {
        let parts = parts.as_array().unwrap().iter().filter(|p| is_data(p));
        parts.map(|p| (p[key].as_u64().unwrap(), p["length"].as_u64().unwrap())).collect::<Vec<_>>()
    };
    let expected = [(0, 4096), (5 * 1024 * MIB, 3 * MIB), (9 * 1024 * MIB - 4096, 4096)];
    assert_eq!(data(&map, "offset", &|p| p["type"] == 0), expected);
    let map = json(&run("qemu-img", &["map", "--output=json", "-f", "raw", &world.uri("a")]));
    assert_eq!(data(&map, "start", &|p| p["data"] == true), expected);
    drop(device);
}

#[test]
fn nbdcopy_takes_out_what_it_brought() {
    let world = World::new();
    let device = world.add("a", MemoryDevice::new(70 * MIB));
    let (there, back) = (world.file("there"), world.file("back"));
    std::fs::write(&there, MemoryDevice::new(70 * MIB).filled(1).contents()).unwrap();
    run("nbdcopy", &["--flush", text(&there), &world.uri("a")]);
    assert!(device.contents() == std::fs::read(&there).unwrap());
    run("nbdcopy", &[&world.uri("a"), text(&back)]);
    assert!(device.contents() == std::fs::read(&back).unwrap());
    // One request of 32 MiB at a time, and many connections.
    for options in
        [["--request-size=33554432", "--connections=1"], ["--request-size=65536", "--connections=8"]]
    {
        std::fs::remove_file(&back).unwrap();
        run("nbdcopy", &[options[0], options[1], &world.uri("a"), text(&back)]);
        assert!(device.contents() == std::fs::read(&back).unwrap());
        device.fill_with_zeros();
        run("nbdcopy", &[options[0], options[1], text(&there), &world.uri("a")]);
        assert!(device.contents() == std::fs::read(&there).unwrap());
    }
}

#[test]
fn nbdcopy_between_two_exports_keeps_the_holes() {
    let world = World::new();
    let from = world.add("from", MemoryDevice::new(64 * MIB));
    let to = world.add("to", MemoryDevice::new(64 * MIB));
    let write = "write -P 7 8M 1M";
    run("qemu-io", &["-f", "raw", "-c", write, &world.uri("from")]);
    run("nbdcopy", &[&world.uri("from"), &world.uri("to")]);
    assert!(from.contents() == to.contents());
    assert_eq!(to.stored(), MIB);
}

#[test]
fn a_device_that_answers_late_serves_the_same() {
    let world = World::new();
    let device = world.add("a", MemoryDevice::new(40 * MIB));
    device.is_late.store(true, std::sync::atomic::Ordering::SeqCst);
    let (there, back) = (world.file("there"), world.file("back"));
    std::fs::write(&there, MemoryDevice::new(40 * MIB).filled(1).contents()).unwrap();
    run("nbdcopy", &["--flush", text(&there), &world.uri("a")]);
    assert!(device.contents() == std::fs::read(&there).unwrap());
    run("nbdcopy", &[&world.uri("a"), text(&back)]);
    assert!(device.contents() == std::fs::read(&back).unwrap());
}

#[test]
fn qemu_img_converts_compares_and_copies() {
    let world = World::new();
    let size = 24 * MIB;
    let device = world.add("a", MemoryDevice::new(size));
    let (raw, qcow2, part) = (world.file("raw"), world.file("qcow2"), world.file("part"));
    std::fs::write(&raw, MemoryDevice::new(size).filled(9).contents()).unwrap();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&raw), &world.uri("a")]);
    assert!(device.contents() == std::fs::read(&raw).unwrap());
    assert!(device.flushes.load(std::sync::atomic::Ordering::SeqCst) > 0);
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &world.uri("a"), text(&qcow2)]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &world.uri("a"), text(&qcow2)]);
    let (from, to) = (format!("if={}", world.uri("a")), format!("of={}", text(&part)));
    run("qemu-img", &["dd", "-f", "raw", "-O", "raw", "bs=1M", "skip=3", "count=5", &from, &to]);
    let contents = device.contents();
    assert!(contents[3 << 20..5 << 20] == std::fs::read(&part).unwrap()[..2 << 20]);
    let write = "write -P 1 1M 4k";
    run("qemu-io", &["-f", "raw", "-c", write, &world.uri("a")]);
    let differs =
        attempt("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &world.uri("a"), text(&qcow2)]);
    assert_eq!(differs.status.code(), Some(1));
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_what_it_should() {
    let world = World::new();
    let device = world.add("a", MemoryDevice::new(64 * MIB));
    let io = |commands: &[&str]| {
        let mut arguments = vec!["-f", "raw"];
        commands.iter().for_each(|c| arguments.extend(["-c", c]));
        let uri = world.uri("a");
        arguments.push(&uri);
        let said = run("qemu-io", &arguments);
        assert!(!said.contains("failed") && !said.contains("error"), "{said}");
    };
    io(&[
        "write -P 3 1000 70000",
        "read -P 3 1000 70000",
        "read -P 0 0 1000",
        "write -f -P 4 512 512",
        "read -P 4 512 512",
        "write -z 4096 8192",
        "read -P 0 4096 8192",
        "write -z -u 16384 4096",
        "read -P 0 16384 4096",
        "discard 32768 4096",
        "read -P 0 32768 4096",
        "write -P 5 20M 31M",
        "read -P 5 20M 31M",
        "write -z 0 64M",
        "read -P 0 0 32M",
        "aio_write -P 6 0 1M",
        "aio_write -P 7 1M 1M",
        "aio_read -P 0 2M 1M",
        "aio_flush",
        "read -P 7 1M 1M",
        "flush",
    ]);
    assert_eq!(device.stored(), 2 * MIB);
}

#[test]
fn qemu_io_is_told_what_goes_wrong() {
    let world = World::new();
    let device = world.add("a", MemoryDevice::new(8 * MIB).filled(2));
    world.add("r", MemoryDevice::new(8 * MIB).filled(2).read_only());
    device.bad_byte.store(5 * MIB, std::sync::atomic::Ordering::SeqCst);
    let say = |export: &str, options: &[&str], command: &str| {
        let output =
            attempt("qemu-io", &[options, &["-f", "raw", "-c", command, &world.uri(export)]].concat());
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    assert!(say("a", &[], "read 5M 4k").contains("Input/output error"));
    assert!(say("a", &[], "write 5M 4k").contains("Input/output error"));
    assert!(say("a", &[], "read 0 8M").contains("Input/output error"));
    assert!(say("a", &[], "write 0 8M").contains("Input/output error"));
    assert!(say("a", &[], "read 4M 4k").contains("read 4096/4096"));
    assert!(say("r", &["-r"], "read 4M 4k").contains("read 4096/4096"));
    assert!(!attempt("qemu-io", &["-f", "raw", "-c", "write 0 4k", &world.uri("r")]).status.success());
}

#[test]
fn fio_reads_back_what_it_wrote() {
    let world = World::new();
    world.add("a", MemoryDevice::new(48 * MIB));
    let uri = format!("--uri={}", world.uri("a"));
    for job in [
        &["--bs=4k", "--iodepth=32", "--fsync=32"][..],
        &["--bsrange=512-200k", "--bs_unaligned", "--iodepth=16"],
        &["--bs=4m", "--iodepth=4"],
    ] {
        let common = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--size=48m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ];
        run("fio", &[&common[..], job].concat());
    }
    let several =
        ["--name=several", "--ioengine=nbd", &uri, "--rw=randrw", "--bs=4k", "--iodepth=8", "--numjobs=4"];
    let apart = [
        "--size=12m",
        "--offset_increment=12m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ];
    run("fio", &[&several[..], &apart].concat());
}
