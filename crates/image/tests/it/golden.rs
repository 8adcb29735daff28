//! Every value in `tests/golden`, which stock `rbd` wrote, decodes to its last byte and encodes back to the same bytes; and
//! what ferry says of those images is what `rbd` says.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ferry_core::lock::LockInfo;
use ferry_core::testing::{MemStore, test_env};
use ferry_core::{Effect, Env, Namespace, ObjectId, PoolId, SnapId, Store, WriteOp};
use ferry_image::clone::children;
use ferry_image::encoding::{
    Children, GroupRef, MigrationRecord, ParentRecord, SnapshotNamespace, SnapshotRecord, TrashEntry,
    V1Children, decode_directory_state, decode_i64, decode_string, decode_timestamp, decode_u8, decode_u64,
    encode_directory_state, encode_i64, encode_string, encode_timestamp, encode_u8, encode_u64, header,
    parse_hex_id, v1_children_key,
};
use ferry_image::encoding::{Protection, TrashSource};
use ferry_image::header::{Header, Opening};
use ferry_image::image::Image;
use ferry_image::object_map::ObjectMap;
use ferry_image::pool::Pool;
use ferry_image::trash;
use futures_executor::block_on;
use serde_json::Value;

/// One object as the files tell it.
#[derive(Debug, Default)]
struct Golden {
    pool: String,
    namespace: String,
    name: String,
    data: Option<Bytes>,
    xattrs: BTreeMap<String, Bytes>,
    omap: BTreeMap<Bytes, Bytes>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn unhex(text: &str) -> Bytes {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn read_file(path: &Path) -> Golden {
    let relative = path.strip_prefix(root()).unwrap();
    let parts: Vec<&str> = relative.iter().map(|p| p.to_str().unwrap()).collect();
    let file = path.file_name().unwrap().to_str().unwrap().strip_suffix(".golden").unwrap();
    let namespace = if parts.len() == 3 { parts[1] } else { "" };
    let mut golden = Golden {
        pool: parts[0].to_owned(),
        namespace: namespace.to_owned(),
        name: file.to_owned(),
        ..Golden::default()
    };
    for line in fs::read_to_string(path).unwrap().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["data", data] => golden.data = Some(unhex(data)),
            ["xattr", name, value] => drop(golden.xattrs.insert((*name).to_owned(), unhex(value))),
            ["omap", key] => drop(golden.omap.insert(unhex(key), Bytes::new())),
            ["omap", key, value] => drop(golden.omap.insert(unhex(key), unhex(value))),
            other => panic!("{}: {other:?}", path.display()),
        }
    }
    golden
}

fn all() -> Vec<Golden> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("rbd"), root().join("other")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(read_file(&path)) }
        }
    }
    assert!(found.len() > 80, "only {} golden objects", found.len());
    found
}

/// A store with the golden pools under their numbers and all golden objects in them.
pub(crate) fn world() -> (Arc<MemStore>, Env) {
    let env = test_env(3);
    let store = MemStore::new(&env);
    let numbers: BTreeMap<String, i64> =
        serde_json::from_str(&fs::read_to_string(root().join("expected/pools.json")).unwrap()).unwrap();
    let by_number: BTreeMap<i64, String> = numbers.iter().map(|(name, id)| (*id, name.clone())).collect();
    for (id, name) in by_number {
        assert_eq!(store.create_pool(&name).wait().unwrap(), PoolId(id));
    }
    for golden in all() {
        let object =
            ObjectId::new(PoolId(numbers[&golden.pool]), &Namespace::new(&golden.namespace), &golden.name);
        let mut op = WriteOp::new().effect(Effect::Create);
        op = op.effect(Effect::OmapSet(golden.omap.into_iter().collect()));
        for (name, value) in golden.xattrs {
            op = op.effect(Effect::XattrSet(name, value));
        }
        if let Some(data) = golden.data {
            op = op.effect(Effect::WriteFull(data));
        }
        store.write(&object, op).wait().unwrap();
    }
    (store, env)
}

fn pool(world: &(Arc<MemStore>, Env), name: &str, namespace: &str) -> Pool {
    let store = Arc::clone(&world.0) as Arc<dyn Store>;
    block_on(Pool::open(store, world.1.clone(), name, &Namespace::new(namespace))).unwrap()
}

