//! Listing the objects of a pool.

use std::collections::BTreeMap;

use super::{Place, context, done};
use crate::ident::Namespace;
use crate::store::{Effect, WriteOp};

/// All objects, page by page, with how often each came.
fn all(place: &Place, namespace: Option<&Namespace>, max: usize) -> BTreeMap<(Namespace, String), usize> {
    let mut seen = BTreeMap::new();
    let mut after = None;
    loop {
        let page = done(place.store.list_objects(place.pool, namespace, after, max).wait());
        assert!(page.objects.len() <= max, "a page of {max} held {}", page.objects.len());
        for (namespace, name) in page.objects {
            *seen.entry((namespace, name.to_string())).or_default() += 1;
        }
        after = page.next;
        if after.is_none() {
            return seen;
        }
    }
}

fn make(place: &Place, n: usize) -> BTreeMap<(Namespace, String), usize> {
    let names = (0..n).map(|i| format!("object.{i}"));
    names
        .map(|name| {
            place.write(&name, WriteOp::new().effect(Effect::Create));
            ((place.namespace.clone(), name), 1)
        })
        .collect()
}

pub(super) fn objects_are_listed_once_by_namespace(place: &Place) {
    let other = Place { namespace: Namespace::new(&format!("{}-other", place.namespace)), ..place.clone() };
    make(&other, 3);
    assert!(all(place, Some(&place.namespace), 100).is_empty());
    let expected = make(place, 25);
    for max in [1, 7, 25, 1000] {
        assert_eq!(all(place, Some(&place.namespace), max), expected, "by pages of {max}");
    }
    place.write("object.3", WriteOp::new().effect(Effect::Remove));
    assert_eq!(all(place, Some(&place.namespace), 10).len(), 24);
}

pub(super) fn listing_all_namespaces_finds_each_object(place: &Place) {
    let other = Place { namespace: Namespace::new(&format!("{}-other", place.namespace)), ..place.clone() };
    let (here, there) = (make(place, 5), make(&other, 6));
    for max in [4, 1000] {
        let mut found = all(place, None, max);
        found.retain(|(n, _), _| *n == place.namespace || *n == other.namespace);
        assert_eq!(found, here.clone().into_iter().chain(there.clone()).collect(), "by pages of {max}");
    }
}

pub(super) fn objects_listed_exist_at_head_or_at_a_snapshot(place: &Place) {
    let expected = make(place, 3);
    place.put("gone", "one", &[]);
    let a = place.snap();
    place.write("gone", WriteOp::new().effect(Effect::Remove).under(context(&[a])));
    assert!(place.bytes_at("gone", a).is_some());
    let mut found = all(place, Some(&place.namespace), 10);
    let gone = found.remove(&(place.namespace.clone(), "gone".to_owned()));
    assert!(gone.is_none_or(|times| times == 1), "a store may list it, once");
    assert_eq!(found, expected);
}
