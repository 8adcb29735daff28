//! What a command found out.

use std::fmt;
use std::path::{Path, PathBuf};

use ferry_core::size::format_size;
use serde::{Deserialize, Serialize};

use super::Detail;
use crate::spec::SnapSpec;

/// What a command found out. Times are seconds since 1970, sizes bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// It was done; there is nothing to tell.
    Done,
    /// Pools.
    Pools(Vec<PoolListing>),
    /// What a pool holds.
    PoolStatistics(PoolStatistics),
    /// Names of images.
    ImageNames(Vec<String>),
    /// Images and their snapshots.
    Images(Vec<ListedImage>),
    /// An image.
    Info(Box<ImageInfo>),
    /// Who uses an image.
    Status(Box<ImageStatus>),
    /// Space.
    Usage(Usage),
    /// Snapshots.
    Snaps {
        /// Oldest first.
        snaps: Vec<ListedSnap>,
        /// Whether namespaces are shown.
        all: bool,
    },
    /// Clones.
    Children {
        /// By pool and name.
        children: Vec<ChildImage>,
        /// Whether those in the trash are listed too.
        all: bool,
    },
    /// The trash.
    Trash {
        /// Its entries.
        entries: Vec<TrashEntry>,
        /// How much to tell.
        detail: Detail,
        /// The time now.
        now: u64,
    },
    /// Keys and values of an image.
    Meta(Vec<(String, String)>),
    /// One value.
    Value(String),
    /// Settings and where they come from.
    Settings {
        /// By name.
        settings: Vec<Setting>,
        /// Whose they are.
        owner: SettingsOwner,
    },
    /// Names of secrets.
    Keys(Vec<String>),
    /// Namespaces.
    Namespaces(Vec<String>),
    /// Changed extents.
    Diff(Vec<DiffExtent>),
    /// Locks.
    Locks(LockList),
    /// A measurement.
    Bench(BenchResult),
    /// A scrub.
    Check(CheckReport),
    /// Jobs.
    Jobs(Vec<JobLine>),
    /// The device an image was mapped as; none where the process asked does not stay to serve it.
    Mapped(Option<PathBuf>),
    /// Mapped images.
    Devices(Vec<DeviceLine>),
    /// Exports.
    Exports {
        /// By name.
        exports: Vec<ExportLine>,
        /// Whether they were added by this command.
        added: bool,
    },
}

/// An image mapped as a block device. In the order of their numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceLine {
    /// The number of the device.
    pub id: u64,
    /// Its path.
    pub device: String,
    /// The image's pool.
    pub pool: String,
    /// Its namespace; empty for the default one.
    pub namespace: String,
    /// Its name.
    pub image: String,
    /// The snapshot, where it is one.
    pub snap: Option<String>,
}

impl DeviceLine {
    /// An image and its device.
    #[must_use]
    pub fn new(device: &Path, image: &SnapSpec) -> Self {
        let device = device.display().to_string();
        let id = device.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or_default();
        let SnapSpec { image, snap } = image.clone();
        Self { id, device, pool: image.pool, namespace: image.namespace, image: image.image, snap }
    }

    /// Whether it is of an image or snapshot with this name.
    pub(crate) fn is_of(&self, spec: &SnapSpec) -> bool {
        let SnapSpec { image, snap } = spec;
        let named = (&self.pool, &self.namespace, &self.image, &self.snap);
        named == (&image.pool, &image.namespace, &image.image, snap)
    }
}

/// An image offered over NBD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportLine {
    /// What clients ask for.
    pub name: String,
    /// The image, with its snapshot; empty for a foreign source.
    pub image: String,
    /// Where the foreign source is, without secrets; `None` for an image.
    pub source: Option<String>,
    /// Whether writes are refused.
    pub is_read_only: bool,
    /// Bytes.
    pub size: u64,
    /// Who is attached.
    pub clients: Vec<ExportClient>,
    /// Where clients find it.
    pub uris: Vec<String>,
}

impl ExportLine {
    /// Lines that say how to attach: the URIs, and a command that boots a machine from it.
    #[must_use]
    pub fn invitation(&self) -> Vec<String> {
        let mut lines = self.uris.clone();
        if let Some(uri) = self.uris.first() {
            let access =
                if self.is_read_only { ",readonly=on" } else { ",discard=unmap,detect-zeroes=unmap" };
            lines.push(format!("qemu-system-x86_64 -m 1G -drive 'file={uri},format=raw,if=virtio{access}'"));
        }
        lines
    }
}

/// A client of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportClient {
    /// Where from.
    pub peer: String,
    /// Since when. Seconds since 1970.
    pub since: u64,
    /// Whether it speaks TLS.
    pub is_encrypted: bool,
}

