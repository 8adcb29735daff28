//! Tests of making images.

use ferry_core::{Errno, Namespace, SnapId};
use futures_executor::block_on;

use super::{CreateOptions, create};
use crate::encoding::INFO_VALIDATED;
use crate::features::Features;
use crate::header::Opening;
use crate::image::Image;
use crate::metadata::config;
use crate::progress::silent;
use crate::remove::{UsedParent, remove};
use crate::test_world::{World, die_everywhere};

const MIB: u64 = 1 << 20;

fn errno(options: &CreateOptions, name: &str) -> Errno {
    let world = World::new();
    block_on(create(&world.pool("p"), name, options)).unwrap_err().errno()
}

#[test]
fn a_new_image_has_rbds_defaults() {
    let world = World::new();
    let pool = world.pool("p");
    let id = block_on(create(&pool, "a", &CreateOptions::sized(10 * MIB))).unwrap();
    let image = block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap();
    assert_eq!(image.id, id);
    assert_eq!(image.header.size, 10 * MIB);
    assert_eq!(image.header.order, 22);
    assert_eq!(image.header.features, Features::DEFAULT);
    assert_eq!(image.header.object_prefix, format!("rbd_data.{id}"));
    assert_eq!(image.header.created, image.header.modified);
    assert!(image.header.created.seconds > 0);
    assert_eq!(image.header.snap_seq, 0);
    assert_eq!(block_on(pool.images()).unwrap(), [("a".to_owned(), id)]);
    let info = world.dump(&pool).into_iter().find(|o| o.contains("rbd_info")).unwrap();
    assert!(info.contains(std::str::from_utf8(INFO_VALIDATED).unwrap()), "{info}");
    assert!(world.object_names(&pool).iter().any(|n| n.starts_with("rbd_object_map.")));
}

#[test]
fn layout_and_data_pool_show_in_the_features() {
    let world = World::new();
    let (p, q) = (world.pool("p"), world.pool("q"));
    let options = CreateOptions {
        order: Some(20),
        stripe_unit: Some(65536),
        stripe_count: Some(4),
        data_pool: Some(q.info.clone()),
        features: Some(Features::LAYERING),
        ..CreateOptions::sized(10 * MIB)
    };
    let id = block_on(create(&p, "s", &options)).unwrap();
    let image = block_on(Image::open(&p, "s", Opening::ReadOnly)).unwrap();
    assert_eq!(image.header.features.names(), ["layering", "striping", "data-pool"]);
    assert_eq!(image.header.object_prefix, format!("rbd_data.{}.{id}", p.id()));
    assert_eq!(image.data_pool(), q.id());
    assert_eq!((image.header.stripe_unit, image.header.stripe_count), (65536, 4));
    // Named explicitly, but the same as without: no feature.
    let plain = CreateOptions {
        stripe_unit: Some(4 * MIB),
        stripe_count: Some(1),
        data_pool: Some(p.info.clone()),
        ..CreateOptions::sized(MIB)
    };
    block_on(create(&p, "t", &plain)).unwrap();
    let image = block_on(Image::open(&p, "t", Opening::ReadOnly)).unwrap();
    assert_eq!(image.header.features, Features::DEFAULT);
}

#[test]
fn what_does_not_go_together_is_refused_with_rbds_numbers() {
    let sized = CreateOptions::sized(MIB);
    assert_eq!(errno(&CreateOptions { order: Some(11), ..sized.clone() }, "a"), Errno::EDOM);
    assert_eq!(errno(&CreateOptions { order: Some(26), ..sized.clone() }, "a"), Errno::EDOM);
    let half = CreateOptions { stripe_unit: Some(65536), ..sized.clone() };
    assert_eq!(errno(&half, "a"), Errno::EINVAL);
    for (unit, count) in [(0, 4), (65536, 0)] {
        let one = CreateOptions { stripe_unit: Some(unit), stripe_count: Some(count), ..sized.clone() };
        assert_eq!(errno(&one, "a"), Errno::EINVAL, "{unit} {count}");
    }
    let uneven = CreateOptions { stripe_unit: Some(3 << 20), stripe_count: Some(2), ..sized.clone() };
    assert_eq!(errno(&uneven, "a"), Errno::EINVAL);
    let map = CreateOptions { features: Some(Features::OBJECT_MAP), ..sized.clone() };
    assert_eq!(errno(&map, "a"), Errno::EINVAL);
    let huge = CreateOptions { order: Some(12), ..CreateOptions::sized(1 << 50) };
    assert_eq!(errno(&huge, "a"), Errno::EINVAL);
    assert_eq!(errno(&CreateOptions::sized(u64::MAX), "a"), Errno::EINVAL);
    for name in ["", "a/b", "a@b"] {
        assert_eq!(errno(&sized, name), Errno::EINVAL, "{name}");
    }
}

