//! What an image can do: feature bits, operation features and flags, with the names people use.

use std::fmt;

use ferry_core::{Errno, Error, ErrorKind, Result};

macro_rules! bits {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            $($(#[$bit_doc])* pub const $bit: Self = Self($value);)*

            /// Every bit that has a name, lowest first.
            pub const NAMED: &[(Self, &'static str)] = &[$((Self($value), $text),)*];

            /// No bit.
            pub const NONE: Self = Self(0);

            /// Whether all bits of `other` are set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether any bit of `other` is set.
            #[must_use]
            pub const fn intersects(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }

            /// With the bits of `other`.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// Without the bits of `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// Whether no bit is set.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// Names of the bits that are set, lowest first; bits without a name are left out.
            #[must_use]
            pub fn names(self) -> Vec<&'static str> {
                Self::NAMED.iter().filter(|(bit, _)| self.contains(*bit)).map(|(_, name)| *name).collect()
            }

            /// The bit called `name`.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                Self::NAMED.iter().find(|(_, n)| *n == name).map(|(bit, _)| *bit)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.names().join(", "))
            }
        }
    };
}

bits! {
    /// Key `features` of the header.
    Features {
        /// It may be a clone, and its snapshots may be protected.
        LAYERING = 0x001, "layering";
        /// Stripe unit and count differ from object size and 1.
        STRIPING = 0x002, "striping";
        /// One writer at a time.
        EXCLUSIVE_LOCK = 0x004, "exclusive-lock";
        /// It knows which objects exist.
        OBJECT_MAP = 0x008, "object-map";
        /// It knows which objects changed since the last snapshot.
        FAST_DIFF = 0x010, "fast-diff";
        /// Flattening detaches snapshots too.
        DEEP_FLATTEN = 0x020, "deep-flatten";
        /// Writes go to a journal first.
        JOURNALING = 0x040, "journaling";
        /// Data lies in another pool.
        DATA_POOL = 0x080, "data-pool";
        /// `op_features` is not 0.
        OPERATIONS = 0x100, "operations";
        /// It is one end of a migration.
        MIGRATING = 0x200, "migrating";
        /// It is a read-only copy of a mirrored image.
        NON_PRIMARY = 0x400, "non-primary";
        /// Newer data may be in some client's cache.
        DIRTY_CACHE = 0x800, "dirty-cache";
    }
}

bits! {
    /// Key `op_features` of the header.
    OpFeatures {
        /// A snapshot has a v2 clone.
        CLONE_PARENT = 0x1, "clone-parent";
        /// It is a v2 clone; a clone without this bit is v1.
        CLONE_CHILD = 0x2, "clone-child";
        /// It is in a consistency group.
        GROUP = 0x4, "group";
        /// A snapshot is in the trash.
        SNAP_TRASH = 0x8, "snap-trash";
    }
}

bits! {
    /// Key `flags` of the header, and the field of the snapshot records.
    Flags {
        /// The object map may be wrong.
        OBJECT_MAP_INVALID = 0x1, "object map invalid";
        /// What it says about changes may be wrong.
        FAST_DIFF_INVALID = 0x2, "fast diff invalid";
    }
}

impl Features {
    /// What a new image has unless told otherwise.
    pub const DEFAULT: Self = Self(0x03D);
    /// An image with one of these that the reader does not know may not even be read.
    pub const INCOMPATIBLE: Self = Self(0x883);
    /// What may be switched on and off later.
    pub const MUTABLE: Self = Self(0xC5C);
    /// What may be switched off but never on later.
    pub const DISABLE_ONLY: Self = Self(0x020);
    /// What no user sets.
    pub const INTERNAL: Self = Self(0x300);
    /// What makes no sense with several writers at once.
    pub const SINGLE_CLIENT: Self = Self(0x85C);
    /// All bits known.
    pub const ALL: Self = Self(0xFFF);
    /// What ferry reads.
    pub const READABLE: Self = Self(0x7FF);
    /// What ferry writes.
    pub const WRITABLE: Self = Self(0x3BF);

    /// Reads names joined by commas, or one number, as `rbd` does.
    ///
    /// # Errors
    /// `Invalid` (22) for an unknown name or bit, or one no user sets.
    pub fn parse(text: &str) -> Result<Self> {
        let mut features = Self::NONE;
        for name in text.split(',').map(str::trim) {
            let bit = match name.parse::<u64>() {
                Ok(number) => Self(number),
                Err(_) => Self::named(name)
                    .ok_or_else(|| Error::invalid("unknown image feature").with("feature", name))?,
            };
            if !Self::ALL.without(Self::INTERNAL).contains(bit) {
                return Err(Error::invalid("unknown image feature").with("feature", name));
            }
            features = features.with(bit);
        }
        Ok(features)
    }

    /// What a new image asked to have these really gets.
    ///
    /// # Errors
    /// `Invalid` (22) where one needs another that is missing, or no user sets it; `Unsupported` (38) for unknown bits.
    pub fn for_create(self) -> Result<Self> {
        if !Self::ALL.contains(self) {
            return Err(
                Error::unsupported("librbd does not support requested features").errno_is(Errno::ENOSYS)
            );
        }
        let internal = Self::INTERNAL.with(Self::NON_PRIMARY).with(Self::DIRTY_CACHE);
        if self.intersects(internal) {
            return Err(Error::invalid("cannot use internally controlled features"));
        }
        if self.contains(Self::JOURNALING) && !self.contains(Self::EXCLUSIVE_LOCK) {
            return Err(Error::invalid("cannot use journaling without exclusive lock"));
        }
        if self.contains(Self::JOURNALING) {
            return Err(Error::unsupported("journaling is not supported"));
        }
        if self.contains(Self::OBJECT_MAP) && !self.contains(Self::EXCLUSIVE_LOCK) {
            return Err(Error::invalid("cannot use object map without exclusive lock"));
        }
        Ok(if self.contains(Self::OBJECT_MAP) {
            self.with(Self::FAST_DIFF)
        } else {
            self.without(Self::FAST_DIFF)
        })
    }

    /// Whether an image with these may be read.
    ///
    /// # Errors
    /// `Unsupported` (38).
    pub fn check_readable(self) -> Result<()> {
        let bad = self.0 & !Self::READABLE.0 & Self::INCOMPATIBLE.0;
        if bad == 0 {
            return Ok(());
        }
        Err(Error::unsupported("image uses unsupported features")
            .errno_is(Errno::ENOSYS)
            .with("features", Self(bad).told()))
    }

    /// Whether an image with these may be written.
    ///
    /// # Errors
    /// `Unsupported` (38); `ReadOnly` (30) for the copy of a mirrored image.
    pub fn check_writable(self) -> Result<()> {
        if self.contains(Self::NON_PRIMARY) {
            return Err(Error::new(ErrorKind::ReadOnly, "image is not primary"));
        }
        let bad = self.0 & !Self::WRITABLE.0;
        if bad == 0 {
            return Ok(());
        }
        Err(Error::unsupported("image uses features that cannot be written here")
            .errno_is(Errno::ENOSYS)
            .with("features", Self(bad).told()))
    }

    /// The names of these, and unknown ones as a number.
    fn told(self) -> String {
        let unknown = self.without(Self::ALL);
        let mut words: Vec<String> = self.names().iter().map(|name| (*name).to_owned()).collect();
        if unknown != Self::NONE {
            words.push(format!("{:#x}", unknown.0));
        }
        words.join(",")
    }
}

#[cfg(test)]
mod tests;
