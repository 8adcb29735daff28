//! Every command with all its parameters.

mod device;
mod migration;
mod serving;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::{ImageSpec, PoolSpec, SnapSpec};

pub use device::{DeviceCommand, MapOptions, MappedBy};
pub use migration::{ImportSource, Manner, MigrationCommand, SpecText};
pub use serving::{ExportCommand, JobCommand, NbdListen, NbdOffer, NbdOptions, TlsFiles};

/// A command and the settings given with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// `--rbd-foo value`: settings for this one command, before all others.
    pub overrides: BTreeMap<String, String>,
    /// A Ceph cluster that pools may be in.
    pub cluster: Option<Cluster>,
}

/// A Ceph cluster, and when to look for a pool there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cluster {
    /// Its configuration file; where Ceph looks for one if none is given.
    pub conf: Option<PathBuf>,
    /// The user without `client.`; `admin` if none is given.
    pub user: Option<String>,
    /// Settings that go before the file's: `keyring`, `keyfile`, `mon_host`.
    pub settings: BTreeMap<String, String>,
    /// Which pools are meant.
    pub pools: ClusterPools,
}

impl Cluster {
    /// Whether one client can be both: everything but which pools are meant is the same.
    #[must_use]
    pub fn is_same_client(&self, other: &Self) -> bool {
        self.conf == other.conf && self.user == other.user && self.settings == other.settings
    }
}

/// Which pools are those of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ClusterPools {
    /// All of them.
    All,
    /// Those that the home does not know.
    Unknown,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Pools.
    Pool(PoolCommand),
    /// Images as wholes.
    Image(ImageCommand),
    /// Space that images take.
    Usage(UsageCommand),
    /// Snapshots.
    Snap(SnapCommand),
    /// Clones and their parents.
    Clone(CloneCommand),
    /// The trash.
    Trash(TrashCommand),
    /// Images to and from files.
    Transfer(TransferCommand),
    /// An image's own keys and values.
    Meta(MetaCommand),
    /// Settings kept for later commands.
    Config {
        /// Whose settings.
        level: ConfigLevel,
        /// What to do with them.
        action: ConfigAction,
    },
    /// Secrets kept under a name.
    ConfigKey(ConfigAction),
    /// Namespaces of a pool.
    Namespace(NamespaceCommand),
    /// Features of an image.
    Feature {
        /// The image.
        image: ImageSpec,
        /// On or off.
        change: FeatureChange,
        /// Bits.
        features: u64,
    },
    /// Object maps.
    ObjectMap {
        /// The image, or one of its snapshots.
        image: SnapSpec,
        /// What to do.
        action: ObjectMapCommand,
    },
    /// Advisory locks.
    Lock {
        /// The image.
        image: ImageSpec,
        /// What to do.
        action: LockCommand,
    },
    /// Measure.
    Bench {
        /// The image.
        image: ImageSpec,
        /// Reads, writes or both.
        io_type: BenchType,
        /// Bytes of each request.
        io_size: u64,
        /// Requests in flight.
        io_threads: u32,
        /// Bytes of all requests together.
        io_total: u64,
        /// Where.
        pattern: BenchPattern,
        /// Reads in a hundred requests, where both are made.
        read_percent: u64,
    },
    /// Read every byte of a store and compare checksums.
    Check {
        /// A pool of the store; the default store where none is named.
        pool: Option<String>,
    },
    /// Long operations of a node.
    Job(JobCommand),
    /// Images a node offers over NBD.
    Export(ExportCommand),
    /// Images as block devices.
    Device(DeviceCommand),
    /// Offer one image over NBD until stopped.
    Nbd(NbdOptions),
    /// Tell what the clients of an image tell each other until stopped.
    Watch {
        /// The image.
        image: ImageSpec,
    },
    /// Move an image while it is in use.
    Migration(MigrationCommand),
}

impl Command {
    /// Whether it goes on until it is stopped.
    #[must_use]
    pub fn lasts(&self) -> bool {
        matches!(self, Self::Nbd(_) | Self::Watch { .. })
    }
}

/// Pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolCommand {
    /// Make a pool.
    Create {
        /// Its name.
        name: String,
        /// Directory of the store it lives in; the default store where none is given.
        path: Option<PathBuf>,
    },
    /// Name a pool of the request's Ceph cluster, which is made where the cluster has none of that name.
    Take {
        /// What it is called here.
        name: String,
        /// What the cluster calls it.
        rados_pool: String,
    },
    /// List pools.
    List,
    /// Remove a pool that holds no image.
    Remove {
        /// Its name.
        name: String,
    },
    /// Count images and bytes.
    Stats {
        /// The pool.
        pool: PoolSpec,
    },
    /// Prepare a pool for images.
    Init {
        /// Its name.
        name: String,
    },
    /// Tell of one.
    Describe {
        /// Its name.
        name: String,
    },
    /// Allow or forbid writes.
    Set {
        /// Its name.
        name: String,
        /// What is allowed.
        access: PoolAccess,
    },
}

/// What may be done with a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolAccess {
    /// Everything.
    ReadWrite,
    /// Only reads.
    ReadOnly,
}

/// How much to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Detail {
    /// Names.
    Names,
    /// A line of facts for each.
    Long,
}

/// How an image that is made is laid out; what is not given comes from the settings or the parent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutOptions {
    /// Objects are two to this power bytes.
    pub order: Option<u8>,
    /// Feature bits.
    pub features: Option<u64>,
    /// Leave out what would need an exclusive lock.
    pub shared: bool,
    /// Bytes.
    pub stripe_unit: Option<u64>,
    /// Objects written to in turn.
    pub stripe_count: Option<u64>,
    /// The pool that holds the data.
    pub data_pool: Option<String>,
}

/// An image by name or by id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// Where it lives.
    pub pool: PoolSpec,
    /// Which one.
    pub by: ImageBy,
}

/// How an image is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageBy {
    /// By name.
    Name(String),
    /// By id, as for images in the trash.
    Id(String),
}

impl ImageRef {
    /// The text errors use.
    #[must_use]
    pub fn name_or_id(&self) -> &str {
        match &self.by {
            ImageBy::Name(text) | ImageBy::Id(text) => text,
        }
    }
}

impl From<ImageSpec> for ImageRef {
    fn from(spec: ImageSpec) -> Self {
        Self { pool: spec.pool_spec(), by: ImageBy::Name(spec.image) }
    }
}

/// Images as wholes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageCommand {
    /// Make an empty image.
    Create {
        /// Its name.
        image: ImageSpec,
        /// Bytes.
        size: u64,
        /// How.
        layout: LayoutOptions,
        /// Whether to write zeros everywhere.
        thick: bool,
    },
    /// List images.
    List {
        /// Where.
        pool: PoolSpec,
        /// How much to tell.
        detail: Detail,
    },
    /// Describe an image.
    Info {
        /// Which.
        image: ImageRef,
        /// As it was at this snapshot.
        snap: Option<String>,
    },
    /// Tell who uses an image.
    Status {
        /// Which.
        image: ImageSpec,
    },
    /// Give an image another name in its pool.
    Rename {
        /// Now.
        source: ImageSpec,
        /// Then.
        target: ImageSpec,
    },
    /// Make an image larger or smaller.
    Resize {
        /// Which.
        image: ImageSpec,
        /// Bytes.
        size: u64,
        /// Whether smaller is allowed.
        allow_shrink: bool,
    },
    /// Remove an image without snapshots.
    Remove {
        /// Which.
        image: ImageSpec,
    },
    /// Copy the image as it is now, or one snapshot.
    Copy {
        /// From.
        source: SnapSpec,
        /// To.
        target: ImageSpec,
        /// How.
        layout: LayoutOptions,
        /// Zeros of at least this many bytes are not written.
        sparse_size: Option<u64>,
    },
    /// Copy an image with its snapshots.
    DeepCopy {
        /// From.
        source: SnapSpec,
        /// To.
        target: ImageSpec,
        /// How.
        layout: LayoutOptions,
        /// Whether the copy of a clone stands alone.
        flatten: bool,
    },
    /// Give back the space of zeros.
    Sparsify {
        /// Which.
        image: ImageSpec,
        /// Zeros of at least this many bytes.
        sparse_size: Option<u64>,
    },
}

