//! Secrets of source specs that the monitors of a cluster keep.

use std::fs;

use super::Cluster;
use crate::foreign::web::Web;
use crate::harness::{Home, Name, noise, promised};

#[test]
fn keys_that_the_monitors_keep_are_found_for_images_of_their_cluster() {
    let home = Home::empty();
    let test = "keys_that_the_monitors_keep_are_found_for_images_of_their_cluster";
    let Some(cluster) = Cluster::for_test(&home, test) else { return };
    promised("A `config://` key is looked for in the home, then in the clusters");
    let pool = Cluster::own("keys");
    cluster.make_pool(&pool);
    let content = noise(3, 3 << 20);
    let web = Web::start(content.clone(), 0);
    let spec = |key: &str| {
        let headers = format!(r#"{{"X-Token":"config://{key}"}}"#);
        let stream = format!(r#"{{"type":"http","url":"{}","headers":{headers}}}"#, web.url());
        fs::write(home.path("spec"), format!(r#"{{"type":"raw","stream":{stream}}}"#)).unwrap();
    };
    let conf = cluster.conf().display();
    let ferry = |line: &str| home.run(Name::Ferry, &format!("-c {conf} {}", line.replace('%', &pool)));
    let key = format!("ferry-test/{pool}/to \"ken\"");
    spec(&key.replace('"', "\\\""));
    let prepare = "migration prepare --import-only --source-spec-path spec %/a";
    let refused = ferry(prepare);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.err.contains("ferry-test"), "{refused:?}");
    let set = |key: &str, value: &str| {
        let mut ceph = std::process::Command::new("ceph");
        ceph.env("CEPH_CONF", cluster.conf()).args(["config-key", "set", key, value]);
        assert!(ceph.output().unwrap().status.success());
    };
    set(&key, "of the monitors");
    for line in [prepare, "migration execute --no-progress %/a", "migration commit --no-progress %/a"] {
        let run = ferry(line);
        assert_eq!(run.code, 0, "{line}: {run:?}");
    }
    assert_eq!(ferry("export --no-progress %/a out").code, 0);
    assert!(fs::read(home.path("out")).unwrap() == content);
    let requests = web.requests();
    assert!(!requests.is_empty() && requests.iter().all(|r| r.contains("of the monitors")), "{requests:?}");
    let mut ceph = std::process::Command::new("ceph");
    ceph.env("CEPH_CONF", cluster.conf()).args(["config-key", "rm", &key]);
    assert!(ceph.output().unwrap().status.success());
    cluster.remove_pool(&pool);
}
