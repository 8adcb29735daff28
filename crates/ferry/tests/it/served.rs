//! The node: commands executed by it, jobs that outlive their asker and the node, stopping.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Home, Name, noise, promised};

/// Waits until `done` is true.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what} does not happen");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A job that lasts: however fast the machine is, [`with_target`] makes it one of at least three seconds.
const JOB: &str = "migration execute b --limit 500K";

/// A home whose image `a` is on its way to `b`, which [`JOB`] executes.
fn with_target() -> Home {
    let home = Home::new();
    fs::write(home.path("disk"), noise(3, 2 << 20)).unwrap();
    home.ok("import disk a --object-size 4K");
    home.ok("migration prepare a b");
    home
}

/// Starts [`JOB`] from another process.
fn asker(home: &Home) -> Child {
    let mut command = home.command(Name::Ferry);
    command.args(JOB.split_whitespace()).arg("--no-progress").stderr(Stdio::piped());
    let asker = command.spawn().unwrap();
    until("the job", || home.ok("job ls").contains("running"));
    asker
}

/// Whether the job was done.
fn is_executed(home: &Home) -> bool {
    home.ok("status b").contains("state: executed")
}

#[test]
fn a_node_executes_the_commands_of_others() {
    let home = Home::new();
    let node = home.serve();
    let data = noise(1, 2_000_000);
    fs::write(home.path("disk"), &data).unwrap();
    home.ok("import disk a");
    home.ok("snap create a@s");
    home.ok("export a@s out");
    assert_eq!(fs::read(home.path("out")).unwrap(), data);
    home.ok("pool create other --path far");
    assert_eq!(home.ok("pool ls").lines().count(), 3);
    assert_eq!(home.ok("ls other"), "");
    assert_eq!(home.rbd_fails("info none").0, 2);
    assert!(home.ok("check").contains("no damage"));
    let owner = fs::read_to_string(home.path("home/store/owner")).unwrap();
    assert_eq!(owner.trim(), node.pid().to_string());
    assert_eq!(node.stop(), 0, "{}", home.log());
    assert!(!home.path("home/control.sock").exists());
    assert_eq!(home.ok("ls"), "a\n");
}

#[test]
fn a_service_manager_may_listen_for_the_node() {
    let home = Home::new();
    home.ok("create a --size 8M");
    let socket = home.path("given.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // `$$` stays the process when the shell becomes the program, as the service manager has it.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve";
    let ferry = home.command(Name::Ferry).get_program().to_owned();
    let mut node = home.command(Name::Ferry);
    let envs: Vec<_> = node.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
    node = Command::new("sh");
    node.args(["-c", script]).arg(ferry).envs(envs).current_dir(home.dir());
    let mut node = node.stdin(Stdio::from(OwnedFd::from(listener))).stderr(Stdio::null()).spawn().unwrap();
    until("the node", || home.path("home/control.sock").exists());
    let said = home.ok("export add a --name a");
    assert!(said.contains("given.sock"), "{said}");
    let uri = format!("nbd+unix:///a?socket={}", socket.display());
    let info = Command::new("nbdinfo").args(["--size", &uri]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&info.stdout).trim(), "8388608", "{info:?}");
    let stopped = Command::new("kill").arg(node.id().to_string()).status().unwrap();
    assert!(stopped.success());
    assert!(node.wait().unwrap().success());
    assert!(socket.exists(), "it belongs to the service manager");
}

