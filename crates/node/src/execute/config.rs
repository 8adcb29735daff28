//! Settings and secrets: config, config-key.

use std::fs::File;
use std::io::Read;

use ferry_core::{Errno, Error};
use ferry_image::header::Opening;
use ferry_image::metadata::config::{self, Source};

use super::{Run, failed};
use crate::api::{ConfigAction, ConfigLevel, Done, Failure, Response, Setting, SettingsOwner, Streams};
use crate::spec::ImageSpec;

/// What the keys of settings begin with among the metadata of pools and images.
pub(super) const PREFIX: &str = "conf_";

/// A setting of librbd's own that `rbd` does not list.
const INTERNAL: &str = "rbd_config_pool_override_update_timestamp";

/// A setting that `rbd` lists for images too.
const MAP_OPTIONS: &str = "rbd_default_map_options";

/// Longest secret: far above any key or password. Bytes.
const SECRET_MAX: u64 = 64 << 10;

impl Run<'_> {
    /// Executes `config`.
    pub(super) async fn config_command(&self, level: ConfigLevel, action: ConfigAction) -> Done<Response> {
        match level {
            ConfigLevel::Global(section) => self.global(&section, action),
            ConfigLevel::Pool(pool) => self.of_pool(&pool, action).await,
            ConfigLevel::Image(image) => self.of_image(&image, action).await,
        }
    }

    /// The global settings, which the home keeps.
    fn global(&self, section: &str, action: ConfigAction) -> Done<Response> {
        let home = self.home;
        match action {
            ConfigAction::Set { key, value } => {
                let what = format!("cannot set {key}");
                home.update(|c| {
                    c.config.entry(section.to_owned()).or_default().insert(key.clone(), value);
                    Ok(())
                })
                .map_err(failed(what, format!("rbd: error setting {key}")))?;
                Ok(Response::Done)
            }
            ConfigAction::Remove { key } => {
                let what = format!("cannot remove {key}");
                home.update(|c| {
                    if let Some(values) = c.config.get_mut(section) {
                        values.remove(&key);
                    }
                    c.config.retain(|_, values| !values.is_empty());
                    Ok(())
                })
                .map_err(failed(what, format!("rbd: error removing {key}")))?;
                Ok(Response::Done)
            }
            ConfigAction::Get { key } => {
                let value = self.config.config.get(section).and_then(|values| values.get(&key));
                value.cloned().map(Response::Value).ok_or_else(|| not_set(&key))
            }
            ConfigAction::List => {
                let mut settings: Vec<Setting> = Vec::new();
                for from in ["global", "client", section] {
                    let inherits = from == section || section != "global";
                    for (name, value) in
                        self.config.config.get(from).filter(|_| inherits).into_iter().flatten()
                    {
                        settings.retain(|s| s.name != *name);
                        settings.push(Setting {
                            name: name.clone(),
                            value: value.clone(),
                            source: from.to_owned(),
                        });
                    }
                }
                settings.sort_by(|a, b| a.name.cmp(&b.name));
                Ok(Response::Settings { settings, owner: SettingsOwner::Global })
            }
        }
    }

    async fn of_pool(&self, name: &str, action: ConfigAction) -> Done<Response> {
        let pool = self.whole_pool(name).await?;
        match action {
            ConfigAction::Set { key, value } => {
                let what = format!("cannot set {key} of pool {name}");
                let set = config::set_in_pool(&pool, &key, &value).await;
                set.map_err(failed(what, format!("rbd: failed to set {key}")))?;
                Ok(Response::Done)
            }
            ConfigAction::Get { key } => {
                let what = format!("cannot read {key} of pool {name}");
                let value = config::pool_value(&pool, &key).await;
                let value = value.map_err(failed(what, format!("rbd: failed to get {key}")))?;
                value.map(Response::Value).ok_or_else(|| not_set(&key))
            }
            ConfigAction::Remove { key } => {
                let what = format!("cannot remove {key} of pool {name}");
                let removed = config::remove_from_pool(&pool, &key).await;
                removed.map_err(failed(what, format!("rbd: failed to remove {key}")))?;
                Ok(Response::Done)
            }
            ConfigAction::List => {
                let listed = config::of_pool(&pool).await;
                let listed = listed.map_err(failed(
                    format!("cannot list the settings of pool {name}"),
                    "rbd: failed to list config",
                ))?;
                Ok(Response::Settings { settings: self.shown(listed), owner: SettingsOwner::Pool })
            }
        }
    }

    async fn of_image(&self, image: &ImageSpec, action: ConfigAction) -> Done<Response> {
        match action {
            ConfigAction::Set { key, value } => {
                let mut opened = self.open(image, Opening::ReadWrite).await?;
                let what = format!("cannot set {key} of image {image}");
                let set = config::set_in_image(&mut opened, &key, &value).await;
                set.map_err(failed(what, format!("rbd: failed to set {key}")))?;
                self.close(opened).await?;
                Ok(Response::Done)
            }
            ConfigAction::Get { key } => {
                let opened = self.open(image, Opening::ReadOnly).await?;
                let what = format!("cannot read {key} of image {image}");
                let value = config::image_value(&opened, &key);
                let value = value.map_err(failed(what, format!("rbd: failed to get {key}")))?;
                value.map(Response::Value).ok_or_else(|| not_set(&key))
            }
            ConfigAction::Remove { key } => {
                let mut opened = self.open(image, Opening::ReadWrite).await?;
                let what = format!("cannot remove {key} of image {image}");
                let removed = config::remove_from_image(&mut opened, &key).await;
                removed.map_err(failed(what, format!("rbd: failed to remove {key}")))?;
                self.close(opened).await?;
                Ok(Response::Done)
            }
            ConfigAction::List => {
                let opened = self.open(image, Opening::ReadOnly).await?;
                let listed = config::of_image(&opened).await;
                let listed = listed.map_err(failed(
                    format!("cannot list the settings of image {image}"),
                    "rbd: failed to list config",
                ))?;
                Ok(Response::Settings { settings: self.shown(listed), owner: SettingsOwner::Image })
            }
        }
    }

    /// Settings as they are listed; what neither pool nor image says is said by the global settings.
    fn shown(&self, listed: Vec<config::Setting>) -> Vec<Setting> {
        let mut shown: Vec<Setting> = listed
            .into_iter()
            .filter(|s| s.name != INTERNAL)
            .map(|s| Setting {
                name: s.name.to_owned(),
                value: match s.source {
                    Source::Config => self.settings.get_global(s.name).to_owned(),
                    Source::Pool | Source::Image => s.value,
                },
                source: s.source.word().to_owned(),
            })
            .collect();
        if !shown.iter().any(|s| s.name == MAP_OPTIONS) {
            let value = self.settings.get_global(MAP_OPTIONS).to_owned();
            shown.push(Setting {
                name: MAP_OPTIONS.to_owned(),
                value,
                source: Source::Config.word().to_owned(),
            });
            shown.sort_by(|a, b| a.name.cmp(&b.name));
        }
        shown
    }

    /// Executes `config-key`. A secret may come from the input, so that it is in no list of processes.
    pub(super) fn config_key_command(&self, action: ConfigAction, streams: Streams) -> Done<Response> {
        let home = self.home;
        match action {
            ConfigAction::Set { key, value } => {
                let cannot =
                    || failed(format!("cannot keep secret {key}"), format!("rbd: error setting {key}"));
                let value = match streams.input {
                    Some(input) => read_secret(input).map_err(cannot())?,
                    None => value,
                };
                home.update_secrets(|secrets| Ok(secrets.insert(key.clone(), value))).map_err(cannot())?;
                self.events.note(&format!("set {key}"));
                Ok(Response::Done)
            }
            ConfigAction::Get { key } => {
                let cannot = || failed("cannot read the secrets", format!("rbd: error getting {key}"));
                let secrets = home.secrets().map_err(cannot())?;
                secrets.get(&key).cloned().map(Response::Value).ok_or_else(|| missing_secret(&key))
            }
            ConfigAction::Remove { key } => {
                let cannot =
                    || failed(format!("cannot remove secret {key}"), format!("rbd: error removing {key}"));
                home.update_secrets(|secrets| Ok(secrets.remove(&key))).map_err(cannot())?;
                self.events.note("key deleted");
                Ok(Response::Done)
            }
            ConfigAction::List => {
                let secrets =
                    home.secrets().map_err(failed("cannot read the secrets", "rbd: error listing keys"))?;
                Ok(Response::Keys(secrets.into_keys().collect()))
            }
        }
    }
}

/// The first line of the input.
fn read_secret(input: File) -> ferry_core::Result<String> {
    let mut text = String::new();
    input
        .take(SECRET_MAX)
        .read_to_string(&mut text)
        .map_err(|e| Error::io("cannot read the secret from the input", e))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A setting nobody set there.
fn not_set(key: &str) -> Failure {
    Failure::plain(Errno::ENOENT, format!("{key} is not set"))
}

/// A secret that is not kept.
fn missing_secret(key: &str) -> Failure {
    Failure::plain(Errno::ENOENT, format!("no secret is kept under {key}"))
        .lines([format!("Error ENOENT: error obtaining '{key}': {}", Errno::ENOENT)])
        .advise("`ferry config-key ls` lists the names there are")
}
