//! Sizes and counts that bound what a client can make the server do, and why they are what they are.

use std::time::Duration;

/// Largest payload of a request. What QEMU and the other servers take. Bytes.
pub const PAYLOAD_MAX: u32 = 32 << 20;
/// Advertised as the size that requests had best be multiples of: the engine's block. Bytes.
pub const BLOCK_PREFERRED: u32 = 4096;
/// Longest name the protocol allows: of exports, of contexts. Bytes.
pub const NAME_MAX: u32 = 4096;
/// Longest data of an option that is taken in; longer ones are skipped and refused. Bytes.
pub const OPTION_DATA_MAX: u32 = 64 << 10;
/// Longest data of an option that is skipped; a client that announces more is cut off. Bytes.
pub const OPTION_SKIP_MAX: u32 = 1 << 20;
/// Options that a client may send, beyond two for each export there is.
pub const OPTIONS_MAX: usize = 1024;
/// Meta contexts that a client may select.
pub const CONTEXTS_MAX: usize = 16;

/// Memory of a connection that has nothing to do, for what comes in. Bytes.
pub(super) const INPUT_MIN: usize = 4 << 10;
/// The same of one that is busy: some thirty writes of 4 KiB in one system call. Bytes.
pub(super) const INPUT_BUSY: usize = 160 << 10;
/// Replies queued before requests wait, where memory is short. Bytes.
pub(super) const OUTPUT_MIN: usize = 64 << 10;
/// The same of a connection that got its share. Bytes.
pub(super) const OUTPUT_BUSY: usize = 256 << 10;
/// What a connection asks the budget for when it gets busy. Bytes.
pub(super) const BUSY_SHARE: usize = INPUT_BUSY + OUTPUT_BUSY;
/// Requests larger than this are served in pieces. Bytes.
pub(super) const WHOLE_MAX: usize = 64 << 10;
/// Pieces that every connection may use, however short memory is. Bytes.
pub(super) const PIECE_MIN: usize = 64 << 10;
/// Pieces where there is memory enough: large enough to go at the device's full speed. Bytes.
pub(super) const PIECE_MAX: usize = 1 << 20;
/// Pieces of a read from memory: read and sent before the next one, out of the same memory, they stay in the processor's own
/// cache. Bytes.
pub(super) const PIECE_HOT: usize = 256 << 10;

/// What a socket of this machine takes in for a client that gets large replies: one as a whole. Bytes.
pub(super) const SEND_ROOM: usize = 1 << 20;
/// The same of other clients: what the system gives a socket by itself. Bytes.
pub(super) const SEND_ROOM_USUAL: usize = 208 << 10;
/// Large reads of one connection that other threads are at, while its own reads and sends in pieces that stay in the
/// processor's cache: with more of them more goes through memory, at more CPU time each.
pub(super) const READS_AHEAD_MAX: usize = 1;
/// Pieces of one connection that are being written at once: one arrives while others are written.
pub(super) const PIECES_UNDER_WAY_MAX: usize = 4;
/// Requests of a connection that the device has not answered yet; more stay in the socket.
pub(super) const PENDING_MAX: usize = 128;
/// Requests of one connection that other threads work on: zeroing of long ranges, read-ahead, long block statuses.
pub(super) const ELSEWHERE_MAX: usize = 4;
/// The same of reads from a slow device: as many as a disk does better at once than one after the other.
pub(super) const READS_ELSEWHERE_MAX: usize = 16;
/// The part of what is left in the budget that one request for memory may get at most: one in so many.
pub(super) const BUDGET_PART: usize = 8;
/// Ranges zeroed or discarded by one call of the device; longer ones go in several. Bytes.
pub(super) const ZERO_PIECE: u64 = 64 << 20;
/// Zeroing and discarding up to this is done at once on the connection's own task. Bytes.
pub(super) const ZERO_INLINE_MAX: u64 = 1 << 20;
/// Range of which the device is asked what it holds in one call. Bytes.
pub(super) const STATUS_STEP: u64 = 32 << 20;
/// Extents after which a reply ends before the range does; the client asks on.
pub(super) const STATUS_EXTENTS: usize = 1024;
/// How long a connection keeps the memory of a busy one without doing anything.
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(3);
/// A flush that took less than this last time is done on the connection's own task, if nobody waits behind it:
/// handing it over costs about 50 microseconds.
pub(super) const FLUSH_INLINE_MAX: Duration = Duration::from_millis(1);

/// Longest negotiation, unless told otherwise.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a stop waits for clients that do not take their replies, unless told otherwise.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once, unless told otherwise. An idle one costs about 10 KiB.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Bytes of requests in flight of all connections, unless told otherwise.
pub const BUDGET_BYTES: usize = 48 << 20;
/// The same of a device of this machine's kernel, which has one connection. Bytes.
pub(super) const INSIDE_BYTES: usize = 16 << 20;
/// When a TCP peer that says nothing is asked whether it is there, and how often.
pub(super) const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// See [`KEEPALIVE_IDLE`].
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// See [`KEEPALIVE_IDLE`]: gone after 10 + 3 × 5 seconds.
pub(super) const KEEPALIVE_COUNT: u32 = 3;
/// How long sent bytes may stay unacknowledged by a TCP peer.
pub(super) const USER_TIMEOUT: Duration = Duration::from_secs(25);
