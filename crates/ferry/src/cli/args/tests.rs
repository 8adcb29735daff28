use std::collections::BTreeMap;

use ferry_node::api::{
    BenchType, Command, Detail, ExportFormat, ImageCommand, SnapBy, SnapCommand, TransferCommand,
};
use ferry_node::config::Config;
use ferry_node::options::Settings;

use super::super::{Files, Plan, VERBS};
use super::{Asked, Context, Usage, parse};

/// Parses a command line written with blanks between its words.
fn asked(line: &str) -> Result<Asked, Usage> {
    let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    parse(&arguments, VERBS)
}

/// What a command line means.
fn meant(line: &str) -> Result<(Command, Files), Usage> {
    match asked(line)? {
        Asked::Verb(verb, mut parsed) => {
            let settings = Settings::new(&Config::default(), parsed.overrides());
            match (verb.convert)(
                &mut parsed,
                &Context { settings: &settings, program: super::super::output::Program::Ferry },
            )? {
                Plan::Run { command, files } => Ok((*command, files)),
                Plan::Version | Plan::Print(_) | Plan::Serve(_) | Plan::Demo => panic!("no command"),
            }
        }
        other => panic!("{other:?}"),
    }
}

fn complaint(line: &str) -> (i32, String) {
    let usage = meant(line).unwrap_err();
    (usage.exit, usage.text)
}

#[test]
fn options_stand_anywhere_and_in_every_form() {
    let (command, _) = meant("create p/a --size 10").unwrap();
    for line in [
        "create --size 10 p/a",
        "--size 10 create p/a",
        "create --size=10 p/a",
        "create -s10 p/a",
        "create -s 10 p/a",
        "create -s 10M --pool p --image a",
        "-p p create a -s 10M",
        "create -s 10 -- p/a",
        "create p/a --size 10 --no-progress -c /etc/ceph/x.conf --id admin",
    ] {
        assert_eq!(meant(line).unwrap().0, command, "{line}");
    }
    let Command::Image(ImageCommand::Create { image, size, .. }) = command else { panic!("a create") };
    assert_eq!((image.to_string().as_str(), size), ("p/a", 10 << 20));
}

#[test]
fn switches_come_in_bundles() {
    let Command::Trash(command) = meant("trash ls -al p").unwrap().0 else { panic!("trash") };
    let ferry_node::api::TrashCommand::List { detail, scope, .. } = command else { panic!("ls") };
    assert_eq!((detail, scope), (Detail::Long, ferry_node::api::TrashScope::All));
}

#[test]
fn the_parser_complains_in_the_words_of_rbd() {
    for (line, text) in [
        ("create a --x", "unrecognised option '--x'"),
        ("create a --siz 5", "unrecognised option '--siz'"),
        ("create a --size foo", "the argument for option '--size' is invalid"),
        ("create a b --size 1", "too many arguments"),
        ("create --size", "the required argument for option '--size' is missing"),
        ("create a -s", "the required argument for option '--size' is missing"),
        ("create a --size --pool p", "the required argument for option '--size' is missing"),
        ("ls --format foo", "the argument for option '--format' is invalid"),
        ("create a --size 1 --order 40", "the argument for option '--order' is invalid"),
        ("create a --size 10 --image-feature bogus", "the argument for option '--image-feature' is invalid"),
        ("create a --size 10 --size 11", "option '--size' cannot be specified more than once"),
        ("snap limit set a --limit x", "the argument ('x') for option '--limit' is invalid"),
        ("feature enable a bogus", "the argument for option is invalid"),
        ("create a --size 1 --no-progress=1", "option '--no-progress' does not take any arguments"),
    ] {
        assert_eq!(complaint(line), (1, text.to_owned()), "{line}");
    }
}

#[test]
fn what_is_missing_is_said_in_the_words_of_rbd() {
    for (line, code, text) in [
        ("create", 22, "image name was not specified"),
        ("create a", 22, "must specify --size <M/G/T>"),
        ("create pool/ --size 1", 22, "invalid spec 'pool/'"),
        ("create a@s --size 1", 22, "snapshot name specified for a command that doesn't use it"),
        ("info a@", 22, "invalid spec 'a@'"),
        ("import", 22, "path was not specified"),
        ("export a", 22, "path was not specified"),
        ("export-diff a", 22, "path was not specified"),
        ("snap create a", 22, "snapshot name was not specified"),
        ("snap limit set a", 34, "must specify --limit <num>"),
        ("snap rename a@b c@d", 22, "source and destination image name must be the same"),
        ("clone a b", 22, "snapshot name was not specified"),
        ("clone a@s", 22, "destination image name was not specified"),
        ("rename a", 22, "destination image name was not specified"),
        ("rename p/a q/b", 22, "mv/rename across pools not supported\nsource pool: p dest pool: q"),
        ("trash restore", 22, "image id was not specified"),
        ("image-meta set a", 22, "metadata key was not specified"),
        ("image-meta set a k", 22, "metadata value was not specified"),
        ("feature enable a", 22, "at least one feature name must be specified"),
        ("lock add a", 22, "lock id was not specified"),
        ("lock rm a i", 22, "locker was not specified"),
        ("merge-diff a", 22, "second diff was not specified"),
        ("bench a", 22, "--io-type must be specified."),
        ("config global set x y z", 22, "invalid config entity: x (must be global, client or client.<id>)"),
        ("config global set global y z", 22, "not rbd option: y"),
        ("config global set global rbd_y z", 22, "invalid config key: rbd_y"),
        ("info p/a --image-id 12", 22, "trying to access image using both name and id. "),
        ("trash mv a --expires-at nonsense", 22, "error calling /bin/date: (22) Invalid argument"),
    ] {
        assert_eq!(complaint(line), (code, text.to_owned()), "{line}");
    }
}

