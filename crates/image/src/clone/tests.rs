//! Tests of clones.

use ferry_core::testing::{MemStore, test_env};
use ferry_core::{Errno, Layer, Layered, Namespace, PoolFlags, PoolId, PoolInfo, Reply, SnapId, Store};
use futures_executor::block_on;

use super::{Child, CloneFormat, children, create, descendants, detach_head};
use crate::create::{CreateOptions, create as create_image};
use crate::encoding::{CHILDREN_OBJECT, SnapshotNamespace};
use crate::features::{Features, OpFeatures};
use crate::header::Opening;
use crate::image::Image;
use crate::metadata;
use crate::pool::Pool;
use crate::progress::silent;
use crate::remove::{UsedParent, remove};
use crate::snapshot;
use crate::test_world::{World, die_everywhere};
use crate::trash::{self, Force};

const SIZE: u64 = 16 << 20;

/// An image `a` in pool `p` with a snapshot `s`.
fn set_up(world: &World) {
    let pool = world.pool("p");
    let options = CreateOptions { order: Some(20), ..CreateOptions::sized(SIZE) };
    block_on(create_image(&pool, "a", &options)).unwrap();
    let mut image = open(&pool, "a");
    block_on(metadata::set(&mut image, "colour", b"blue")).unwrap();
    block_on(snapshot::create(&mut image, "s")).unwrap();
    block_on(image.close()).unwrap();
}

fn set_up_protected(world: &World) {
    set_up(world);
    let mut image = open(&world.pool("p"), "a");
    block_on(snapshot::protect(&mut image, "s")).unwrap();
    block_on(image.close()).unwrap();
}

fn open(pool: &Pool, name: &str) -> Image {
    block_on(Image::open(pool, name, Opening::ReadWrite)).unwrap()
}

fn read(pool: &Pool, name: &str) -> Image {
    block_on(Image::open(pool, name, Opening::ReadOnly)).unwrap()
}

async fn clone_to(from: &Pool, to: &Pool, name: &str, format: CloneFormat) -> ferry_core::Result<String> {
    let parent = Image::open(from, "a", Opening::ReadOnly).await?.at_snapshot("s")?;
    create(&parent, to, name, format, &CreateOptions::default()).await
}

fn clone(from: &Pool, to: &Pool, name: &str, format: CloneFormat) -> ferry_core::Result<String> {
    block_on(clone_to(from, to, name, format))
}

fn child_names(image: &Image) -> Vec<String> {
    block_on(children(image, SnapId::HEAD)).unwrap().into_iter().map(|c| c.name).collect()
}

#[test]
fn a_v2_clone_is_known_on_both_sides_and_inherits() {
    let world = World::new();
    set_up(&world);
    let (p, q) = (world.pool("p"), world.pool("q"));
    let id = clone(&p, &q, "c", CloneFormat::Auto).unwrap();
    let (parent, child) = (read(&p, "a"), read(&q, "c"));
    assert_eq!(child.header.size, SIZE);
    assert_eq!(child.header.order, 20);
    assert_eq!(child.header.metadata["colour"], "blue");
    assert_eq!(child.header.features, Features::DEFAULT.with(Features::OPERATIONS));
    assert_eq!(child.header.op_features, OpFeatures::CLONE_CHILD);
    let link = child.parent().unwrap().unwrap();
    assert_eq!((link.overlap, link.parent.pool, link.parent.image_id), (SIZE, p.id(), parent.id.clone()));
    assert_eq!(parent.header.op_features, OpFeatures::CLONE_PARENT);
    assert_eq!(parent.header.user_snap("s").unwrap().child_count, 1);
    let expected = Child {
        pool: q.id(),
        pool_name: "q".to_owned(),
        namespace: Namespace::default(),
        name: "c".to_owned(),
        id,
        in_trash: false,
    };
    assert_eq!(block_on(children(&parent, SnapId::HEAD)).unwrap(), [expected]);
}

#[test]
fn a_v1_clone_needs_protection_and_stands_in_its_own_pool() {
    let world = World::new();
    set_up(&world);
    let (p, q) = (world.pool("p"), world.pool("q"));
    assert_eq!(clone(&p, &q, "c", CloneFormat::V1).unwrap_err().errno(), Errno::EINVAL);
    block_on(snapshot::protect(&mut open(&p, "a"), "s")).unwrap();
    clone(&p, &q, "c", CloneFormat::V1).unwrap();
    let mut parent = open(&p, "a");
    assert_eq!(parent.header.op_features, OpFeatures::NONE);
    assert_eq!(child_names(&parent), ["c"]);
    assert!(world.object_names(&q).contains(&CHILDREN_OBJECT.to_owned()));
    let busy = block_on(snapshot::unprotect(&mut parent, "s")).unwrap_err();
    assert_eq!((busy.errno(), busy.fact("pool")), (Errno::EBUSY, Some("q")));
    assert_eq!(block_on(snapshot::remove(&mut parent, "s")).unwrap_err().errno(), Errno::EBUSY);
    block_on(remove(&q, "c", UsedParent::Refuse, &mut silent)).unwrap();
    block_on(snapshot::unprotect(&mut parent, "s")).unwrap();
    block_on(snapshot::remove(&mut parent, "s")).unwrap();
}

