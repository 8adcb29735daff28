//! What is offered under a name, and the one place where the device below it can be changed while clients are attached.
//!
//! Invariants
//! - A request goes to the device that [`Export::enter`] gave it, and that device is not taken away before the request is done.
//! - While an export is paused no request is under way; those that come wait, and none is refused for it.

mod gate;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ferry_core::{BlockDevice, Error, ErrorKind, Result};

use self::gate::Gate;
use crate::context::{MetaContext, MetaContexts};
use crate::traffic::Traffic;

/// Hears when an export gets its first client and loses its last one.
pub trait Attendance: Send + Sync + std::fmt::Debug {
    /// The first client attached.
    fn attached(&self);
    /// The last client is gone, however it went. What it held (a lock) can be given back.
    fn left(&self);
}

/// A device offered under a name.
#[derive(Debug)]
pub struct Export {
    name: String,
    description: String,
    is_read_only: bool,
    gate: Gate,
    device: RwLock<Arc<dyn BlockDevice>>,
    clients: AtomicUsize,
    attendance: Mutex<Option<Arc<dyn Attendance>>>,
    contexts: Arc<dyn MetaContexts>,
    traffic: Traffic,
}

impl Export {
    /// Offers `device`; refuses writes where `is_read_only` or the device does.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        description: impl Into<String>,
        device: Arc<dyn BlockDevice>,
        is_read_only: bool,
    ) -> Self {
        Self {
            name: name.into(),
            description: description.into(),
            is_read_only,
            gate: Gate::default(),
            device: RwLock::new(device),
            clients: AtomicUsize::new(0),
            attendance: Mutex::new(None),
            contexts: Arc::new(Vec::new()),
            traffic: Traffic::default(),
        }
    }

    /// Lets clients ask `contexts` too.
    #[must_use]
    pub fn answering(mut self, contexts: Arc<dyn MetaContexts>) -> Self {
        self.contexts = contexts;
        self
    }

    /// What it answers beside what is allocated.
    #[must_use]
    pub fn contexts(&self) -> Vec<Arc<dyn MetaContext>> {
        self.contexts.list()
    }

    /// What went through it.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Tells `attendance` of clients from now on.
    #[must_use]
    pub fn attended_by(self, attendance: Arc<dyn Attendance>) -> Self {
        *self.attendance() = Some(attendance);
        self
    }

    /// What clients ask for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For people.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.is_read_only || self.device().is_read_only()
    }

    /// Size now. Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.device().size()
    }

    /// The device for one request, unless the export is paused.
    #[must_use]
    pub fn try_enter(self: &Arc<Self>) -> Option<Entered> {
        let entered = self.gate.try_enter();
        entered.then(|| Entered { device: Some(self.device()), export: Arc::clone(self) })
    }

    /// The device for one request, once the export is not paused.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn enter(self: &Arc<Self>) -> Entered {
        self.gate.enter().await;
        Entered { device: Some(self.device()), export: Arc::clone(self) }
    }

    /// Holds new requests back and lets those under way end. From then on nobody uses the device, and it can be replaced; clients
    /// wait until what comes back is dropped. Where requests under way take longer than `limit`, the export goes on: the change
    /// gives way, not the client.
    ///
    /// # Errors
    /// `TimedOut` (110) after `limit`.
    ///
    /// # Cancel safety
    /// Dropping the future lets the export go on.
    pub async fn pause(self: &Arc<Self>, limit: Duration) -> Result<Paused> {
        let began = Instant::now();
        // Opens the gate again also where the future is dropped.
        let closing = self.gate.close();
        match tokio::time::timeout(limit, closing).await {
            Ok(closed) => {
                closed.keep();
                Ok(Paused { export: Arc::clone(self), began })
            }
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                "the export could not be switched within the time its clients may wait",
            )
            .with("export", &self.name)),
        }
    }

    /// How many clients are attached.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Acquire)
    }

    /// Counts a client in, until what comes back is dropped.
    #[must_use]
    pub fn attach(self: &Arc<Self>) -> Attached {
        if self.clients.fetch_add(1, Ordering::AcqRel) == 0
            && let Some(attendance) = self.attendance().clone()
        {
            attendance.attached();
        }
        Attached { export: Arc::clone(self) }
    }

    fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn attendance(&self) -> MutexGuard<'_, Option<Arc<dyn Attendance>>> {
        self.attendance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An export that holds its clients back. Goes on when dropped.
#[derive(Debug)]
pub struct Paused {
    export: Arc<Export>,
    began: Instant,
}

impl Paused {
    /// The export.
    #[must_use]
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// How long clients have waited.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.began.elapsed()
    }

    /// Puts another device in the place of the one there is.
    ///
    /// # Errors
    /// `Invalid` (22) where it is smaller: clients were told a size.
    pub fn replace(&self, device: Arc<dyn BlockDevice>) -> Result<()> {
        let mut place = self.export.device.write().unwrap_or_else(PoisonError::into_inner);
        if device.size() < place.size() {
            return Err(Error::invalid("the device to go on with is smaller than the one in use")
                .with("size", device.size())
                .with("in use", place.size()));
        }
        *place = device;
        Ok(())
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.export.gate.open();
    }
}

/// A request's hold on the device it was given.
#[derive(Debug)]
pub struct Entered {
    /// `None` only while it is dropped.
    device: Option<Arc<dyn BlockDevice>>,
    export: Arc<Export>,
}

impl Entered {
    /// Whether the export or its device refuses writes.
    #[must_use]
    pub fn refuses_writes(&self) -> bool {
        self.export.is_read_only || self.is_read_only()
    }
}

impl Deref for Entered {
    type Target = dyn BlockDevice;

    fn deref(&self) -> &Self::Target {
        &**self.device.as_ref().expect("it is let go only when dropped")
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // In this order: whoever waits for the gate finds nobody holding the device.
        drop(self.device.take());
        self.export.gate.leave();
    }
}

/// A client that is attached.
#[derive(Debug)]
pub struct Attached {
    export: Arc<Export>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.export.clients.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(attendance) = self.export.attendance().clone()
        {
            attendance.left();
        }
    }
}

/// Exports by name.
#[derive(Debug, Default)]
pub struct Exports(RwLock<BTreeMap<String, Arc<Export>>>);

impl Exports {
    /// Offers an export.
    ///
    /// # Errors
    /// `Exists` (17) where the name is taken.
    pub fn add(&self, export: Export) -> Result<Arc<Export>> {
        let export = Arc::new(export);
        self.add_shared(Arc::clone(&export)).map(|()| export)
    }

    /// Offers an export that others hold too.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_shared(&self, export: Arc<Export>) -> Result<()> {
        let mut exports = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if exports.contains_key(export.name()) {
            return Err(Error::exists("an export of this name exists").with("export", export.name()));
        }
        exports.insert(export.name().to_owned(), export);
        Ok(())
    }

    /// Offers an export no more. Clients attached to it stay until whoever removes it ends them.
    pub fn remove(&self, name: &str) -> Option<Arc<Export>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    /// The export of a name. The empty name means the only one there is, as NBD's default export.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Export>> {
        let exports = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let only = || (name.is_empty() && exports.len() == 1).then(|| exports.values().next()).flatten();
        exports.get(name).or_else(only).cloned()
    }

    /// All of them, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Export>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