#[test]
fn verbs_have_their_aliases() {
    for (long, short) in [
        ("list p", "ls p"),
        ("remove a", "rm a"),
        ("rename a b", "mv a b"),
        ("copy a b", "cp a b"),
        ("deep copy a b", "deep cp a b"),
        ("disk-usage a", "du a"),
        ("snap create a@s", "snap add a@s"),
        ("snap remove a@s", "snap rm a@s"),
        ("snap list a", "snap ls a"),
        ("snap rollback a@s", "snap revert a@s"),
        ("trash move a", "trash mv a"),
        ("config global list global", "config global ls global"),
        ("namespace remove p/n", "namespace rm p/n"),
    ] {
        assert_eq!(meant(long).unwrap(), meant(short).unwrap(), "{short}");
    }
}

#[test]
fn an_unknown_verb_is_named_with_its_words() {
    for (line, words) in [("foo", "foo"), ("snap foo", "snap foo"), ("snap", "snap"), ("help foo", "foo")] {
        assert!(matches!(asked(line).unwrap(), Asked::Unknown(w) if w == words), "{line}");
    }
    assert!(matches!(asked("").unwrap(), Asked::Help(None)));
    assert!(matches!(asked("help snap create").unwrap(), Asked::Help(Some(v)) if v.name == "snap create"));
    assert!(matches!(asked("create --help").unwrap(), Asked::Help(Some(v)) if v.name == "create"));
    assert!(matches!(asked("--version").unwrap(), Asked::Version));
}

#[test]
fn every_setting_is_an_option() {
    let Asked::Verb(_, parsed) =
        asked("create a --size 1 --rbd-default-order 23 --rbd_cache --rbd-default-pool=q --debug-rbd 20")
            .unwrap()
    else {
        panic!("a verb")
    };
    let expected = [("rbd_cache", "true"), ("rbd_default_order", "23"), ("rbd_default_pool", "q")];
    let expected: BTreeMap<String, String> =
        expected.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    assert_eq!(parsed.overrides(), &expected);
    let Command::Image(ImageCommand::Remove { image }) = meant("rm a --rbd-default-pool q").unwrap().0 else {
        panic!("rm")
    };
    assert_eq!(image.to_string(), "q/a");
}

#[test]
fn import_and_export_find_their_files_and_names() {
    let (command, files) = meant("import /tmp/disk.raw").unwrap();
    let Command::Transfer(TransferCommand::Import { target, format, .. }) = command else { panic!("import") };
    assert_eq!((target.to_string().as_str(), format), ("rbd/disk.raw", ExportFormat::Raw));
    assert_eq!(files.input.as_deref(), Some("/tmp/disk.raw"));
    let (command, files) = meant("import --export-format 2 - --dest p/x").unwrap();
    let Command::Transfer(TransferCommand::Import { target, format, .. }) = command else { panic!("import") };
    assert_eq!((target.to_string().as_str(), format), ("p/x", ExportFormat::Stream));
    assert_eq!(files.input.as_deref(), Some("-"));
    let (_, files) = meant("export p/x - --no-progress").unwrap();
    assert_eq!(files.output.as_deref(), Some("-"));
}

#[test]
fn ids_take_the_place_of_names() {
    let Command::Snap(SnapCommand::Remove { image, snap, force }) =
        meant("snap rm --image-id 1f -p q --snap-id 7 --force").unwrap().0
    else {
        panic!("snap rm")
    };
    assert_eq!((image.name_or_id(), image.pool.to_string().as_str()), ("1f", "q"));
    assert_eq!((snap, force), (SnapBy::Id(7), true));
}

#[test]
fn a_target_without_a_pool_stays_in_the_pool_of_its_source() {
    let Command::Image(ImageCommand::Rename { source, target }) = meant("rename p/n/a b").unwrap().0 else {
        panic!("rename")
    };
    assert_eq!((source.to_string().as_str(), target.to_string().as_str()), ("p/n/a", "p/n/b"));
}

#[test]
fn a_measurement_has_the_defaults_of_rbd() {
    let Command::Bench { io_type, io_size, io_threads, io_total, .. } =
        meant("bench a --io-type rw").unwrap().0
    else {
        panic!("bench")
    };
    assert_eq!((io_type, io_size, io_threads, io_total), (BenchType::ReadWrite, 4096, 16, 1 << 30));
}

#[test]
fn one_name_takes_a_value_in_every_verb_or_in_none() {
    let mut kinds = BTreeMap::new();
    for flag in VERBS.iter().flat_map(|g| g.iter()).flat_map(super::Verb::all_flags) {
        let known = kinds.entry(flag.long).or_insert(flag.kind.takes_value());
        assert_eq!(*known, flag.kind.takes_value(), "--{}", flag.long);
    }
}
