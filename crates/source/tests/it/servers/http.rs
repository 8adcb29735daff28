//! nginx: ranges, tags, TLS, passwords, redirects, limits, restarts.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_core::{Errno, ErrorKind, Result};
use ferry_source::Stream;
use ferry_source::stream::http::{HttpOptions, HttpStream, open_with};
use tempfile::TempDir;

use super::{SIZE, Server, assert_reads, certificates, content, free_port, patience, runtime};

pub(super) struct Nginx {
    pub(super) dir: TempDir,
    pub(super) port: u16,
    tls_port: u16,
    server: Option<Server>,
}

impl Nginx {
    /// Serves `disk.raw`, over TLS with a certificate for these names.
    pub(super) fn start(names: &str) -> Self {
        let dir = TempDir::new().unwrap();
        certificates(dir.path(), names);
        std::fs::create_dir(dir.path().join("www")).unwrap();
        std::fs::write(dir.path().join("www/disk.raw"), content()).unwrap();
        // user:hush
        let password = Command::new("openssl").args(["passwd", "-apr1", "hush"]).output().unwrap().stdout;
        let password = format!("user:{}", String::from_utf8(password).unwrap());
        std::fs::write(dir.path().join("password"), password).unwrap();
        let mut nginx = Self { dir, port: free_port(), tls_port: free_port(), server: None };
        std::fs::write(nginx.dir.path().join("nginx.conf"), nginx.configuration()).unwrap();
        nginx.serve();
        nginx
    }

    fn configuration(&self) -> String {
        let (dir, port, tls_port) = (self.dir.path().display(), self.port, self.tls_port);
        let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {dir}/scratch-{kind};\n"))
            .concat();
        format!(
            "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{ }}\n\
             http {{ access_log {dir}/access.log; {scratch} root {dir}/www;\n\
               server {{ listen 127.0.0.1:{port};\n\
                 location /secret/ {{ alias {dir}/www/; auth_basic x; auth_basic_user_file {dir}/password; }}\n\
                 location /moved/ {{ return 302 /secret/disk.raw; }}\n\
                 location /away/ {{ return 307 https://127.0.0.1:{tls_port}/disk.raw?signed=1; }}\n\
                 location /slow/ {{ alias {dir}/www/; limit_rate 1m; }}\n\
                 location /whole/ {{ alias {dir}/www/; max_ranges 0; }}\n\
                 location /untagged/ {{ alias {dir}/www/; etag off; }} }}\n\
               server {{ listen 127.0.0.1:{tls_port} ssl; ssl_certificate {dir}/server-cert.pem;\n\
                 ssl_certificate_key {dir}/server-key.pem; }} }}\n"
        )
    }

    fn serve(&mut self) {
        let mut command = Command::new("nginx");
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()));
        command.arg("-c").arg(self.dir.path().join("nginx.conf")).arg("-p").arg(self.dir.path());
        // What it says before it reads its configuration.
        command.arg("-e").arg(self.dir.path().join("error.log"));
        let port = self.port;
        self.server = Some(Server::start(&mut command, || TcpStream::connect(("127.0.0.1", port)).is_ok()));
    }

    fn options(&self, path: &str) -> HttpOptions {
        let mut options = HttpOptions::new(format!("http://127.0.0.1:{}{path}", self.port));
        options.patience = patience();
        options
    }

    fn tls_options(&self, host: &str) -> HttpOptions {
        let mut options = HttpOptions::new(format!("https://{host}:{}/disk.raw", self.tls_port));
        options.authorities = Some(self.dir.path().join("ca-cert.pem"));
        options.patience = patience();
        options
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("www/disk.raw")
    }
}

fn open(options: &HttpOptions) -> Result<Arc<HttpStream>> {
    open_with(options, runtime()).wait()
}

#[test]
fn an_object_is_read_and_a_change_of_it_is_a_conflict() {
    let nginx = Nginx::start("DNS:localhost");
    for path in ["/disk.raw", "/untagged/disk.raw"] {
        let stream = open(&nginx.options(path)).unwrap();
        assert_reads(&*stream, &content());
        assert_eq!(stream.traffic().failures, 0);
        let reopened = open(&nginx.options(path)).unwrap();
        assert_eq!(stream.pin(), reopened.pin());
        // Same length, other bytes, another time.
        let mut other = content();
        other[5] ^= 1;
        std::fs::write(nginx.disk(), &other).unwrap();
        Command::new("touch").args(["-d", "2001-01-01"]).arg(nginx.disk()).status().unwrap();
        for _ in 0..2 {
            assert_eq!(stream.read(1 << 20, 9).wait().unwrap_err().kind(), ErrorKind::Conflict, "{path}");
        }
        std::fs::write(nginx.disk(), content()).unwrap();
    }
}

