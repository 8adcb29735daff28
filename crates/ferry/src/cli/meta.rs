//! Verbs on keys and values: image-meta, config, config-key.

use ferry_node::api::{Command, ConfigAction, ConfigLevel, MetaCommand};

use super::Plan;
use super::args::{Context, Parsed, Usage, Verb, Word};
use super::spec::{self, FORMAT, IMAGE, IMAGE_WORD, POOL_WORD};

/// A key of an image.
const META_KEY: Word = Word::new("key", "image meta key");
/// A key of the settings.
const KEY: Word = Word::new("key", "config key");
/// A value of the settings.
const VALUE: Word = Word::new("value", "config value");
/// A section of the global settings.
const ENTITY: Word = Word::new("config-entity", "config entity (global, client, client.<id>)");

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    config(
        "config global get",
        None,
        "Get a global-level configuration override.",
        &[ENTITY, KEY],
        &[],
        |p, cx| global(p, cx, get),
    ),
    config(
        "config global list",
        Some("config global ls"),
        "List global-level configuration overrides.",
        &[ENTITY],
        &[FORMAT],
        |p, cx| global(p, cx, |_| Ok(ConfigAction::List)),
    ),
    config(
        "config global remove",
        Some("config global rm"),
        "Remove a global-level configuration override.",
        &[ENTITY, KEY],
        &[],
        |p, cx| global(p, cx, remove),
    ),
    config(
        "config global set",
        None,
        "Set a global-level configuration override.",
        &[ENTITY, KEY, VALUE],
        &[],
        |p, cx| global(p, cx, set),
    ),
    config(
        "config image get",
        None,
        "Get an image-level configuration override.",
        &[IMAGE_WORD, KEY],
        &[IMAGE],
        |p, cx| of_image(p, cx, get),
    ),
    config(
        "config image list",
        Some("config image ls"),
        "List image-level configuration overrides.",
        &[IMAGE_WORD],
        &[IMAGE, FORMAT],
        |p, cx| of_image(p, cx, |_| Ok(ConfigAction::List)),
    ),
    config(
        "config image remove",
        Some("config image rm"),
        "Remove an image-level configuration override.",
        &[IMAGE_WORD, KEY],
        &[IMAGE],
        |p, cx| of_image(p, cx, remove),
    ),
    config(
        "config image set",
        None,
        "Set an image-level configuration override.",
        &[IMAGE_WORD, KEY, VALUE],
        &[IMAGE],
        |p, cx| of_image(p, cx, set),
    ),
    config(
        "config pool get",
        None,
        "Get a pool-level configuration override.",
        &[POOL_WORD, KEY],
        &[],
        |p, cx| of_pool(p, cx, get),
    ),
    config(
        "config pool list",
        Some("config pool ls"),
        "List pool-level configuration overrides.",
        &[POOL_WORD],
        &[FORMAT],
        |p, cx| of_pool(p, cx, |_| Ok(ConfigAction::List)),
    ),
    config(
        "config pool remove",
        Some("config pool rm"),
        "Remove a pool-level configuration override.",
        &[POOL_WORD, KEY],
        &[],
        |p, cx| of_pool(p, cx, remove),
    ),
    config(
        "config pool set",
        None,
        "Set a pool-level configuration override.",
        &[POOL_WORD, KEY, VALUE],
        &[],
        |p, cx| of_pool(p, cx, set),
    ),
    config("config-key get", None, "Print a secret.", &[KEY], &[], |p, _| {
        Plan::run(Command::ConfigKey(ConfigAction::Get { key: key(p)? }))
    }),
    config("config-key list", Some("config-key ls"), "List the names of secrets.", &[], &[FORMAT], |_, _| {
        Plan::run(Command::ConfigKey(ConfigAction::List))
    }),
    config("config-key remove", Some("config-key rm"), "Remove a secret.", &[KEY], &[], |p, _| {
        Plan::run(Command::ConfigKey(ConfigAction::Remove { key: key(p)? }))
    }),
    config(
        "config-key set",
        None,
        "Keep a secret that a config://KEY refers to.",
        &[KEY, Word::new("value", "the secret; read from stdin where it is left out or '-'")],
        &[],
        set_secret,
    ),
    config(
        "image-meta get",
        None,
        "Image metadata get the value associated with the key.",
        &[IMAGE_WORD, META_KEY],
        &[IMAGE],
        |p, cx| {
            let image = spec::image(p, cx)?;
            Plan::run(Command::Meta(MetaCommand::Get { image, key: meta_key(p)? }))
        },
    ),
    config(
        "image-meta list",
        Some("image-meta ls"),
        "Image metadata list keys with values.",
        &[IMAGE_WORD],
        &[IMAGE, FORMAT],
        |p, cx| Plan::run(Command::Meta(MetaCommand::List { image: spec::image(p, cx)? })),
    ),
    config(
        "image-meta remove",
        Some("image-meta rm"),
        "Image metadata remove the key and value associated.",
        &[IMAGE_WORD, META_KEY],
        &[IMAGE],
        |p, cx| {
            let image = spec::image(p, cx)?;
            Plan::run(Command::Meta(MetaCommand::Remove { image, key: meta_key(p)? }))
        },
    ),
    config(
        "image-meta set",
        None,
        "Image metadata set key with value.",
        &[IMAGE_WORD, META_KEY, Word::new("value", "image meta value")],
        &[IMAGE],
        |p, cx| {
            let image = spec::image(p, cx)?;
            let key = meta_key(p)?;
            let value = p.required_word("metadata value was not specified")?;
            Plan::run(Command::Meta(MetaCommand::Set { image, key, value }))
        },
    ),
];