#[test]
fn a_taken_name_is_refused_whatever_takes_it() {
    let world = World::new();
    let pool = world.pool("p");
    block_on(create(&pool, "a", &CreateOptions::sized(MIB))).unwrap();
    let again = block_on(create(&pool, "a", &CreateOptions::sized(MIB))).unwrap_err();
    assert_eq!(again.errno(), Errno::EEXIST);
    let before = world.dump(&pool);
    let op = ferry_core::WriteOp::new().write(0, "v1 header");
    ferry_core::Store::write(&*world.store, &pool.object("old.rbd"), op).wait().unwrap();
    let old = block_on(create(&pool, "old", &CreateOptions::sized(MIB))).unwrap_err();
    assert_eq!(old.errno(), Errno::EEXIST);
    assert_eq!(world.dump(&pool).len(), before.len() + 1);
}

#[test]
fn an_image_needs_its_namespace() {
    let world = World::new();
    let pool = world.pool("p");
    let inside = pool.in_namespace(&Namespace::new("n"));
    let missing = block_on(create(&inside, "a", &CreateOptions::sized(MIB))).unwrap_err();
    assert_eq!(missing.errno(), Errno::ENOENT);
    block_on(pool.create_namespace("n")).unwrap();
    block_on(create(&inside, "a", &CreateOptions::sized(MIB))).unwrap();
    assert_eq!(block_on(pool.images()).unwrap(), []);
    assert_eq!(block_on(inside.images()).unwrap().len(), 1);
}

#[test]
fn a_read_only_pool_takes_no_image_and_stays_as_it_is() {
    let world = World::new();
    let pool = world.freeze(&world.pool("p"));
    let before = world.dump(&pool);
    let refused = block_on(create(&pool, "a", &CreateOptions::sized(MIB))).unwrap_err();
    assert_eq!(refused.errno(), Errno::EROFS);
    assert_eq!(world.dump(&pool), before);
}

#[test]
fn a_failure_that_is_no_crash_leaves_no_name() {
    let world = World::new();
    let (p, q) = (world.pool("p"), world.freeze(&world.pool("q")));
    let options = CreateOptions { data_pool: Some(q.info.clone()), ..CreateOptions::sized(MIB) };
    let refused = block_on(create(&p, "a", &options)).unwrap_err();
    assert_eq!(refused.errno(), Errno::EROFS);
    assert_eq!(block_on(p.images()).unwrap(), []);
}

#[test]
fn the_pools_configuration_stands_in_for_what_is_not_said() {
    let world = World::new();
    let pool = world.pool("p");
    for (name, value) in
        [("rbd_default_order", "20"), ("rbd_default_features", "layering"), ("rbd_default_data_pool", "q")]
    {
        block_on(config::set_in_pool(&pool, name, value)).unwrap();
    }
    block_on(create(&pool, "a", &CreateOptions::sized(MIB))).unwrap();
    let image = block_on(Image::open(&pool, "a", Opening::ReadOnly)).unwrap();
    assert_eq!(image.header.order, 20);
    assert_eq!(image.header.features.names(), ["layering", "data-pool"]);
    let asked = CreateOptions { order: Some(22), ..CreateOptions::sized(MIB) };
    block_on(create(&pool, "b", &asked)).unwrap();
    assert_eq!(block_on(Image::open(&pool, "b", Opening::ReadOnly)).unwrap().header.order, 22);
}

#[test]
fn a_crash_leaves_nothing_that_removal_does_not_clean() {
    die_everywhere(
        |_| {},
        async |_, pool| create(pool, "a", &CreateOptions::sized(MIB)).await.map(drop),
        |again| {
            if let Err(e) = again {
                assert_eq!(e.errno(), Errno::EEXIST);
            }
        },
        |world, pool| {
            block_on(remove(pool, "a", UsedParent::Refuse, &mut silent)).unwrap();
            let mut names = world.object_names(pool);
            // An object map or header made just before a crash is found by its directory entry.
            names.retain(|n| !["rbd_directory", "rbd_info", "rbd_trash"].contains(&n.as_str()));
            assert_eq!(names, [] as [&str; 0]);
            block_on(create(pool, "a", &CreateOptions::sized(2 * MIB))).unwrap();
            let image = block_on(Image::open(pool, "a", Opening::ReadOnly)).unwrap();
            assert_eq!(image.header.size_at(SnapId::HEAD).unwrap(), 2 * MIB);
        },
    );
}
