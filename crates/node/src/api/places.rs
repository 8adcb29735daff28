//! Which pools a command names: where it has to be executed.

use std::path::PathBuf;

use super::{
    CloneCommand, Command, ConfigLevel, DeviceCommand, ExportCommand, ImageCommand, ImageRef, ImportSource,
    LayoutOptions, MetaCommand, MigrationCommand, NamespaceCommand, NbdOffer, PoolCommand, SnapCommand,
    TransferCommand, TrashCommand,
};
use crate::spec::{ImageSpec, SnapSpec};

/// Stores a command needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// By the pools in them.
    pub(crate) pools: Vec<String>,
    /// By their directories.
    pub(crate) dirs: Vec<PathBuf>,
    /// The home's own store.
    pub(crate) default_store: bool,
}

impl Places {
    fn pool(mut self, name: &str) -> Self {
        self.pools.push(name.to_owned());
        self
    }

    fn layout(self, layout: &LayoutOptions) -> Self {
        match &layout.data_pool {
            Some(pool) => self.pool(pool),
            None => self,
        }
    }
}

fn image(spec: &ImageSpec) -> Places {
    Places::default().pool(&spec.pool)
}

fn snap(spec: &SnapSpec) -> Places {
    image(&spec.image)
}

fn by_ref(image: &ImageRef) -> Places {
    Places::default().pool(&image.pool.pool)
}

impl Command {
    /// The stores it needs.
    pub(crate) fn places(&self) -> Places {
        match self {
            Self::Pool(command) => command.places(),
            Self::Image(command) => command.places(),
            Self::Usage(command) => Places::default().pool(&command.pool.pool),
            Self::Snap(command) => command.places(),
            Self::Clone(command) => command.places(),
            Self::Trash(command) => command.places(),
            Self::Transfer(command) => command.places(),
            Self::Meta(
                MetaCommand::Set { image: spec, .. }
                | MetaCommand::Get { image: spec, .. }
                | MetaCommand::List { image: spec }
                | MetaCommand::Remove { image: spec, .. },
            )
            | Self::Config { level: ConfigLevel::Image(spec), .. }
            | Self::Feature { image: spec, .. }
            | Self::Lock { image: spec, .. }
            | Self::Watch { image: spec }
            | Self::Bench { image: spec, .. } => image(spec),
            Self::Config { level: ConfigLevel::Pool(pool), .. } => Places::default().pool(pool),
            Self::Config { level: ConfigLevel::Global(_), .. }
            | Self::ConfigKey(_)
            | Self::Job(_)
            | Self::Device(DeviceCommand::List { .. } | DeviceCommand::Unmap { .. })
            | Self::Export(
                ExportCommand::List
                | ExportCommand::Remove { .. }
                | ExportCommand::Add { offered: NbdOffer::Source(_), .. },
            ) => Places::default(),
            Self::Namespace(NamespaceCommand::Create(pool) | NamespaceCommand::Remove(pool)) => {
                Places::default().pool(&pool.pool)
            }
            Self::Namespace(NamespaceCommand::List { pool }) => Places::default().pool(pool),
            Self::ObjectMap { image, .. }
            | Self::Export(ExportCommand::Add { offered: NbdOffer::Image(image), .. }) => snap(image),
            Self::Device(DeviceCommand::Map(options) | DeviceCommand::Hold(options)) => snap(&options.image),
            Self::Nbd(options) => match &options.offered {
                NbdOffer::Image(image) => snap(image),
                NbdOffer::Source(_) => Places::default(),
            },
            Self::Migration(MigrationCommand::Prepare { source, target, layout, .. }) => {
                image(source).pool(&target.pool).layout(layout)
            }
            Self::Migration(MigrationCommand::Import { source, target, layout, .. }) => {
                let places = image(target).layout(layout);
                match source {
                    ImportSource::Snapshot(snap) => places.pool(&snap.image.pool),
                    ImportSource::Spec { .. } | ImportSource::File { .. } | ImportSource::Image { .. } => {
                        places
                    }
                }
            }
            Self::Migration(command) => image(command.image()),
            Self::Check { pool: Some(pool) } => Places::default().pool(pool),
            Self::Check { pool: None } => Places { default_store: true, ..Places::default() },
        }
    }
}

impl PoolCommand {
    fn places(&self) -> Places {
        match self {
            Self::Create { path: Some(path), .. } => Places { dirs: vec![path.clone()], ..Places::default() },
            Self::Create { path: None, .. } => Places { default_store: true, ..Places::default() },
            // Asks each store by itself; a cluster is nobody's.
            Self::List | Self::Take { .. } => Places::default(),
            Self::Remove { name }
            | Self::Init { name }
            | Self::Set { name, .. }
            | Self::Describe { name } => Places::default().pool(name),
            Self::Stats { pool } => Places::default().pool(&pool.pool),
        }
    }
}

impl ImageCommand {
    fn places(&self) -> Places {
        match self {
            Self::Create { image: spec, layout, .. } => image(spec).layout(layout),
            Self::List { pool, .. } => Places::default().pool(&pool.pool),
            Self::Info { image, .. } => by_ref(image),
            Self::Status { image: spec }
            | Self::Resize { image: spec, .. }
            | Self::Remove { image: spec }
            | Self::Sparsify { image: spec, .. } => image(spec),
            Self::Rename { source, target } => image(source).pool(&target.pool),
            Self::Copy { source, target, layout, .. } | Self::DeepCopy { source, target, layout, .. } => {
                snap(source).pool(&target.pool).layout(layout)
            }
        }
    }
}

impl SnapCommand {
    fn places(&self) -> Places {
        match self {
            Self::Create { image: spec, .. }
            | Self::Rename { image: spec, .. }
            | Self::Protect { image: spec, .. }
            | Self::Rollback { image: spec, .. }
            | Self::Limit { image: spec, .. } => image(spec),
            Self::List { image, .. }
            | Self::Remove { image, .. }
            | Self::Unprotect { image, .. }
            | Self::Purge { image } => by_ref(image),
        }
    }
}

impl CloneCommand {
    fn places(&self) -> Places {
        match self {
            Self::Create { parent, target, layout, .. } => image(parent).pool(&target.pool).layout(layout),
            Self::Children { image: spec, .. } | Self::Flatten { image: spec } => image(spec),
        }
    }
}

impl TrashCommand {
    fn places(&self) -> Places {
        match self {
            Self::Move { image: spec, .. } => image(spec),
            Self::List { pool, .. }
            | Self::Remove { pool, .. }
            | Self::Restore { pool, .. }
            | Self::Purge { pool, .. } => Places::default().pool(&pool.pool),
        }
    }
}

impl TransferCommand {
    fn places(&self) -> Places {
        match self {
            Self::Import { target, layout, .. } | Self::ImportFrom { target, layout, .. } => {
                image(target).layout(layout)
            }
            Self::Export { source, .. } | Self::ExportDiff { source, .. } | Self::Diff { source, .. } => {
                snap(source)
            }
            Self::ImportDiff { image: spec, .. } => image(spec),
            Self::MergeDiff => Places::default(),
        }
    }
}
