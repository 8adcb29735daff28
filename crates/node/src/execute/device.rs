//! Images as block devices of the kernel: device map, list, unmap.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ferry_core::{Errno, Error, ErrorKind, Result};
use ferry_serve::fuse::Access;
use ferry_serve::kernel::{Options, Unmap, Watchdog, clean_stale, make_directory};

use super::{Run, failed};
use crate::api::{
    Command, DeviceCommand, DeviceLine, Done, Failure, MapOptions, MappedBy, Request, Response, Streams,
};
use crate::backend::{OWNER_WAIT_MAX, Owner, Taken};
use crate::control::{Forwarded, Server};
use crate::devices::{Devices, apart};
use crate::offered::Offered;

/// How often a process that stays for its mappings looks whether there are any.
const LOOK: Duration = Duration::from_millis(50);

impl Run<'_> {
    /// Executes one of them.
    pub(super) async fn device_command(&self, command: DeviceCommand) -> Done<Response> {
        match command {
            DeviceCommand::Map(options) => self.device_map(&options).await.map(Response::Mapped),
            DeviceCommand::Hold(options) => self.device_hold(&options).await,
            DeviceCommand::List { here } => self.device_list(here).map(Response::Devices),
            DeviceCommand::Unmap { which, force, here } => {
                self.device_unmap(&which, force, here).map(|()| Response::Done)
            }
        }
    }

    /// Maps an image, if this process stays to serve it.
    async fn device_map(&self, options: &MapOptions) -> Done<Option<PathBuf>> {
        let Some(devices) = self.host.devices() else { return Ok(None) };
        match devices.begin() {
            Some(_coming) => self.map_in(devices, options).await.map(Some),
            None => Ok(None),
        }
    }

    /// Maps an image and stays for as long as anything is mapped, or as [`Self::device_map`] where somebody stays already.
    async fn device_hold(&self, options: &MapOptions) -> Done<Response> {
        let Some(devices) = self.host.devices().filter(|devices| devices.hold()) else {
            return self.device_map(options).await.map(Response::Mapped);
        };
        let mapped = self.map_first(devices, options).await;
        devices.begun(mapped.is_ok());
        let device = mapped?;
        self.events.say(&device.display().to_string());
        while !self.cancel.is_asked() && !devices.close_if_unused() {
            std::thread::sleep(LOOK);
        }
        let stopped = apart(|| devices.stop());
        stopped.map_err(failed("a device could not be taken away", "rbd: unmap failed"))?;
        Ok(Response::Done)
    }

    /// Lets others in and maps an image.
    async fn map_first(&self, devices: &Arc<Devices>, options: &MapOptions) -> Done<PathBuf> {
        if self.is_in_cluster(&options.image.image.pool) {
            let cannot = failed(format!("cannot map {}", options.image), "rbd: map failed");
            self.be_found(devices).map_err(cannot)?;
        } else {
            // They come in as soon as the store is open.
            self.host.door();
        }
        self.map_in(devices, options).await
    }

    /// Takes commands at the directory of devices: a cluster has no directory where others could look for this process. One
    /// process at a time does.
    fn be_found(&self, devices: &Devices) -> Result<()> {
        let directory = devices.directory();
        make_directory(directory)?;
        match Owner::take(directory, OWNER_WAIT_MAX, &|line| self.events.advise(line))? {
            Taken::Ours(owner) => {
                devices.own_directory(owner);
                self.host.door().open_at(directory)
            }
            Taken::Served(served) => {
                let error = served.busy();
                self.send_to(served);
                Err(error)
            }
        }
    }

    async fn map_in(&self, devices: &Arc<Devices>, options: &MapOptions) -> Done<PathBuf> {
        let spec = &options.image;
        let cannot = || failed(format!("cannot map {spec}"), "rbd: map failed");
        let is_read_only = options.read_only || spec.snap.is_some();
        let image = self.open_to_serve(spec, is_read_only).await?;
        let shared = self.host.shared().map_err(cannot())?;
        let name = spec.to_string();
        let offered = Offered::open(shared, spec, image, &name, is_read_only).await.map_err(cannot())?;
        if !is_read_only {
            // As `rbd` does: whoever maps an image is its writer, from now on.
            if let Err(e) = offered.acquire().await {
                offered.close().await.map_err(cannot())?;
                return Err(cannot()(e));
            }
        }
        let access = if is_read_only { Access::ReadOnly } else { Access::ReadWrite };
        let how = Options {
            access,
            sector_size: options.sector_size,
            scan_partitions: options.scan_partitions,
            watchdog: if options.is_loop { None } else { Watchdog::this_program() },
            ..Options::at(devices.directory())
        };
        match apart(|| devices.map(offered, &how)) {
            Ok(device) => Ok(device),
            Err((e, offered)) => {
                let failure = cannot()(e);
                offered.close().await.map_err(cannot())?;
                Err(failure
                    .advise("nothing was changed; mapping needs root, and the kernel's NBD client, or else /dev/fuse, loop devices and losetup"))
            }
        }
    }

    fn device_list(&self, here: bool) -> Done<Vec<DeviceLine>> {
        let mut all: BTreeSet<DeviceLine> =
            self.host.devices().map(|d| d.list()).unwrap_or_default().into_iter().collect();
        if !here {
            for answer in self.ask_others(&DeviceCommand::List { here: true }) {
                if let Response::Devices(devices) = answer? {
                    all.extend(devices);
                }
            }
        }
        Ok(all.into_iter().collect())
    }

    fn device_unmap(&self, which: &MappedBy, force: bool, here: bool) -> Done<()> {
        let name = match which {
            MappedBy::Device(device) => device.display().to_string(),
            MappedBy::Image(image) => image.to_string(),
        };
        if let (MappedBy::Image(image), false) = (which, here) {
            // In a pool of the home and in one of a cluster, say.
            let all = self.device_list(false)?.into_iter().filter(|line| line.is_of(image));
            let all: Vec<String> = all.map(|line| line.device).collect();
            if all.len() > 1 {
                let error =
                    Error::busy("images of this name are mapped more than once").with("at", all.join(", "));
                return Err(failed(format!("cannot unmap {name}"), "rbd: unmap failed")(error)
                    .advise("nothing was changed; name the device"));
            }
        }
        let how = if force { Unmap::ByForce } else { Unmap::IfUnused };
        if let Some(devices) = self.host.devices() {
            match apart(|| devices.unmap(which, how)) {
                Err(e) if e.kind() == ErrorKind::NotFound && !here => {}
                done => {
                    return done.map_err(|e| {
                        let is_busy = e.kind() == ErrorKind::Busy;
                        let failure = failed(format!("cannot unmap {name}"), "rbd: unmap failed")(e);
                        if is_busy {
                            failure.advise("nothing was changed; unmount it first")
                        } else {
                            failure
                        }
                    });
                }
            }
        }
        let absent = Failure::plain(Errno::EINVAL, format!("{name}: not a mapped image or snapshot"))
            .then(format!("rbd: unmap failed: {}", Errno::EINVAL));
        if here {
            return Err(Failure { errno: Errno::ENOENT.0, ..absent });
        }
        let command = DeviceCommand::Unmap { which: which.clone(), force, here: true };
        for answer in self.ask_others(&command) {
            match answer {
                Err(failure) if failure.errno == Errno::ENOENT.0 => {}
                done => return done.map(drop),
            }
        }
        // What a dead process had mapped is not mapped by anybody; it is in the way all the same.
        let cleaned = clean_stale(&self.home.devices())
            .map_err(failed(format!("cannot clear away what is left of {name}"), "rbd: unmap failed"))?;
        match which {
            MappedBy::Device(device) if cleaned.devices.contains(device) => Ok(()),
            MappedBy::Device(_) | MappedBy::Image(_) => Err(absent),
        }
    }

    /// What other processes answer that serve stores of this home, or map images of clusters for it.
    fn ask_others(&self, command: &DeviceCommand) -> Vec<Done<Response>> {
        let mut dirs: BTreeSet<PathBuf> =
            self.config.pools.keys().filter_map(|pool| self.home.store_of(&self.config, pool)).collect();
        dirs.insert(self.home.default_store());
        let ours = self.host.stores.all();
        dirs.retain(|dir| !ours.iter().any(|store| store.door() == Some(dir.as_path())));
        if !self.host.devices().is_some_and(|devices| devices.is_at_directory()) {
            dirs.insert(self.home.devices());
        }
        let request = Request {
            command: Command::Device(command.clone()),
            overrides: BTreeMap::new(),
            cluster: self.cluster.clone(),
        };
        let answers = dirs.iter().filter_map(|dir| {
            let server = Server::of_store(dir)?;
            match server.execute(self.home, &request, &Streams::default(), self.events, self.cancel) {
                Forwarded::Answered(answer) => Some(answer),
                // It is about to end, and has nothing mapped then.
                Forwarded::NotTaken => None,
            }
        });
        answers.collect()
    }
}
