//! An object store that checks signatures, in this process.

use std::sync::Arc;
use std::time::Duration;

use ferry_core::{Errno, ErrorKind, Result};
use ferry_source::Stream;
use ferry_source::stream::http::{HttpOptions, HttpStream};
use ferry_source::stream::s3::{S3Keys, S3Options, open_with};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::{assert_reads, content, patience, runtime};

struct Store {
    _dir: TempDir,
    port: u16,
}

impl Store {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("images")).unwrap();
        let files = s3s_fs::FileSystem::new(dir.path()).unwrap();
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single("AKIDTEST", "hush-hush"));
        let service = builder.build();
        runtime().spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service.clone();
                tokio::spawn(async move {
                    let served = hyper::server::conn::http1::Builder::new();
                    // A client that goes away is none of our business.
                    drop(served.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { _dir: dir, port }
    }

    /// Puts an object with a signature that lives for a minute.
    fn put(&self, key: &str, content: &[u8]) {
        let url = format!("http://127.0.0.1:{}/images/{key}", self.port);
        let (now, none) = (jiff::Timestamp::now(), std::iter::empty::<(&str, &str)>());
        let signed = rusty_s3::signing::sign(
            &now,
            rusty_s3::Method::Put,
            url.parse().unwrap(),
            "AKIDTEST",
            "hush-hush",
            None,
            "us-east-1",
            60,
            none.clone(),
            none,
        );
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), content).unwrap();
        let mut command = std::process::Command::new("curl");
        let output = command
            .args(["-sS", "--fail-with-body", "-H", "Expect:", "-T"])
            .arg(path.path())
            .arg(signed.as_str());
        let output = output.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn options(&self, key: &str) -> S3Options {
        let mut http = HttpOptions::new(format!("http://127.0.0.1:{}/images/{key}", self.port));
        http.patience = patience();
        let keys = S3Keys { access: "AKIDTEST".into(), secret: "hush-hush".into(), session_token: None };
        S3Options { http, keys: Some(keys), region: None }
    }
}

fn open(options: &S3Options) -> Result<Arc<HttpStream>> {
    open_with(options, runtime()).wait()
}

#[test]
fn a_signed_object_is_read_and_a_change_of_it_is_a_conflict() {
    let store = Store::start();
    store.put("disk.raw", &content());
    let stream = open(&store.options("disk.raw")).unwrap();
    assert!(stream.pin().starts_with("s3 size=9000123 etag=\""), "{}", stream.pin());
    assert_reads(&*stream, &content());
    assert_eq!(stream.traffic().failures, 0);
    let mut other = content();
    other[7] ^= 1;
    store.put("disk.raw", &other);
    for _ in 0..2 {
        assert_eq!(stream.read(1 << 20, 9).wait().unwrap_err().kind(), ErrorKind::Conflict);
    }
}

#[test]
fn a_key_of_any_characters_is_signed_as_the_store_reads_it() {
    let store = Store::start();
    store.put("a%20b/%28%C3%BC%29%2B%3D.raw", b"odd");
    let stream = open(&store.options("a b/(ü)+=.raw")).unwrap();
    assert_eq!(stream.read(0, 3).wait().unwrap(), &b"odd"[..]);
}

#[test]
fn a_wrong_key_and_a_missing_object_are_told_apart_and_no_secret_is_in_the_error() {
    let store = Store::start();
    store.put("disk.raw", &content());
    assert_eq!(open(&store.options("none.raw")).unwrap_err().errno(), Errno::ENOENT);
    let mut options = store.options("disk.raw");
    options.keys.as_mut().unwrap().secret = "wrong-hush".into();
    options.http.patience.open = Duration::from_millis(100);
    let error = open(&options).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Denied, Errno::EACCES), "{}", error.chain());
    assert_eq!(error.fact("code"), Some("SignatureDoesNotMatch"));
    assert!(!error.chain().contains("hush") && !error.chain().contains("Signature="), "{}", error.chain());
    options.keys = None;
    assert_eq!(open(&options).unwrap_err().errno(), Errno::EACCES);
}
