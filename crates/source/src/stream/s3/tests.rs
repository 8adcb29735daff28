//! What is signed, and how.

use hyper::Method;
use jiff::Timestamp;

use super::super::http::HttpOptions;
use super::{S3Keys, S3Options, Signature, address};

fn keys() -> S3Keys {
    S3Keys {
        access: "AKIAIOSFODNN7EXAMPLE".into(),
        secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
        session_token: None,
    }
}

fn options(url: &str) -> S3Options {
    S3Options { http: HttpOptions::new(url), keys: Some(keys()), region: None }
}

/// The example in "Authenticating requests: using query parameters" of Amazon's documentation lives 86,400 seconds; ours an
/// hour, so the signature differs, and all else must be the same.
#[test]
fn a_signature_names_key_date_region_and_what_is_signed() {
    let signature = Signature::new(&keys(), "us-east-1").unwrap();
    let url = address(&options("https://examplebucket.s3.amazonaws.com/test.txt")).unwrap();
    let now: Timestamp = "2013-05-24T00:00:00Z".parse().unwrap();
    let signed = signature.sign_at(now, &url, &Method::GET).to_string();
    assert!(
        signed
            .starts_with("https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256")
    );
    for part in [
        "X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request",
        "X-Amz-Date=20130524T000000Z",
        "X-Amz-Expires=3600",
        "X-Amz-SignedHeaders=host",
        "X-Amz-Signature=",
    ] {
        assert!(signed.contains(part), "{part} in {signed}");
    }
    assert_ne!(signed, signature.sign_at(now, &url, &Method::HEAD).to_string());
    assert!(!signed.contains("wJalr"));
}

#[test]
fn a_key_is_encoded_as_the_signature_needs_it() {
    let url = |text| address(&options(text)).map(|u| u.to_string()).map_err(|e| e.clause().to_owned());
    assert_eq!(
        url("http://s3.example:9000/b/a+b (1)%20=ü"),
        Ok("http://s3.example:9000/b/a%2Bb%20%281%29%20%3D%C3%BC".into())
    );
    assert_eq!(url("http://s3.example/"), Err("the url names no object".into()));
    assert!(url("http://s3.example/b/k?versionId=1").is_err());
}

#[test]
fn a_session_token_is_sent_and_no_secret_is_shown() {
    let mut lent = keys();
    lent.session_token = Some("hush".into());
    let signature = Signature::new(&lent, "eu-west-1").unwrap();
    let url = address(&options("https://s3.example/b/k")).unwrap();
    assert!(signature.sign(&url, &Method::GET).as_str().contains("X-Amz-Security-Token=hush"));
    assert_eq!(signature.sign(&url, &Method::GET), signature.sign(&url, &Method::GET), "signatures are kept");
    assert!(!format!("{signature:?} {lent:?} {:?}", options("https://s3.example/b/k")).contains("hush"));
    assert!(Signature::new(&lent, "eu west").is_err());
}
