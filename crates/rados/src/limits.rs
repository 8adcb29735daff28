//! Limits of this room, and where each number comes from.

/// How long connecting and commands to the monitors may take. Seconds; long enough for an election, short enough for a
/// person.
pub(crate) const MONITOR_TIMEOUT_SECONDS: u32 = 30;

/// Most I/O contexts kept for reuse. One is some hundred bytes; an image in use needs one per snapshot read and one for
/// its context.
pub(crate) const IO_CONTEXTS_MAX: usize = 512;

/// Most listings that can be continued at once; the oldest is forgotten first.
pub(crate) const LISTINGS_MAX: usize = 64;

/// Longest name or address librados gives back. Bytes.
pub(crate) const NAME_MAX: usize = 4096;

/// Longest a notify waits: what fits the 32 bits of milliseconds it is sent in, and more than anyone waits. Seconds.
pub(crate) const NOTIFY_SECONDS_MAX: u64 = 86_400;

/// Most pages of omap entries read past to get behind a key librados cannot name.
pub(crate) const OMAP_SKIP_MAX: u64 = ferry_core::limits::OMAP_PAGE_MAX as u64;

/// How long a client that lost its lock is not listened to: as `rbd` has it (`mon_osd_blocklist_default_expire`). Seconds.
pub(crate) const BLOCKLIST_SECONDS: u32 = 3600;

/// Most threads that wait for a cluster to say where an object has data: a migration copies ten objects at a time. What is read beyond is
/// read whole.
pub(crate) const EXTENT_THREADS_MAX: usize = 32;

/// Reads longer than this look for where the object has data first. Bytes; those of clients are served in parts of at most this
/// length, and for a short one the second request costs more than holes.
pub(crate) const WHOLE_READ_MAX: u64 = 1 << 20;

/// Holes up to this length are read with the data around them. Bytes; each part of a read costs an OSD as much as some
/// blocks.
pub(crate) const HOLE_READ_MAX: u64 = 16 << 10;

/// How many long objects without holes in a row make an image one that has none, for the time being; then one of so many is looked
/// at.
pub(crate) const FULL_STREAK: usize = 8;

/// From which length on an object is copied inside the cluster. Bytes; below it, what a client copies takes fewer requests and little more.
pub(crate) const COPY_MIN: u64 = 256 << 10;
