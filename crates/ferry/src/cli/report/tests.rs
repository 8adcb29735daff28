use ferry_node::api::{
    BenchResult, BenchRow, ChildImage, Detail, DiffExtent, ImageInfo, ImageStatus, ListedImage, ListedSnap,
    LockHolder, LockList, ParentInfo, PoolStatistics, SnapNamespace, TrashEntry, Usage, UsageRow,
};

use super::super::output::Spread;

fn parent() -> ParentInfo {
    ParentInfo {
        pool: "migd".to_owned(),
        namespace: String::new(),
        image: "b".to_owned(),
        id: "1234".to_owned(),
        snap: "s1".to_owned(),
        in_trash: false,
        overlap: 16 << 20,
    }
}

fn listed(image: &str, snap: Option<(&str, u64)>, parent: Option<ParentInfo>) -> ListedImage {
    ListedImage {
        image: image.to_owned(),
        id: "abc".to_owned(),
        format: 2,
        snap: snap.map(|(n, id)| (n.to_owned(), id)),
        size: 10 << 20,
        protected: snap.is_some(),
        parent,
        lock: None,
    }
}

#[test]
fn a_long_listing_looks_like_that_of_rbd() {
    let images = [listed("b", Some(("s1", 4)), None), listed("cl1", None, Some(parent()))];
    assert_eq!(
        super::images(&images),
        "NAME  SIZE    PARENT     FMT  PROT  LOCK\n\
         b@s1  10 MiB               2  yes       \n\
         cl1   10 MiB  migd/b@s1    2            \n"
    );
    assert_eq!(
        super::images_tree(&images).json(Spread::Compact).trim_end(),
        r#"[{"image":"b","id":"abc","snapshot":"s1","snapshot_id":4,"size":10485760,"format":2,"protected":"true"},{"image":"cl1","id":"abc","size":10485760,"parent":{"pool":"migd","pool_namespace":"","image":"b","snapshot":"s1"},"format":2}]"#
    );
    assert_eq!(super::images(&[]), "");
}

#[test]
fn info_has_the_lines_and_keys_of_rbd_in_their_order() {
    let info = ImageInfo {
        name: Some("a".to_owned()),
        id: "10786e948f27".to_owned(),
        format: 2,
        size: 64 << 20,
        objects: 16,
        order: 22,
        object_size: 4 << 20,
        data_pool: None,
        snapshot_count: 0,
        block_name_prefix: "rbd_data.10786e948f27".to_owned(),
        features: vec!["layering".to_owned(), "exclusive-lock".to_owned()],
        op_features: vec![],
        flags: vec![],
        created: 0,
        accessed: 0,
        modified: 0,
        protected: None,
        snapshot_limit: None,
        parent: Some(parent()),
        striping: None,
    };
    assert_eq!(
        super::info(&info),
        "rbd image 'a':\n\tsize 64 MiB in 16 objects\n\torder 22 (4 MiB objects)\n\tsnapshot_count: 0\n\t\
         id: 10786e948f27\n\tblock_name_prefix: rbd_data.10786e948f27\n\tformat: 2\n\t\
         features: layering, exclusive-lock\n\top_features: \n\tflags: \n\tparent: migd/b@s1\n\toverlap: 16 MiB\n"
    );
    assert_eq!(
        super::info_tree(&info).json(Spread::Compact).trim_end(),
        r#"{"name":"a","id":"10786e948f27","size":67108864,"objects":16,"order":22,"object_size":4194304,"snapshot_count":0,"block_name_prefix":"rbd_data.10786e948f27","format":2,"features":["layering","exclusive-lock"],"op_features":[],"flags":[],"parent":{"pool":"migd","pool_namespace":"","image":"b","id":"1234","snapshot":"s1","trash":false,"overlap":16777216}}"#
    );
}

#[test]
fn snapshots_are_numbered_on_the_right() {
    let snap = |id, name: &str, namespace| ListedSnap {
        id,
        name: name.to_owned(),
        size: 64 << 20,
        protected: false,
        created: 0,
        namespace,
    };
    let snaps = [
        snap(4, "s1", SnapNamespace::User),
        snap(15, "u", SnapNamespace::Trash { original_name: "b".to_owned() }),
    ];
    assert_eq!(
        super::snaps(&snaps, true),
        "SNAPID  NAME  SIZE    PROTECTED  TIMESTAMP  NAMESPACE\n     \
         4  s1    64 MiB                        user     \n    \
         15  u     64 MiB                        trash (b)\n"
    );
    assert_eq!(
        super::snaps_tree(&snaps[..1], false).json(Spread::Compact).trim_end(),
        r#"[{"id":4,"name":"s1","size":67108864,"protected":"false","timestamp":""}]"#
    );
}

