//! Compound writes as librados' steps.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_core::{
    Effect, Error, ErrorKind, Guard, ObjectId, ReadOp, Result, SnapId, Stamp, WriteOp, WriteReply,
};

use super::{RadosStore, object_name};
use crate::handle::op::Write;
use crate::handle::{IoCtx, Place, View};

/// How an op is carried out.
pub(super) enum Plan {
    /// Not at all: it does nothing.
    Nothing,
    /// As one compound.
    Steps {
        /// The I/O context it needs.
        view: View,
        /// The compound.
        steps: Write,
        /// What it leaves.
        stamp: Option<Stamp>,
        /// Whether it copies an object.
        copies: bool,
    },
    /// As the one request librados has for it.
    Rollback {
        /// The I/O context it needs.
        view: View,
        /// Where to.
        snap: SnapId,
    },
}

/// How objects that are copied are seen.
type Sources<'a> = &'a dyn Fn(&ObjectId, View) -> Result<Arc<IoCtx>>;

/// Checks an op and puts its steps together.
pub(super) fn plan(object: &ObjectId, op: WriteOp, sources: Sources<'_>) -> Result<Plan> {
    op.check(object)?;
    let applies = op.touches_data();
    let view = match &op.snap_context {
        Some(context) if applies => View::Writing { seq: context.seq, snaps: Arc::clone(&context.snaps) },
        Some(_) | None => View::Head,
    };
    if let Some(Effect::Rollback(snap)) = op.effects.first() {
        return Ok(Plan::Rollback { view, snap: *snap });
    }
    if op.guards.is_empty() && op.effects.iter().all(|e| matches!(e, Effect::Zero { length: 0, .. })) {
        return Ok(Plan::Nothing);
    }
    let (steps, stamp, copies) = (Write::new()?, op.stamp, op.copies());
    add_guards(&steps, &op)?;
    op.effects.into_iter().try_for_each(|effect| add_effect(&steps, effect, sources))?;
    Ok(Plan::Steps { view, steps, stamp, copies })
}

/// Guards first, and before them what librados needs to tell a missing object as the contract does: a version or xattr
/// that is compared on nothing would otherwise pass for 0 or empty.
fn add_guards(steps: &Write, op: &WriteOp) -> Result<()> {
    let exclusive = op.guards.contains(&Guard::CreateExclusive);
    if op
        .guards
        .iter()
        .any(|g| matches!(g, Guard::AssertExists | Guard::AssertVersion(_) | Guard::XattrCompare { .. }))
    {
        steps.assert_exists();
    }
    if op.effects.first() == Some(&Effect::Create) && !exclusive {
        steps.create();
    }
    for guard in &op.guards {
        match guard {
            Guard::CreateExclusive => steps.create_exclusive(),
            Guard::AssertExists => {}
            Guard::AssertVersion(version) => steps.assert_version(*version),
            Guard::OmapCompare { key, value } => steps.compare_omap(key, value),
            Guard::XattrCompare { name, value } => steps.compare_xattr(name, value)?,
        }
    }
    Ok(())
}

fn add_effect(steps: &Write, effect: Effect, sources: Sources<'_>) -> Result<()> {
    match effect {
        Effect::Create => steps.create(),
        Effect::Write { offset, data } => steps.write(offset, &data),
        Effect::WriteFull(data) => steps.write_full(&data),
        // A zero of no bytes fails an assertion in the OSD (16.2.15), and in the next one it is sent to.
        Effect::Zero { length: 0, .. } => {}
        Effect::Zero { offset, length } => steps.zero(offset, length),
        Effect::Truncate(size) => steps.truncate(size),
        Effect::Remove => steps.remove(),
        Effect::Rollback(_) => return Err(Error::invalid("a rollback stands alone in its op")),
        Effect::CopyObject { source, at, .. } => {
            let view = if at == SnapId::HEAD { View::Head } else { View::At(at) };
            steps.copy_from(&*sources(&source, view)?, &object_name(&source)?)?;
        }
        Effect::ShareRange { .. } => {
            return Err(Error::unsupported("sharing ranges of objects in a cluster"));
        }
        Effect::OmapSet(entries) => steps.set_omap(&entries),
        Effect::OmapRemove(keys) => steps.remove_omap(&keys),
        Effect::OmapClear => steps.clear_omap(),
        Effect::XattrSet(name, value) => steps.set_xattr(&name, &value)?,
        Effect::XattrRemove(name) => steps.remove_xattr(&name)?,
    }
    Ok(())
}

/// Whether a copy is refused for what it is: an OSD that may not read of others, or does not know the step. What is wrong with the
/// object itself its bytes meet too, when a client copies them.
fn is_no_copying(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Denied | ErrorKind::Invalid)
}

impl RadosStore {
    /// Sends a compound off.
    pub(super) fn submit_write(
        &self,
        object: &ObjectId,
        view: View,
        (steps, stamp, copies): (Write, Option<Stamp>, bool),
    ) -> Result<impl Future<Output = Result<WriteReply>> + Send + use<>> {
        let io = self.io_of(object, view)?;
        let done =
            steps.submit(&io, &object_name(object)?, stamp.map(Stamp::seconds), "the write was refused")?;
        let (object, copying) = (object.clone(), Arc::clone(&self.copying));
        Ok(async move {
            match done.await {
                Ok(version) => Ok(WriteReply { version }),
                Err(e) if copies && is_no_copying(&e) => {
                    copying.store(false, Ordering::Release);
                    let text = "the cluster copies no objects inside it";
                    Err(Error::unsupported(text).because(e).with("object", object))
                }
                Err(e) => Err(e.with("object", object)),
            }
        })
    }

    /// The version an object has; 0 where it does not exist.
    pub(super) fn version_of(
        &self,
        object: &ObjectId,
    ) -> Result<impl Future<Output = Result<WriteReply>> + Send + use<>> {
        let asked = self.submit_read(object, SnapId::HEAD, ReadOp::stat())?;
        Ok(async move {
            match asked.await {
                Ok(reply) => Ok(WriteReply { version: reply.version }),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(WriteReply { version: 0 }),
                Err(e) => Err(e),
            }
        })
    }

    /// Rolls an object back, waiting on the calling thread.
    pub(super) fn roll_back(&self, object: &ObjectId, view: View, snap: SnapId) -> Result<WriteReply> {
        let place = Place { pool: object.pool, namespace: object.namespace.clone(), view };
        let io = IoCtx::open(&self.cluster, &place)?;
        let version = io.roll_back(&object_name(object)?, snap).map_err(|e| e.with("object", object))?;
        Ok(WriteReply { version })
    }
}