#[test]
fn what_cannot_be_cloned_is_refused() {
    let world = World::new();
    set_up_protected(&world);
    let (p, q) = (world.pool("p"), world.pool("q"));
    let head = read(&p, "a");
    let asked = CreateOptions::default();
    let refused = block_on(create(&head, &q, "c", CloneFormat::V2, &asked)).unwrap_err();
    assert_eq!(refused.errno(), Errno::EINVAL);
    let parent = head.at_snapshot("s").unwrap();
    let bare = CreateOptions { features: Some(Features::EXCLUSIVE_LOCK), ..asked.clone() };
    let refused = block_on(create(&parent, &q, "c", CloneFormat::V2, &bare)).unwrap_err();
    assert_eq!(refused.errno(), Errno::EINVAL);
    block_on(q.create_namespace("n")).unwrap();
    let inside = q.in_namespace(&Namespace::new("n"));
    assert_eq!(clone(&p, &inside, "c", CloneFormat::V1).unwrap_err().errno(), Errno::EXDEV);
    clone(&p, &inside, "c", CloneFormat::V2).unwrap();
    assert_eq!(clone(&p, &inside, "c", CloneFormat::V2).unwrap_err().errno(), Errno::EEXIST);
    let env = test_env(99);
    let store = MemStore::new(&env);
    store.create_pool("far").wait().unwrap();
    let far = block_on(Pool::open(store, env, "far", &Namespace::default())).unwrap();
    let refused = block_on(create(&parent, &far, "c", CloneFormat::Auto, &asked)).unwrap_err();
    assert_eq!((refused.errno(), refused.fact("try")), (Errno::EXDEV, Some("deep cp")));
    assert_eq!(world.dump(&p).len(), world.dump(&world.pool("p")).len());
}

#[test]
fn a_read_only_pool_is_cloned_from_without_a_byte_changing() {
    let world = World::new();
    set_up(&world);
    let p = world.freeze(&world.pool("p"));
    let q = world.pool("q");
    let before = world.dump(&p);
    assert_eq!(clone(&p, &q, "c2", CloneFormat::V2).unwrap_err().errno(), Errno::EROFS);
    clone(&p, &q, "c", CloneFormat::Auto).unwrap();
    assert_eq!(world.dump(&p), before);
    assert!(read(&q, "c").header.is_v1_clone());
    assert_eq!(child_names(&read(&p, "a")), ["c"]);
    block_on(detach_head(&mut open(&q, "c"))).unwrap();
    assert_eq!(world.dump(&p), before);
    assert!(read(&q, "c").header.parent.is_none());
    assert_eq!(child_names(&read(&p, "a")), [] as [&str; 0]);
}

#[test]
fn a_removed_snapshot_stays_in_the_trash_until_its_last_clone_goes() {
    let world = World::new();
    set_up(&world);
    let (p, q) = (world.pool("p"), world.pool("q"));
    clone(&p, &q, "c", CloneFormat::V2).unwrap();
    clone(&p, &q, "d", CloneFormat::V2).unwrap();
    let mut parent = open(&p, "a");
    block_on(snapshot::remove(&mut parent, "s")).unwrap();
    let snap = parent.header.snaps.values().next().unwrap();
    let trashed = SnapshotNamespace::Trash { original_name: "s".to_owned(), original_type: 0 };
    assert_eq!(snap.namespace, trashed);
    assert_eq!(parent.header.op_features.names(), ["clone-parent", "snap-trash"]);
    let id = snap.id;
    assert_eq!(block_on(snapshot::remove_by_id(&mut parent, id)).unwrap_err().errno(), Errno::EBUSY);
    assert_eq!(block_on(snapshot::remove(&mut parent, "s")).unwrap_err().errno(), Errno::ENOENT);
    block_on(parent.close()).unwrap();
    let refused = block_on(remove(&p, "a", UsedParent::Refuse, &mut silent)).unwrap_err();
    assert_eq!(refused.errno(), Errno::ENOTEMPTY);
    block_on(remove(&q, "c", UsedParent::Refuse, &mut silent)).unwrap();
    assert_eq!(read(&p, "a").header.snaps.len(), 1);
    block_on(detach_head(&mut open(&q, "d"))).unwrap();
    let parent = read(&p, "a");
    assert!(parent.header.snaps.is_empty());
    assert_eq!(parent.header.op_features, OpFeatures::NONE);
    assert_eq!(parent.header.features, Features::DEFAULT);
}

