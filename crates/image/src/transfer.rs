//! Images and diffs out of and into streams and files.
//!
//! Names, record order and error numbers are those of `rbd export`, `import`, `export-diff`, `import-diff` and `merge-diff`.
//! Streams are read and written on the calling thread; only the store is asked for several things at once.

mod apply;
pub mod export;
pub mod export_diff;
pub mod import;
pub mod import_diff;
pub mod merge_diff;