/// A verb without a remark.
const fn config(
    name: &'static str,
    alias: Option<&'static str>,
    about: &'static str,
    words: &'static [Word],
    flags: &'static [&'static [super::args::Flag]],
    convert: super::args::Convert,
) -> Verb {
    Verb { name, alias, about, words, flags, remark: "", convert }
}

/// What is done with a key, read from the words that are left.
type Action = fn(&mut Parsed) -> Result<ConfigAction, Usage>;

fn meta_key(p: &mut Parsed) -> Result<String, Usage> {
    p.required_word("metadata key was not specified")
}

fn key(p: &mut Parsed) -> Result<String, Usage> {
    p.required_word("config key was not specified")
}

/// The name of a setting of RBD.
fn setting(p: &mut Parsed) -> Result<String, Usage> {
    let key = key(p)?;
    if !key.starts_with("rbd_") {
        return Err(Usage::invalid(format!("not rbd option: {key}")));
    }
    if ferry_node::options::default_of(&key).is_none() {
        return Err(Usage::invalid(format!("invalid config key: {key}")));
    }
    Ok(key)
}

fn get(p: &mut Parsed) -> Result<ConfigAction, Usage> {
    Ok(ConfigAction::Get { key: setting(p)? })
}

fn remove(p: &mut Parsed) -> Result<ConfigAction, Usage> {
    Ok(ConfigAction::Remove { key: setting(p)? })
}

fn set(p: &mut Parsed) -> Result<ConfigAction, Usage> {
    let key = setting(p)?;
    Ok(ConfigAction::Set { key, value: p.next_word().unwrap_or_default() })
}

fn global(p: &mut Parsed, _: &Context<'_>, action: Action) -> Result<Plan, Usage> {
    let entity = p.next_word().unwrap_or_default();
    if entity != "global" && entity != "client" && !entity.starts_with("client.") {
        return Err(Usage::invalid(format!(
            "invalid config entity: {entity} (must be global, client or client.<id>)"
        )));
    }
    Plan::run(Command::Config { level: ConfigLevel::Global(entity), action: action(p)? })
}

fn of_pool(p: &mut Parsed, _: &Context<'_>, action: Action) -> Result<Plan, Usage> {
    let pool = p.required_word("pool name was not specified")?;
    Plan::run(Command::Config { level: ConfigLevel::Pool(pool), action: action(p)? })
}

fn of_image(p: &mut Parsed, cx: &Context<'_>, action: Action) -> Result<Plan, Usage> {
    let image = spec::image(p, cx)?;
    Plan::run(Command::Config { level: ConfigLevel::Image(image), action: action(p)? })
}

/// A secret may come from stdin, so that it is in no list of processes.
fn set_secret(p: &mut Parsed, _: &Context<'_>) -> Result<Plan, Usage> {
    let key = key(p)?;
    let value = p.next_word().filter(|v| v != "-");
    let mut files = super::Files::default();
    if value.is_none() {
        files.input = Some("-".to_owned());
    }
    let action = ConfigAction::Set { key, value: value.unwrap_or_default() };
    Plan::run_on(Command::ConfigKey(action), files)
}
