//! What is asked of a migration.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::LayoutOptions;
use crate::spec::{ImageSpec, SnapSpec};

/// Whose habits count where `rbd`'s are worse than they need to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Manner {
    /// Ferry's own.
    Ferry,
    /// Those scripts expect of `rbd`.
    Rbd,
}

/// A source spec as it was typed: it may hold secrets, which its `Debug` does not show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecText(pub String);

impl fmt::Debug for SpecText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SpecText")
    }
}

/// What is imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportSource {
    /// What a source spec names.
    Spec {
        /// JSON.
        text: SpecText,
        /// Where names of files in it begin that do not begin at the root.
        base: PathBuf,
    },
    /// What the source spec in the file handed over names.
    File {
        /// As of [`Self::Spec`].
        base: PathBuf,
    },
    /// An image of a format in a file.
    Image {
        /// `raw`, `qcow2`, …
        format: String,
        /// The file, from the root.
        path: PathBuf,
    },
    /// A snapshot of an image.
    Snapshot(SnapSpec),
}

/// Move an image while it is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MigrationCommand {
    /// Make the target, which reads through to the source.
    Prepare {
        /// What is moved.
        source: ImageSpec,
        /// Where it goes.
        target: ImageSpec,
        /// How the target is laid out.
        layout: LayoutOptions,
        /// Whether the target of a clone takes its parent's data too.
        flatten: bool,
        /// `rbd`'s stripes, or such as fit.
        manner: Manner,
        /// How long clients of the source may wait before it gives way. Milliseconds.
        pause_limit_ms: Option<u64>,
    },
    /// Make the target, which reads through to something that stays where it is.
    Import {
        /// What is imported.
        source: ImportSource,
        /// The image that is made.
        target: ImageSpec,
        /// How the target is laid out.
        layout: LayoutOptions,
        /// Whether what was done before is an error.
        manner: Manner,
    },
    /// Copy everything to the target.
    Execute {
        /// The target, or the source by its old name.
        image: ImageSpec,
        /// Bytes in a second; as fast as it goes where none are given.
        rate: Option<u64>,
    },
    /// Compare both ends.
    Verify {
        /// The target, or the source by its old name.
        image: ImageSpec,
        /// Reading the source again, whatever digests were kept of it.
        reread: bool,
    },
    /// Keep the target and remove the source.
    Commit {
        /// The target, or the source by its old name.
        image: ImageSpec,
        /// Although clones hang on it.
        force: bool,
        /// Without comparing first.
        unverified: bool,
    },
    /// Give the source back and remove the target.
    Abort {
        /// The target, or the source by its old name.
        image: ImageSpec,
        /// Although something of the target is lost.
        accept_loss: bool,
        /// How long requests of the target's clients may keep it from beginning. Milliseconds.
        pause_limit_ms: Option<u64>,
    },
}

impl MigrationCommand {
    /// The image it names first.
    #[must_use]
    pub fn image(&self) -> &ImageSpec {
        match self {
            Self::Prepare { source: image, .. }
            | Self::Import { target: image, .. }
            | Self::Execute { image, .. }
            | Self::Verify { image, .. }
            | Self::Commit { image, .. }
            | Self::Abort { image, .. } => image,
        }
    }
}
