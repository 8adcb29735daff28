//! The negotiation: from the greeting to the export a client attaches to, or its leaving.
//!
//! Invariants
//! - Nothing is read beyond the option that is being answered, so nothing that came before encryption is taken for something
//!   that came under it.
//! - An option's data is bounded before it is read; what is longer is skipped or ends the connection.

mod option;

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use self::option::{Fault, Queries, Wanted};
use super::client::Client;
use super::limits::{
    BLOCK_PREFERRED, CONTEXTS_MAX, OPTION_DATA_MAX, OPTION_SKIP_MAX, OPTIONS_MAX, PAYLOAD_MAX,
};
use super::wire::{
    MAGIC, OPTION_MAGIC, OPTION_SIZE, client_flag, export_flag, handshake_flag, info, option as number,
    option_reply as reply, put_option_reply,
};
use crate::context::MetaContext;
use crate::export::{Attached, Export, Exports};

/// The context every export has.
pub(super) const ALLOCATION: &str = "base:allocation";

/// A context a client selected; its number is its place, from one.
#[derive(Clone, Debug)]
pub(super) enum Selected {
    /// `base:allocation`.
    Allocation,
    /// One of the export's own.
    Own(Arc<dyn MetaContext>),
}

/// What was agreed upon.
#[derive(Debug)]
pub(super) struct Agreed {
    /// What the client uses.
    pub(super) export: Arc<Export>,
    /// Counts it in.
    pub(super) attached: Attached,
    /// Whether replies come in chunks.
    pub(super) is_structured: bool,
    /// Whether it may not write, even where the export may be written.
    pub(super) refuses_writes: bool,
    /// What a block status tells.
    pub(super) contexts: Vec<Selected>,
}

/// Where a negotiation came to.
#[derive(Debug)]
pub(super) enum Step {
    /// Go on with requests.
    Attached(Agreed),
    /// Go on with TLS, and then with [`Handshake::negotiate`].
    Encrypt,
    /// The client said that it goes.
    Left,
}

/// Whether and when a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encryption {
    /// There is no TLS here.
    Never,
    /// The client may ask for it.
    Offered,
    /// The client must ask for it first.
    Demanded,
    /// It is.
    Active,
}

/// A negotiation under way.
#[derive(Debug)]
pub(super) struct Handshake<'a> {
    exports: &'a Exports,
    client: &'a Client,
    encryption: Encryption,
    is_without_zeroes: bool,
    is_structured: bool,
    /// The export they are of, and the contexts.
    contexts: Option<(Arc<Export>, Vec<Selected>)>,
    options_left: usize,
    out: Vec<u8>,
}

/// What comes of an option.
enum Next {
    /// Another option.
    Option,
    /// See [`Step`].
    Step(Step),
}