#[test]
fn a_server_that_is_killed_and_started_again_is_waited_for() {
    let mut nginx = Nginx::start("DNS:localhost");
    let stream = open(&nginx.options("/slow/disk.raw")).unwrap();
    let reading = stream.read(0, SIZE as u64);
    std::thread::sleep(Duration::from_millis(700));
    nginx.server.take().unwrap().kill();
    std::thread::sleep(Duration::from_millis(500));
    nginx.serve();
    assert!(reading.wait().unwrap() == content());
    let count = stream.traffic();
    assert!(count.failures > 0, "{count:?}");
    // What had come over the broken connections is kept.
    assert!(count.bytes <= SIZE as u64 + 1, "{count:?}");
}

#[test]
fn an_object_that_goes_away_is_not_zeros_and_comes_back() {
    let nginx = Nginx::start("DNS:localhost");
    let mut options = nginx.options("/disk.raw");
    options.patience.retry = Duration::from_millis(500);
    let stream = open(&options).unwrap();
    let aside = nginx.disk().with_extension("aside");
    std::fs::rename(nginx.disk(), &aside).unwrap();
    let error = stream.read(0, 4096).wait().unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Unavailable, Errno::EIO), "{}", error.chain());
    std::fs::rename(aside, nginx.disk()).unwrap();
    assert_reads(&*stream, &content());
}

#[test]
fn a_server_is_trusted_by_its_authority_and_its_name() {
    let nginx = Nginx::start("DNS:localhost,IP:127.0.0.1");
    for host in ["localhost", "127.0.0.1"] {
        assert_reads(&*open(&nginx.tls_options(host)).unwrap(), &content());
    }
    let mut unknown = nginx.tls_options("localhost");
    unknown.authorities = None;
    let error = open(&unknown).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Denied, Errno::EACCES), "{}", error.chain());

    let other = Nginx::start("DNS:other.example,IP:127.0.0.2");
    for host in ["localhost", "127.0.0.1"] {
        let begun = Instant::now();
        let error = open(&other.tls_options(host)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{host}: {}", error.chain());
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    let mut nothing = nginx.tls_options("localhost");
    nothing.authorities = Some("/nonexistent".into());
    assert_eq!(open(&nothing).unwrap_err().errno(), Errno::ENOENT);
}

#[test]
fn passwords_redirects_and_refusals_are_as_the_server_has_them() {
    let nginx = Nginx::start("IP:127.0.0.1");
    let error = open(&nginx.options("/secret/disk.raw")).unwrap_err();
    assert_eq!((error.errno(), error.fact("status")), (Errno::EACCES, Some("401")));
    assert_eq!(open(&nginx.options("/none.raw")).unwrap_err().errno(), Errno::ENOENT);
    let error = open(&nginx.options("/whole/disk.raw")).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Unsupported, Errno::EIO), "{}", error.chain());

    let mut options = nginx.options("/moved/x");
    // user:hush
    options.authorization = Some("Basic dXNlcjpodXNo".into());
    assert_reads(&*open(&options).unwrap(), &content());

    let mut options = nginx.options("/away/x");
    options.authorities = Some(nginx.dir.path().join("ca-cert.pem"));
    assert_reads(&*open(&options).unwrap(), &content());
    let log = std::fs::read_to_string(nginx.dir.path().join("access.log")).unwrap();
    assert!(log.contains("/disk.raw?signed=1"), "the query of a redirect is kept");
}

#[test]
fn the_end_of_a_slow_object_is_there_at_once_while_all_of_it_is_read() {
    let nginx = Nginx::start("DNS:localhost");
    let stream = open(&nginx.options("/slow/disk.raw")).unwrap();
    let all = stream.read(0, SIZE as u64);
    let begun = Instant::now();
    let end = stream.read(SIZE as u64 - 4096, 4096).wait().unwrap();
    assert!(end == content()[SIZE - 4096..]);
    let took = begun.elapsed();
    assert!(all.wait().unwrap() == content());
    // All of it takes two seconds and more, however many connections share the work.
    assert!(took < begun.elapsed() / 2, "{took:?} of {:?}", begun.elapsed());
    assert_eq!(stream.traffic().bytes, 1 + SIZE as u64 + 4096);
}
