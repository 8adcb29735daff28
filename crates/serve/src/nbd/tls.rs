//! TLS: who may come in is told by certificates or by keys shared beforehand.
//!
//! Invariants
//! - There is no way to encrypt without knowing the client: with certificates the client shows one too, signed by the given
//!   authority and by none of the system's; with shared keys it knows one.
//! - A connection takes one of the two, never the other by mistake.

#[cfg(test)]
mod tests;

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ferry_core::{Error, ErrorKind, Result};
use s2n_tls::callbacks::VerifyHostNameCallback;
use s2n_tls::config::{Builder as ConfigBuilder, Config};
use s2n_tls::connection::{Builder as ConnectionBuilder, Connection};
use s2n_tls::enums::{ClientAuthType, Mode, PskHmac};
use s2n_tls::psk::{Builder as PskBuilder, Psk};
use s2n_tls::security::DEFAULT_TLS13;
use s2n_tls_tokio::{TlsAcceptor, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite};

/// Largest file with certificates or keys. Bytes.
const FILE_MAX: u64 = 1 << 20;
/// Users of a key file; each handshake goes through all of them.
const KEYS_MAX: usize = 1000;
/// Shortest key; TLS libraries refuse shorter ones, and rightly so. Bytes.
const KEY_MIN: usize = 16;
/// How long a failed handshake is kept waiting for its end. Seconds.
const BLINDING_MAX: u32 = 1;

/// Whether TLS is optional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Clients must ask for it before anything else.
    Required,
    /// Clients may go on without: for clients of the same machine, or a time of transition.
    Allowed,
}

/// What is needed to speak TLS with clients.
pub struct Tls {
    config: Config,
    keys: Vec<Psk>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.keys.is_empty() { "certificates" } else { "shared keys" };
        f.debug_struct("Tls").field("kind", &kind).finish_non_exhaustive()
    }
}

/// Takes clients whatever they are called: their certificate's signature is what counts.
struct AnyName;

impl VerifyHostNameCallback for AnyName {
    fn verify_host_name(&self, _: &str) -> bool {
        true
    }
}

impl Tls {
    /// Takes certificates from a directory, under the names QEMU, libnbd and nbdkit use: `ca-cert.pem`, `server-cert.pem`,
    /// `server-key.pem`. A client must show a certificate that `ca-cert.pem` signed.
    ///
    /// # Errors
    /// Those of the files; `Invalid` (22) where they hold something else.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let read = |name| read_file(&directory.join(name));
        Self::with_certificates(&read("ca-cert.pem")?, &read("server-cert.pem")?, &read("server-key.pem")?)
    }

    /// Takes certificates, in PEM: the authority of clients, the server's own with what leads to its authority, and its key.
    ///
    /// # Errors
    /// `Invalid` (22) where they are something else.
    pub fn with_certificates(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self> {
        let wrong = |e| invalid("the certificates cannot be used", e);
        let mut builder = base().map_err(wrong)?;
        builder.load_pem(certificate, key).map_err(wrong)?;
        builder.trust_pem(authority).map_err(wrong)?;
        builder.set_client_auth_type(ClientAuthType::Required).map_err(wrong)?;
        builder.set_verify_host_callback(AnyName).map_err(wrong)?;
        Ok(Self { config: builder.build().map_err(wrong)?, keys: Vec::new() })
    }

    /// Takes shared keys from a file as `psktool` makes it: lines `user:key in hexadecimal`. Others than the owner and the
    /// group must not be able to read it.
    ///
    /// # Errors
    /// Those of the file; `Denied` (13) where everybody may read it; `Invalid` (22) where it holds something else, or keys of
    /// less than 16 bytes.
    pub fn from_key_file(path: &Path) -> Result<Self> {
        let text = read_file(path)?;
        let metadata = std::fs::metadata(path).map_err(|e| Error::io("cannot look at the key file", e))?;
        if metadata.permissions().mode() & 0o007 != 0 {
            let text =
                "everybody on this machine may use the file of keys; take that right away (chmod o= FILE)";
            return Err(Error::new(ErrorKind::Denied, text).with("file", path.display()));
        }
        let text = String::from_utf8(text).map_err(|_| Error::invalid("the file of keys is not text"))?;
        Self::with_keys(&text).map_err(|e| e.with("file", path.display()))
    }

    /// Takes shared keys: lines `user:key in hexadecimal`.
    ///
    /// # Errors
    /// `Invalid` (22) where they are something else, or keys of less than 16 bytes.
    pub fn with_keys(text: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            // The line itself is a secret.
            let wrong = || Error::invalid("a line is not a user, a colon and a key").with("line", i + 1);
            let (user, key) = line.trim().split_once(':').ok_or_else(wrong)?;
            let secret = hexadecimal(key).ok_or_else(wrong)?;
            if user.is_empty() || secret.len() < KEY_MIN {
                return Err(wrong().with("least bytes of a key", KEY_MIN));
            }
            keys.push(shared_key(user, &secret).map_err(|e| invalid("a key cannot be used", e))?);
        }
        if keys.is_empty() || keys.len() > KEYS_MAX {
            return Err(Error::invalid("there must be one shared key at least, and a thousand at most"));
        }
        let wrong = |e| invalid("shared keys cannot be used", e);
        Ok(Self { config: base().and_then(ConfigBuilder::build).map_err(wrong)?, keys })
    }

    /// Goes on encrypted.
    ///
    /// # Errors
    /// `PermissionDenied` where the two do not come to terms, or the client is not known.
    ///
    /// # Cancel safety
    /// The connection is lost.
    pub(super) async fn accept<S>(&self, stream: S) -> std::io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let refused = |e| std::io::Error::new(std::io::ErrorKind::PermissionDenied, e);
        TlsAcceptor::new(Keyed(self)).accept(stream).await.map_err(refused)
    }
}

/// Makes connections that know the keys.
#[derive(Clone, Copy)]
struct Keyed<'a>(&'a Tls);

impl ConnectionBuilder for Keyed<'_> {
    type Output = Connection;

    fn build_connection(&self, mode: Mode) -> Result<Connection, s2n_tls::error::Error> {
        let mut connection = self.0.config.build_connection(mode)?;
        for key in &self.0.keys {
            connection.append_psk(key)?;
        }
        Ok(connection)
    }
}

/// What both kinds have in common: TLS 1.3, nobody trusted yet.
fn base() -> Result<ConfigBuilder, s2n_tls::error::Error> {
    let mut builder = ConfigBuilder::new();
    builder.set_security_policy(&DEFAULT_TLS13)?;
    builder.with_system_certs(false)?;
    builder.set_max_blinding_delay(BLINDING_MAX)?;
    Ok(builder)
}

fn shared_key(user: &str, secret: &[u8]) -> Result<Psk, s2n_tls::error::Error> {
    let mut builder = PskBuilder::new()?;
    builder.set_identity(user.as_bytes())?.set_secret(secret)?.set_hmac(PskHmac::SHA256)?;
    builder.build()
}

fn invalid(text: &'static str, error: s2n_tls::error::Error) -> Error {
    Error::invalid(text).because(error)
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let wrong = |e| Error::io("cannot read a file of TLS", e).with("file", path.display());
    if std::fs::metadata(path).map_err(wrong)?.len() > FILE_MAX {
        return Err(Error::invalid("a file of TLS is far too large").with("file", path.display()));
    }
    std::fs::read(path).map_err(wrong)
}