/// A long operation of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLine {
    /// Its number.
    pub id: u64,
    /// What it does: `flatten rbd/a`.
    pub command: String,
    /// Where it stands.
    pub state: JobState,
    /// Whether it begins nothing more until it is resumed.
    pub is_paused: bool,
    /// How far its step is.
    pub percent: Option<u8>,
    /// How far a copy is.
    pub copy: Option<CopyProgress>,
    /// When it began. Seconds since 1970.
    pub started: u64,
}

/// How far a copy is. Bytes are those of objects that may hold something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes there are.
    pub total_bytes: u64,
    /// Bytes in a second, over the last seconds.
    pub bytes_per_second: u64,
    /// Seconds left at that rate; `None` while nothing moves.
    pub seconds_left: Option<u64>,
    /// Bytes in a second that it may copy, where that is limited.
    pub rate_limit: Option<u64>,
    /// Objects that it copies at once, where that was said.
    pub in_flight: Option<usize>,
}

impl fmt::Display for CopyProgress {
    /// `115 MiB of 256 MiB, 48 MiB/s (at most 50 MiB/s, 2 objects at once), 3 s left`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u64| format_size(bytes);
        let (done, total) = (size(self.done_bytes), size(self.total_bytes));
        write!(f, "{done} of {total}, {}/s", size(self.bytes_per_second))?;
        let rate = self.rate_limit.map(|rate| format!("at most {}/s", size(rate)));
        let objects = self.in_flight.map(|objects| format!("{objects} objects at once"));
        let limits: Vec<String> = rate.into_iter().chain(objects).collect();
        if !limits.is_empty() {
            write!(f, " ({})", limits.join(", "))?;
        }
        self.seconds_left.map_or(Ok(()), |seconds| write!(f, ", {seconds} s left"))
    }
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// It runs.
    Running,
    /// It ended well.
    Done,
    /// It failed, and why.
    Failed(String),
    /// It was asked to end.
    Cancelled,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolListing {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: i64,
    /// The store it lives in.
    pub store: String,
    /// What can be done with it.
    pub state: PoolState,
}

/// What can be done with a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolState {
    /// Everything.
    ReadWrite,
    /// Writes are refused.
    ReadOnly,
    /// Its store cannot be opened: why.
    Unavailable(String),
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatistics {
    /// Images.
    pub images: u64,
    /// Their size, or that of their largest snapshot.
    pub provisioned: u64,
    /// Their snapshots.
    pub snaps: u64,
    /// Images in the trash.
    pub trash_images: u64,
    /// Their size.
    pub trash_provisioned: u64,
    /// Their snapshots.
    pub trash_snaps: u64,
}

/// A parent as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentInfo {
    /// Pool's name.
    pub pool: String,
    /// Namespace.
    pub namespace: String,
    /// Image's name.
    pub image: String,
    /// Image's id.
    pub id: String,
    /// Snapshot's name.
    pub snap: String,
    /// Whether the image is in the trash.
    pub in_trash: bool,
    /// How much of the clone still may read there.
    pub overlap: u64,
}

/// A line of a long listing: an image or a snapshot of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedImage {
    /// Image's name.
    pub image: String,
    /// Image's id; empty for format 1.
    pub id: String,
    /// Image format: 1 or 2.
    pub format: u8,
    /// For a snapshot: name and id.
    pub snap: Option<(String, u64)>,
    /// Size.
    pub size: u64,
    /// Parent, if it has one.
    pub parent: Option<ParentInfo>,
    /// For a snapshot: whether it is protected.
    pub protected: bool,
    /// For an image: how it is locked, `exclusive` or `shared`.
    pub lock: Option<String>,
}

/// Striping, where it is not plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Striping {
    /// Bytes.
    pub unit: u64,
    /// Objects.
    pub count: u64,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its name; `None` where it was opened by id.
    pub name: Option<String>,
    /// Its id; empty for format 1.
    pub id: String,
    /// Image format: 1 or 2.
    pub format: u8,
    /// Size.
    pub size: u64,
    /// Objects it may have.
    pub objects: u64,
    /// Objects are two to this power bytes.
    pub order: u8,
    /// Bytes of an object.
    pub object_size: u64,
    /// The pool of the data, where it is another one.
    pub data_pool: Option<String>,
    /// Snapshots.
    pub snapshot_count: u64,
    /// What the names of its objects begin with.
    pub block_name_prefix: String,
    /// Names of features.
    pub features: Vec<String>,
    /// Names of operation features.
    pub op_features: Vec<String>,
    /// Names of flags.
    pub flags: Vec<String>,
    /// Made at.
    pub created: u64,
    /// Read at.
    pub accessed: u64,
    /// Written at.
    pub modified: u64,
    /// For a snapshot: whether it is protected.
    pub protected: Option<bool>,
    /// How many snapshots there may be.
    pub snapshot_limit: Option<u64>,
    /// Parent.
    pub parent: Option<ParentInfo>,
    /// Striping.
    pub striping: Option<Striping>,
}