#[test]
fn a_parent_moved_to_the_trash_goes_with_its_last_clone() {
    let world = World::new();
    set_up(&world);
    let (p, q) = (world.pool("p"), world.pool("q"));
    clone(&p, &q, "c", CloneFormat::V2).unwrap();
    let mut parent = open(&p, "a");
    block_on(snapshot::remove(&mut parent, "s")).unwrap();
    block_on(parent.close()).unwrap();
    block_on(remove(&p, "a", UsedParent::MoveToTrash, &mut silent)).unwrap();
    assert_eq!(block_on(p.images()).unwrap(), []);
    assert_eq!(block_on(trash::list(&p)).unwrap().len(), 1);
    block_on(remove(&q, "c", UsedParent::Refuse, &mut silent)).unwrap();
    assert_eq!(block_on(trash::list(&p)).unwrap(), []);
    assert!(!world.object_names(&p).iter().any(|n| n.starts_with("rbd_header")));
}

#[test]
fn snapshots_keep_the_link_unless_the_flatten_is_deep() {
    let world = World::new();
    set_up(&world);
    let (p, q) = (world.pool("p"), world.pool("q"));
    for (name, features) in [("deep", Features(0x3d)), ("flat", Features(0x1d))] {
        let parent = read(&p, "a").at_snapshot("s").unwrap();
        let options = CreateOptions { features: Some(features), ..CreateOptions::default() };
        block_on(create(&parent, &q, name, CloneFormat::V2, &options)).unwrap();
        let mut child = open(&q, name);
        block_on(snapshot::create(&mut child, "x")).unwrap();
        block_on(detach_head(&mut child)).unwrap();
        assert!(child.header.parent_at(SnapId::HEAD).unwrap().is_none());
        let x = child.header.user_snap("x").unwrap().id;
        assert_eq!(child.header.parent_at(x).unwrap().is_some(), name == "flat");
        assert_eq!(block_on(detach_head(&mut child)).unwrap_err().errno(), Errno::EINVAL);
        block_on(child.close()).unwrap();
    }
    assert_eq!(child_names(&read(&p, "a")), ["flat"]);
    let mut child = open(&q, "flat");
    block_on(snapshot::remove(&mut child, "x")).unwrap();
    assert!(child.header.parent.is_none());
    assert_eq!(child.header.op_features, OpFeatures::NONE);
    assert_eq!(child_names(&read(&p, "a")), [] as [&str; 0]);
}

#[test]
fn the_overlap_only_shrinks() {
    let world = World::new();
    set_up(&world);
    let p = world.pool("p");
    clone(&p, &p, "c", CloneFormat::V2).unwrap();
    let mut child = open(&p, "c");
    for size in [SIZE / 2, SIZE * 2] {
        block_on(child.update_header(|h| {
            h.set_size(size);
            Ok(())
        }))
        .unwrap();
    }
    assert_eq!(child.parent().unwrap().unwrap().overlap, SIZE / 2);
}

/// A store that lists a pool which somebody removes at that moment.
#[derive(Debug)]
struct Vanishing(std::sync::Arc<MemStore>);

impl Layer for Vanishing {
    fn below(&self) -> &dyn Store {
        &*self.0
    }

    fn pools(&self) -> Reply<Vec<PoolInfo>> {
        Reply::ready(self.0.pools().wait().map(|mut pools| {
            pools.push(PoolInfo { id: PoolId(99), name: "gone".to_owned(), flags: PoolFlags::default() });
            pools
        }))
    }
}

#[test]
fn a_pool_that_is_removed_meanwhile_has_no_clones() {
    let world = World::new();
    set_up_protected(&world);
    let pool = world.pool_of(std::sync::Arc::new(Layered(Vanishing(world.store.clone()))), "p");
    clone(&pool, &pool, "c", CloneFormat::V1).unwrap();
    let mut parent = open(&pool, "a");
    assert_eq!(child_names(&parent), ["c"]);
    assert_eq!(block_on(snapshot::unprotect(&mut parent, "s")).unwrap_err().errno(), Errno::EBUSY);
    block_on(remove(&pool, "c", UsedParent::Refuse, &mut silent)).unwrap();
    block_on(snapshot::unprotect(&mut parent, "s")).unwrap();
}

