//! Guards of a write op: conditions on the object before it.

use bytes::Bytes;
use ferry_core::{Effect, Errno, Error, ErrorKind, Guard, ObjectId, Result, WriteOp};

use crate::core::Core;
use crate::key::{Key, Tag};

impl Core {
    /// Looks at the guards of `op`; returns whether they make the op create the object.
    pub(crate) fn check_guards(&mut self, id: &ObjectId, inode: Option<u64>, op: &WriteOp) -> Result<bool> {
        let existing = match inode {
            Some(inode) => {
                let object = self.object(inode)?;
                object.exists.then_some((inode, object.version))
            }
            None => None,
        };
        let mut creates = matches!(op.effects.first(), Some(Effect::Create));
        for guard in &op.guards {
            let missing = || Error::not_found("no such object").with("object", id);
            match guard {
                Guard::CreateExclusive => {
                    if existing.is_some() {
                        return Err(Error::exists("the object exists").with("object", id));
                    }
                    creates = true;
                }
                Guard::AssertExists => {
                    existing.ok_or_else(missing)?;
                }
                Guard::AssertVersion(wanted) => {
                    let (_, version) = existing.ok_or_else(missing)?;
                    let errno = match version.cmp(wanted) {
                        std::cmp::Ordering::Equal => continue,
                        std::cmp::Ordering::Greater => Errno::ERANGE,
                        std::cmp::Ordering::Less => Errno::EOVERFLOW,
                    };
                    return Err(Error::new(ErrorKind::Conflict, "the object has another version")
                        .errno_is(errno)
                        .with("object", id)
                        .with("version", version));
                }
                Guard::OmapCompare { key, value } => {
                    let found = match existing {
                        Some((inode, _)) => self.get_long(&Key::new(Tag::Omap).u64(inode).text(key))?,
                        None if creates => None,
                        None => return Err(missing()),
                    };
                    equal(found, value, id)?;
                }
                Guard::XattrCompare { name, value } => {
                    let found = match existing {
                        Some((inode, _)) => {
                            self.get_long(&Key::new(Tag::Xattr).u64(inode).text(name.as_bytes()))?
                        }
                        None => return Err(missing()),
                    };
                    equal(found, value, id)?;
                }
            }
        }
        Ok(creates)
    }
}

/// Absent equals empty.
fn equal(found: Option<Bytes>, wanted: &Bytes, id: &ObjectId) -> Result<()> {
    if found.unwrap_or_default() == *wanted {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Conflict, "the object has changed").with("object", id))
    }
}
