//! An image's own keys and values: image-meta.

use ferry_core::ErrorKind;
use ferry_image::header::Opening;
use ferry_image::metadata;

use super::{Run, failed};
use crate::api::{Done, Failure, MetaCommand, Response};

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn meta_command(&self, command: MetaCommand) -> Done<Response> {
        match command {
            MetaCommand::Set { image, key, value } => {
                let mut opened = self.open(&image, Opening::ReadWrite).await?;
                let what = format!("cannot set {key} of {image}");
                metadata::set(&mut opened, &key, value.as_bytes())
                    .await
                    .map_err(failed(what, "rbd: setting metadata failed"))?;
                self.close(opened).await?;
                Ok(Response::Done)
            }
            MetaCommand::Get { image, key } => {
                let opened = self.open(&image, Opening::ReadOnly).await?;
                let value = metadata::get(&opened, &key).map_err(|e| {
                    let what = format!("cannot read {key} of {image}");
                    Failure::of(&e, what, "rbd: getting metadata failed")
                        .after(format!("failed to get metadata {key} of image : {}", e.errno()))
                        .advise(format!("`ferry image-meta ls {image}` lists the keys there are"))
                })?;
                Ok(Response::Value(String::from_utf8_lossy(&value).into_owned()))
            }
            MetaCommand::List { image } => {
                let opened = self.open(&image, Opening::ReadOnly).await?;
                let pairs = opened.header.metadata.iter();
                Ok(Response::Meta(
                    pairs.map(|(k, v)| (k.clone(), String::from_utf8_lossy(v).into_owned())).collect(),
                ))
            }
            MetaCommand::Remove { image, key } => {
                let mut opened = self.open(&image, Opening::ReadWrite).await?;
                metadata::remove(&mut opened, &key).await.map_err(|e| {
                    let what = format!("cannot remove {key} of {image}");
                    let failure = Failure::of(&e, what, "rbd: removing metadata failed");
                    if e.kind() == ErrorKind::NotFound {
                        failure.after(format!("rbd: no existing metadata key {key} of image : {}", e.errno()))
                    } else {
                        failure
                    }
                })?;
                self.close(opened).await?;
                Ok(Response::Done)
            }
        }
    }
}
