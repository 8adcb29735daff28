//! Namespaces of a pool.

use ferry_core::ErrorKind;

use super::{Run, failed};
use crate::api::{Done, Failure, NamespaceCommand, Response};

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn namespace_command(&self, command: NamespaceCommand) -> Done<Response> {
        match command {
            NamespaceCommand::Create(spec) => {
                let pool = self.whole_pool(&spec.pool).await?;
                pool.create_namespace(&spec.namespace).await.map_err(failed(
                    format!("cannot make namespace {spec}"),
                    "rbd: failed to created namespace",
                ))?;
                Ok(Response::Done)
            }
            NamespaceCommand::List { pool: name } => {
                let pool = self.whole_pool(&name).await?;
                let what = format!("cannot list the namespaces of {name}");
                let names =
                    pool.namespaces().await.map_err(failed(what, "rbd: failed to list namespaces"))?;
                Ok(Response::Namespaces(names.iter().map(|n| n.as_str().to_owned()).collect()))
            }
            NamespaceCommand::Remove(spec) => {
                let pool = self.whole_pool(&spec.pool).await?;
                pool.remove_namespace(&spec.namespace).await.map_err(|e| {
                    let what = format!("cannot remove namespace {spec}");
                    let failure = Failure::of(&e, what, "rbd: failed to remove namespace");
                    if e.kind() == ErrorKind::Busy {
                        failure
                            .lines(["rbd: namespace contains images which must be deleted first."])
                            .advise(format!(
                                "nothing was removed; `ferry ls {spec}` and `ferry trash ls --all {spec}` list them"
                            ))
                    } else if e.kind() == ErrorKind::NotFound {
                        failure.lines(["rbd: namespace does not exist."])
                    } else {
                        failure
                    }
                })?;
                Ok(Response::Done)
            }
        }
    }
}
