//! Which Ceph cluster a command line means.
//!
//! `-c`, `--cluster`, `-m` and `pool create --rados` name one, and then all pools are its pools. Called as `rbd` without any of them, pools that the home does
//! not know are looked for in the cluster of `$CEPH_CONF` or `/etc/ceph/ceph.conf`, if that file is there.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use ferry_node::api::{Cluster, ClusterPools};

use super::args::{Parsed, Usage, Verb};
use super::export::EXPORT_NAME;
use super::output::Program;

/// Where Ceph keeps its configuration.
const CEPH_DIR: &str = "/etc/ceph";

/// The configuration file that Ceph would find by itself, if it is there.
fn found() -> Option<PathBuf> {
    let path = match std::env::var_os("CEPH_CONF").filter(|p| !p.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => Path::new(CEPH_DIR).join("ceph.conf"),
    };
    path.is_file().then_some(path)
}

/// Files named relative to where the command was run, by their full paths. A keyring may be several, with commas between them.
fn absolute(files: &str) -> io::Result<String> {
    let paths = files.split(',').map(|file| std::path::absolute(file.trim()));
    let paths: io::Result<Vec<String>> = paths.map(|path| Ok(path?.display().to_string())).collect();
    Ok(paths?.join(","))
}

/// Whether the command line itself names a cluster: `--name` is the user then, as for `rbd`.
pub(crate) fn is_named(p: &Parsed) -> bool {
    ["conf", "cluster", "mon_host"].into_iter().any(|flag| p.value(flag).is_some())
}

/// The cluster a command line with this verb means.
///
/// # Errors
/// A user of another type than a client.
pub(crate) fn of(program: Program, verb: &Verb, p: &Parsed) -> Result<Option<Cluster>, Usage> {
    let named = p.text("conf").map(PathBuf::from).or_else(|| {
        let name = p.value("cluster")?;
        Some(Path::new(CEPH_DIR).join(format!("{name}.conf")))
    });
    let is_named = named.is_some() || p.is_set("mon_host") || p.is_set("rados");
    let conf = match (named, program) {
        (Some(conf), _) => Some(conf),
        (None, _) if is_named => found(),
        (None, Program::Rbd) => match found() {
            Some(conf) => Some(conf),
            None => return Ok(None),
        },
        (None, Program::Ferry) => return Ok(None),
    };
    // What is kept, or sent to another process, must not depend on where the command was run.
    let nowhere = |e: io::Error| Usage::invalid(e.to_string());
    let conf = conf.map(std::path::absolute).transpose().map_err(nowhere)?;
    let user = match p.value("name") {
        Some(name) => Some(name.strip_prefix("client.").ok_or_else(|| no_user(verb, name))?.to_owned()),
        None => p.text("id"),
    };
    let mut settings = BTreeMap::new();
    if let Some(monitors) = p.text("mon_host") {
        settings.insert("mon_host".to_owned(), monitors);
    }
    for name in ["keyfile", "keyring"] {
        if let Some(files) = p.text(name) {
            settings.insert(name.to_owned(), absolute(&files).map_err(nowhere)?);
        }
    }
    let pools = if is_named { ClusterPools::All } else { ClusterPools::Unknown };
    Ok(Some(Cluster { conf, user, settings, pools }))
}

/// What is said of a `--name` that is no user's.
fn no_user(verb: &Verb, name: &str) -> Usage {
    let mut text = format!("a user is named client.NAME, not '{name}'");
    if verb.all_flags().any(|flag| flag.long == EXPORT_NAME) {
        text.push_str(": with a cluster, --name is its user; the export's name is --export-name");
    }
    Usage::invalid(text)
}

#[cfg(test)]
mod tests {
    use super::absolute;

    #[test]
    fn files_are_the_same_wherever_they_are_read() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute("k").unwrap(), here.join("k").display().to_string());
        assert_eq!(absolute("/a/k, k").unwrap(), format!("/a/k,{}/k", here.display()));
    }
}