fn expected(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(root().join("expected").join(name)).unwrap()).unwrap()
}

/// What a header's value is after decoding and encoding.
fn header_value(key: &[u8], value: &[u8]) -> Bytes {
    if let Some(id) = parse_hex_id(key, "snapshot_") {
        let record = SnapshotRecord::decode(value).unwrap();
        assert_eq!(record.id, id);
        return record.encode().unwrap();
    }
    if parse_hex_id(key, "snap_children_").is_some() {
        return Children::decode(value).unwrap().encode().unwrap();
    }
    if key.starts_with(b"metadata_") {
        return Bytes::copy_from_slice(value);
    }
    match std::str::from_utf8(key).unwrap() {
        header::SIZE
        | header::FEATURES
        | header::SNAP_SEQ
        | header::STRIPE_UNIT
        | header::STRIPE_COUNT
        | header::FLAGS
        | header::OP_FEATURES
        | header::SNAP_LIMIT => encode_u64(decode_u64(value).unwrap()),
        header::ORDER => encode_u8(decode_u8(value).unwrap()),
        header::OBJECT_PREFIX => encode_string(&decode_string(value).unwrap()),
        header::CREATE_TIMESTAMP | header::ACCESS_TIMESTAMP | header::MODIFY_TIMESTAMP => {
            encode_timestamp(decode_timestamp(value).unwrap())
        }
        header::DATA_POOL_ID => encode_i64(decode_i64(value).unwrap()),
        header::PARENT => ParentRecord::decode(value).unwrap().encode().unwrap(),
        header::MIGRATION => MigrationRecord::decode(value).unwrap().encode().unwrap(),
        header::GROUP_REF => GroupRef::decode(value).unwrap().encode().unwrap(),
        other => panic!("a header key nobody knows: {other}"),
    }
}

/// What a value of another object is after decoding and encoding.
fn index_value(object: &str, key: &[u8], value: &[u8]) -> Bytes {
    match object {
        "rbd_directory" if key == b"state" => encode_directory_state(decode_directory_state(value).unwrap()),
        "rbd_directory" => encode_string(&decode_string(value).unwrap()),
        "rbd_trash" => TrashEntry::decode(value).unwrap().encode().unwrap(),
        "rbd_children" => V1Children::decode(value).unwrap().encode(),
        "rbd_namespace" => {
            assert!(value.is_empty());
            Bytes::new()
        }
        "rbd_info" => {
            assert!(key.starts_with(b"metadata_"));
            Bytes::copy_from_slice(value)
        }
        other => panic!("an object nobody knows: {other}"),
    }
}

#[test]
fn every_golden_value_decodes_to_the_last_byte_and_encodes_to_the_same_bytes() {
    let mut values = 0;
    for golden in all() {
        if golden.name.starts_with("rbd_group") {
            continue; // groups are not this room's
        }
        for (key, value) in &golden.omap {
            let again = if golden.name.starts_with("rbd_header.") {
                header_value(key, value)
            } else {
                index_value(&golden.name, key, value)
            };
            assert_eq!(&again, value, "{} {}", golden.name, String::from_utf8_lossy(key));
            values += 1;
        }
        for (name, value) in &golden.xattrs {
            assert_eq!(name, "lock.rbd_lock", "{}", golden.name);
            assert_eq!(&LockInfo::decode(value).unwrap().encode(), value, "{}", golden.name);
            values += 1;
        }
        let Some(data) = &golden.data else { continue };
        values += 1;
        if golden.name.starts_with("rbd_id.") {
            assert_eq!(&encode_string(&decode_string(data).unwrap()), data, "{}", golden.name);
        } else if golden.name.starts_with("rbd_object_map.") {
            assert_eq!(&ObjectMap::decode(data).unwrap().encode(), data, "{}", golden.name);
        } else {
            assert_eq!((golden.name.as_str(), &data[..]), ("rbd_info", &b"overwrite validated"[..]));
        }
    }
    assert!(values > 350, "only {values} values");
}

#[test]
fn the_key_of_v1_children_is_the_one_rbd_writes() {
    let children = all().into_iter().find(|g| g.pool == "other" && g.name == "rbd_children").unwrap();
    let key = v1_children_key(PoolId(1), "103b6ce7fd64", SnapId(5));
    assert!(children.omap.contains_key(&key), "{:?}", children.omap.keys());
}