#[test]
fn descendants_are_found_through_pools_and_the_trash() {
    let world = World::new();
    set_up(&world);
    let (p, q) = (world.pool("p"), world.pool("q"));
    clone(&p, &q, "c", CloneFormat::V2).unwrap();
    let mut child = open(&q, "c");
    block_on(snapshot::create(&mut child, "t")).unwrap();
    block_on(child.close()).unwrap();
    let middle = read(&q, "c").at_snapshot("t").unwrap();
    block_on(create(&middle, &p, "e", CloneFormat::V2, &CreateOptions::default())).unwrap();
    let id = block_on(trash::move_in(&p, "e", crate::encoding::TrashSource::User, std::time::Duration::ZERO));
    let found = block_on(descendants(&read(&p, "a"), SnapId::HEAD)).unwrap();
    let found: Vec<_> = found.iter().map(|c| (c.name.as_str(), c.in_trash)).collect();
    assert_eq!(found, [("c", false), ("e", true)]);
    block_on(trash::remove(&p, &id.unwrap(), Force::No, &mut silent)).unwrap();
    assert_eq!(block_on(descendants(&read(&p, "a"), SnapId::HEAD)).unwrap().len(), 1);
}

/// Both sides of the link agree.
fn check_link(pool: &Pool, expected: &[&str]) {
    let parent = read(pool, "a");
    assert_eq!(child_names(&parent), expected);
    let count = u32::try_from(expected.len()).unwrap();
    if parent.header.op_features.contains(OpFeatures::CLONE_PARENT) {
        assert_eq!(parent.header.user_snap("s").unwrap().child_count, count);
    }
}

#[test]
fn a_crash_while_cloning_is_finished_by_cloning_again_or_cleaned_by_removal() {
    for (format, set_up) in
        [(CloneFormat::V2, set_up as fn(&World)), (CloneFormat::V1, set_up_protected as fn(&World))]
    {
        die_everywhere(
            set_up,
            async |_, pool| clone_to(pool, pool, "c", format).await.map(drop),
            |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::EEXIST),
            |_, pool| {
                let whole = Image::open(pool, "c", Opening::ReadOnly);
                if block_on(whole).is_ok_and(|c| c.header.parent.is_some()) {
                    check_link(pool, &["c"]);
                }
                block_on(remove(pool, "c", UsedParent::Refuse, &mut silent)).unwrap();
                check_link(pool, &[]);
                clone(pool, pool, "c", format).unwrap();
                check_link(pool, &["c"]);
            },
        );
    }
}

#[test]
fn a_crash_while_detaching_is_finished_by_detaching_again() {
    for (format, set_up) in
        [(CloneFormat::V2, set_up as fn(&World)), (CloneFormat::V1, set_up_protected as fn(&World))]
    {
        die_everywhere(
            |world| {
                set_up(world);
                let p = world.pool("p");
                clone(&p, &p, "c", format).unwrap();
                if format == CloneFormat::V2 {
                    let mut parent = open(&p, "a");
                    block_on(snapshot::remove(&mut parent, "s")).unwrap();
                    block_on(parent.close()).unwrap();
                }
            },
            async |_, pool| {
                let mut child = Image::open(pool, "c", Opening::ReadWrite).await?;
                detach_head(&mut child).await?;
                child.close().await
            },
            // It may have happened before the death: then there is no parent.
            |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::EINVAL),
            |_, pool| {
                let (parent, child) = (read(pool, "a"), read(pool, "c"));
                assert!(child.header.parent.is_none());
                assert_eq!(child.header.op_features, OpFeatures::NONE);
                assert_eq!(child_names(&parent), [] as [&str; 0]);
                assert_eq!(parent.header.snaps.len(), usize::from(format == CloneFormat::V1));
            },
        );
    }
}

