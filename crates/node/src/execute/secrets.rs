//! Secrets of source specs: moved to the home before a spec is persisted, and forgotten with what they were kept for.

use std::fmt::Display;

use ferry_core::Result;
use ferry_source::SourceSpec;

use super::Run;

/// What secrets are kept for, which is what their keys begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeptFor {
    /// An import.
    Import,
    /// An export.
    Export,
}

impl KeptFor {
    fn prefix(self) -> &'static str {
        match self {
            Self::Import => "ferry-import/",
            Self::Export => "ferry-export/",
        }
    }
}

impl Run<'_> {
    /// The spec with its secrets moved to the home, for the import or export called `name`.
    ///
    /// # Crash safety
    /// They are durable when this returns; the same command finds them again.
    pub(super) fn without_secrets(
        &self,
        spec: &SourceSpec,
        kept_for: KeptFor,
        name: &impl Display,
    ) -> Result<SourceSpec> {
        if !spec.has_inline_secrets() {
            return Ok(spec.clone());
        }
        let prefix = kept_for.prefix();
        self.home.update_secrets(|secrets| {
            spec.with_references(&mut |what, secret| {
                // The same secret of the same import has the same key, so that the same command gives the same spec.
                let first = format!("{prefix}{name}/{what}");
                let mut key = first.clone();
                let mut n = 1;
                while secrets.get(&key).is_some_and(|kept| kept != secret) {
                    n += 1;
                    key = format!("{first}-{n}");
                }
                secrets.insert(key.clone(), secret.to_owned());
                Ok(key)
            })
        })
    }

    /// Forgets the secrets that were kept for an import or export only.
    pub(super) fn forget_secrets(&self, spec: &SourceSpec, kept_for: KeptFor) -> Result<()> {
        let is_ours = |key: &String| key.starts_with(kept_for.prefix());
        let keys: Vec<String> = spec.references().into_iter().filter(is_ours).collect();
        if keys.is_empty() {
            return Ok(());
        }
        self.home.update_secrets(|secrets| {
            secrets.retain(|key, _| !keys.contains(key));
            Ok(())
        })
    }
}
