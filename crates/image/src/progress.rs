//! How far a long operation is.

/// Is told `(done, of how much)`, in steps of the operation's own. Called between store requests, so it should return at
/// once.
pub type Progress<'a> = &'a mut (dyn FnMut(u64, u64) + Send);

/// For whoever does not want to know: `&mut silent`.
pub fn silent(_done: u64, _total: u64) {}
