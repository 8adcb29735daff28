//! Moves an image to a new home while it is in use.
//!
//! ```text
//!            prepare            execute            done             commit
//!   (none) ──────────► Prepared ───────► Executing ────► Executed ────────► (gone: the target is a plain image)
//!                         └──────────────────┴───────────────┴── abort ──► Aborting ──► (gone: the source is back)
//! ```
//!
//! An import goes the same way, but only its target has a record: see `import`.
//!
//! Invariants
//! - Both headers carry a record (`rbd`'s, key `migration`) and ferry's own note (key `ferry.migration`) with one uuid.
//! - Every step is idempotent: killed anywhere, the same call again reaches the same end.
//! - Nothing is taken away before what replaces it is durable: across two stores, one is flushed before the other goes on.
//! - The source is not written between prepare and abort; once an abort writes it, only an abort can come next.
#![forbid(unsafe_code)]

mod abort;
mod children;
mod commit;
mod digests;
mod ends;
mod execute;
mod import;
mod outcome;
mod prepare;
mod removal;
mod verify;

pub use abort::{AbortOptions, Carried, LiveAbort, Losses, Restored, abort, losses, restore};
pub use commit::{CommitOptions, Receipt, Receipts, clones, commit};
pub use ends::{End, Ends, Finding};
pub use execute::{Control, Copied, Pace, execute};
pub use import::{
    Import, ImportFrom, ImportOptions, Imported, abort_import, commit_import, execute_import, import_clones,
    import_losses, prepare_import, verify_import,
};
pub use outcome::{Outcome, outcome};
pub use prepare::{PrepareOptions, Prepared, Striping, prepare, revive};
pub use verify::{Against, Comparing, PointReport, Threads, Verification, verify};