#[test]
fn a_crash_while_removing_the_last_clone_is_finished_by_removing_it_again() {
    for used in [UsedParent::Refuse, UsedParent::MoveToTrash] {
        die_everywhere(
            |world| {
                set_up(world);
                let p = world.pool("p");
                clone(&p, &p, "c", CloneFormat::V2).unwrap();
                let mut parent = open(&p, "a");
                block_on(snapshot::remove(&mut parent, "s")).unwrap();
                block_on(parent.close()).unwrap();
                if used == UsedParent::MoveToTrash {
                    block_on(remove(&p, "a", used, &mut silent)).unwrap();
                }
            },
            async |_, pool| remove(pool, "c", UsedParent::Refuse, &mut silent).await,
            // It may have been whole before the death.
            |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::ENOENT),
            |world, pool| {
                if used == UsedParent::Refuse {
                    let parent = read(pool, "a");
                    assert!(parent.header.snaps.is_empty());
                    assert_eq!(parent.header.op_features, OpFeatures::NONE);
                    block_on(remove(pool, "a", UsedParent::Refuse, &mut silent)).unwrap();
                }
                assert_eq!(block_on(trash::list(pool)).unwrap(), []);
                let mut names = world.object_names(pool);
                names.retain(|n| !["rbd_directory", "rbd_info", "rbd_trash"].contains(&n.as_str()));
                assert_eq!(names, [] as [&str; 0]);
            },
        );
    }
}

#[test]
fn a_crash_while_removing_a_v1_clone_frees_its_parent_when_it_is_removed_again() {
    die_everywhere(
        |world| {
            set_up_protected(world);
            let p = world.pool("p");
            clone(&p, &p, "c", CloneFormat::V1).unwrap();
        },
        async |_, pool| remove(pool, "c", UsedParent::Refuse, &mut silent).await,
        |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::ENOENT),
        |_, pool| {
            let mut parent = open(pool, "a");
            assert_eq!(child_names(&parent), [] as [&str; 0]);
            block_on(snapshot::unprotect(&mut parent, "s")).unwrap();
            block_on(parent.close()).unwrap();
        },
    );
}

#[test]
fn a_crash_while_removing_the_snapshot_that_held_the_last_link_is_finished() {
    die_everywhere(
        |world| {
            set_up(world);
            let p = world.pool("p");
            let parent = read(&p, "a").at_snapshot("s").unwrap();
            let options = CreateOptions { features: Some(Features(0x1d)), ..CreateOptions::default() };
            block_on(create(&parent, &p, "c", CloneFormat::V2, &options)).unwrap();
            let mut child = open(&p, "c");
            block_on(snapshot::create(&mut child, "x")).unwrap();
            block_on(detach_head(&mut child)).unwrap();
            block_on(child.close()).unwrap();
        },
        async |_, pool| {
            let mut child = Image::open(pool, "c", Opening::ReadWrite).await?;
            snapshot::remove(&mut child, "x").await?;
            child.close().await
        },
        |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::ENOENT),
        |_, pool| {
            let child = read(pool, "c");
            assert!(child.header.parent.is_none() && child.header.snaps.is_empty());
            assert_eq!(child.header.op_features, OpFeatures::NONE);
            check_link(pool, &[]);
        },
    );
}

/// Clones `name` of a new snapshot of `of`, which is removed at once and so stays in the trash.
fn clone_of_trashed(pool: &Pool, of: &str, names: &[&str]) {
    let mut parent = open(pool, of);
    block_on(snapshot::create(&mut parent, "t")).unwrap();
    block_on(parent.close()).unwrap();
    for name in names {
        let at = read(pool, of).at_snapshot("t").unwrap();
        block_on(create(&at, pool, name, CloneFormat::V2, &CreateOptions::default())).unwrap();
    }
    let mut parent = open(pool, of);
    block_on(snapshot::remove(&mut parent, "t")).unwrap();
    block_on(parent.close()).unwrap();
}

#[test]
fn a_chain_of_parents_in_the_trash_goes_link_by_link() {
    let world = World::new();
    let pool = world.pool("p");
    block_on(create_image(&pool, "one", &CreateOptions::sized(SIZE))).unwrap();
    clone_of_trashed(&pool, "one", &["two"]);
    clone_of_trashed(&pool, "two", &["four", "five"]);
    clone_of_trashed(&pool, "four", &["six"]);
    for name in ["one", "two", "four"] {
        block_on(remove(&pool, name, UsedParent::MoveToTrash, &mut silent)).unwrap();
    }
    let left = || -> Vec<String> {
        let mut names: Vec<_> =
            block_on(trash::list(&pool)).unwrap().into_iter().map(|(_, e)| e.name).collect();
        names.sort();
        names
    };
    assert_eq!(left(), ["four", "one", "two"]);
    block_on(remove(&pool, "six", UsedParent::Refuse, &mut silent)).unwrap();
    assert_eq!(left(), ["one", "two"]);
    block_on(remove(&pool, "five", UsedParent::Refuse, &mut silent)).unwrap();
    assert_eq!(left(), [] as [&str; 0]);
    let mut names = world.object_names(&pool);
    names.retain(|n| !["rbd_directory", "rbd_info", "rbd_trash"].contains(&n.as_str()));
    assert_eq!(names, [] as [&str; 0]);
}
