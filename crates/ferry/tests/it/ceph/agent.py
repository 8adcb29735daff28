"""librbd in one process that lives long and keeps images open: does what lines of JSON ask for, and answers each with one line."""

import json
import sys

import rados
import rbd

conf, pool = sys.argv[1:]
cluster = rados.Rados(conffile=conf)
# Clones of the newer kind: their snapshots need no protection.
cluster.conf_set("rbd_default_clone_format", "2")
cluster.connect()
io = cluster.open_ioctx(pool)
images = rbd.RBD()
opened = {}


def image(name):
    if name not in opened:
        opened[name] = rbd.Image(io, name)
    return opened[name]


def current(name):
    """An open image whose size is what it is now: librbd looks at the size before it looks whether somebody changed it."""
    image(name).size()
    return image(name)


def close(name):
    if name in opened:
        opened.pop(name).close()


def read(name, snap):
    if snap is None:
        whole = image(name)
        return whole.read(0, whole.size())
    with rbd.Image(io, name, snapshot=snap, read_only=True) as at:
        return at.read(0, at.size())


def flags(name, snap):
    """What is wrong with the object map of an image, or of a snapshot of it."""
    if snap is None:
        return str(current(name).flags())
    with rbd.Image(io, name, snapshot=snap, read_only=True) as at:
        return str(at.flags())


def remove(name):
    close(name)
    images.remove(io, name)


def prepare(source, target):
    close(source)
    images.migration_prepare(io, source, io, target)


VERBS = {
    "create": lambda a: images.create(io, a["image"], a["size"], a["order"], old_format=False, features=a["features"]),
    "write": lambda a: current(a["image"]).write(bytes.fromhex(a["data"]), a["offset"]),
    "zero": lambda a: current(a["image"]).write_zeroes(a["offset"], a["length"]),
    "resize": lambda a: image(a["image"]).resize(a["size"]),
    "snap": lambda a: image(a["image"]).create_snap(a["snap"]),
    "snap_rm": lambda a: image(a["image"]).remove_snap(a["snap"]),
    "rollback": lambda a: image(a["image"]).rollback_to_snap(a["snap"]),
    "clone": lambda a: images.clone(io, a["image"], a["snap"], io, a["child"]),
    "flatten": lambda a: image(a["image"]).flatten(),
    "remove": lambda a: remove(a["image"]),
    "rename": lambda a: (close(a["image"]), images.rename(io, a["image"], a["to"])),
    "trash_mv": lambda a: (close(a["image"]), images.trash_move(io, a["image"], 0)),
    "trash_restore": lambda a: images.trash_restore(io, a["id"], a["to"]),
    "close": lambda a: close(a["image"]),
    "read": lambda a: read(a["image"], a.get("snap")).hex(),
    "flags": lambda a: " ".join(flags(a["image"], snap) for snap in [None, *a["snaps"]]),
    "migration_prepare": lambda a: prepare(a["image"], a["target"]),
    "migration_execute": lambda a: images.migration_execute(io, a["image"]),
    "migration_commit": lambda a: (close(a["image"]), images.migration_commit(io, a["image"])),
    "migration_abort": lambda a: (close(a["image"]), images.migration_abort(io, a["image"])),
}

for line in sys.stdin:
    asked = json.loads(line)
    try:
        value = VERBS[asked["verb"]](asked)
        answer = {"value": value if isinstance(value, str) else None}
    except rbd.Error as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
for name in list(opened):
    close(name)
io.close()
cluster.shutdown()
