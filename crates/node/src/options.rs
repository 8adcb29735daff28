//! Settings: `rbd_*` names, their defaults, and which of several values counts.
//!
//! The value given with a command counts before the image's, that before the pool's, that before the global ones
//! (`client.<id>`, then `client`, then `global`), those before the default.

mod table;

use std::collections::BTreeMap;

use crate::config::Config;
use table::SETTINGS;

/// The default of a setting, if there is such a setting.
#[must_use]
pub fn default_of(name: &str) -> Option<&'static str> {
    SETTINGS.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
}

/// The settings a command runs under.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    overrides: BTreeMap<String, String>,
    pool: BTreeMap<String, String>,
    global: BTreeMap<String, String>,
}

impl Settings {
    /// The global settings for the client `admin`, under what was given with the command.
    #[must_use]
    pub fn new(config: &Config, overrides: &BTreeMap<String, String>) -> Self {
        let mut global = BTreeMap::new();
        for section in ["global", "client", "client.admin"] {
            if let Some(values) = config.config.get(section) {
                global.extend(values.clone());
            }
        }
        Self { overrides: overrides.clone(), pool: BTreeMap::new(), global }
    }

    /// The same, with the settings of a pool between the command's and the global ones.
    #[must_use]
    pub fn with_pool(&self, pool: BTreeMap<String, String>) -> Self {
        Self { pool, ..self.clone() }
    }

    /// The value that counts; empty for a setting that does not exist.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        [&self.overrides, &self.pool, &self.global]
            .into_iter()
            .find_map(|layer| layer.get(name).map(String::as_str))
            .or_else(|| default_of(name))
            .unwrap_or_default()
    }

    /// The value outside any pool or image: the command's, the global one or the default.
    #[must_use]
    pub fn get_global(&self, name: &str) -> &str {
        [&self.overrides, &self.global]
            .into_iter()
            .find_map(|layer| layer.get(name).map(String::as_str))
            .or_else(|| default_of(name))
            .unwrap_or_default()
    }

    /// The value as a number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name).parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Settings;
    use crate::config::Config;

    fn one(name: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn the_nearer_value_counts() {
        let mut config = Config::default();
        let none = BTreeMap::new();
        assert_eq!(Settings::new(&config, &none).number("rbd_default_order"), Some(22));
        config.config.insert("global".to_owned(), one("rbd_default_order", "21"));
        assert_eq!(Settings::new(&config, &none).get("rbd_default_order"), "21");
        config.config.insert("client".to_owned(), one("rbd_default_order", "20"));
        let settings = Settings::new(&config, &none);
        assert_eq!(settings.get("rbd_default_order"), "20");
        let in_pool = settings.with_pool(one("rbd_default_order", "19"));
        assert_eq!(in_pool.get("rbd_default_order"), "19");
        assert_eq!(in_pool.get_global("rbd_default_order"), "20");
        let given = Settings::new(&config, &one("rbd_default_order", "18"));
        assert_eq!(given.with_pool(one("rbd_default_order", "19")).get("rbd_default_order"), "18");
    }
}
