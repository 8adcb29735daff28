//! Reads an argument list by the tables.

use std::collections::{BTreeMap, VecDeque};

use ferry_node::options;

use super::kind::feature_bits;
use super::{Flag, Kind, Usage, Verb};

/// Options every verb takes: how to find a Ceph cluster.
pub(crate) const GLOBAL: &[Flag] = &[
    Flag::new("conf", Kind::Text, "path to cluster configuration").short('c'),
    Flag::new("cluster", Kind::Text, "cluster name"),
    Flag::new("id", Kind::Text, "client id (without 'client.' prefix)"),
    Flag::new("name", Kind::Text, "client name").short('n'),
    Flag::new("mon_host", Kind::Text, "monitor host").short('m'),
    Flag::new("keyfile", Kind::Text, "path to secret key").short('K'),
    Flag::new("keyring", Kind::Text, "path to keyring").short('k'),
];

/// What was typed: checked word by word, not yet understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    values: BTreeMap<&'static str, Vec<String>>,
    words: VecDeque<String>,
    overrides: BTreeMap<String, String>,
}

impl Parsed {
    /// The value of an option.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(|v| v.last()).map(String::as_str)
    }

    /// The value of an option, to keep.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.value(name).map(str::to_owned)
    }

    /// Whether a switch is given.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The value of an option that the tables say is a number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.value(name).and_then(|v| v.parse().ok())
    }

    /// The value of an option that the tables say is a size; bare numbers count `unit` bytes.
    pub(crate) fn size(&self, name: &str, unit: u64) -> Option<u64> {
        self.value(name).and_then(|v| ferry_core::size::parse_size(v, unit))
    }

    /// The bits of all features named by an option.
    pub(crate) fn features(&self, name: &str) -> Option<u64> {
        let given = self.values.get(name)?;
        Some(given.iter().filter_map(|v| feature_bits(v)).fold(0, |all, bits| all | bits))
    }

    /// The next word.
    pub(crate) fn next_word(&mut self) -> Option<String> {
        self.words.pop_front()
    }

    /// The next word, which must not be empty.
    pub(crate) fn required_word(&mut self, complaint: &str) -> Result<String, Usage> {
        self.next_word().filter(|w| !w.is_empty()).ok_or_else(|| Usage::invalid(complaint))
    }

    /// All words that are left.
    pub(crate) fn rest(&mut self) -> Vec<String> {
        std::mem::take(&mut self.words).into()
    }

    /// The next word, left in its place.
    pub(crate) fn peek_word(&self) -> Option<&str> {
        self.words.front().map(String::as_str)
    }

    /// Ceph settings given as options.
    pub(crate) fn overrides(&self) -> &BTreeMap<String, String> {
        &self.overrides
    }
}

/// What an argument list asks for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// The list of verbs, or the help of one.
    Help(Option<&'static Verb>),
    /// Which program this is.
    Version,
    /// No verb is called that.
    Unknown(String),
    /// A verb.
    Verb(&'static Verb, Parsed),
}

/// One argument, looked at without knowing the verb.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// Name without dashes, and the value given with `=`.
    Long(String, Option<String>),
    /// Letters after one dash.
    Short(String),
}

/// Splits the arguments into tokens; after `--` all are words.
fn tokens(arguments: &[String]) -> VecDeque<Token> {
    let mut only_words = false;
    let mut tokens = VecDeque::new();
    for argument in arguments {
        if only_words {
            tokens.push_back(Token::Word(argument.clone()));
        } else if argument == "--" {
            only_words = true;
        } else if let Some(long) = argument.strip_prefix("--") {
            tokens.push_back(match long.split_once('=') {
                Some((name, value)) => Token::Long(name.to_owned(), Some(value.to_owned())),
                None => Token::Long(long.to_owned(), None),
            });
        } else if argument.len() > 1 && argument.starts_with('-') {
            tokens.push_back(Token::Short(argument[1..].to_owned()));
        } else {
            tokens.push_back(Token::Word(argument.clone()));
        }
    }
    tokens
}

/// Whether a long option belongs to Ceph's configuration, and whether a value follows it.
enum Setting {
    /// A setting of RBD; a yes-or-no one needs no value.
    Rbd { name: String, is_switch: bool },
    /// Some other part's: accepted and without effect.
    Ignored { is_switch: bool },
}

