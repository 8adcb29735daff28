//! Tests of metadata and configuration.

use ferry_core::Errno;
use futures_executor::block_on;

use super::{config, get, pool_get, pool_list, pool_remove, pool_set, remove, set};
use crate::create::{CreateOptions, create};
use crate::header::Opening;
use crate::image::Image;
use crate::test_world::World;

fn image(world: &World) -> Image {
    let pool = world.pool("p");
    block_on(create(&pool, "a", &CreateOptions::sized(1 << 20))).unwrap();
    block_on(Image::open(&pool, "a", Opening::ReadWrite)).unwrap()
}

#[test]
fn keys_of_an_image_are_set_replaced_and_removed() {
    let world = World::new();
    let mut image = image(&world);
    block_on(set(&mut image, "k", b"one")).unwrap();
    block_on(set(&mut image, "k", b"two")).unwrap();
    block_on(set(&mut image, "empty", b"")).unwrap();
    assert_eq!(get(&image, "k").unwrap(), "two");
    block_on(image.refresh()).unwrap();
    assert_eq!(image.header.metadata.len(), 2);
    block_on(remove(&mut image, "k")).unwrap();
    assert_eq!(get(&image, "k").unwrap_err().errno(), Errno::ENOENT);
    assert_eq!(block_on(remove(&mut image, "k")).unwrap_err().errno(), Errno::ENOENT);
    assert_eq!(block_on(set(&mut image, "", b"x")).unwrap_err().errno(), Errno::EINVAL);
    let long = "k".repeat(2000);
    assert_eq!(block_on(set(&mut image, &long, b"x")).unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn keys_of_a_pool_are_seen_from_every_namespace() {
    let world = World::new();
    let pool = world.pool("p");
    block_on(pool_set(&pool, "k", b"v")).unwrap();
    let inside = pool.in_namespace(&ferry_core::Namespace::new("n"));
    assert_eq!(block_on(pool_get(&inside, "k")).unwrap(), "v");
    assert_eq!(block_on(pool_list(&inside)).unwrap().len(), 1);
    block_on(pool_remove(&pool, "k")).unwrap();
    assert_eq!(block_on(pool_remove(&pool, "k")).unwrap_err().errno(), Errno::ENOENT);
    let frozen = world.freeze(&pool);
    assert_eq!(block_on(pool_set(&frozen, "k", b"v")).unwrap_err().errno(), Errno::EROFS);
}

#[test]
fn an_images_configuration_goes_before_its_pools() {
    let world = World::new();
    let mut image = image(&world);
    let pool = image.pool.clone();
    let setting = |image: &Image, name: &str| {
        block_on(config::of_image(image)).unwrap().into_iter().find(|s| s.name == name).unwrap()
    };
    assert_eq!(setting(&image, "rbd_cache").source, config::Source::Config);
    block_on(config::set_in_pool(&pool, "rbd_cache", "false")).unwrap();
    assert_eq!(setting(&image, "rbd_cache").source.word(), "pool");
    block_on(config::set_in_image(&mut image, "rbd_cache", "true")).unwrap();
    let now = setting(&image, "rbd_cache");
    assert_eq!((now.source, now.value.as_str()), (config::Source::Image, "true"));
    assert_eq!(get(&image, "conf_rbd_cache").unwrap(), "true");
    assert_eq!(config::image_value(&image, "rbd_cache").unwrap().as_deref(), Some("true"));
    block_on(config::remove_from_image(&mut image, "rbd_cache")).unwrap();
    assert_eq!(config::image_value(&image, "rbd_cache").unwrap(), None);
    assert_eq!(block_on(config::pool_value(&pool, "rbd_cache")).unwrap().as_deref(), Some("false"));
    block_on(config::remove_from_pool(&pool, "rbd_cache")).unwrap();
    assert_eq!(block_on(config::pool_value(&pool, "rbd_cache")).unwrap(), None);
}

#[test]
fn unknown_options_and_values_that_are_none_are_refused() {
    let world = World::new();
    let mut image = image(&world);
    let pool = image.pool.clone();
    for (name, value) in
        [("bogus", "1"), ("rbd_cache", "maybe"), ("rbd_cache_size", "big"), ("rbd_tracing", "true")]
    {
        let refused = block_on(config::set_in_pool(&pool, name, value)).unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL, "{name}");
    }
    let only_pool = block_on(config::set_in_image(&mut image, "rbd_default_order", "20")).unwrap_err();
    assert_eq!(only_pool.errno(), Errno::EINVAL);
    block_on(config::set_in_pool(&pool, "rbd_default_order", "20")).unwrap();
}

#[test]
fn an_image_has_the_77_options_of_rbd_in_order() {
    let world = World::new();
    let image = image(&world);
    let settings = block_on(config::of_image(&image)).unwrap();
    assert_eq!(settings.len(), 77);
    assert!(settings.windows(2).all(|w| w[0].name < w[1].name));
    let of_pool = block_on(config::of_pool(&image.pool)).unwrap();
    assert!(of_pool.windows(2).all(|w| w[0].name < w[1].name));
    assert!(of_pool.iter().any(|s| s.name == "rbd_mirror_memory_target"));
}
