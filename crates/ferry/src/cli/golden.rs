//! What ferry says about images that stock `rbd` made is, byte for byte, what stock `rbd` says about them.
//!
//! The images are those of `crates/image/tests/golden` (see its README), put into a store in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::testing::{MemStore, TestClock, test_env};
use ferry_core::{Effect, Env, Namespace, ObjectId, PoolId, Result, Store, WriteOp};
use ferry_node::Node;
use ferry_node::api::{CheckReport, Cluster, Events, Request, Streams};
use ferry_node::backend::{Claim, IfMissing, OwnedStore, StoreKind};
use ferry_node::cancel::Cancel;
use ferry_node::config::Home;
use ferry_node::options::Settings;

use super::args::{Asked, Context, parse};
use super::output::{self, Program, Show};
use super::progress::Reporter;
use super::{Plan, VERBS};

/// Pools of the cluster the images were made in, by number.
const POOLS: [&str; 4] = ["rbd", "device_health_metrics", "ecdata", "other"];

#[derive(Debug)]
struct InMemory(Arc<MemStore>);

impl OwnedStore for InMemory {
    fn store(&self) -> Arc<dyn Store> {
        Arc::<MemStore>::clone(&self.0)
    }

    fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::default())
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Golden(Arc<MemStore>);

impl StoreKind for Golden {
    fn open(&self, _: &Path, _: &Env, _: IfMissing, _: &dyn Events) -> Result<Claim> {
        Ok(Claim::Ours(Arc::new(InMemory(Arc::clone(&self.0)))))
    }

    fn connect(&self, _: &Cluster) -> Result<Arc<dyn OwnedStore>> {
        Err(ferry_core::Error::unsupported("there is no cluster in memory"))
    }
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/tests/golden")
}

fn unhex(text: &str) -> Bytes {
    let byte = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Puts one dumped object into the store.
fn load_object(store: &MemStore, path: &Path, pool: PoolId, namespace: &Namespace) {
    let name = path.file_name().unwrap().to_str().unwrap().strip_suffix(".golden").unwrap();
    let mut op = WriteOp::new().effect(Effect::Create);
    for line in fs::read_to_string(path).unwrap().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        op = match words.as_slice() {
            ["data", data] => op.effect(Effect::WriteFull(unhex(data))),
            ["xattr", name, value] => op.effect(Effect::XattrSet((*name).to_owned(), unhex(value))),
            ["omap", key] => op.omap_set(unhex(key), Bytes::new()),
            ["omap", key, value] => op.omap_set(unhex(key), unhex(value)),
            other => panic!("{other:?} in {}", path.display()),
        };
    }
    store.write(&ObjectId::new(pool, namespace, name), op).wait().unwrap();
}

/// A node whose pools hold the golden images.
fn node(home: &Path) -> Node {
    // Later than the images were made.
    let env = Env { clock: Arc::new(TestClock::at(1_800_000_000)), ..test_env(1) };
    let store = MemStore::new(&env);
    let home = Home::at(home);
    for pool in POOLS {
        store.create_pool(pool).wait().unwrap();
    }
    for (pool, id) in [("rbd", PoolId(1)), ("other", PoolId(4))] {
        home.update(|c| Ok(c.pools.insert(pool.to_owned(), PathBuf::from("store").into()))).unwrap();
        for entry in fs::read_dir(golden_dir().join(pool)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                let namespace = Namespace::new(path.file_name().unwrap().to_str().unwrap());
                for inner in fs::read_dir(&path).unwrap() {
                    load_object(&store, &inner.unwrap().path(), id, &namespace);
                }
            } else {
                load_object(&store, &path, id, &Namespace::default());
            }
        }
    }
    Node::on(home, env, Arc::new(Golden(store)))
}

/// What a command line answers, on stdout.
fn answer(node: &Node, line: &str) -> String {
    let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let Asked::Verb(verb, mut parsed) = parse(&arguments, VERBS).unwrap() else { panic!("{line}") };
    let settings = Settings::default();
    let show = Show::of(&parsed).unwrap();
    let plan =
        (verb.convert)(&mut parsed, &Context { settings: &settings, program: Program::Ferry }).unwrap();
    let Plan::Run { command, .. } = plan else { panic!("{line}") };
    let reporter = Reporter::new(Program::Ferry, false, &command);
    let request = Request { command: *command, overrides: parsed.overrides().clone(), cluster: None };
    let result = node.execute(&request, Streams::default(), &reporter, &Cancel::new());
    let response = result.unwrap_or_else(|e| panic!("{line}: {e:?}"));
    let mut out = Vec::new();
    output::write(&mut out, &response, show).unwrap();
    String::from_utf8(out).unwrap()
}

/// What stock `rbd` answered.
fn expected(file: &str) -> String {
    fs::read_to_string(golden_dir().join("expected").join(file)).unwrap()
}

#[test]
fn images_made_by_rbd_are_described_as_rbd_describes_them() {
    let home = tempfile::tempdir().unwrap();
    let node = node(home.path());
    let mut compared = 0;
    for image in [
        "clone-striped",
        "clone-v1",
        "clone-v2",
        "flattened",
        "layering",
        "locked",
        "odd",
        "plain",
        "snapped",
        "striped",
    ] {
        for (verb, file) in [("info", "info"), ("snap ls --all", "snaps"), ("lock ls", "locks")] {
            let line = format!("{verb} {image} --format json --rbd-default-pool rbd");
            assert_eq!(answer(&node, &line), expected(&format!("{image}.{file}.json")), "{line}");
            compared += 1;
        }
    }
    for image in ["clone-v1-elsewhere", "clone-v2-elsewhere", "moved", "moved-clone", "imported"] {
        for (verb, file) in [("info", "info"), ("snap ls --all", "snaps"), ("status", "status")] {
            let line = format!("{verb} other/{image} --format json");
            assert_eq!(answer(&node, &line), expected(&format!("other.{image}.{file}.json")), "{line}");
            compared += 1;
        }
    }
    for image in ["inside", "clone"] {
        let line = format!("info rbd/tenant/{image} --format json");
        assert_eq!(answer(&node, &line), expected(&format!("tenant.{image}.info.json")), "{line}");
        compared += 1;
    }
    assert_eq!(compared, 47);
}

#[test]
fn lists_of_what_rbd_made_are_those_of_rbd() {
    let home = tempfile::tempdir().unwrap();
    let node = node(home.path());
    for (line, file) in [
        ("ls -l other --format json", "other.ls.json"),
        ("ls -l rbd --format json", "rbd.ls.json"),
        ("children rbd/snapped --all --format json", "snapped.children.json"),
        ("trash ls rbd --all --long --format json", "trash.json"),
        ("namespace ls rbd --format json", "namespaces.json"),
        ("image-meta ls rbd/plain --format json", "plain.metadata.json"),
        ("du rbd/plain --format json", "plain.du.json"),
        ("du rbd/snapped --format json", "snapped.du.json"),
        ("status rbd/ready --format json", "ready.status.json"),
    ] {
        assert_eq!(answer(&node, line), expected(file), "{line}");
    }
}
