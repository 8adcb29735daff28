//! Jobs in files: one each, `<home>/jobs/<number>.json`, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ferry_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::api::{
    CloneCommand, Command, ImageCommand, MigrationCommand, ObjectMapCommand, Request, TrashCommand,
};
use crate::config::Home;
use crate::execute::Subject;

/// What has to be known to do a job again from its start, which goes on where it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its number.
    pub(super) id: u64,
    /// The home whose configuration is meant.
    pub(super) home: PathBuf,
    /// What to do.
    pub(super) request: Request,
    /// Seconds since 1970.
    pub(super) started: u64,
    /// What it is about, known before it changes anything; `None` where it would not fail if it were done again.
    #[serde(default)]
    pub(super) subject: Option<Subject>,
}

impl Record {
    pub(super) fn new(id: u64, home: &Home, request: &Request, started: u64) -> Self {
        Self { id, home: home.dir().to_path_buf(), request: request.clone(), started, subject: None }
    }

    /// Whether it does the same.
    pub(super) fn is_same(&self, home: &Home, request: &Request) -> bool {
        self.home == home.dir() && self.request == *request
    }

    /// The command, for people.
    pub(super) fn words(&self) -> String {
        self.request.command.job_words().unwrap_or_default()
    }

    /// Keeps it.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let cannot = |e: io::Error| Error::io("cannot keep a job", e).with("directory", dir.display());
        fs::create_dir_all(dir).map_err(cannot)?;
        let json = serde_json::to_vec_pretty(self).map_err(|e| cannot(e.into()))?;
        let new = self.new_path(dir);
        let written =
            File::create(&new).and_then(|mut file| file.write_all(&json).and_then(|()| file.sync_all()));
        written
            .and_then(|()| fs::rename(&new, self.path(dir)))
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(cannot)
    }

    /// Forgets it, and what a death while it was kept left.
    pub(super) fn remove(&self, dir: &Path) -> Result<()> {
        for path in [self.path(dir), self.new_path(dir)] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("cannot forget a job", e));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn new_path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.new", self.id))
    }

    fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.json", self.id))
    }
}

/// All of them, oldest first.
pub(super) fn load(dir: &Path) -> Result<Vec<Record>> {
    let cannot =
        |e: io::Error| Error::io("cannot read the jobs of the node", e).with("directory", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(cannot)?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry.map_err(cannot)?.path();
        // What is not complete was never begun.
        if path.extension().is_some_and(|e| e == "json") {
            let text = fs::read(&path).map_err(cannot)?;
            let record: Record = serde_json::from_slice(&text).map_err(|e| {
                Error::new(ErrorKind::Corrupt, "a file of the jobs is no job")
                    .with("file", path.display())
                    .because(e)
            })?;
            records.push(record);
        }
    }
    records.sort_by_key(|r| r.id);
    Ok(records)
}

impl Command {
    /// The words for it, if it is one that a node does as a job.
    pub(super) fn job_words(&self) -> Option<String> {
        match self {
            Self::Image(ImageCommand::Remove { image }) => Some(format!("rm {image}")),
            Self::Image(ImageCommand::Sparsify { image, .. }) => Some(format!("sparsify {image}")),
            Self::Clone(CloneCommand::Flatten { image }) => Some(format!("flatten {image}")),
            Self::Trash(TrashCommand::Remove { pool, id, .. }) => Some(format!("trash rm {pool}/{id}")),
            Self::Trash(TrashCommand::Purge { pool, .. }) => Some(format!("trash purge {pool}")),
            Self::ObjectMap { image, action: ObjectMapCommand::Rebuild } => {
                Some(format!("object-map rebuild {image}"))
            }
            Self::Pool(_)
            | Self::Image(_)
            | Self::Usage(_)
            | Self::Snap(_)
            | Self::Clone(_)
            | Self::Trash(_)
            | Self::Transfer(_)
            | Self::Meta(_)
            | Self::Config { .. }
            | Self::ConfigKey(_)
            | Self::Namespace(_)
            | Self::Feature { .. }
            | Self::ObjectMap { .. }
            | Self::Lock { .. }
            | Self::Bench { .. }
            | Self::Check { .. }
            | Self::Job(_)
            | Self::Export(_)
            | Self::Device(_)
            | Self::Nbd(_)
            | Self::Watch { .. } => None,
            Self::Migration(MigrationCommand::Execute { image, .. }) => {
                Some(format!("migration execute {image}"))
            }
            Self::Migration(MigrationCommand::Verify { image, .. }) => {
                Some(format!("migration verify {image}"))
            }
            Self::Migration(MigrationCommand::Commit { image, .. }) => {
                Some(format!("migration commit {image}"))
            }
            Self::Migration(MigrationCommand::Abort { image, .. }) => {
                Some(format!("migration abort {image}"))
            }
            Self::Migration(MigrationCommand::Prepare { .. } | MigrationCommand::Import { .. }) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Record, load};
    use crate::api::{Command, ImageCommand, Request};
    use crate::config::Home;
    use crate::spec::ImageSpec;

    fn record(id: u64) -> Record {
        let image = ImageSpec { pool: "p".to_owned(), namespace: String::new(), image: "i".to_owned() };
        let command = Command::Image(ImageCommand::Remove { image });
        let request = Request { command, overrides: BTreeMap::new(), cluster: None };
        Record::new(id, &Home::at("/h"), &request, 7)
    }

    #[test]
    fn jobs_are_kept_until_they_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("jobs");
        assert_eq!(load(&dir).unwrap(), []);
        for id in [10, 9] {
            record(id).write(&dir).unwrap();
        }
        std::fs::write(dir.join("11.new"), "{").unwrap();
        assert_eq!(load(&dir).unwrap(), [record(9), record(10)]);
        std::fs::write(dir.join("9.new"), "{").unwrap();
        record(9).remove(&dir).unwrap();
        record(9).remove(&dir).unwrap();
        assert!(!dir.join("9.new").exists());
        assert_eq!(load(&dir).unwrap(), [record(10)]);
        std::fs::write(dir.join("12.json"), "{").unwrap();
        assert!(load(&dir).unwrap_err().to_string().contains("12.json"));
    }
}
