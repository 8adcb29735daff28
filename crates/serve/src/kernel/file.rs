//! An export as a loop device on a FUSE file.

use std::path::Path;
use std::sync::Arc;

use ferry_core::Result;

use super::Options;
use super::openers::Claim;
use super::setup::{self, LoopDevice};
use crate::export::Export;
use crate::fuse::{self, Mount};

/// See the module.
#[derive(Debug)]
pub(super) struct FileDevice {
    device: LoopDevice,
    mount: Mount,
}

impl FileDevice {
    /// Makes one, with its file mounted at `directory`.
    pub(super) fn attach(export: &Arc<Export>, options: &Options, directory: &Path) -> Result<Self> {
        fuse::check()?;
        setup::check()?;
        let mount = Mount::new(export, directory, options.access)?;
        let device = LoopDevice::attach(&mount.file(), options)?;
        Ok(Self { device, mount })
    }

    /// `/dev/loopN`.
    pub(super) fn path(&self) -> &Path {
        self.device.path()
    }

    /// Whether nobody took it away.
    pub(super) fn is_attached(&self) -> bool {
        self.device.is_attached()
    }

    /// Gives it the size the file has.
    pub(super) fn resize(&self) -> Result<()> {
        self.device.resize(&self.mount.file())
    }

    /// Takes it away unless somebody uses it.
    pub(super) fn detach(&self) -> Result<()> {
        let claim = Claim::take(self.path())?;
        self.device.detach()?;
        drop(claim);
        self.device.wait_until_gone()
    }

    /// Takes it away from those who use it.
    pub(super) fn abort(&mut self) -> Result<()> {
        let is_attached = self.device.is_attached();
        // The requests under way must fail first: letting go of a device waits for them.
        self.mount.abort()?;
        if is_attached { self.device.let_go() } else { Ok(()) }
    }

    /// Serves it no more.
    pub(super) fn end(self) -> Result<()> {
        self.mount.end()
    }
}
