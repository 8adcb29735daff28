//! Advisory locks: add, ls, rm.

use ferry_core::lock::LockKind;
use ferry_core::{ClientId, Errno, ErrorKind};
use ferry_image::header::Opening;
use ferry_image::status;

use super::{Run, failed};
use crate::api::{Done, Failure, LockCommand, LockHolder, LockList, Response};
use crate::spec::ImageSpec;

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn lock_command(&self, spec: &ImageSpec, action: LockCommand) -> Done<Response> {
        // Opened to be read: opening to write would take the lock that is asked about.
        let image = self.open(spec, Opening::ReadOnly).await?;
        match action {
            LockCommand::Add { id, shared } => {
                status::lock_add(&image, &id, shared.as_deref()).await.map_err(|e| {
                    let failure =
                        Failure::of(&e, format!("cannot lock image {spec}"), "rbd: taking lock failed");
                    if !matches!(e.kind(), ErrorKind::Busy | ErrorKind::Exists) {
                        return failure;
                    }
                    let tag = if shared.is_some() { " with a different tag" } else { "" };
                    failure
                        .lines([format!("rbd: lock is already held by someone else{tag}")])
                        .advise(format!("`ferry lock ls {spec}` tells who holds it"))
                })?;
                Ok(Response::Done)
            }
            LockCommand::List => {
                let locks = status::lockers(&image).await;
                let locks = locks.map_err(failed(
                    format!("cannot list the locks of {spec}"),
                    "rbd: listing locks failed",
                ))?;
                let holders = locks.lockers.into_iter().map(|l| LockHolder {
                    id: l.cookie,
                    client: l.client.0,
                    address: l.address,
                });
                Ok(Response::Locks(LockList {
                    holders: holders.collect(),
                    shared_tag: (locks.kind == LockKind::Shared).then_some(locks.tag),
                }))
            }
            LockCommand::Remove { id, locker } => {
                let number = locker.strip_prefix("client.").and_then(|n| n.parse().ok());
                let client = number.map(ClientId).ok_or_else(|| {
                    Failure::plain(Errno::EINVAL, format!("releasing lock failed: {}", Errno::EINVAL)).advise(
                        format!("a holder is named client.NUMBER, as `ferry lock ls {spec}` shows it"),
                    )
                })?;
                let what = format!("cannot take lock {id} of {spec} from {locker}");
                let removed = status::lock_remove(&image, &id, client).await;
                removed.map_err(failed(what, "rbd: releasing lock failed"))?;
                Ok(Response::Done)
            }
        }
    }
}
