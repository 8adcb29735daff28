//! The verb that starts a node.

use ferry_node::serve::ServeOptions;

use super::Plan;
use super::args::Verb;
use super::export::{LISTEN, address, socket};

/// The verb.
pub(crate) const VERBS: &[Verb] = &[Verb {
    name: "serve",
    alias: None,
    about: "Own the stores of the home and execute commands on them for everybody, until stopped.",
    words: &[],
    flags: &[LISTEN],
    remark: "Exports are offered over NBD on HOME/nbd.sock, or where --socket says, and on --listen.\n\
             SIGTERM and SIGINT stop it: commands under way end as interrupted, jobs go on with the next node.\n\
             FERRY_LOG sets how much it logs: error, warn, info (the default), debug or trace.\n",
    convert: |p, _| Ok(Plan::Serve(ServeOptions { socket: socket(p)?, listen: address(p)? })),
}];
