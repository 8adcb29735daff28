//! RBD's names for things: `[pool/[namespace/]]image[@snap]` and `pool[/namespace]`.
//!
//! A name can be given as one word, as options (`--pool`, `--image`, …) or as a mixture; [`SnapInput::resolve`] is the
//! one place that puts the parts together, in the order and with the complaints of `rbd`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How strictly a name is read. `rbd` is strict only where a name is about to be given to something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// No `/` or `@` inside any part: for names being made.
    Full,
    /// No `/` or `@` inside the snapshot's name.
    Snap,
    /// The pool ends at the first `/`, the namespace at the second, the snapshot begins after the first `@`.
    Relaxed,
}

/// Whether a command wants a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapPresence {
    /// It must not be given.
    None,
    /// It may be given.
    Permitted,
    /// It must be given.
    Required,
}

/// Which of two images of a command is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The only one, or the source.
    Source,
    /// The target, `dest` in options.
    Target,
}

/// A pool and a namespace in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// The pool's name.
    pub pool: String,
    /// Empty for the default namespace.
    pub namespace: String,
}

/// An image by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// The pool's name.
    pub pool: String,
    /// Empty for the default namespace.
    pub namespace: String,
    /// The image's name.
    pub image: String,
}

/// An image, and a snapshot of it where one is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapSpec {
    /// The image.
    pub image: ImageSpec,
    /// The snapshot's name; `None` for the image as it is now.
    pub snap: Option<String>,
}

impl ImageSpec {
    /// Where the image lives.
    #[must_use]
    pub fn pool_spec(&self) -> PoolSpec {
        PoolSpec { pool: self.pool.clone(), namespace: self.namespace.clone() }
    }
}

impl fmt::Display for PoolSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pool)?;
        if !self.namespace.is_empty() {
            write!(f, "/{}", self.namespace)?;
        }
        Ok(())
    }
}

impl fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool_spec(), self.image)
    }
}

impl fmt::Display for SnapSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.image.fmt(f)?;
        if let Some(snap) = &self.snap {
            write!(f, "@{snap}")?;
        }
        Ok(())
    }
}

/// A name that could not be read or is not complete. Its text is `rbd`'s, without the `rbd: ` in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError(pub String);

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The parts of a spec as written in one word; parts not written are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Parts {
    pool: String,
    namespace: String,
    name: String,
    snap: String,
}

/// Splits `name[@snap]` under the rules of `validation`.
fn split_tail(tail: &str, validation: Validation) -> Option<(String, String)> {
    let (name, snap) = match tail.split_once('@') {
        Some((name, snap)) => (name, Some(snap)),
        None => (tail, None),
    };
    if name.is_empty() || (validation == Validation::Full && name.contains('/')) {
        return None;
    }
    match snap {
        None => Some((name.to_owned(), String::new())),
        Some("") => None,
        Some(s) if validation != Validation::Relaxed && s.contains(['/', '@']) => None,
        Some(s) => Some((name.to_owned(), s.to_owned())),
    }
}

/// Splits a spec; longer prefixes are tried first, as the greedy expression in `rbd` does.
fn split(spec: &str, validation: Validation) -> Option<Parts> {
    if let Some((pool, rest)) = spec.split_once('/')
        && !pool.is_empty()
        && !(validation == Validation::Full && pool.contains('@'))
    {
        if let Some((namespace, tail)) = rest.split_once('/')
            && !namespace.is_empty()
            && !namespace.contains('@')
            && let Some((name, snap)) = split_tail(tail, validation)
        {
            return Some(Parts { pool: pool.to_owned(), namespace: namespace.to_owned(), name, snap });
        }
        if let Some((name, snap)) = split_tail(rest, validation) {
            return Some(Parts { pool: pool.to_owned(), namespace: String::new(), name, snap });
        }
    }
    let (name, snap) = split_tail(spec, validation)?;
    Some(Parts { name, snap, ..Parts::default() })
}

/// What a user gave to name an image or a snapshot: options, and the word in the image's place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapInput {
    /// `--pool` or `--dest-pool`.
    pub pool: Option<String>,
    /// `--namespace` or `--dest-namespace`.
    pub namespace: Option<String>,
    /// `--image` or `--dest`; may itself be a whole spec.
    pub image: Option<String>,
    /// `--snap` or `--dest-snap`.
    pub snap: Option<String>,
}

/// What a command asks of a name.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Which of the command's images.
    pub side: Side,
    /// Whether a snapshot belongs to it.
    pub snap: SnapPresence,
    /// How strictly to read.
    pub validation: Validation,
    /// Whether it may be left out: an empty image name is then no complaint.
    pub image_optional: bool,
}

impl Wanted {
    /// The only image of a command, or the source, read relaxed.
    #[must_use]
    pub fn source(snap: SnapPresence) -> Self {
        Self { side: Side::Source, snap, validation: Validation::Relaxed, image_optional: false }
    }

