//! Names and numbers of things: pools, namespaces, objects, snapshots, clients.

use std::fmt;
use std::sync::Arc;

/// Number of a pool inside its store; never reused. Signed, as in RADOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub i64);

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a self-managed snapshot inside its pool, or [`SnapId::HEAD`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapId(pub u64);

impl SnapId {
    /// "No snapshot": what is written to, `-2` as in RADOS.
    pub const HEAD: Self = Self(0xFFFF_FFFF_FFFF_FFFE);
    /// The largest number a real snapshot can have.
    pub const MAX: Self = Self(0xFFFF_FFFF_FFFF_FFFD);
}

impl fmt::Display for SnapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::HEAD { f.write_str("head") } else { self.0.fmt(f) }
    }
}

/// Namespace inside a pool; the empty one is the default.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// The namespace called `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// Its name; empty for the default namespace.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the pool's default namespace.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new("")
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One object: pool, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// The pool that holds it.
    pub pool: PoolId,
    /// The namespace inside the pool.
    pub namespace: Namespace,
    /// Its name, unique in the namespace.
    pub name: Arc<str>,
}

impl ObjectId {
    /// The object `name` in `namespace` of `pool`.
    #[must_use]
    pub fn new(pool: PoolId, namespace: &Namespace, name: &str) -> Self {
        Self { pool, namespace: namespace.clone(), name: Arc::from(name) }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.pool)?;
        if !self.namespace.is_default() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// One client of a store: on RADOS the global id; on the engine the store's open epoch and a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client.{}", self.0)
    }
}