/// Space that images take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageCommand {
    /// Where.
    pub pool: PoolSpec,
    /// One image; all of the pool where none is named.
    pub image: Option<String>,
    /// Up to this snapshot.
    pub snap: Option<String>,
    /// After this snapshot.
    pub from_snap: Option<String>,
    /// Whether to count bytes instead of objects.
    pub exact: bool,
    /// Whether snapshots are added to their image.
    pub merge_snapshots: bool,
}

/// A snapshot by name or by id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapBy {
    /// By name.
    Name(String),
    /// By id, as for those in the trash.
    Id(u64),
}

/// Which snapshots are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapScope {
    /// Those a user made.
    User,
    /// All.
    All,
}

/// Snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapCommand {
    /// Make one.
    Create {
        /// Of which image.
        image: ImageSpec,
        /// Its name.
        snap: String,
    },
    /// List them.
    List {
        /// Of which image.
        image: ImageRef,
        /// Which.
        scope: SnapScope,
    },
    /// Remove one.
    Remove {
        /// Of which image.
        image: ImageRef,
        /// Which.
        snap: SnapBy,
        /// Whether to flatten its clones and unprotect it first.
        force: bool,
    },
    /// Give one another name.
    Rename {
        /// Of which image.
        image: ImageSpec,
        /// Now.
        source: String,
        /// Then.
        target: String,
    },
    /// Forbid its removal.
    Protect {
        /// Of which image.
        image: ImageSpec,
        /// Which.
        snap: String,
    },
    /// Allow its removal.
    Unprotect {
        /// Of which image.
        image: ImageRef,
        /// Which.
        snap: String,
    },
    /// Remove all that are not protected.
    Purge {
        /// Of which image.
        image: ImageRef,
    },
    /// Make the image what it was.
    Rollback {
        /// Which image.
        image: ImageSpec,
        /// To which snapshot.
        snap: String,
    },
    /// Limit how many there may be; `None` lifts it.
    Limit {
        /// Of which image.
        image: ImageSpec,
        /// How many.
        limit: Option<u64>,
    },
}

/// Clones and their parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CloneCommand {
    /// Make a clone of a snapshot.
    Create {
        /// The parent.
        parent: ImageSpec,
        /// Its snapshot.
        snap: String,
        /// The clone.
        target: ImageSpec,
        /// How.
        layout: LayoutOptions,
    },
    /// List clones of an image or a snapshot.
    Children {
        /// The parent.
        image: ImageSpec,
        /// Only of this snapshot.
        snap: Option<SnapBy>,
        /// Also those in the trash.
        scope: TrashScope,
        /// Also clones of clones.
        descendants: bool,
    },
    /// Copy from the parent what the clone still reads there, and part.
    Flatten {
        /// The clone.
        image: ImageSpec,
    },
}

/// Which entries of the trash count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrashScope {
    /// Only what a user put there (for children: nothing of the trash).
    User,
    /// Everything.
    All,
}

/// The trash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TrashCommand {
    /// Put an image there.
    Move {
        /// Which.
        image: ImageSpec,
        /// Seconds since 1970 before which it cannot be removed; `None` for now.
        expires_at: Option<u64>,
    },
    /// List it.
    List {
        /// Where.
        pool: PoolSpec,
        /// What of it.
        scope: TrashScope,
        /// How much to tell.
        detail: Detail,
    },
    /// Remove an image for good.
    Remove {
        /// Where.
        pool: PoolSpec,
        /// Which.
        id: String,
        /// Even before its time.
        force: bool,
    },
    /// Take an image out again.
    Restore {
        /// Where.
        pool: PoolSpec,
        /// Which.
        id: String,
        /// Its new name; its old one where none is given.
        name: Option<String>,
    },
    /// Remove all whose time has come.
    Purge {
        /// Where.
        pool: PoolSpec,
        /// Only those whose time came before this many seconds since 1970.
        expired_before: Option<u64>,
        /// Only until the pool uses this part of its space.
        threshold: Option<f64>,
    },
}