fn setting(long: &str) -> Option<Setting> {
    let name = long.replace('-', "_");
    if let Some(default) = options::default_of(&name) {
        return Some(Setting::Rbd { name, is_switch: matches!(default, "true" | "false") });
    }
    if name == "no_mon_config" || name == "log_to_stderr" || name == "err_to_stderr" {
        return Some(Setting::Ignored { is_switch: true });
    }
    (name.starts_with("debug_") || name.starts_with("log_") || name.starts_with("mon_") && name != "mon_host")
        .then_some(Setting::Ignored { is_switch: false })
}

/// Takes Ceph's settings out of the arguments.
fn take_settings(tokens: VecDeque<Token>) -> Result<(VecDeque<Token>, BTreeMap<String, String>), Usage> {
    let (mut left, mut overrides) = (VecDeque::new(), BTreeMap::new());
    let mut tokens = tokens.into_iter();
    while let Some(token) = tokens.next() {
        let Token::Long(long, value) = token else {
            left.push_back(token);
            continue;
        };
        let Some(setting) = setting(&long) else {
            left.push_back(Token::Long(long, value));
            continue;
        };
        let is_switch = match &setting {
            Setting::Rbd { is_switch, .. } | Setting::Ignored { is_switch } => *is_switch,
        };
        let value = match value {
            Some(value) => value,
            None if is_switch => "true".to_owned(),
            None => match tokens.next() {
                Some(Token::Word(value)) => value,
                Some(Token::Long(..) | Token::Short(_)) | None => {
                    return Err(Usage::syntax(format!("Option --{long} requires an argument.")));
                }
            },
        };
        if let Setting::Rbd { name, .. } = setting {
            overrides.insert(name, value);
        }
    }
    Ok((left, overrides))
}

/// Finds the flag a long or short name means, among the verb's and the global ones.
fn find_flag(verb: &'static Verb, matches: impl Fn(&Flag) -> bool) -> Option<&'static Flag> {
    verb.all_flags().chain(GLOBAL.iter()).find(|f| matches(f))
}

/// The words of an argument list before the verb is known: options that some verb lets take a value hide the next word.
fn loose_words(tokens: &VecDeque<Token>, verbs: &'static [&'static [Verb]]) -> Vec<String> {
    let takes_value = |test: &dyn Fn(&Flag) -> bool| {
        let mut known = verbs.iter().flat_map(|g| g.iter()).flat_map(Verb::all_flags).chain(GLOBAL.iter());
        known.find(|f| test(f)).is_none_or(|f| f.kind.takes_value())
    };
    let mut words = Vec::new();
    let mut skip = false;
    for token in tokens {
        let hides_next = match token {
            Token::Word(_) if skip => false,
            Token::Word(word) => {
                words.push(word.clone());
                false
            }
            Token::Long(name, value) => value.is_none() && takes_value(&|f| f.long == name),
            Token::Short(letters) => {
                let mut chars = letters.chars();
                let first = chars.next();
                chars.next().is_none() && takes_value(&|f| f.short == first)
            }
        };
        skip = hides_next;
    }
    words
}

/// Whether the words begin with those of `name`; how many they are.
fn begins_with(words: &[String], name: &str) -> Option<usize> {
    let wanted: Vec<&str> = name.split(' ').collect();
    let given = words.get(..wanted.len())?;
    given.iter().zip(&wanted).all(|(g, w)| g == w).then_some(wanted.len())
}

/// The verb the words begin with (the longest that fits) and how many words it has.
fn find_verb(words: &[String], verbs: &'static [&'static [Verb]]) -> Option<(&'static Verb, usize)> {
    verbs
        .iter()
        .flat_map(|group| group.iter())
        .filter_map(|verb| {
            let names = [Some(verb.name), verb.alias];
            let n = names.into_iter().flatten().filter_map(|name| begins_with(words, name)).max()?;
            Some((verb, n))
        })
        .max_by_key(|(_, n)| *n)
}

