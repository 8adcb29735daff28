//! A web server and an object store of others.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::runtime::Runtime;

const ACCESS_KEY: &str = "AKIDTEST";
const SECRET_KEY: &str = "hush-hush";

/// A program that ends with the test.
pub(super) struct Server(Child);

impl Server {
    /// Starts it and waits until `is_there`.
    pub(super) fn start(command: &mut Command, is_there: impl Fn() -> bool) -> Self {
        let child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let server = Self(child);
        let until = Instant::now() + Duration::from_secs(20);
        while !is_there() {
            assert!(Instant::now() < until, "{command:?} does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// nginx on the files of a directory.
pub(super) struct Nginx {
    root: PathBuf,
    port: u16,
    server: Option<Server>,
}

impl Nginx {
    /// Serves them, at so many bytes in a second to each connection.
    pub(super) fn start(root: &Path, rate: Option<u64>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let mut nginx = Self { root: root.to_owned(), port, server: None };
        nginx.restart(rate);
        nginx
    }

    /// The same with another rate.
    pub(super) fn restart(&mut self, rate: Option<u64>) {
        let (root, port) = (self.root.display(), self.port);
        let limit = rate.map_or(String::new(), |rate| format!("limit_rate {rate};"));
        let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {root}/scratch-{kind};\n"))
            .concat();
        let configuration = format!(
            "daemon off; master_process off; pid {root}/nginx.pid; error_log {root}/nginx.log;\n\
             events {{ }}\n\
             http {{ log_format sent '$body_bytes_sent $http_range'; access_log {root}/sent.log sent; {scratch}\n\
               server {{ listen 127.0.0.1:{port}; root {root}; {limit} }} }}\n"
        );
        let file = self.root.join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        self.server = None;
        let mut command = Command::new("nginx");
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()));
        command.arg("-c").arg(&file).arg("-p").arg(&self.root).arg("-e").arg(self.root.join("nginx.log"));
        let is_there = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        self.server = Some(Server::start(&mut command, is_there));
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Bytes of bodies that it says it sent, in all.
    pub(super) fn served(&self) -> u64 {
        let log = std::fs::read_to_string(self.root.join("sent.log")).unwrap();
        log.lines().map(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

/// An object store that checks signatures, in this process.
pub(super) struct ObjectStore {
    port: u16,
    _threads: Runtime,
}

impl ObjectStore {
    /// One with its objects below `directory`.
    pub(super) fn start(directory: &Path) -> Self {
        let root = directory.join("objects");
        std::fs::create_dir_all(root.join("images")).unwrap();
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let threads = threads.unwrap();
        let listener = threads.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        threads.spawn(async move {
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
        Self { port, _threads: threads }
    }

    fn url(&self, key: &str) -> String {
        format!("http://127.0.0.1:{}/images/{key}", self.port)
    }

    /// Puts a file with a signature that lives for some minutes.
    pub(super) fn put(&self, key: &str, file: &Path) {
        let (now, none) = (jiff::Timestamp::now(), std::iter::empty::<(&str, &str)>());
        let signed = rusty_s3::signing::sign(
            &now,
            rusty_s3::Method::Put,
            self.url(key).parse().unwrap(),
            ACCESS_KEY,
            SECRET_KEY,
            None,
            "us-east-1",
            600,
            none.clone(),
            none,
        );
        let mut command = Command::new("curl");
        let command = command.args(["-sS", "--fail-with-body", "-H", "Expect:", "-T"]).arg(file);
        let output = command.arg(signed.as_str()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// The spec of an image in it.
    pub(super) fn spec(&self, format: &str, key: &str) -> String {
        let url = self.url(key);
        format!(
            r#"{{"type":"{format}","stream":{{"type":"s3","url":"{url}","access_key":"{ACCESS_KEY}","secret_key":"{SECRET_KEY}"}}}}"#
        )
    }
}