/// Form of an exported image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExportFormat {
    /// The bytes of the image.
    Raw,
    /// A stream with layout, keys and all snapshots.
    Stream,
}

/// Images to and from files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferCommand {
    /// Make an image out of a source of any kind, with its snapshots.
    ImportFrom {
        /// What is imported.
        source: ImportSource,
        /// The image made.
        target: ImageSpec,
        /// How it is laid out.
        layout: LayoutOptions,
    },
    /// Make an image of the input.
    Import {
        /// Its name.
        target: ImageSpec,
        /// How.
        layout: LayoutOptions,
        /// Form of the input.
        format: ExportFormat,
        /// Zeros of at least this many bytes are not written.
        sparse_size: Option<u64>,
    },
    /// Write an image to the output.
    Export {
        /// Which.
        source: SnapSpec,
        /// Form of the output.
        format: ExportFormat,
    },
    /// Write what changed to the output.
    ExportDiff {
        /// Up to this state.
        source: SnapSpec,
        /// Since this snapshot; since ever where none is given.
        from_snap: Option<String>,
        /// Whole objects instead of extents.
        whole_object: bool,
    },
    /// Apply the changes in the input.
    ImportDiff {
        /// To which image.
        image: ImageSpec,
        /// Zeros of at least this many bytes are not written.
        sparse_size: Option<u64>,
    },
    /// Join the changes of two inputs into the output.
    MergeDiff,
    /// List what changed.
    Diff {
        /// Up to this state.
        source: SnapSpec,
        /// Since this snapshot; since ever where none is given.
        from_snap: Option<String>,
        /// Whole objects instead of extents.
        whole_object: bool,
    },
}

/// An image's own keys and values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaCommand {
    /// Set one.
    Set {
        /// Of which image.
        image: ImageSpec,
        /// Key.
        key: String,
        /// Value.
        value: String,
    },
    /// Print one.
    Get {
        /// Of which image.
        image: ImageSpec,
        /// Key.
        key: String,
    },
    /// List all.
    List {
        /// Of which image.
        image: ImageSpec,
    },
    /// Remove one.
    Remove {
        /// Of which image.
        image: ImageSpec,
        /// Key.
        key: String,
    },
}

/// Whose settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigLevel {
    /// Of everything under this home: `global`, `client` or `client.<id>`.
    Global(String),
    /// Of a pool.
    Pool(String),
    /// Of an image.
    Image(ImageSpec),
}

/// What to do with settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigAction {
    /// Set one.
    Set {
        /// Key.
        key: String,
        /// Value.
        value: String,
    },
    /// Print one.
    Get {
        /// Key.
        key: String,
    },
    /// List all.
    List,
    /// Remove one.
    Remove {
        /// Key.
        key: String,
    },
}

/// Namespaces of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceCommand {
    /// Make one.
    Create(PoolSpec),
    /// List them.
    List {
        /// Of which pool.
        pool: String,
    },
    /// Remove an empty one.
    Remove(PoolSpec),
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FeatureChange {
    /// On.
    Enable,
    /// Off.
    Disable,
}

/// Object maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectMapCommand {
    /// Compare with the objects there are.
    Check,
    /// Write anew from the objects there are.
    Rebuild,
}

/// Advisory locks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockCommand {
    /// Take one.
    Add {
        /// Its cookie.
        id: String,
        /// The tag its holders share; exclusive where none is given.
        shared: Option<String>,
    },
    /// List them.
    List,
    /// Take one from its holder.
    Remove {
        /// Its cookie.
        id: String,
        /// The holder, `client.4123`.
        locker: String,
    },
}

/// What a measurement does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BenchType {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Both.
    ReadWrite,
}

/// Where a measurement goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BenchPattern {
    /// Anywhere.
    Random,
    /// Each slot onwards from its own place.
    Sequential,
    /// All slots onwards from the start.
    FullSequential,
}
