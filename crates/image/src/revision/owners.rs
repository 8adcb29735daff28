//! Which ancestor holds an object that an image lacks, remembered.
//!
//! A read through a hundred clones would look into a hundred places for each object. What was found is kept for as long as the
//! store says that nothing came into being, went away or changed its metadata (`Store::generation`): content at a snapshot never
//! changes, so only who holds it can. Stores that cannot say so are asked each time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Revision;

/// Objects remembered at the most; then all are forgotten.
const REMEMBERED_MAX: usize = 1 << 16;

/// Who holds an object that the image itself lacks.
#[derive(Clone, Debug)]
pub(super) enum Owner {
    /// No ancestor: it reads as zeros.
    Nobody,
    /// This ancestor has the whole of it, under the same number.
    Ancestor(Arc<Revision>),
}

#[derive(Debug, Default)]
struct Remembered {
    generation: u64,
    owners: HashMap<u64, Owner>,
}

/// What is remembered for one revision.
#[derive(Debug, Default)]
pub struct Owners(Mutex<Remembered>);

impl Clone for Owners {
    /// A copy begins with nothing remembered.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Owners {
    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner of `object`, if it was found while the store was at `generation`.
    pub(super) fn get(&self, generation: u64, object: u64) -> Option<Owner> {
        let remembered = self.remembered();
        (remembered.generation == generation).then(|| remembered.owners.get(&object).cloned()).flatten()
    }

    /// Remembers what was found when the store was at `generation`.
    pub(super) fn put(&self, generation: u64, object: u64, owner: Owner) {
        let mut remembered = self.remembered();
        if remembered.generation != generation || remembered.owners.len() >= REMEMBERED_MAX {
            *remembered = Remembered { generation, owners: HashMap::new() };
        }
        remembered.owners.insert(object, owner);
    }
}
