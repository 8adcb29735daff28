//! What can be asked of ferry and what comes back: typed, serialisable, without a word of the command line in it.
//!
//! A command is parsed once into a [`Request`]. Its files never appear in it: whoever parses opens them and hands them over
//! as [`Streams`], so that a command can be executed by another process with the same meaning. What happens meanwhile
//! is told through [`Events`]; the end is a [`Response`] or a [`Failure`].

mod command;
mod events;
mod failure;
mod places;
mod response;

pub use command::{
    BenchPattern, BenchType, CloneCommand, Cluster, ClusterPools, Command, ConfigAction, ConfigLevel, Detail,
    DeviceCommand, ExportCommand, ExportFormat, FeatureChange, ImageBy, ImageCommand, ImageRef, ImportSource,
    JobCommand, LayoutOptions, LockCommand, Manner, MapOptions, MappedBy, MetaCommand, MigrationCommand,
    NamespaceCommand, NbdListen, NbdOffer, NbdOptions, ObjectMapCommand, PoolAccess, PoolCommand, Request,
    SnapBy, SnapCommand, SnapScope, SpecText, TlsFiles, TransferCommand, TrashCommand, TrashScope,
    UsageCommand,
};
pub use events::{Event, Events, Hears, Outcome, Progress, Streams};
pub use failure::{Done, Failure};
pub use response::{
    BenchResult, BenchRow, CheckReport, ChildImage, CopyProgress, DeviceLine, DiffExtent, ExportClient,
    ExportLine, ImageInfo, ImageStatus, JobLine, JobState, ListedImage, ListedSnap, LockHolder, LockList,
    Migration, MigrationEnd, MigrationSource, ParentInfo, PoolListing, PoolState, PoolStatistics, Response,
    Setting, SettingsOwner, SnapNamespace, Striping, TrashEntry, Usage, UsageRow, WatcherLine,
};