/// The images `rbd` described, and where they are.
const IMAGES: [(&str, &str, &str, &str); 17] = [
    ("plain", "rbd", "", "plain"),
    ("layering", "rbd", "", "layering"),
    ("striped", "rbd", "", "striped"),
    ("odd", "rbd", "", "odd"),
    ("snapped", "rbd", "", "snapped"),
    ("clone-v1", "rbd", "", "clone-v1"),
    ("clone-v2", "rbd", "", "clone-v2"),
    ("clone-striped", "rbd", "", "clone-striped"),
    ("flattened", "rbd", "", "flattened"),
    ("tenant.clone", "rbd", "tenant", "clone"),
    ("tenant.inside", "rbd", "tenant", "inside"),
    ("member", "rbd", "", "member"),
    ("locked", "rbd", "", "locked"),
    ("other.clone-v1-elsewhere", "other", "", "clone-v1-elsewhere"),
    ("other.clone-v2-elsewhere", "other", "", "clone-v2-elsewhere"),
    ("other.moved", "other", "", "moved"),
    ("other.imported", "other", "", "imported"),
];

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

#[test]
fn a_header_says_what_rbd_info_says() {
    let world = world();
    for (file, pool_name, namespace, name) in IMAGES {
        let image =
            block_on(Image::open(&pool(&world, pool_name, namespace), name, Opening::ReadOnly)).unwrap();
        let (info, header) = (expected(&format!("{file}.info.json")), &image.header);
        assert_eq!(info["id"], *image.id, "{file}");
        assert_eq!(info["size"], header.size, "{file}");
        assert_eq!(info["order"], header.order, "{file}");
        assert_eq!(info["object_size"], header.object_size(), "{file}");
        assert_eq!(info["snapshot_count"], header.snaps.len(), "{file}");
        assert_eq!(info["block_name_prefix"], *header.object_prefix, "{file}");
        assert_eq!(names(&info["features"]), header.features.names(), "{file}");
        assert_eq!(names(&info["op_features"]), header.op_features.names(), "{file}");
        assert_eq!(names(&info["flags"]), header.flags.names(), "{file}");
        assert_eq!(info["snapshot_limit"].as_u64(), header.snap_limit, "{file}");
        check_parent(file, &info, header);
        if let Some(unit) = info["stripe_unit"].as_u64() {
            assert_eq!(
                (unit, info["stripe_count"].as_u64()),
                (header.stripe_unit, Some(header.stripe_count))
            );
        }
        assert_eq!(info["data_pool"].is_string(), header.data_pool.is_some(), "{file}");
    }
}

fn check_parent(file: &str, info: &Value, header: &Header) {
    let link = header.parent_at(SnapId::HEAD).unwrap();
    let said = &info["parent"];
    assert_eq!(said["overlap"].as_u64(), link.as_ref().map(|l| l.overlap), "{file}");
    assert_eq!(said["id"].as_str(), link.as_ref().map(|l| l.parent.image_id.as_str()), "{file}");
}

#[test]
fn the_snapshots_are_those_rbd_lists() {
    let world = world();
    for (file, pool_name, namespace, name) in IMAGES {
        let image =
            block_on(Image::open(&pool(&world, pool_name, namespace), name, Opening::ReadOnly)).unwrap();
        let listed = expected(&format!("{file}.snaps.json"));
        let listed = listed.as_array().unwrap();
        assert_eq!(listed.len(), image.header.snaps.len(), "{file}");
        for (said, snap) in listed.iter().zip(image.header.snaps.values()) {
            assert_eq!(said["id"], snap.id.0, "{file}");
            assert_eq!(said["name"], *snap.name, "{file}");
            assert_eq!(said["size"], snap.size, "{file}");
            assert_eq!(said["protected"] == "true", snap.protection == Protection::Protected, "{file}");
            let kind = match &snap.namespace {
                SnapshotNamespace::User => "user",
                SnapshotNamespace::Group { .. } => "group",
                SnapshotNamespace::Trash { .. } => "trash",
                SnapshotNamespace::Mirror(_) => "mirror",
                SnapshotNamespace::Unknown { .. } => "unknown",
            };
            assert_eq!(said["namespace"]["type"], kind, "{file}");
        }
    }
}

