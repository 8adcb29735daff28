//! Names of objects.

use ferry_core::{PoolId, SnapId};

/// Index of images by name and id; one for each namespace.
pub const DIRECTORY_OBJECT: &str = "rbd_directory";
/// v1 back references to clones stored in this pool and namespace.
pub const CHILDREN_OBJECT: &str = "rbd_children";
/// Images in the trash; one for each namespace.
pub const TRASH_OBJECT: &str = "rbd_trash";
/// The pool's namespaces; in the default namespace.
pub const NAMESPACE_OBJECT: &str = "rbd_namespace";
/// Pool-wide settings; in the default namespace.
pub const INFO_OBJECT: &str = "rbd_info";
/// What `rbd pool init` leaves in [`INFO_OBJECT`].
pub const INFO_VALIDATED: &[u8] = b"overwrite validated";
/// The lock of an image, on its header and on its object map; the xattr is `lock.rbd_lock`.
pub const LOCK_NAME: &str = "rbd_lock";
/// The tag of a lock that a client takes and gives back by itself.
pub const LOCK_TAG: &str = "internal";

/// The object that tells an image's id.
#[must_use]
pub fn id_object(name: &str) -> String {
    format!("rbd_id.{name}")
}

/// What the header objects of format-1 images end in.
const FORMAT1_ENDING: &str = ".rbd";

/// The header of a format-1 image, which a new image must not hide. It is also what such an image goes by here where others
/// have an id: ids are letters and digits.
#[must_use]
pub fn v1_header_object(name: &str) -> String {
    format!("{name}{FORMAT1_ENDING}")
}

/// The name of the format-1 image that `id` stands for; `None` for the id of another.
#[must_use]
pub fn format1_name(id: &str) -> Option<&str> {
    id.strip_suffix(FORMAT1_ENDING)
}

/// The id as others know it: an image of format 1 has none.
#[must_use]
pub fn told_id(id: &str) -> &str {
    if format1_name(id).is_some() { "" } else { id }
}

/// The header of an image.
#[must_use]
pub fn header_object(id: &str) -> String {
    if format1_name(id).is_some() { id.to_owned() } else { format!("rbd_header.{id}") }
}

/// The object map of HEAD or of a snapshot.
#[must_use]
pub fn object_map_object(id: &str, at: SnapId) -> String {
    if at == SnapId::HEAD {
        format!("rbd_object_map.{id}")
    } else {
        format!("rbd_object_map.{id}.{:016x}", at.0)
    }
}

/// What the names of an image's data objects begin with, for a new image; `image_pool` only where the data lies in
/// another pool. Of an image that exists, the header's `object_prefix` is the truth.
#[must_use]
pub fn data_prefix(id: &str, image_pool: Option<PoolId>) -> String {
    match image_pool {
        None => format!("rbd_data.{id}"),
        Some(pool) => format!("rbd_data.{pool}.{id}"),
    }
}
