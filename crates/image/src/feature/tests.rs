//! Tests of switching features.

use ferry_core::Errno;
use futures_executor::block_on;

use super::{disable, enable};
use crate::create::{CreateOptions, create};
use crate::features::{Features, Flags};
use crate::header::Opening;
use crate::image::Image;
use crate::snapshot;
use crate::test_world::{World, die_everywhere};

fn image(world: &World, features: Features) -> Image {
    let pool = world.pool("p");
    let options = CreateOptions { features: Some(features), ..CreateOptions::sized(8 << 20) };
    block_on(create(&pool, "a", &options)).unwrap();
    block_on(Image::open(&pool, "a", Opening::ReadWrite)).unwrap()
}

fn maps(world: &World, image: &Image) -> usize {
    world.object_names(&image.pool).iter().filter(|n| n.starts_with("rbd_object_map")).count()
}

#[test]
fn an_object_map_comes_for_all_revisions_invalid_until_rebuilt_and_goes_for_all() {
    let world = World::new();
    let mut image = image(&world, Features::LAYERING.with(Features::EXCLUSIVE_LOCK));
    let snap = block_on(snapshot::create(&mut image, "s")).unwrap();
    block_on(enable(&mut image, Features::OBJECT_MAP)).unwrap();
    assert_eq!(image.header.features, Features(0x1D));
    let both = Flags::OBJECT_MAP_INVALID.with(Flags::FAST_DIFF_INVALID);
    assert_eq!((image.header.flags, image.header.flags_at(snap).unwrap()), (both, both));
    assert_eq!(maps(&world, &image), 2);
    block_on(disable(&mut image, Features::FAST_DIFF)).unwrap();
    assert_eq!(image.header.features, Features(0x05));
    assert_eq!((image.header.flags, image.header.flags_at(snap).unwrap()), (Flags::NONE, Flags::NONE));
    assert_eq!(maps(&world, &image), 0);
}

#[test]
fn what_cannot_be_switched_is_refused() {
    let world = World::new();
    let mut image = image(&world, Features::LAYERING.with(Features::DEEP_FLATTEN));
    for features in [Features::LAYERING, Features::STRIPING, Features::DEEP_FLATTEN, Features::OBJECT_MAP] {
        let refused = block_on(enable(&mut image, features)).unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL, "{features}");
    }
    for features in [Features::LAYERING, Features::OBJECT_MAP] {
        let refused = block_on(disable(&mut image, features)).unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL, "{features}");
    }
    block_on(disable(&mut image, Features::DEEP_FLATTEN)).unwrap();
    block_on(enable(&mut image, Features::EXCLUSIVE_LOCK)).unwrap();
    assert!(image.session.as_ref().unwrap().is_owner());
    let again = block_on(enable(&mut image, Features::EXCLUSIVE_LOCK)).unwrap_err();
    assert_eq!(again.errno(), Errno::EINVAL);
    block_on(enable(&mut image, Features::OBJECT_MAP)).unwrap();
    let needed = block_on(disable(&mut image, Features::EXCLUSIVE_LOCK)).unwrap_err();
    assert_eq!(needed.errno(), Errno::EINVAL);
    let all = Features::OBJECT_MAP.with(Features::EXCLUSIVE_LOCK).with(Features::FAST_DIFF);
    block_on(disable(&mut image, all)).unwrap();
    assert_eq!(image.header.features, Features::LAYERING);
    assert!(!image.session.as_ref().unwrap().is_owner());
}

#[test]
fn a_crash_leaves_the_feature_on_or_off_and_never_a_map_that_is_believed() {
    die_everywhere(
        |world| {
            let image = image(world, Features::LAYERING.with(Features::EXCLUSIVE_LOCK));
            block_on(image.close()).unwrap();
        },
        async |_, pool| {
            let mut image = Image::open(pool, "a", Opening::ReadWrite).await?;
            enable(&mut image, Features::OBJECT_MAP).await?;
            image.close().await
        },
        |again| assert!(again.is_ok() || again.unwrap_err().errno() == Errno::EINVAL),
        |world, pool| {
            let image = block_on(Image::open(pool, "a", Opening::ReadOnly)).unwrap();
            assert!(image.header.features.contains(Features::OBJECT_MAP));
            assert!(image.header.flags.contains(Flags::OBJECT_MAP_INVALID));
            assert_eq!(maps(world, &image), 1);
        },
    );
}
