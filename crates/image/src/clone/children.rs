//! Finds the clones of a snapshot.

use std::collections::BTreeSet;

use ferry_core::{Namespace, PoolId, Result, SnapId};

use crate::encoding::{CHILDREN_OBJECT, ChildSpec, V1Children, header_object, v1_children_key};
use crate::header;
use crate::image::Image;
use crate::pool::{Pool, is_pool_gone};
use crate::trash;

/// A clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Child {
    /// Number of its pool.
    pub pool: PoolId,
    /// Name of its pool; empty where the pool is gone.
    pub pool_name: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name; the one it had before where it is in the trash.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Whether it is in the trash.
    pub in_trash: bool,
}

/// Ids of the v1 clones of a snapshot in each pool that has some. All pools of the store are looked at, in the namespace
/// that the parent has.
///
/// # Errors
/// Those of the store; `Corrupt`.
pub async fn v1_children(pool: &Pool, id: &str, snap: SnapId) -> Result<Vec<(Pool, BTreeSet<String>)>> {
    let key = v1_children_key(pool.id(), id, snap);
    let mut found = Vec::new();
    for info in pool.store.pools().await? {
        let there = Pool { info, ..pool.clone() };
        let value = match there.read_key(&there.object(CHILDREN_OBJECT), &key).await {
            Err(e) if is_pool_gone(&e) => continue,
            read => read?,
        };
        let children = V1Children::decode(&value.unwrap_or_default())?.0;
        if !children.is_empty() {
            found.push((there, children));
        }
    }
    Ok(found)
}

/// All clones of a snapshot, or of all snapshots for [`SnapId::HEAD`], ordered by pool, namespace and name.
///
/// # Errors
/// Those of the store; `Corrupt`; `NotFound` (2) for a snapshot that is not there.
pub async fn children(image: &Image, snap: SnapId) -> Result<Vec<Child>> {
    let snaps: Vec<SnapId> = if snap == SnapId::HEAD {
        image.header.snaps.keys().copied().collect()
    } else {
        vec![image.header.snap(snap)?.id]
    };
    let mut specs = BTreeSet::new();
    for snap in snaps {
        specs.extend(image.header.children.get(&snap).into_iter().flat_map(|c| c.set.iter().cloned()));
        for (pool, ids) in v1_children(&image.pool, &image.id, snap).await? {
            let namespace = &pool.namespace;
            specs.extend(ids.into_iter().map(|image_id| ChildSpec {
                pool: pool.id(),
                namespace: namespace.clone(),
                image_id,
            }));
        }
    }
    let mut children = Vec::new();
    for spec in specs {
        children.push(describe(&image.pool, spec).await?);
    }
    children.sort_by(|a, b| {
        (&a.pool_name, &a.namespace, &a.name, &a.id).cmp(&(&b.pool_name, &b.namespace, &b.name, &b.id))
    });
    Ok(children)
}

/// All clones of a snapshot, their clones, and so on, each once.
///
/// # Errors
/// As [`children`].
pub async fn descendants(image: &Image, snap: SnapId) -> Result<Vec<Child>> {
    let mut found = children(image, snap).await?;
    let mut next = 0;
    while let Some(child) = found.get(next).cloned() {
        next += 1;
        let Ok(pool) = image.pool.sibling(child.pool, &child.namespace).await else { continue };
        let object = pool.object(&header_object(&child.id));
        // A clone whose header is gone has no clones.
        let Ok(header) = header::load(&*pool.store, &object).await else { continue };
        let below = Image {
            pool,
            name: child.name.clone(),
            id: child.id.clone(),
            header: std::sync::Arc::new(header),
            at: SnapId::HEAD,
            read_only: true,
            session: None,
            is_end: false,
        };
        for grandchild in children(&below, SnapId::HEAD).await? {
            if !found.contains(&grandchild) {
                found.push(grandchild);
            }
        }
    }
    Ok(found)
}

/// Finds a clone's name.
async fn describe(from: &Pool, spec: ChildSpec) -> Result<Child> {
    let mut child = Child {
        pool: spec.pool,
        pool_name: String::new(),
        namespace: spec.namespace,
        name: String::new(),
        id: spec.image_id,
        in_trash: false,
    };
    let Ok(pool) = from.sibling(child.pool, &child.namespace).await else { return Ok(child) };
    child.pool_name.clone_from(&pool.info.name);
    if let Some(name) = pool.image_name(&child.id).await? {
        child.name = name;
    } else if let Some(entry) = trash::get(&pool, &child.id).await? {
        child.name = entry.name;
        child.in_trash = true;
    }
    Ok(child)
}
