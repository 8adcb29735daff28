//! What a node tells the service manager that started it, if one did.

use sd_notify::NotifyState;

/// Commands are taken.
pub(super) fn ready() {
    tell(NotifyState::Ready);
}

/// It is about to end.
pub(super) fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    // Without a service manager nobody is told and nothing fails.
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!(error = %e, "the service manager cannot be told");
    }
}
