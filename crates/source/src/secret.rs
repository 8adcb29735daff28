//! A value that must not be shown: a reference to where it is kept, or itself.

use std::fmt;

use ferry_core::Result;

use crate::env::Env;

/// How a reference to a kept secret begins, as in `rbd`'s source specs.
pub const REFERENCE: &str = "config://";

/// What stands in the place of a secret that is shown to people.
pub const HIDDEN: &str = "***";

/// A secret of a spec: `config://KEY`, or the value itself. Its `Debug` shows a reference and hides a value.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// As it stands in a spec.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The key it refers to, if it does.
    #[must_use]
    pub fn reference(&self) -> Option<&str> {
        self.0.strip_prefix(REFERENCE)
    }

    /// The value, looked up where it is a reference.
    ///
    /// # Errors
    /// `NotFound` where nothing is kept under the key; those of the place where secrets are kept.
    pub async fn value(&self, env: &Env) -> Result<String> {
        match self.reference() {
            None => Ok(self.0.clone()),
            Some(key) => env.secrets.secret(key).await,
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.reference().is_some() { &self.0 } else { HIDDEN })
    }
}

/// Base64 with padding, as HTTP's basic authorisation wants it.
///
/// # Source
/// RFC 4648, section 4.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0_usize, |bits, i| bits << 8 | group.get(i).copied().map_or(0, usize::from));
        for i in 0..4 {
            let letter = char::from(LETTERS[bits >> (18 - 6 * i) & 63]);
            text.push(if i <= group.len() { letter } else { '=' });
        }
    }
    text
}
