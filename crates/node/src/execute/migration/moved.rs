//! A migration of either kind: of an image, or an import.

use ferry_core::{ErrorKind, Result};
use ferry_image::device::ImageDevice;
use ferry_image::encoding::MigrationState;
use ferry_image::progress::Progress;
use ferry_migrate::{
    CommitOptions, Comparing, Copied, End, Ends, Finding, Import, Pace, Receipt, Verification, commit,
    commit_import, execute, execute_import, verify, verify_import,
};

use super::receipt::Kept;
use crate::api::{Done, Failure};
use crate::config::Home;
use crate::execute::Run;
use crate::spec::ImageSpec;

/// See the module.
#[derive(Debug)]
pub(super) enum Moved {
    /// An image moves.
    Image(Box<Ends>),
    /// Something else is imported.
    Import(Box<Import>),
}

impl Run<'_> {
    /// The migration that an image is an end of.
    pub(super) async fn moved(&self, image: &ImageSpec, what: &str, rbd: &str) -> Done<Moved> {
        let pool = self.pool(&image.pool_spec()).await?;
        let found = match Ends::look_up(&pool, &image.image).await {
            Ok(Finding::Migrating(ends)) => Ok(Moved::Image(ends)),
            Ok(Finding::Importing(import)) => Ok(Moved::Import(import)),
            Ok(Finding::Plain) => {
                Ends::find(&pool, &image.image).await.map(|ends| Moved::Image(Box::new(ends)))
            }
            Err(e) => Err(e),
        };
        found.map_err(|e| {
            let failure = Failure::of(&e, what, rbd);
            match e.kind() {
                ErrorKind::NotFound => failure
                    .after("librbd: failed to determine image id: (2) No such file or directory")
                    .advise(format!(
                        "`ferry ls {0}` lists the images, `ferry trash ls --all {0}` sources of migrations",
                        image.pool
                    )),
                ErrorKind::Invalid => failure
                    .after("librbd: failed retrieving migration header: (22) Invalid argument")
                    .advise(format!("`ferry migration prepare {image} TARGET` begins a migration")),
                _ => failure,
            }
        })
    }
}

impl Moved {
    /// How far it is.
    pub(super) fn state(&self) -> MigrationState {
        match self {
            Self::Image(ends) => ends.state(),
            Self::Import(import) => import.state(),
        }
    }

    /// Where it goes.
    pub(super) fn target(&self) -> &End {
        match self {
            Self::Image(ends) => &ends.target,
            Self::Import(import) => &import.target,
        }
    }

    /// What is kept of it.
    pub(super) fn receipt(&self, home: &Home) -> Kept {
        match self {
            Self::Image(ends) => Kept::of(home, ends),
            Self::Import(import) => Kept::of_import(home, &import.target),
        }
    }

    /// The source spec of an import.
    pub(super) fn spec(&self) -> &str {
        match self {
            Self::Image(_) => "",
            Self::Import(import) => import.spec(),
        }
    }

    pub(super) async fn execute(
        &mut self,
        device: &ImageDevice,
        pace: &dyn Pace,
        progress: Progress<'_>,
    ) -> Result<Copied> {
        match self {
            Self::Image(ends) => execute(ends, device, pace, progress).await,
            Self::Import(import) => execute_import(import, device, pace, progress).await,
        }
    }

    pub(super) async fn verify(&self, how: Comparing<'_>, progress: Progress<'_>) -> Result<Verification> {
        match self {
            Self::Image(ends) => verify(ends, how, progress).await,
            Self::Import(import) => verify_import(import, how, progress).await,
        }
    }

    /// The clones that hang on it.
    pub(super) async fn clones(&self) -> Result<Vec<String>> {
        match self {
            Self::Image(ends) => ferry_migrate::clones(ends).await,
            Self::Import(import) => ferry_migrate::import_clones(import).await,
        }
    }

    pub(super) async fn commit(self, options: CommitOptions<'_>, progress: Progress<'_>) -> Result<Receipt> {
        match self {
            Self::Image(ends) => commit(*ends, options, progress).await,
            Self::Import(import) => commit_import(*import, options, progress).await,
        }
    }
}
