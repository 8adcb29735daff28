//! What a process that stays is asked: jobs, exports, NBD.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ImportSource;
use crate::spec::SnapSpec;

/// Images a node offers over NBD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExportCommand {
    /// Offer one.
    Add {
        /// What is offered.
        offered: NbdOffer,
        /// What clients ask for; the image's spec where none is given. A source needs one.
        name: Option<String>,
        /// Whether writes are refused.
        read_only: bool,
    },
    /// List them.
    List,
    /// Offer one no more.
    Remove {
        /// What clients ask for.
        name: String,
        /// Whether attached clients are ended.
        force: bool,
    },
}

/// How one image is offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NbdOptions {
    /// What is offered.
    pub offered: NbdOffer,
    /// What clients ask for; the image's spec where none is given, of a source the empty name.
    pub name: Option<String>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Where clients come in.
    pub listen: NbdListen,
}

/// What is offered over NBD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NbdOffer {
    /// An image, or a snapshot of it.
    Image(SnapSpec),
    /// A foreign source, which is only read.
    Source(ImportSource),
}

/// Where clients of NBD come in, and who may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NbdListen {
    /// A unix socket to listen on.
    pub socket: Option<PathBuf>,
    /// A TCP address to listen on.
    pub address: Option<SocketAddr>,
    /// What TLS is spoken with. TCP clients must speak it then; those of the unix socket may.
    pub tls: Option<TlsFiles>,
    /// Whether TCP clients may go without TLS.
    pub tls_optional: bool,
    /// Whether TCP without TLS may be listened for where others than this machine reach it.
    pub plain_anywhere: bool,
}

/// Files that TLS needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsFiles {
    /// A directory with `ca-cert.pem`, `server-cert.pem` and `server-key.pem`.
    Certificates(PathBuf),
    /// A file of `user:key` lines, as `psktool` makes it.
    SharedKeys(PathBuf),
}

/// Long operations of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobCommand {
    /// List them.
    List,
    /// Show what one does until it ends.
    Attach {
        /// Its number.
        id: u64,
    },
    /// Ask one to end.
    Cancel {
        /// Its number.
        id: u64,
    },
    /// Let one begin nothing more, or go on.
    Pause {
        /// Its number.
        id: u64,
        /// Whether it is paused.
        paused: bool,
    },
    /// Set how fast one may copy; what is not given stays.
    Limit {
        /// Its number.
        id: u64,
        /// Bytes in a second; zero lifts the limit.
        rate: Option<u64>,
        /// Objects at once; zero for the command's own number.
        in_flight: Option<usize>,
    },
}
