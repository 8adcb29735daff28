//! Corner cases through libnbd's shell.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use ferry_core::{BlockDevice, DeviceExtent, Reply};
use ferry_serve::context::{MetaContext, Status};
use ferry_serve::export::Export;
use ferry_serve::nbd::{Demand, Security, Tls};
use ferry_serve::testing::MemoryDevice;

use crate::world::World;

const MIB: u64 = 1 << 20;

/// Says what the scripts have in common: the export, and that something fails in a certain way.
const COMMON: &str = "
import errno
def fails(number, what, *arguments):
    try:
        what(*arguments)
    except nbd.Error as e:
        assert e.errnum == number, (e.errnum, number, e.string)
    else:
        raise AssertionError('it did not fail')
";

/// Runs a script in libnbd's shell, with `uri` being that of the export `a`.
fn shell(uri: &str, script: &str) {
    let script = format!("{COMMON}\nuri = '{uri}'\n{script}");
    // The shell belongs to the system's Python, whatever else is there.
    let output = Command::new("timeout")
        .args(["60", "nbdsh", "-n", "-c", "h = nbd.NBD()", "-c", &script])
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn world() -> (World, Arc<MemoryDevice>) {
    let world = World::new();
    let device = world.add("a", MemoryDevice::new(40 * MIB));
    (world, device)
}

#[test]
fn libnbd_finds_all_that_is_promised() {
    let (world, device) = world();
    shell(
        &world.uri("a"),
        "
h.add_meta_context('base:allocation')
h.connect_uri(uri)
assert h.get_structured_replies_negotiated()
for can in [h.can_fua, h.can_flush, h.can_df, h.can_trim, h.can_zero, h.can_fast_zero, h.can_cache, h.can_multi_conn]:
    assert can()
assert not h.is_read_only() and not h.is_rotational()
assert h.get_size() == 40 << 20
h.pwrite(b'x' * 4096, 8192, nbd.CMD_FLAG_FUA)
h.pwrite(b'y' * (5 << 20), 10 << 20)
h.flush()
chunks = []
def chunk(data, offset, status, error):
    chunks.append((offset, len(data), status))
assert h.pread_structured(4096, 8192, chunk) == b'x' * 4096
assert chunks == [(8192, 4096, nbd.READ_DATA)]
chunks.clear()
assert h.pread_structured(65536, 1 << 20, chunk) == bytes(65536)
assert chunks == [(1 << 20, 65536, nbd.READ_HOLE)]
chunks.clear()
assert h.pread_structured(32 << 20, 0, chunk) == bytes(8192) + b'x' * 4096 + bytes((10 << 20) - 12288) + b'y' * (5 << 20) + bytes(17 << 20)
assert len(chunks) > 1 and sum(c[1] for c in chunks) == 32 << 20
chunks.clear()
assert len(h.pread_structured(32 << 20, 0, chunk, nbd.CMD_FLAG_DF)) == 32 << 20
assert chunks == [(0, 32 << 20, nbd.READ_DATA)]
extents = []
def extent(context, offset, entries, error):
    assert context == 'base:allocation'
    extents.append((offset, entries))
h.block_status(40 << 20, 0, extent)
assert extents == [(0, [8192, 3, 4096, 0, (10 << 20) - 12288, 3, 5 << 20, 0, 25 << 20, 3])], extents
extents.clear()
h.block_status(39 << 20, 9000, extent, nbd.CMD_FLAG_REQ_ONE)
assert extents == [(9000, [3288, 0])], extents
h.zero(8192, 10 << 20, nbd.CMD_FLAG_FAST_ZERO)
h.zero(8192, (10 << 20) + 8192, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(1 << 20, 12 << 20)
h.cache(32 << 20, 0)
assert h.pread(16384, 10 << 20) == bytes(16384)
assert h.pread(3, (10 << 20) + 16383) == b'\\0yy'
h.shutdown()
",
    );
    assert_eq!(device.stored(), 5 * MIB - 16384 - MIB + 4096);
}

#[test]
fn libnbd_is_told_what_goes_wrong_and_goes_on() {
    let (world, device) = world();
    world.add("r", MemoryDevice::new(MIB).filled(1).read_only());
    device.bad_byte.store(3 * MIB, Ordering::SeqCst);
    for structured in ["True", "False"] {
        shell(
            &world.uri("a"),
            &format!(
                "
h.set_strict_mode(0)
h.set_request_structured_replies({structured})
h.connect_uri(uri)
end = 40 << 20
for i in range(3):
    fails(errno.EIO, h.pread, 4096, (3 << 20) - 100)
    fails(errno.EIO, h.pwrite, b'z' * 4096, (3 << 20) - 100)
    fails(errno.EIO, h.pwrite, b'z' * (4 << 20), 1 << 20)
    fails(errno.EINVAL, h.pread, 2, end - 1)
    fails(errno.ENOSPC, h.pwrite, b'zz', end - 1)
    fails(errno.ENOSPC, h.pwrite, b'z' * (2 << 20), end - (1 << 20))
    fails(errno.ENOSPC, h.zero, 2, end - 1)
    fails(errno.EINVAL, h.trim, 2, end - 1)
    fails(errno.EINVAL, h.cache, 2, end - 1)
    fails(errno.EINVAL, h.flush, 1 << 15)
    h.flush()
    assert h.pread(4096, 0) == bytes(4096)
if {structured}:
    try:
        h.pread(4096, (3 << 20) - 100)
    except nbd.Error as e:
        assert e.errnum == errno.EIO
r = nbd.NBD()
r.set_strict_mode(0)
r.set_request_structured_replies({structured})
r.connect_uri(uri.replace('/a?', '/r?'))
assert r.is_read_only()
fails(errno.EPERM, r.pwrite, b'z' * 4096, 0)
fails(errno.EPERM, r.zero, 4096, 0)
fails(errno.EPERM, r.trim, 4096, 0)
r.flush()
assert len(r.pread(4096, 0)) == 4096
"
            ),
        );
    }
}

#[test]
fn libnbd_negotiates_at_length() {
    let (world, _) = world();
    world.add("b", MemoryDevice::new(MIB));
    shell(
        &world.uri("a"),
        "
h.set_opt_mode(True)
h.connect_uri(uri)
names = []
h.opt_list(lambda name, text: names.append(name))
assert names == ['a', 'b'], names
h.set_export_name('no')
fails(errno.ENOENT, h.opt_info)
fails(errno.ENOENT, h.opt_go)
contexts = []
h.set_export_name('b')
h.add_meta_context('base:')
h.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ['base:allocation'], contexts
h.clear_meta_contexts()
h.add_meta_context('base:allocation')
h.add_meta_context('x:none')
h.set_full_info(True)
h.opt_info()
assert h.get_size() == 1 << 20
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
h.set_export_name('a')
h.opt_go()
assert h.get_size() == 40 << 20 and h.get_canonical_export_name() == 'a'
assert h.can_meta_context('base:allocation') and not h.can_meta_context('x:none')
h.shutdown()
o = nbd.NBD()
o.set_opt_mode(True)
o.connect_uri(uri)
o.opt_abort()
",
    );
}

#[test]
fn libnbd_keeps_many_requests_on_many_connections_under_way() {
    let (world, device) = world();
    for is_late in [false, true] {
        device.is_late.store(is_late, Ordering::SeqCst);
        shell(
            &world.uri("a"),
            "
import random
random.seed(5)
size = 40 << 20
model = bytearray(size)
hs = [h] + [nbd.NBD() for i in range(3)]
for x in hs:
    x.connect_uri(uri)
h.zero(size, 0)
for round in range(12):
    # No two of a round overlap.
    slots = random.sample(range(160), 100)
    under_way, reads = [], []
    for slot in slots:
        x = random.choice(hs)
        at = slot * (size // 160) + random.randrange(5000)
        length = random.choice([1, 511, 4096, 70000, 200000])
        kind = random.choice(['write', 'write', 'read', 'zero', 'fua'])
        if kind in ('write', 'fua'):
            data = bytes([random.randrange(256)]) * length
            model[at:at + length] = data
            under_way.append((x, x.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at, flags=nbd.CMD_FLAG_FUA if kind == 'fua' else 0)))
        elif kind == 'zero':
            model[at:at + length] = bytes(length)
            under_way.append((x, x.aio_zero(length, at)))
        else:
            buffer = nbd.Buffer(length)
            reads.append((buffer, bytes(model[at:at + length])))
            under_way.append((x, x.aio_pread(buffer, at)))
    for x, cookie in under_way:
        while not x.aio_command_completed(cookie):
            x.poll(-1)
    for buffer, expected in reads:
        assert buffer.to_bytearray() == expected
for at in range(0, size, 8 << 20):
    assert hs[1].pread(8 << 20, at) == model[at:at + (8 << 20)]
",
        );
    }
}

/// Says that every other block of 64 KiB changed.
#[derive(Debug)]
struct Striped;

impl MetaContext for Striped {
    fn name(&self) -> &str {
        "ferry:changed/s1"
    }

    fn status(&self, offset: u64, length: u64) -> Reply<Vec<Status>> {
        let (mut at, end, mut parts) = (offset, offset + length, Vec::new());
        while at < end {
            let next = (((at >> 16) + 1) << 16).min(end);
            parts.push(Status { length: next - at, flags: u32::from((at >> 16) & 1 == 1) });
            at = next;
        }
        Reply::ready(Ok(parts))
    }
}

#[test]
fn an_export_answers_contexts_of_its_own() {
    let world = World::new();
    let device = Arc::new(MemoryDevice::new(MIB));
    let striped: Vec<Arc<dyn MetaContext>> = vec![Arc::new(Striped)];
    let export = Export::new("a", "", device as _, false).answering(Arc::new(striped));
    world.exports.add(export).unwrap();
    shell(
        &world.uri("a"),
        "
h.add_meta_context('base:allocation')
h.add_meta_context('ferry:changed/s1')
h.connect_uri(uri)
said = {}
h.block_status(200000, 1000, lambda context, offset, entries, error: said.update({context: entries}))
assert said == {'base:allocation': [200000, 3], 'ferry:changed/s1': [64536, 0, 65536, 1, 65536, 0, 4392, 1]}, said
",
    );
}

/// A device whose writes fail for want of room, and whose owner lost it.
#[derive(Debug)]
struct Failing;

impl BlockDevice for Failing {
    fn size(&self) -> u64 {
        MIB
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, _: u64, _: u64) -> Reply<Bytes> {
        Reply::ready(Err(ferry_core::Error::new(
            ferry_core::ErrorKind::Fenced,
            "another client took the image",
        )))
    }
    fn write(&self, _: u64, _: Bytes) -> Reply<()> {
        Reply::ready(Err(ferry_core::Error::new(ferry_core::ErrorKind::NoSpace, "the store is full")))
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Reply<()> {
        Reply::ready(Err(ferry_core::Error::unsupported("not here")))
    }
    fn discard(&self, _: u64, _: u64) -> Reply<()> {
        Reply::ready(Err(ferry_core::Error::new(ferry_core::ErrorKind::Denied, "no right")))
    }
    fn flush(&self) -> Reply<()> {
        Reply::ready(Err(ferry_core::Error::new(ferry_core::ErrorKind::Poisoned, "a sync failed")))
    }
    fn extents(&self, offset: u64, _: u64) -> Reply<Vec<DeviceExtent>> {
        Reply::ready(Ok(vec![DeviceExtent { offset, length: 0, state: ferry_core::ExtentState::Data }]))
    }
}

#[test]
fn failures_of_the_device_keep_their_meaning() {
    let world = World::new();
    world.exports.add(Export::new("a", "", Arc::new(Failing), false)).unwrap();
    shell(
        &world.uri("a"),
        "
h.add_meta_context('base:allocation')
h.connect_uri(uri)
fails(errno.ESHUTDOWN, h.pread, 1, 0)
fails(errno.ENOSPC, h.pwrite, b'x', 0)
fails(errno.EOPNOTSUPP, h.zero, 1, 0)
fails(errno.EPERM, h.trim, 1, 0)
fails(errno.EIO, h.flush)
fails(errno.EIO, h.block_status, 4096, 0, lambda *a: 0)
fails(errno.ENOSPC, h.pwrite, b'x' * 300000, 0)
",
    );
}

#[test]
fn libnbd_encrypts_large_and_small_requests() {
    let (world, device) = world();
    let keys = world.file("keys.psk");
    std::fs::write(&keys, format!("alice:{}\n", "5a".repeat(32))).unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
    let tls = Security::Tls(Arc::new(Tls::from_key_file(&keys).unwrap()), Demand::Required);
    let socket = world.file("tls");
    world.server.listen_unix(&socket, tls).unwrap();
    shell(
        &format!("nbds+unix://alice@/a?socket={}&tls-psk-file={}", socket.display(), keys.display()),
        "
h.set_uri_allow_local_file(True)
h.connect_uri(uri)
assert h.get_tls_negotiated()
for i in range(300):
    h.pwrite(bytes([i % 251 + 1]) * 4096, i * 4096)
under_way = [h.aio_pread(nbd.Buffer(4096), i * 4096) for i in range(300)]
for cookie in under_way:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
data = bytes(range(1, 251)) * (32 << 20 >> 8)
h.pwrite(data, 4 << 20)
assert h.pread(len(data), 4 << 20) == data
assert h.pread(4096, 299 * 4096) == bytes([49]) * 4096
h.flush()
h.shutdown()
",
    );
    assert!(world.server.traffic().counts(ferry_serve::traffic::Sort::Write).requests >= 301);
    assert_eq!(device.contents()[4096], 2);
}
