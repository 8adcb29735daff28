//! What a node counts, for Prometheus, and whether it is well, over HTTP on a loopback port.
//!
//! | metric | unit | says |
//! |---|---|---|
//! | `ferry_up` | 1 | the node takes commands |
//! | `ferry_stores_open` | stores | stores it owns |
//! | `ferry_jobs_running` | jobs | long operations under way |
//! | `ferry_nbd_clients` | clients | NBD clients, by export |
//! | `ferry_nbd_requests_total` | requests | by export and sort of request |
//! | `ferry_nbd_errors_total` | requests | those answered with an error |
//! | `ferry_nbd_bytes_total` | bytes | moved by them |
//! | `ferry_nbd_busy_seconds_total` | seconds | that they took |
//! | `ferry_nbd_refused_total` | clients | turned away, by reason |
//! | `ferry_nbd_in_flight_bytes` | bytes | memory that requests hold |
//!
//! Names and units are stable.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use ferry_core::{Error, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::host::Host;

/// Connections at once. A scraper needs one.
const CONNECTIONS_MAX: usize = 16;

/// Answers on `address` for as long as `host` lives; the address with the port that was chosen where it was 0.
///
/// # Errors
/// `Denied` (13) for an address that others than this machine reach; those of the system.
pub(super) fn listen(host: &Arc<Host>, address: SocketAddr) -> Result<SocketAddr> {
    if !address.ip().is_loopback() {
        return Err(Error::new(ferry_core::ErrorKind::Denied, "metrics are told on loopback addresses only")
            .with("address", address));
    }
    let cannot = |e| Error::io("cannot listen for metrics", e).with("address", address);
    let runtime = host.runtime()?;
    let listener = runtime.block_on(TcpListener::bind(address)).map_err(cannot)?;
    let bound = listener.local_addr().map_err(cannot)?;
    runtime.spawn(accept(listener, Arc::downgrade(host)));
    Ok(bound)
}

async fn accept(listener: TcpListener, host: Weak<Host>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!(error = %e, "a scraper cannot connect");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let host = Weak::clone(&host);
        tokio::spawn(async move {
            let service =
                service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&host, &request))));
            let mut http = http1::Builder::new();
            // A client that says nothing is ended after hyper's 30 seconds.
            let served = http
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(e) = served.await {
                tracing::debug!(error = %e, "a scraper went away");
            }
            drop(place);
        });
    }
}

fn answer(host: &Weak<Host>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path(), host.upgrade()) {
        (_, _, None) => (StatusCode::SERVICE_UNAVAILABLE, "the node stops\n".to_owned()),
        (&Method::GET, "/metrics", Some(host)) => (StatusCode::OK, metrics(&host)),
        (&Method::GET, "/health", Some(_)) => (StatusCode::OK, "ok\n".to_owned()),
        (_, "/metrics" | "/health", Some(_)) => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        (_, _, Some(_)) => (StatusCode::NOT_FOUND, "there are /metrics and /health\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// One family of metrics.
fn family(text: &mut String, name: &str, kind: &str, help: &str, samples: &[(String, String)]) {
    let mut put = || -> std::fmt::Result {
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
        samples.iter().try_for_each(|(labels, value)| writeln!(text, "{name}{labels} {value}"))
    };
    put().expect("texts take all that is written");
}

/// A value without labels.
fn plain(value: usize) -> [(String, String); 1] {
    [(String::new(), value.to_string())]
}

fn metrics(host: &Host) -> String {
    let mut text = String::new();
    let running = host.jobs().map_or(0, |jobs| jobs.running());
    family(&mut text, "ferry_up", "gauge", "Whether the node takes commands.", &plain(1));
    family(&mut text, "ferry_stores_open", "gauge", "Stores the node owns.", &plain(host.stores.all().len()));
    family(&mut text, "ferry_jobs_running", "gauge", "Long operations under way.", &plain(running));
    if let Some(exporter) = host.exporter() {
        exporter.count(&mut |name, kind, help, samples| family(&mut text, name, kind, help, samples));
    }
    text
}
