//! Verbs on images offered over NBD. (`export IMAGE FILE`, `rbd`'s, is with the transfers.)

use std::net::SocketAddr;

use ferry_node::api::{Command, ExportCommand, NbdListen, NbdOffer, NbdOptions, TlsFiles};

use super::args::{Context, Flag, Kind, Parsed, Usage, Verb, Word};
use super::files::Files;
use super::spec::{self, FORMAT, IMAGE, IMAGE_OR_SNAP_WORD, SNAP, SOURCE_SPEC};
use super::{Plan, cluster};

/// The flag that names an export whether or not a cluster is named too.
pub(crate) const EXPORT_NAME: &str = "export-name";

/// What clients ask for, and whether they may write.
const OFFER: &[Flag] = &[
    Flag::new(EXPORT_NAME, Kind::Text, "name that clients ask for [default: the image spec]")
        .value_name("name"),
    Flag::new("name", Kind::Text, "the same; with -c, --cluster or -m the cluster's user, as elsewhere"),
    Flag::new("read-only", Kind::Switch, "refuse writes"),
];

/// Where to listen, and who may come in.
pub(crate) const LISTEN: &[Flag] = &[
    Flag::new("socket", Kind::Text, "unix socket to listen on").value_name("path"),
    Flag::new("listen", Kind::Text, "TCP address to listen on; loopback only, without TLS")
        .value_name("address:port"),
    Flag::new(
        "tls-certificates",
        Kind::Text,
        "directory with ca-cert.pem, server-cert.pem and server-key.pem: clients show a certificate",
    )
    .value_name("dir"),
    Flag::new("tls-psk", Kind::Text, "file of user:key lines, as psktool makes it: clients know a key")
        .value_name("file"),
    Flag::new("tls-optional", Kind::Switch, "let TCP clients in without TLS too"),
    Flag::new(
        "listen-anywhere-without-tls",
        Kind::Switch,
        "whoever reaches the address reads and writes the image",
    ),
];

/// The verbs.
pub(crate) const VERBS: &[Verb] = &[
    Verb {
        name: "export add",
        alias: None,
        about: "Have the node offer an image, a snapshot or a foreign image over NBD.",
        words: &[IMAGE_OR_SNAP_WORD],
        flags: &[IMAGE, SNAP, SOURCE_SPEC, OFFER, FORMAT],
        remark: "With a source-spec, a foreign image is offered without being imported, to be read only; it needs a name.\n\
                 The node offers it again when it is started again.\n\
                 An image called add, ls or rm is exported to a file as POOL/add.\n",
        convert: add,
    },
    Verb {
        name: "export list",
        alias: Some("export ls"),
        about: "List what the node offers over NBD, and to whom.",
        words: &[],
        flags: &[FORMAT],
        remark: "",
        convert: |_, _| Plan::run(Command::Export(ExportCommand::List)),
    },
    Verb {
        name: "export remove",
        alias: Some("export rm"),
        about: "Offer an image no more.",
        words: &[Word::new("name", "name that clients ask for, as `export ls` shows it")],
        flags: &[&[Flag::new("force", Kind::Switch, "end attached clients")]],
        remark: "",
        convert: |p, _| {
            let name = p.required_word("export name was not specified")?;
            Plan::run(Command::Export(ExportCommand::Remove { name, force: p.is_set("force") }))
        },
    },
    Verb {
        name: "nbd",
        alias: None,
        about: "Offer one image or snapshot over NBD until interrupted.",
        words: &[IMAGE_OR_SNAP_WORD],
        flags: &[IMAGE, SNAP, SOURCE_SPEC, OFFER, LISTEN],
        remark: "With a source-spec, a foreign image is offered without being imported, to be read only.\n\
                 It prints the URI and a command that boots a machine from it.\n",
        convert: nbd,
    },
];

/// What is offered, and the file that is read for it.
fn offered(p: &mut Parsed, cx: &Context<'_>) -> Result<(NbdOffer, Files), Usage> {
    Ok(match spec::source(p)? {
        Some((source, input)) => (NbdOffer::Source(source), Files { input, ..Files::default() }),
        None => (NbdOffer::Image(spec::image_or_snap(p, cx)?), Files::default()),
    })
}

/// What clients ask for. `--name` is a cluster's user where the command line names a cluster.
fn export_name(p: &Parsed) -> Result<Option<String>, Usage> {
    let plain = if cluster::is_named(p) { None } else { p.text("name") };
    match (p.text(EXPORT_NAME), plain) {
        (Some(_), Some(_)) => {
            Err(Usage::invalid("the export's name was given twice, as --export-name and as --name"))
        }
        (one, other) => Ok(one.or(other)),
    }
}

fn add(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let (offered, files) = offered(p, cx)?;
    let (name, read_only) = (export_name(p)?, p.is_set("read-only"));
    if name.is_none() && matches!(offered, NbdOffer::Source(_)) {
        return Err(Usage::invalid("export name was not specified: --export-name NAME"));
    }
    Plan::run_on(Command::Export(ExportCommand::Add { offered, name, read_only }), files)
}

fn nbd(p: &mut Parsed, cx: &Context<'_>) -> Result<Plan, Usage> {
    let (offered, files) = offered(p, cx)?;
    let (name, read_only) = (export_name(p)?, p.is_set("read-only"));
    let listen = listen(p)?;
    if listen.socket.is_none() && listen.address.is_none() {
        return Err(Usage::invalid(
            "where to listen was not specified: --socket PATH or --listen ADDRESS:PORT",
        ));
    }
    let command = Command::Nbd(NbdOptions { offered, name, read_only, listen });
    Plan::run_on(command, files)
}

/// Where to listen. Paths are those of whoever typed them, wherever the command is executed.
pub(crate) fn listen(p: &Parsed) -> Result<NbdListen, Usage> {
    let path = |name: &str| {
        let path = p.text(name).map(std::path::absolute).transpose();
        path.map_err(|e| Usage::invalid(e.to_string()))
    };
    let tls = match (path("tls-certificates")?, path("tls-psk")?) {
        (None, None) => None,
        (Some(dir), None) => Some(TlsFiles::Certificates(dir)),
        (None, Some(file)) => Some(TlsFiles::SharedKeys(file)),
        (Some(_), Some(_)) => {
            return Err(Usage::invalid("TLS is spoken with certificates or with shared keys, not both"));
        }
    };
    Ok(NbdListen {
        socket: path("socket")?,
        address: address(p, "listen")?,
        tls,
        tls_optional: p.is_set("tls-optional"),
        plain_anywhere: p.is_set("listen-anywhere-without-tls"),
    })
}

/// An address and a port.
pub(crate) fn address(p: &Parsed, flag: &str) -> Result<Option<SocketAddr>, Usage> {
    let Some(text) = p.value(flag) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Usage::invalid(format!("'{text}' is no address like 127.0.0.1:10809")))
}