#[test]
fn the_children_are_those_rbd_lists() {
    let world = world();
    let image = block_on(Image::open(&pool(&world, "rbd", ""), "snapped", Opening::ReadOnly)).unwrap();
    let found = block_on(children(&image, SnapId::HEAD)).unwrap();
    let listed = expected("snapped.children.json");
    let listed = listed.as_array().unwrap();
    let said: Vec<_> = listed
        .iter()
        .map(|c| {
            (c["pool"].as_str(), c["pool_namespace"].as_str(), c["image"].as_str(), c["trash"].as_bool())
        })
        .collect();
    let ours: Vec<_> = found
        .iter()
        .map(|c| {
            (Some(c.pool_name.as_str()), Some(c.namespace.as_str()), Some(c.name.as_str()), Some(c.in_trash))
        })
        .collect();
    assert_eq!(said, ours);
}

#[test]
fn directory_namespaces_and_trash_are_those_rbd_lists() {
    let world = world();
    let rbd = pool(&world, "rbd", "");
    let images: Vec<_> = block_on(rbd.images()).unwrap().into_iter().map(|(name, _)| name).collect();
    let said = expected("rbd.ls.json");
    let said: Vec<_> = said.as_array().unwrap().iter().filter(|i| i["snapshot"].is_null()).collect();
    let said: Vec<_> = said.iter().map(|i| i["image"].as_str().unwrap()).collect();
    assert_eq!(said, images);
    let namespaces: Vec<_> = block_on(rbd.namespaces()).unwrap();
    let said = expected("namespaces.json");
    let said: Vec<_> =
        said.as_array().unwrap().iter().map(|n| Namespace::new(n["name"].as_str().unwrap())).collect();
    assert_eq!(said, namespaces);
    let entries = block_on(trash::list(&rbd)).unwrap();
    let said = expected("trash.json");
    for (said, (id, entry)) in said.as_array().unwrap().iter().zip(&entries) {
        assert_eq!(
            (said["id"].as_str(), said["name"].as_str()),
            (Some(id.as_str()), Some(entry.name.as_str()))
        );
        let source = if entry.source == TrashSource::User { "USER" } else { "MIGRATION" };
        assert_eq!(said["source"], source);
    }
    assert_eq!(entries.len(), said.as_array().unwrap().len());
}

#[test]
fn a_migrating_image_opens_as_the_table_says() {
    let world = world();
    let (rbd, other) = (pool(&world, "rbd", ""), pool(&world, "other", ""));
    for target in ["moved", "imported", "moved-clone"] {
        let image = block_on(Image::open(&other, target, Opening::ReadOnly)).unwrap();
        assert!(image.header.redirects(), "{target}");
    }
    let ready = block_on(Image::open(&rbd, "ready", Opening::ReadOnly)).unwrap();
    assert!(!ready.header.redirects(), "an executed target is whole");
    let source = block_on(Image::open_or_migration_source(&rbd, "moving")).unwrap();
    let error = block_on(Image::open_by_id(&rbd, &source.id, Opening::ReadWrite)).unwrap_err();
    assert_eq!(error.errno().0, 30);
}

#[test]
fn clones_that_rbd_made_can_be_removed_down_to_their_parent() {
    let world = world();
    let (rbd, tenant) = (pool(&world, "rbd", ""), pool(&world, "rbd", "tenant"));
    let before = block_on(Image::open(&rbd, "snapped", Opening::ReadOnly)).unwrap();
    let trashed = before.header.snaps.values().find(|s| s.namespace.is_trash()).unwrap().id;
    let mut clones = 0;
    for child in block_on(children(&before, trashed)).unwrap() {
        let pool =
            if child.namespace.is_default() { pool(&world, &child.pool_name, "") } else { tenant.clone() };
        let used = ferry_image::remove::UsedParent::Refuse;
        block_on(ferry_image::remove::remove(&pool, &child.name, used, &mut |_, _| {})).unwrap();
        clones += 1;
    }
    assert!(clones > 0);
    let after = block_on(Image::open(&rbd, "snapped", Opening::ReadOnly)).unwrap();
    assert!(!after.header.snaps.contains_key(&trashed), "the last clone takes the removed snapshot with it");
    assert_eq!(after.header.snaps.len(), before.header.snaps.len() - 1);
}