    /// The name of an image about to be made.
    #[must_use]
    pub fn target() -> Self {
        Self {
            side: Side::Target,
            snap: SnapPresence::None,
            validation: Validation::Full,
            image_optional: false,
        }
    }

    /// The same, read as `validation` says.
    #[must_use]
    pub fn read(mut self, validation: Validation) -> Self {
        self.validation = validation;
        self
    }

    /// The same, where the image may be missing.
    #[must_use]
    pub fn or_nothing(mut self) -> Self {
        self.image_optional = true;
        self
    }
}

impl SnapInput {
    /// Puts options and a word together. `next_word` is asked for the positional argument only where `--image` did not
    /// name the image, as in `rbd`.
    ///
    /// # Errors
    /// `rbd`'s complaint.
    pub fn resolve(
        self,
        next_word: impl FnOnce() -> Option<String>,
        default_pool: &str,
        wanted: Wanted,
    ) -> Result<SnapSpec, SpecError> {
        let mut parts = Parts {
            pool: self.pool.unwrap_or_default(),
            namespace: self.namespace.unwrap_or_default(),
            name: String::new(),
            snap: self.snap.unwrap_or_default(),
        };
        match self.image.filter(|i| !i.is_empty()) {
            Some(image) => parts.take(&image, Validation::Relaxed)?,
            None => {
                if let Some(word) = next_word().filter(|w| !w.is_empty()) {
                    parts.take(&word, wanted.validation)?;
                }
            }
        }
        parts.finish(default_pool, wanted)
    }
}

impl Parts {
    /// Takes over what `spec` says; parts it does not say stay.
    fn take(&mut self, spec: &str, validation: Validation) -> Result<(), SpecError> {
        let split = split(spec, validation).ok_or_else(|| SpecError(format!("invalid spec '{spec}'")))?;
        for (own, given) in [
            (&mut self.pool, split.pool),
            (&mut self.namespace, split.namespace),
            (&mut self.snap, split.snap),
        ] {
            if !given.is_empty() {
                *own = given;
            }
        }
        self.name = split.name;
        Ok(())
    }

    /// Checks that all that is wanted is there and nothing else.
    fn finish(mut self, default_pool: &str, wanted: Wanted) -> Result<SnapSpec, SpecError> {
        let side = match wanted.side {
            Side::Source => "",
            Side::Target => "destination ",
        };
        if self.pool.is_empty() {
            default_pool.clone_into(&mut self.pool);
        }
        if self.name.is_empty() && !wanted.image_optional {
            return Err(SpecError(format!("{side}image name was not specified")));
        }
        if wanted.validation == Validation::Full && self.pool.contains(['/', '@']) {
            return Err(SpecError(format!("invalid pool name '{}'", self.pool)));
        }
        match (wanted.snap, self.snap.is_empty()) {
            (SnapPresence::None, false) => {
                return Err(SpecError(format!(
                    "{side}snapshot name specified for a command that doesn't use it"
                )));
            }
            (SnapPresence::Required, true) => {
                return Err(SpecError(format!("{side}snapshot name was not specified")));
            }
            (SnapPresence::None | SnapPresence::Permitted, true)
            | (SnapPresence::Permitted | SnapPresence::Required, false) => {}
        }
        if wanted.validation != Validation::Relaxed && self.snap.contains(['/', '@']) {
            return Err(SpecError(format!("invalid {side}snap name '{}'", self.snap)));
        }
        Ok(SnapSpec {
            image: ImageSpec { pool: self.pool, namespace: self.namespace, image: self.name },
            snap: Some(self.snap).filter(|s| !s.is_empty()),
        })
    }
}

/// Reads `pool[/namespace]`, completed by options.
///
/// # Errors
/// `rbd`'s complaint.
pub fn resolve_pool(
    word: Option<&str>,
    pool: Option<&str>,
    namespace: Option<&str>,
    default_pool: &str,
) -> Result<PoolSpec, SpecError> {
    let (mut spec_pool, mut spec_namespace) = (pool.unwrap_or_default(), namespace.unwrap_or_default());
    // A word in the pool's place is looked at only where `--pool` is not given.
    if let (None, Some(word)) = (pool, word.filter(|w| !w.is_empty())) {
        match word.rsplit_once('/') {
            None => spec_pool = word,
            Some((p, n)) => (spec_pool, spec_namespace) = (p, n),
        }
    }
    if spec_namespace.contains(['/', '@']) {
        return Err(SpecError(format!("invalid namespace '{spec_namespace}'")));
    }
    let pool = if spec_pool.is_empty() { default_pool } else { spec_pool };
    Ok(PoolSpec { pool: pool.to_owned(), namespace: spec_namespace.to_owned() })
}

#[cfg(test)]
mod tests;