/// Reads an argument list.
pub(crate) fn parse(arguments: &[String], verbs: &'static [&'static [Verb]]) -> Result<Asked, Usage> {
    let (tokens, overrides) = take_settings(tokens(arguments))?;
    let words = loose_words(&tokens, verbs);
    let has_flag = |long: &str, short: &str| {
        tokens.iter().any(|t| match t {
            Token::Long(name, _) => name == long,
            Token::Short(letters) => letters == short,
            Token::Word(_) => false,
        })
    };
    if has_flag("help", "h") {
        return Ok(Asked::Help(find_verb(&words, verbs).map(|(verb, _)| verb)));
    }
    if words.first().is_some_and(|w| w == "help") {
        return Ok(match find_verb(&words[1..], verbs) {
            Some((verb, _)) => Asked::Help(Some(verb)),
            None if words.len() == 1 => Asked::Help(None),
            None => Asked::Unknown(words[1..].join(" ")),
        });
    }
    if has_flag("version", "v") {
        return Ok(Asked::Version);
    }
    if words.is_empty() {
        return Ok(Asked::Help(None));
    }
    let Some((verb, verb_words)) = find_verb(&words, verbs) else {
        return Ok(Asked::Unknown(words.join(" ")));
    };
    let mut parsed = Parsed { overrides, ..Parsed::default() };
    read(verb, tokens, &mut parsed)?;
    parsed.words.drain(..verb_words);
    if parsed.words.len() > verb.words.len() && !verb.words.last().is_some_and(|w| w.many) {
        return Err(Usage::syntax("too many arguments"));
    }
    Ok(Asked::Verb(verb, parsed))
}

/// Reads tokens by the flags of one verb.
fn read(verb: &'static Verb, mut tokens: VecDeque<Token>, parsed: &mut Parsed) -> Result<(), Usage> {
    while let Some(token) = tokens.pop_front() {
        match token {
            Token::Word(word) => parsed.words.push_back(word),
            Token::Long(name, value) => {
                let flag = find_flag(verb, |f| f.long == name)
                    .ok_or_else(|| Usage::syntax(format!("unrecognised option '--{name}'")))?;
                let value = match value {
                    Some(_) if !flag.kind.takes_value() => {
                        return Err(Usage::syntax(format!("option '--{name}' does not take any arguments")));
                    }
                    Some(value) => value,
                    None => following_value(flag, verb, &mut tokens)?,
                };
                store(flag, value, parsed)?;
            }
            Token::Short(letters) => read_bundle(verb, &letters, &mut tokens, parsed)?,
        }
    }
    Ok(())
}

/// Reads `-l`, `-la`, `-s5` or `-s 5`.
fn read_bundle(
    verb: &'static Verb,
    letters: &str,
    tokens: &mut VecDeque<Token>,
    parsed: &mut Parsed,
) -> Result<(), Usage> {
    let mut rest = letters.chars();
    while let Some(letter) = rest.next() {
        let flag = find_flag(verb, |f| f.short == Some(letter))
            .ok_or_else(|| Usage::syntax(format!("unrecognised option '-{letters}'")))?;
        if !flag.kind.takes_value() {
            store(flag, String::new(), parsed)?;
            continue;
        }
        let attached = rest.as_str();
        let value = if attached.is_empty() {
            following_value(flag, verb, tokens)?
        } else {
            attached.strip_prefix('=').unwrap_or(attached).to_owned()
        };
        return store(flag, value, parsed);
    }
    Ok(())
}

/// The value after an option: the next argument, unless that is an option itself.
fn following_value(flag: &Flag, verb: &'static Verb, tokens: &mut VecDeque<Token>) -> Result<String, Usage> {
    if !flag.kind.takes_value() {
        return Ok(String::new());
    }
    let missing = || Usage::syntax(format!("the required argument for option '--{}' is missing", flag.long));
    match tokens.pop_front() {
        Some(Token::Word(word)) => Ok(word),
        Some(Token::Long(name, value)) if find_flag(verb, |f| f.long == name).is_none() => {
            Ok(value.map_or_else(|| format!("--{name}"), |v| format!("--{name}={v}")))
        }
        Some(Token::Short(letters)) if find_flag(verb, |f| f.short == letters.chars().next()).is_none() => {
            Ok(format!("-{letters}"))
        }
        Some(Token::Long(..) | Token::Short(_)) | None => Err(missing()),
    }
}

/// Checks a value and keeps it.
fn store(flag: &'static Flag, value: String, parsed: &mut Parsed) -> Result<(), Usage> {
    if !flag.kind.accepts(&value) {
        return Err(Usage::syntax(flag.kind.complaint(flag.long, &value)));
    }
    let values = parsed.values.entry(flag.long).or_default();
    if !values.is_empty() && !flag.kind.repeats() {
        return Err(Usage::syntax(format!("option '--{}' cannot be specified more than once", flag.long)));
    }
    values.push(value);
    Ok(())
}
