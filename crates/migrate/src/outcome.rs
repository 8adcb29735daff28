//! What became of a migration that was under way before, told from what is there of its two ends.

use ferry_core::Result;
use ferry_image::encoding::MigrationState;
use ferry_image::trash;

use crate::ends::End;

/// What became of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has not ended; the target says so, or, where that is not there or says nothing, the source.
    Underway(MigrationState),
    /// The target is a plain image, and nothing is left of the source.
    Committed,
    /// Nothing is left of the target, and the source, where it is an image, is a plain one.
    Aborted,
    /// Neither: an end was removed or changed by something else.
    Unknown,
}

/// Looks at the ends of the migration `uuid` (the one of both notes; `None` where another program prepared it). An import has no
/// source. Of `source` and `target` only pool, name and id are used.
///
/// # Errors
/// Those of the stores.
pub async fn outcome(uuid: Option<[u8; 16]>, source: Option<&End>, target: &End) -> Result<Outcome> {
    let target = Left::of(target, uuid).await?;
    let source = match source {
        Some(end) => Some(Left::of(end, uuid).await?),
        None => None,
    };
    Ok(match (&source, &target) {
        (_, Left::Bears(state)) | (Some(Left::Bears(state)), _) => Outcome::Underway(*state),
        (None | Some(Left::Nothing), Left::Plain) => Outcome::Committed,
        (None | Some(Left::Plain), Left::Nothing) => Outcome::Aborted,
        (Some(Left::Plain), Left::Plain) | (Some(Left::Nothing), Left::Nothing) => Outcome::Unknown,
    })
}

/// What is left of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// An image that is an end of the migration yet, or remains of one.
    Bears(MigrationState),
    /// An image that has nothing to do with it any more.
    Plain,
    /// Neither header nor name nor entry in the trash.
    Nothing,
}

impl Left {
    async fn of(end: &End, uuid: Option<[u8; 16]>) -> Result<Self> {
        let mut end = end.clone();
        end.reload().await?;
        let Some(header) = &end.header else {
            let has_remains = trash::get(&end.pool, &end.id).await?.is_some()
                || end.pool.image_name(&end.id).await?.is_some()
                || end.pool.read_id(&end.name).await?.as_ref() == Some(&end.id);
            return Ok(if has_remains { Self::Bears(MigrationState::Error) } else { Self::Nothing });
        };
        // A note tells which migration it is; without one the record is that of the only one there can be.
        let bears = match &header.intent {
            Some(intent) => Some(intent.uuid) == uuid,
            None => uuid.is_none() && header.migration.is_some(),
        };
        let state = end.state().unwrap_or(MigrationState::Error);
        Ok(if bears { Self::Bears(state) } else { Self::Plain })
    }
}