#[test]
fn an_unwatched_image_has_no_watchers() {
    let status = ImageStatus { watchers: vec![], migration: None };
    assert_eq!(super::status(&status), "Watchers: none\n");
    assert_eq!(super::status_tree(&status).json(Spread::Compact).trim_end(), r#"{"watchers":[]}"#);
    assert_eq!(
        super::status_tree(&status).xml(Spread::Compact).trim_end(),
        "<status><watchers></watchers></status>"
    );
}

#[test]
fn usage_has_a_total_for_more_than_one_row() {
    let row = |snap: Option<(&str, u64)>, used| UsageRow {
        image: "i".to_owned(),
        id: "x".to_owned(),
        snap: snap.map(|(n, id)| (n.to_owned(), id)),
        provisioned: 9 << 20,
        used,
    };
    let mut usage = Usage {
        rows: vec![row(None, 5 << 20)],
        total_provisioned: 9 << 20,
        total_used: 5 << 20,
        counted: 1,
        whole_pool: false,
        any_image: true,
    };
    assert_eq!(super::usage(&usage), "NAME  PROVISIONED  USED \ni           9 MiB  5 MiB\n");
    usage.rows.insert(0, row(Some(("s", 4)), 1 << 20));
    usage.counted = 2;
    assert!(super::usage(&usage).ends_with("<TOTAL>        9 MiB  5 MiB\n"), "{}", super::usage(&usage));
    assert_eq!(
        super::usage_tree(&usage).json(Spread::Compact).trim_end(),
        r#"{"images":[{"name":"i","id":"x","snapshot":"s","snapshot_id":4,"provisioned_size":9437184,"used_size":1048576},{"name":"i","id":"x","provisioned_size":9437184,"used_size":5242880}]}"#
    );
}

#[test]
fn the_trash_says_until_when_an_image_is_safe() {
    let entry = TrashEntry {
        id: "10".to_owned(),
        name: "a".to_owned(),
        source: "USER".to_owned(),
        deleted_at: 1_000,
        deferred_until: 2_000,
        parent: None,
    };
    let list = [entry];
    assert_eq!(super::trash(&list, Detail::Names, 1_500), "10 a\n");
    assert!(super::trash(&list, Detail::Long, 1_500).contains("  protected until Thu Jan  1 "));
    assert!(super::trash(&list, Detail::Long, 2_000).contains("  expired at Thu Jan  1 "));
}

#[test]
fn short_lists_read_as_rbd_writes_them() {
    let child = ChildImage {
        pool: "p".to_owned(),
        namespace: "n".to_owned(),
        image: "c".to_owned(),
        id: "7".to_owned(),
        in_trash: true,
    };
    assert_eq!(super::children(&[child]), "p/n/c (trash 7)\n");
    let extents = [DiffExtent { offset: 0, length: 4096, exists: true }];
    assert_eq!(super::diff(&extents), "Offset  Length  Type\n0       4096    data\n");
    let locks = LockList {
        holders: vec![LockHolder { id: "me".to_owned(), client: 4, address: "1.2.3.4:0/5".to_owned() }],
        shared_tag: None,
    };
    assert_eq!(
        super::locks(&locks),
        "There is 1 exclusive lock on this image.\nLocker    ID  Address    \nclient.4  me  1.2.3.4:0/5\n"
    );
    assert_eq!(super::meta(&[]), "There are 0 metadata on this image.\n");
    assert_eq!(
        super::meta(&[("k".to_owned(), "v".to_owned())]),
        "There is 1 metadatum on this image:\n\nKey  Value\nk    v    \n"
    );
    let stats = PoolStatistics { images: 2, provisioned: 3 << 30, ..PoolStatistics::default() };
    assert_eq!(super::statistics(&stats), "Total Images: 2\nTotal Snapshots: 0\nProvisioned Size: 3 GiB\n");
}

#[test]
fn a_measurement_ends_in_the_line_of_rbd() {
    let whole =
        BenchRow { seconds: 0, ops: 256, ops_per_second: 16_000.0 / 3.0, bytes_per_second: 22_020_096.0 };
    assert_eq!(
        super::bench(&BenchResult { whole, parts: None }),
        "elapsed: 0   ops: 256   ops/sec: 5333.33   bytes/sec: 21 MiB/s\n"
    );
}
