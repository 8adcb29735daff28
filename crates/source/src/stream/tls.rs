//! TLS towards a server: its certificate must be signed by an authority that is trusted here, and carry its name.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ferry_core::{Error, ErrorKind, Result};
use s2n_tls::callbacks::VerifyHostNameCallback;
use s2n_tls::config::{Builder as ConfigBuilder, Config};
use s2n_tls::connection::{Builder as ConnectionBuilder, Connection};
use s2n_tls::enums::Mode;
use s2n_tls::security::DEFAULT_TLS13;
use s2n_tls_tokio::{TlsConnector, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite};

/// Largest file of authorities. Bytes.
const FILE_MAX: u64 = 16 << 20;
/// How long a failed handshake is kept waiting for its end. Seconds.
const BLINDING_MAX: u32 = 1;

/// Whom to trust.
pub(super) struct Trust {
    authorities: Option<PathBuf>,
    /// Made when it is needed first: plain connections need no authorities.
    config: OnceLock<Config>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("authorities", &self.authorities).finish_non_exhaustive()
    }
}

impl Trust {
    /// The authorities the system trusts, and those of a file in PEM.
    pub(super) fn new(authorities: Option<PathBuf>) -> Self {
        Self { authorities, config: OnceLock::new() }
    }

    /// # Errors
    /// Those of the file; `Invalid` (22) where it holds something else.
    fn config(&self) -> Result<&Config> {
        if let Some(config) = self.config.get() {
            return Ok(config);
        }
        let wrong = |e| Error::invalid("the authorities of TLS cannot be used").because(e);
        let mut builder = ConfigBuilder::new();
        builder.set_security_policy(&DEFAULT_TLS13).map_err(wrong)?;
        builder.set_max_blinding_delay(BLINDING_MAX).map_err(wrong)?;
        if let Some(path) = &self.authorities {
            builder.trust_pem(&read(path)?).map_err(|e| wrong(e).with("file", path.display()))?;
        }
        let made = builder.build().map_err(wrong)?;
        Ok(self.config.get_or_init(|| made))
    }

    /// Goes on encrypted, with a server of this name or address.
    ///
    /// # Errors
    /// Those of the authorities; `Denied` (13) where its certificate is not one of that name, signed by who is trusted; `Unavailable` where the
    /// connection breaks.
    pub(super) async fn connect<S>(&self, host: &str, stream: S) -> Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        // An address is no name to be told to the server, but its certificate must carry it all the same.
        let name = if address.is_some() { "" } else { host };
        let connector = TlsConnector::new(Towards { config: self.config()?, address });
        connector.connect(name, stream).await.map_err(|e| {
            let error = if e.kind() == s2n_tls::error::ErrorType::IOError
                || e.kind() == s2n_tls::error::ErrorType::ConnectionClosed
            {
                Error::new(ErrorKind::Unavailable, "the connection broke while TLS was agreed on")
            } else {
                Error::new(ErrorKind::Denied, "the server is not trusted: TLS could not be agreed on")
            };
            error.because(e)
        })
    }
}

/// Makes connections that look for an address in the certificate where there is no name.
#[derive(Clone)]
struct Towards<'a> {
    config: &'a Config,
    address: Option<IpAddr>,
}

impl ConnectionBuilder for Towards<'_> {
    type Output = Connection;

    fn build_connection(&self, mode: Mode) -> Result<Connection, s2n_tls::error::Error> {
        let mut connection = self.config.build_connection(mode)?;
        if let Some(address) = self.address {
            connection.set_verify_host_callback(ThisAddress(address))?;
        }
        Ok(connection)
    }
}

/// Takes a certificate that carries an address.
struct ThisAddress(IpAddr);

impl VerifyHostNameCallback for ThisAddress {
    fn verify_host_name(&self, name: &str) -> bool {
        name.parse() == Ok(self.0)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let wrong = |e| Error::io("cannot read the file of authorities", e).with("file", path.display());
    if std::fs::metadata(path).map_err(wrong)?.len() > FILE_MAX {
        return Err(Error::invalid("the file of authorities is far too large").with("file", path.display()));
    }
    std::fs::read(path).map_err(wrong)
}