#[test]
fn an_export_is_offered_again_whatever_became_of_its_image_without_a_node() {
    let home = Home::new();
    home.ok("create a --size 8M");
    let node = home.serve();
    home.ok("export add a --name vm");
    let image = || home.ok("export ls");
    assert_eq!(node.stop(), 0);
    home.ok("migration prepare a b");
    let node = home.serve();
    assert!(image().contains("rbd/b"), "{}", image());
    assert_eq!(node.stop(), 0);
    home.ok("migration abort b");
    let node = home.serve();
    assert!(image().contains("rbd/a"), "{}{}", image(), home.log());
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_home_has_one_node() {
    let home = Home::new();
    let node = home.serve();
    let (code, err) = home.fails("serve");
    assert_eq!(code, 16);
    assert!(err.contains(&format!("node {}", node.pid())), "{err}");
}

#[test]
fn a_job_goes_on_when_its_asker_goes_and_can_be_joined() {
    promised("Jobs of a node");
    let home = with_target();
    let node = home.serve();
    let mut asker = asker(&home);
    assert!(home.ok("job ls").contains("migration execute rbd/b"));
    asker.kill().unwrap();
    asker.wait().unwrap();
    let jobs = home.ok("job ls --format json");
    assert!(jobs.contains("\"state\":\"running\""), "{jobs}");
    assert!(!is_executed(&home));
    // Asking again joins the one there is.
    home.ok(JOB);
    let jobs = home.ok("job ls");
    assert_eq!(jobs.matches("execute").count(), 1, "{jobs}");
    assert!(jobs.contains("done"), "{jobs}");
    assert!(is_executed(&home));
    assert_eq!(fs::read_dir(home.path("home/jobs")).unwrap().count(), 0);
    home.ok("job attach 1");
    assert_eq!(home.fails("job attach 2").0, 2);
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_job_goes_on_with_the_next_node() {
    for killed in [true, false] {
        let home = with_target();
        let node = home.serve();
        let mut asker = asker(&home);
        if killed {
            node.kill();
        } else {
            assert_eq!(node.stop(), 0, "{}", home.log());
        }
        assert!(!asker.wait().unwrap().success());
        // It may have died while it kept what it knows of the job once more.
        let jobs = fs::read_dir(home.path("home/jobs")).unwrap().map(|f| f.unwrap().path());
        assert_eq!(jobs.filter(|f| f.extension().is_some_and(|e| e == "json")).count(), 1);
        assert!(!is_executed(&home), "it was over before the node was stopped");
        let _node = home.serve();
        assert!(home.log().contains("job resumed"), "{}", home.log());
        until("the end of the job", || home.ok("job ls").contains("done"));
        assert_eq!(fs::read_dir(home.path("home/jobs")).unwrap().count(), 0);
        assert!(is_executed(&home));
        home.ok("export b out");
        assert_eq!(fs::read(home.path("out")).unwrap(), fs::read(home.path("disk")).unwrap());
        home.check();
    }
}

#[test]
fn a_flatten_is_done_whenever_its_node_dies() {
    for millis in [0, 20, 100] {
        let home = Home::new();
        fs::write(home.path("disk"), noise(3, 3_000 << 12)).unwrap();
        home.ok("import disk parent --object-size 4K");
        home.ok("snap create parent@s");
        home.ok("snap protect parent@s");
        home.ok("clone parent@s child");
        let node = home.serve();
        let mut asker =
            home.command(Name::Ferry).args(["flatten", "child", "--no-progress"]).spawn().unwrap();
        until("the job", || home.ok("job ls").contains("flatten rbd/child"));
        thread::sleep(Duration::from_millis(millis));
        node.kill();
        // Its answer may have come before.
        asker.wait().unwrap();
        let _node = home.serve();
        until("the end of the job", || !home.ok("job ls").contains("running"));
        assert!(!home.ok("info child").contains("parent:"), "{}{}", home.ok("job ls"), home.log());
        home.ok("export child out");
        assert_eq!(fs::read(home.path("out")).unwrap(), fs::read(home.path("disk")).unwrap());
    }
}

/// Does the job in `file` again, as a node does that finds it, and returns what `job ls` says then.
fn resumed(home: &Home, file: &str) -> String {
    fs::write(home.path("home/jobs/1.json"), file).unwrap();
    let node = home.serve();
    until("the end of the job", || !home.ok("job ls").contains("running"));
    let jobs = home.ok("job ls");
    assert_eq!(node.stop(), 0, "{}", home.log());
    assert_eq!(fs::read_dir(home.path("home/jobs")).unwrap().count(), 0);
    jobs
}

/// The file of the job that executes the migration to `far/b`, as it is while that is under way, and the node that does it.
fn executing(home: &Home) -> String {
    home.ok("pool create far --path far");
    fs::write(home.path("disk"), noise(3, 1 << 20)).unwrap();
    home.ok("import disk a --object-size 4K");
    home.ok("migration prepare a far/b");
    let node = home.serve();
    let mut asker = home
        .command(Name::Ferry)
        .args(["migration", "execute", "far/b", "--limit", "500K", "--no-progress"])
        .spawn()
        .unwrap();
    until("the job", || home.ok("job ls --format json").contains("\"percent\""));
    let file = fs::read_to_string(home.path("home/jobs/1.json")).unwrap();
    assert!(file.contains("\"subject\": {"), "{file}");
    node.kill();
    asker.wait().unwrap();
    fs::remove_file(home.path("home/jobs/1.json")).unwrap();
    file
}

/// The file of a job that does another thing with what the job in `file` is about.
fn instead(file: &str, command: &str, options: &serde_json::Value) -> String {
    let mut job: serde_json::Value = serde_json::from_str(file).unwrap();
    let image = job["request"]["command"]["Migration"]["Execute"]["image"].take();
    let mut options = options.clone();
    options["image"] = image;
    job["request"]["command"]["Migration"] = serde_json::json!({ command: options });
    job.to_string()
}

#[test]
fn a_job_of_a_migration_counts_as_done_only_where_it_was() {
    promised("whether a job was done is seen by what is there");
    let home = Home::new();
    let execute = executing(&home);
    let commit = instead(&execute, "Commit", &serde_json::json!({ "force": false, "unverified": false }));
    let abort =
        instead(&execute, "Abort", &serde_json::json!({ "accept_loss": false, "pause_limit_ms": null }));
    // 22, as for an image that is not migrating any more: but this one is.
    let jobs = resumed(&home, &commit);
    assert!(jobs.contains("failed"), "{jobs}");
    assert!(home.ok("status far/b").contains("executing"));
    // 2, as for an image that is gone: but its store is away.
    fs::rename(home.path("far"), home.path("away")).unwrap();
    for file in [&abort, &commit, &execute] {
        let jobs = resumed(&home, file);
        assert!(jobs.contains("failed"), "{jobs}");
    }
    fs::rename(home.path("away"), home.path("far")).unwrap();
    let done = |file: &str| {
        let jobs = resumed(&home, file);
        assert!(jobs.contains("done") && !jobs.contains("failed"), "{jobs}{}", home.log());
        home.log().contains("job was done before")
    };
    assert!(!done(&execute));
    assert!(done(&execute));
    assert!(!done(&commit));
    assert!(done(&commit) && done(&execute));
    // Committed is not aborted.
    let jobs = resumed(&home, &abort);
    assert!(jobs.contains("failed"), "{jobs}");
    home.ok("export far/b out");
    assert_eq!(fs::read(home.path("out")).unwrap(), fs::read(home.path("disk")).unwrap());
}

#[test]
fn a_job_of_an_abort_that_was_done_is_not_done_again() {
    let home = Home::new();
    let execute = executing(&home);
    let abort =
        instead(&execute, "Abort", &serde_json::json!({ "accept_loss": false, "pause_limit_ms": null }));
    for before in [false, true] {
        let jobs = resumed(&home, &abort);
        assert!(jobs.contains("done") && !jobs.contains("failed"), "{jobs}{}", home.log());
        assert_eq!(home.log().contains("job was done before"), before);
    }
    // The image has moved on: the next migration has nothing to do with that job.
    home.ok("migration prepare a far/b");
    let jobs = resumed(&home, &execute);
    assert!(jobs.contains("failed") || !home.log().contains("job was done before"), "{jobs}");
    home.ok("migration abort a");
    home.ok("export a out");
    assert_eq!(fs::read(home.path("out")).unwrap(), fs::read(home.path("disk")).unwrap());
}

#[test]
fn a_removal_counts_as_done_only_where_the_image_is_gone() {
    let home = Home::new();
    home.ok("pool create far --path far");
    home.ok("create far/a --size 8M");
    let id = home.ok("info far/a --format json");
    let id = serde_json::from_str::<serde_json::Value>(&id).unwrap()["id"].as_str().unwrap().to_owned();
    let remove = serde_json::json!({
        "id": 1, "home": home.path("home"), "started": 7,
        "request": {
            "command": { "Image": { "Remove": { "image": { "pool": "far", "namespace": "", "image": "a" } } } },
            "overrides": {}, "cluster": null,
        },
    });
    fs::create_dir_all(home.path("home/jobs")).unwrap();
    // Whoever had the store open gives it back.
    assert_eq!(home.serve().stop(), 0);
    // A job that died before it knew what it is about.
    fs::rename(home.path("far"), home.path("away")).unwrap();
    let jobs = resumed(&home, &remove.to_string());
    assert!(jobs.contains("failed"), "{jobs}");
    fs::rename(home.path("away"), home.path("far")).unwrap();
    assert!(home.ok("info far/a --format json").contains(&id));
    let jobs = resumed(&home, &remove.to_string());
    assert!(jobs.contains("done"), "{jobs}{}", home.log());
    assert_eq!(home.ok("ls far"), "");
}

#[test]
fn a_job_can_be_cancelled_and_done_again() {
    let home = with_target();
    let _node = home.serve();
    let asker = asker(&home);
    home.ok("job cancel 1");
    let ended = asker.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(4), "{ended:?}");
    assert!(home.ok("job ls").contains("cancelled"));
    assert_eq!(home.fails("job cancel 1").0, 22);
    assert!(!is_executed(&home));
    home.ok("migration execute b");
    assert!(is_executed(&home));
    home.ok("export b out");
    assert_eq!(fs::read(home.path("out")).unwrap(), fs::read(home.path("disk")).unwrap());
}

#[test]
fn a_command_that_reads_its_input_ends_with_the_node() {
    let home = Home::new();
    let node = home.serve();
    let mut import = home
        .command(Name::Ferry)
        .args(["import", "-", "a", "--no-progress"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = import.stdin.take().unwrap();
    input.write_all(&noise(1, 9_000_000)).unwrap();
    until("the image", || home.ok("ls") == "a\n");
    let feeding = thread::spawn(move || {
        while input.write_all(&[7; 65536]).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(node.stop(), 0, "{}", home.log());
    let ended = import.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(4), "{ended:?}");
    feeding.join().unwrap();
    home.check();
}

#[test]
fn without_a_node_there_are_no_jobs() {
    let home = Home::new();
    assert_eq!(home.ok("job ls"), "");
    let (code, err) = home.fails("job cancel 1");
    assert_eq!(code, 2);
    assert!(err.contains("ferry serve"), "{err}");
}

/// What an HTTP server answers to a GET.
fn get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_node_tells_metrics_and_health_where_it_is_asked_to() {
    let home = Home::new();
    home.ok("create a --size 1M");
    let _node = home.serve_with(&["--metrics", "127.0.0.1:0"]);
    let told = home.ok("export add a --name vm");
    let uri = told.lines().next().unwrap();
    let wrote = Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 8192", uri]).output().unwrap();
    assert!(wrote.status.success(), "{wrote:?}");
    let log = home.log();
    let (_, address) = log.split_once("address=").unwrap();
    let address = address.split_whitespace().next().unwrap();
    assert!(get(address, "/health").ends_with("ok\n"));
    let metrics = get(address, "/metrics");
    assert!(metrics.contains("ferry_up 1\n") && metrics.contains("ferry_stores_open 1\n"), "{metrics}");
    assert!(metrics.contains("ferry_nbd_bytes_total{export=\"vm\",sort=\"write\"} 8192\n"), "{metrics}");
    assert!(get(address, "/nothing").starts_with("HTTP/1.1 404"));
    let (code, err) = home.fails("serve --metrics 0.0.0.0:0");
    assert_eq!(code, 16, "{err}");
    let other = Home::new();
    let (code, err) = other.fails("serve --metrics 0.0.0.0:0");
    assert_eq!(code, 13, "{err}");
}

#[test]
fn a_watch_tells_what_clients_tell_each_other() {
    let home = Home::new();
    home.ok("create a --size 1M");
    for served in [false, true] {
        let node = served.then(|| home.serve());
        let mut watch = home
            .command(Name::Rbd)
            .args(["watch", "a"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "press enter to exit...");
        assert!(home.ok("status a").contains("watcher="));
        home.ok(&format!("snap create a@s{served}"));
        let line = lines.find(|l| l.as_ref().unwrap().ends_with("notify_op=HeaderUpdate")).unwrap().unwrap();
        assert!(line.starts_with("a received notification: notify_id="), "{line}");
        drop(watch.stdin.take());
        assert!(watch.wait().unwrap().success());
        drop(node);
    }
}
