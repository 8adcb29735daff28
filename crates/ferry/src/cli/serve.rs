//! The verb that starts a node, and the one that shows what it is for.

use ferry_node::serve::ServeOptions;

use super::Plan;
use super::args::{Flag, Kind, Verb};
use super::export::{LISTEN, address, listen};

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[DEMO, SERVE];

const DEMO: Verb = Verb {
    name: "demo",
    alias: None,
    about: "Migrate an image in use, as a show: killed, gone on with, compared to the byte.",
    words: &[],
    flags: &[],
    remark: "It takes less than a minute, needs no root and leaves nothing behind.\n",
    convert: |_, _| Ok(Plan::Demo),
};

const SERVE: Verb = Verb {
    name: "serve",
    alias: None,
    about: "Own the stores of the home and execute commands on them for everybody, until stopped.",
    words: &[],
    flags: &[
        LISTEN,
        &[Flag::new("metrics", Kind::Text, "loopback address for metrics and health over HTTP")
            .value_name("address:port")],
    ],
    remark: "Exports are offered over NBD on HOME/nbd.sock, or where --socket says, and on --listen.\n\
             SIGTERM and SIGINT stop it: commands under way end as interrupted, jobs go on with the next node.\n\
             FERRY_LOG sets how much it logs: error, warn, info (the default), debug or trace.\n",
    convert: |p, _| Ok(Plan::Serve(ServeOptions { nbd: listen(p)?, metrics: address(p, "metrics")? })),
};
