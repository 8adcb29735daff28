//! What the clients of an image tell each other, as it happens.

use std::pin::pin;

use bytes::Bytes;
use ferry_core::watch::{Notification, WatchEvent};
use ferry_core::{Error, ErrorKind};
use ferry_image::encoding::Message;
use ferry_image::header::Opening;
use futures_util::future::{Either, select};

use super::{Run, failed};
use crate::api::{Done, Response};
use crate::spec::ImageSpec;

impl Run<'_> {
    /// Tells of every message until the command is asked to end.
    pub(super) async fn watch(&self, spec: &ImageSpec) -> Done<Response> {
        let cannot = || failed(format!("cannot watch image {spec}"), "rbd: watch failed");
        let image = self.open(spec, Opening::ReadOnly).await?;
        let watch = image.pool.store.watch(&image.header_object()).await.map_err(cannot())?;
        self.events.say("press enter to exit...");
        let mut number = 0_u64;
        loop {
            match select(pin!(watch.next()), pin!(self.cancel.asked())).await {
                Either::Left((WatchEvent::Notify(notification), _)) => {
                    number += 1;
                    self.events.say(&line(&image.name, number, watch.handle.0, &notification));
                    // Nobody waits for more from one who only listens.
                    notification.answer(Bytes::new());
                }
                Either::Left((WatchEvent::Lost, _)) => {
                    let error = Error::new(ErrorKind::Fenced, "the watch on the image was lost");
                    return Err(cannot()(error));
                }
                Either::Right(_) => return Ok(Response::Done),
            }
        }
    }
}

/// A message in the words of `rbd`. The number is the how-manieth this is, as a store does not tell the message's own.
fn line(image: &str, number: u64, cookie: u64, notification: &Notification) -> String {
    let (client, length) = (notification.notifier.0, notification.payload.len());
    let what = match Message::decode(&notification.payload) {
        Ok(message) => {
            // The name of the message, without what it carries.
            let text = format!("{message:?}");
            text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
        }
        Err(_) => "unknown".to_owned(),
    };
    format!(
        "{image} received notification: notify_id={number}, cookie={cookie}, notifier_id={client}, \
         bl.length={length}, notify_op={what}"
    )
}
