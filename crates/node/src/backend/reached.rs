//! A cluster that only a source spec names: what a record keeps of its place tells how to reach it again.

use std::sync::Arc;

use ferry_core::{Layer, Layered, Store};
use ferry_source::spec::ClusterSpec;
use serde_json::Value;

/// See the module.
#[derive(Debug)]
pub(crate) struct Reached {
    store: Arc<dyn Store>,
    how: Value,
}

impl Reached {
    /// `store`, whose place has what [`ClusterSpec::to_json`] gave.
    pub(crate) fn over(store: Arc<dyn Store>, how: Value) -> Arc<dyn Store> {
        Arc::new(Layered(Self { store, how }))
    }

    /// How to reach the cluster of a place; `None` where the place does not say it.
    pub(crate) fn cluster_of(place: &str) -> Option<ClusterSpec> {
        let how: Value = serde_json::from_str(&place[place.find('{')?..]).ok()?;
        ClusterSpec::parse(how.as_object()?).ok()?
    }
}

impl Layer for Reached {
    fn below(&self) -> &dyn Store {
        &*self.store
    }

    fn describe(&self) -> String {
        format!("{} {}", self.store.describe(), self.how)
    }
}

#[cfg(test)]
mod tests {
    use super::Reached;

    #[test]
    fn only_a_place_that_says_so_is_reached() {
        let place = r#"ceph 1b4e {"config_path":"/far.conf","key_ref":"config://k"}"#;
        let cluster = Reached::cluster_of(place).unwrap();
        assert_eq!(cluster.config.as_deref(), Some(std::path::Path::new("/far.conf")));
        for other in ["ceph 1b4e", "/a/{}", "/a/{", "ceph {\"user\":1}"] {
            assert_eq!(Reached::cluster_of(other), None, "{other}");
        }
    }
}