/// A client that does not keep to the protocol.
fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<'a> Handshake<'a> {
    /// A negotiation of `client` about `exports`.
    pub(super) fn new(exports: &'a Exports, client: &'a Client, encryption: Encryption) -> Self {
        Self {
            exports,
            client,
            encryption,
            is_without_zeroes: false,
            is_structured: false,
            contexts: None,
            options_left: OPTIONS_MAX + 2 * exports.list().len(),
            out: Vec::new(),
        }
    }

    /// Greets the client, and hears what it is.
    ///
    /// # Errors
    /// Those of the stream; `InvalidData` for a client that speaks an older protocol or another one.
    ///
    /// # Cancel safety
    /// The connection is lost.
    pub(super) async fn greet<S>(&mut self, stream: &mut S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let ours = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        self.out.extend_from_slice(&MAGIC.to_be_bytes());
        self.out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&ours.to_be_bytes());
        self.send(stream).await?;
        let theirs = stream.read_u32().await?;
        if theirs & client_flag::FIXED_NEWSTYLE == 0 {
            return Err(broken("the client does not speak fixed newstyle"));
        }
        if theirs & !(client_flag::FIXED_NEWSTYLE | client_flag::NO_ZEROES) != 0 {
            return Err(broken("the client sent flags that do not exist"));
        }
        self.is_without_zeroes = theirs & client_flag::NO_ZEROES != 0;
        Ok(())
    }

    /// Answers options until the client attaches, asks for encryption, or leaves.
    ///
    /// # Errors
    /// Those of the stream; `InvalidData` for what the protocol gives no other answer to.
    ///
    /// # Cancel safety
    /// The connection is lost.
    pub(super) async fn negotiate<S>(&mut self, stream: &mut S) -> io::Result<Step>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let mut head = [0; OPTION_SIZE];
            stream.read_exact(&mut head).await?;
            let (magic, rest) = head.split_at(8);
            let (option, length) = rest.split_at(4);
            if magic != OPTION_MAGIC.to_be_bytes() {
                return Err(broken("an option does not start as one"));
            }
            let option = u32::from_be_bytes(option.try_into().expect("four bytes"));
            let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
            self.options_left = self
                .options_left
                .checked_sub(1)
                .ok_or_else(|| broken("the client sends too many options"))?;
            let next = match read_data(stream, length).await? {
                Some(data) => self.answer(option, &data, stream).await?,
                None if option == number::EXPORT_NAME => return Err(broken("the export's name is too long")),
                None => {
                    self.put(option, reply::ERR_TOO_BIG, b"the option is too long");
                    Next::Option
                }
            };
            self.send(stream).await?;
            if let Next::Step(step) = next {
                return Ok(step);
            }
        }
    }

    /// Goes on encrypted: what was agreed before does not count.
    pub(super) fn is_encrypted_now(&mut self) {
        self.encryption = Encryption::Active;
        self.is_structured = false;
        self.contexts = None;
    }

    async fn answer<S>(&mut self, option: u32, data: &[u8], stream: &mut S) -> io::Result<Next>
    where
        S: AsyncWrite + Unpin,
    {
        let is_early = self.encryption == Encryption::Demanded;
        let go_on = Ok(Next::Option);
        match option {
            number::EXPORT_NAME if is_early => Err(broken("the client must ask for TLS first")),
            number::EXPORT_NAME => self.attach_by_name(data).map(Next::Step),
            number::ABORT => {
                self.put(option, reply::ACK, b"");
                Ok(Next::Step(Step::Left))
            }
            number::STARTTLS => Ok(self.start_tls(data)),
            _ if is_early => {
                self.put(option, reply::ERR_TLS_REQD, b"this server wants TLS");
                go_on
            }
            number::LIST => {
                self.list(data, stream).await?;
                go_on
            }
            number::INFO | number::GO => match Wanted::parse(data) {
                Ok(wanted) => Ok(self.tell_about(option, &wanted)),
                Err(fault) => {
                    self.put_fault(option, fault);
                    go_on
                }
            },
            number::STRUCTURED_REPLY if data.is_empty() => {
                self.is_structured = true;
                self.put(option, reply::ACK, b"");
                go_on
            }
            number::STRUCTURED_REPLY => {
                self.put(option, reply::ERR_INVALID, b"the option carries no data");
                go_on
            }
            number::LIST_META_CONTEXT | number::SET_META_CONTEXT => {
                self.contexts_of(option, data);
                go_on
            }
            _ => {
                self.put(option, reply::ERR_UNSUP, b"this server does not know the option");
                go_on
            }
        }
    }

    fn start_tls(&mut self, data: &[u8]) -> Next {
        let option = number::STARTTLS;
        match self.encryption {
            _ if !data.is_empty() => self.put(option, reply::ERR_INVALID, b"the option carries no data"),
            Encryption::Never => self.put(option, reply::ERR_POLICY, b"this server has no TLS"),
            Encryption::Active => {
                self.put(option, reply::ERR_INVALID, b"the connection is encrypted already");
            }
            Encryption::Offered | Encryption::Demanded => {
                self.put(option, reply::ACK, b"");
                return Next::Step(Step::Encrypt);
            }
        }
        Next::Option
    }

    async fn list<S: AsyncWrite + Unpin>(&mut self, data: &[u8], stream: &mut S) -> io::Result<()> {
        if !data.is_empty() {
            self.put(number::LIST, reply::ERR_INVALID, b"the option carries no data");
            return Ok(());
        }
        for export in self.exports.list() {
            let name = export.name().as_bytes();
            let mut item = Vec::with_capacity(4 + name.len() + export.description().len());
            item.extend_from_slice(&length_of(name).to_be_bytes());
            item.extend_from_slice(name);
            item.extend_from_slice(export.description().as_bytes());
            self.put(number::LIST, reply::SERVER, &item);
            // A server may have a thousand exports, and a client may not read.
            if self.out.len() > 4096 {
                self.send(stream).await?;
            }
        }
        self.put(number::LIST, reply::ACK, b"");
        Ok(())
    }

    /// The old way to attach: there is no way to say no.
    fn attach_by_name(&mut self, data: &[u8]) -> io::Result<Step> {
        let name = std::str::from_utf8(data).map_err(|_| broken("the export's name is not UTF-8"))?;
        let export = self.exports.get(name).ok_or_else(|| broken("there is no such export"))?;
        self.out.extend_from_slice(&export.size().to_be_bytes());
        self.out.extend_from_slice(&self.flags_of(&export).to_be_bytes());
        if !self.is_without_zeroes {
            self.out.extend_from_slice(&[0; 124]);
        }
        Ok(Step::Attached(self.agree(export)))
    }

    /// INFO and GO: says what was asked for, and attaches where that was asked.
    fn tell_about(&mut self, option: u32, wanted: &Wanted<'_>) -> Next {
        let Some(export) = self.exports.get(wanted.name) else {
            self.put(option, reply::ERR_UNKNOWN, b"there is no such export");
            return Next::Option;
        };
        let mut item = info::EXPORT.to_be_bytes().to_vec();
        item.extend_from_slice(&export.size().to_be_bytes());
        item.extend_from_slice(&self.flags_of(&export).to_be_bytes());
        self.put(option, reply::INFO, &item);
        let texts = [(info::NAME, export.name()), (info::DESCRIPTION, export.description())];
        for (kind, text) in texts.into_iter().filter(|t| wanted.asks_for(t.0) && !t.1.is_empty()) {
            let item = [&kind.to_be_bytes(), text.as_bytes()].concat();
            self.put(option, reply::INFO, &item);
        }
        if wanted.asks_for(info::BLOCK_SIZE) {
            let mut item = info::BLOCK_SIZE.to_be_bytes().to_vec();
            for size in [1, BLOCK_PREFERRED, PAYLOAD_MAX] {
                item.extend_from_slice(&size.to_be_bytes());
            }
            self.put(option, reply::INFO, &item);
        }
        self.put(option, reply::ACK, b"");
        if option == number::GO { Next::Step(Step::Attached(self.agree(export))) } else { Next::Option }
    }

    fn agree(&mut self, export: Arc<Export>) -> Agreed {
        // Contexts that were selected for another export do not count.
        let selected = self.contexts.take().filter(|(of, _)| Arc::ptr_eq(of, &export));
        let contexts = selected.map(|(_, contexts)| contexts).unwrap_or_default();
        // Before the client hears of it, so that whoever lists clients after that sees it.
        self.client.uses(&export);
        let is_structured = self.is_structured;
        Agreed { attached: export.attach(), export, is_structured, refuses_writes: false, contexts }
    }

    fn flags_of(&self, export: &Export) -> u16 {
        use export_flag as f;
        let common = f::HAS_FLAGS | f::SEND_FLUSH | f::CAN_MULTI_CONN | f::SEND_CACHE;
        let structured = if self.is_structured { f::SEND_DF } else { 0 };
        let writable = f::SEND_FUA | f::SEND_TRIM | f::SEND_WRITE_ZEROES | f::SEND_FAST_ZERO;
        common | structured | if export.is_read_only() { f::READ_ONLY } else { writable }
    }

    fn contexts_of(&mut self, option: u32, data: &[u8]) {
        let is_set = option == number::SET_META_CONTEXT;
        if is_set {
            self.contexts = None;
            if !self.is_structured {
                self.put(option, reply::ERR_INVALID, b"structured replies come first");
                return;
            }
        }
        let queries = match Queries::parse(data) {
            Ok(queries) => queries,
            Err(fault) => {
                self.put_fault(option, fault);
                return;
            }
        };
        let Some(export) = self.exports.get(queries.export) else {
            self.put(option, reply::ERR_UNKNOWN, b"there is no such export");
            return;
        };
        let all =
            std::iter::once(Selected::Allocation).chain(export.contexts().into_iter().map(Selected::Own));
        let matched = |name: &str| if is_set { queries.select(name) } else { queries.list(name) };
        let found: Vec<Selected> = all.filter(|c| matched(c.name())).take(CONTEXTS_MAX).collect();
        for (i, context) in found.iter().enumerate() {
            let id = if is_set { context_id(i) } else { 0 };
            let item = [&id.to_be_bytes(), context.name().as_bytes()].concat();
            self.put(option, reply::META_CONTEXT, &item);
        }
        self.put(option, reply::ACK, b"");
        if is_set {
            self.contexts = Some((export, found));
        }
    }

    fn put(&mut self, option: u32, kind: u32, data: &[u8]) {
        put_option_reply(&mut self.out, option, kind, data);
    }

    fn put_fault(&mut self, option: u32, fault: Fault) {
        match fault {
            Fault::Layout => self.put(option, reply::ERR_INVALID, b"the option's data does not add up"),
            Fault::TooLong => self.put(option, reply::ERR_TOO_BIG, b"a name is too long"),
            Fault::Text => self.put(option, reply::ERR_INVALID, b"a name is not UTF-8"),
        }
    }

    async fn send<S: AsyncWrite + Unpin>(&mut self, stream: &mut S) -> io::Result<()> {
        stream.write_all(&self.out).await?;
        self.out.clear();
        stream.flush().await
    }
}

impl Selected {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Allocation => ALLOCATION,
            Self::Own(context) => context.name(),
        }
    }
}

/// The number of the context at a place.
pub(super) fn context_id(place: usize) -> u32 {
    u32::try_from(place + 1).expect("there are few contexts")
}

fn length_of(name: &[u8]) -> u32 {
    u32::try_from(name.len()).expect("names of exports are short")
}

/// The data of an option; `None` where it was too long and skipped.
async fn read_data<S: AsyncRead + Unpin>(stream: &mut S, length: u32) -> io::Result<Option<Vec<u8>>> {
    if length > OPTION_SKIP_MAX {
        return Err(broken("an option is far too long"));
    }
    let mut rest = stream.take(u64::from(length));
    if length > OPTION_DATA_MAX {
        if tokio::io::copy(&mut rest, &mut tokio::io::sink()).await? < u64::from(length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        return Ok(None);
    }
    // Grows as the data arrives, not as it is announced.
    let mut data = Vec::new();
    if rest.read_to_end(&mut data).await? < usize::try_from(length).unwrap_or(usize::MAX) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(data))
}
