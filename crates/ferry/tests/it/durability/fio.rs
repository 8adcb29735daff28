//! fio writes at random, reads everything again and compares.

use std::process::Command;

use crate::harness::Home;

#[test]
fn fio_reads_what_it_wrote_over_one_connection_and_over_two() {
    let home = Home::new();
    home.ok("create one --size 64M");
    home.ok("create two --size 64M");
    let node = home.serve();
    for (image, connections) in [("one", 1_u32), ("two", 2)] {
        let told = home.ok(&format!("export add {image} --name {image}"));
        let uri = told.lines().next().unwrap().to_owned();
        let output = Command::new("fio")
            .args(["--name=verified", "--ioengine=nbd", "--rw=randrw", "--rwmixread=30"])
            .args(["--bsrange=4k-128k", "--bs_unaligned=0", "--blockalign=4k", "--iodepth=16"])
            .args([
                "--verify=crc32c",
                "--verify_fatal=1",
                "--do_verify=1",
                "--fsync=64",
                "--serialize_overlap=1",
            ])
            .arg(format!("--uri={uri}"))
            .arg(format!("--size={}m", 64 / connections))
            // Each connection has its part of the image.
            .arg(format!("--offset_increment={}m", 64 / connections))
            .arg(format!("--numjobs={connections}"))
            .current_dir(home.dir())
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && out.contains("err= 0"),
            "{out}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(home.ok("export ls").contains(image));
    }
    assert_eq!(node.stop(), 0, "{}", home.log());
    home.check();
}