/// One who uses an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatcherLine {
    /// Where from.
    pub address: String,
    /// Who.
    pub client: u64,
    /// Which watch.
    pub cookie: u64,
}

/// An image at one end of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationEnd {
    /// Pool's name.
    pub pool: String,
    /// Namespace.
    pub namespace: String,
    /// Image's name.
    pub image: String,
    /// Image's id.
    pub id: String,
}

/// Where a migration comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MigrationSource {
    /// Another image.
    Image(MigrationEnd),
    /// Something foreign: its source spec.
    Spec(String),
}

/// A migration under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// From.
    pub source: MigrationSource,
    /// To.
    pub target: MigrationEnd,
    /// State.
    pub state: String,
    /// How far.
    pub description: String,
}

/// Who uses an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// Watchers.
    pub watchers: Vec<WatcherLine>,
    /// A migration under way.
    pub migration: Option<Migration>,
}

/// A row of usage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Image's name.
    pub image: String,
    /// Image's id.
    pub id: String,
    /// For a snapshot: name and id.
    pub snap: Option<(String, u64)>,
    /// Size.
    pub provisioned: u64,
    /// Bytes that are stored.
    pub used: u64,
}

/// Space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Images and snapshots.
    pub rows: Vec<UsageRow>,
    /// Sum of sizes.
    pub total_provisioned: u64,
    /// Sum of bytes stored.
    pub total_used: u64,
    /// Snapshots and images counted, also those merged into one row.
    pub counted: u64,
    /// Whether the whole pool was asked for.
    pub whole_pool: bool,
    /// Whether the pool holds any image.
    pub any_image: bool,
}

/// What a snapshot is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapNamespace {
    /// A user made it.
    User,
    /// It belongs to a group.
    Group,
    /// It was removed while it has clones.
    Trash {
        /// Its old name.
        original_name: String,
    },
    /// It belongs to mirroring.
    Mirror,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedSnap {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Size then.
    pub size: u64,
    /// Whether it is protected.
    pub protected: bool,
    /// Made at.
    pub created: u64,
    /// What for.
    pub namespace: SnapNamespace,
}

/// A clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChildImage {
    /// Pool's name.
    pub pool: String,
    /// Namespace.
    pub namespace: String,
    /// Image's name.
    pub image: String,
    /// Image's id.
    pub id: String,
    /// Whether it is in the trash.
    pub in_trash: bool,
}

/// An entry of the trash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashEntry {
    /// Image's id.
    pub id: String,
    /// Its old name.
    pub name: String,
    /// `USER`, `MIGRATION`, …
    pub source: String,
    /// Put there at.
    pub deleted_at: u64,
    /// Safe until.
    pub deferred_until: u64,
    /// Parent.
    pub parent: Option<ParentInfo>,
}

/// Whose settings are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SettingsOwner {
    /// Everybody's: only those that are set, with their section.
    Global,
    /// A pool's: all, with where the value comes from.
    Pool,
    /// An image's: all, with where the value comes from.
    Image,
}

/// A setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
    /// Where it comes from.
    pub source: String,
}

/// A changed extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffExtent {
    /// From the start of the image.
    pub offset: u64,
    /// Length.
    pub length: u64,
    /// Whether it holds data now.
    pub exists: bool,
}

/// One who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// The lock's cookie.
    pub id: String,
    /// Who.
    pub client: u64,
    /// Where from.
    pub address: String,
}

/// Locks of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockList {
    /// Holders.
    pub holders: Vec<LockHolder>,
    /// Tag, where the lock is shared.
    pub shared_tag: Option<String>,
}

/// A second of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// Since the start.
    pub seconds: u64,
    /// Requests since the start.
    pub ops: u64,
    /// Requests in a second, lately.
    pub ops_per_second: f64,
    /// Bytes in a second, lately.
    pub bytes_per_second: f64,
}

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchResult {
    /// All of it.
    pub whole: BenchRow,
    /// Where reads and writes were mixed: the reads and the writes.
    pub parts: Option<(BenchRow, BenchRow)>,
}

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The store.
    pub store: String,
    /// Facts, named and counted.
    pub counts: Vec<(String, u64)>,
    /// What is damaged, a line each.
    pub damage: Vec<String>,
}
