use std::path::{Path, PathBuf};

use ferry_core::{ErrorKind, Result};

use super::{ClusterSpec, ImageSpec, Origin, PoolRef, SnapRef, SourceSpec, StreamSpec};

fn image(text: &str) -> ImageSpec {
    match SourceSpec::parse(text).unwrap().origin {
        Origin::Image(image) => *image,
        Origin::Native(_) => panic!("not an image"),
    }
}

fn refusal(text: &str) -> (String, i32) {
    let e = SourceSpec::parse(text).unwrap_err();
    (e.clause().to_owned(), e.errno().0)
}

#[test]
fn what_rbd_refuses_is_refused_with_its_texts_and_numbers() {
    let file = r#""stream":{"type":"file","file_path":"/x"}"#;
    let cases = [
        ("{".to_owned(), "invalid source-spec JSON", 74),
        ("[]".to_owned(), "invalid source-spec JSON", 74),
        ("{}".to_owned(), "failed to locate format type value", 22),
        (r#"{"type":3}"#.to_owned(), "failed to locate format type value", 22),
        (r#"{"type":"tar"}"#.to_owned(), "unknown or unsupported format type 'tar'", 38),
        (r#"{"type":"raw"}"#.to_owned(), "failed to locate stream object", 22),
        (r#"{"type":"raw","stream":"/x"}"#.to_owned(), "failed to locate stream object", 22),
        (r#"{"type":"raw","stream":{}}"#.to_owned(), "failed to locate stream type value", 22),
        (
            r#"{"type":"raw","stream":{"type":"ftp"}}"#.to_owned(),
            "unknown or unsupported stream type 'ftp'",
            38,
        ),
        (r#"{"type":"raw","stream":{"type":"file"}}"#.to_owned(), "failed to locate 'file_path' key", 22),
        (
            r#"{"type":"raw","stream":{"type":"file","file_path":1}}"#.to_owned(),
            "failed to locate 'file_path' key",
            22,
        ),
        (r#"{"type":"raw","stream":{"type":"http"}}"#.to_owned(), "failed to locate 'url' key", 22),
        (r#"{"type":"raw","stream":{"type":"http","url":"ftp://h/x"}}"#.to_owned(), "invalid url scheme", 22),
        (
            r#"{"type":"raw","stream":{"type":"http","url":"http://h:0/x"}}"#.to_owned(),
            "invalid url port",
            22,
        ),
        (
            r#"{"type":"raw","stream":{"type":"s3","url":"h/x"}}"#.to_owned(),
            "failed to locate 'access_key' key",
            22,
        ),
        (
            r#"{"type":"raw","stream":{"type":"s3","url":"h/x","access_key":"a"}}"#.to_owned(),
            "failed to locate 'secret_key' key",
            22,
        ),
        (r#"{"type":"raw","stream":{"type":"nbd"}}"#.to_owned(), "missing URI", 22),
        (r#"{"type":"raw","stream":{"type":"nbd","uri":"http://x"}}"#.to_owned(), "invalid URI", 22),
        (format!(r#"{{"type":"raw",{file},"snapshots":{{}}}}"#), "invalid snapshots array", 22),
        (format!(r#"{{"type":"raw",{file},"snapshots":[1]}}"#), "invalid snapshot 1 JSON: (0) Success", 22),
        (
            format!(r#"{{"type":"raw",{file},"snapshots":[{{}}]}}"#),
            "failed to locate snapshot type value",
            22,
        ),
        (
            format!(r#"{{"type":"raw",{file},"snapshots":[{{"type":"qcow"}}]}}"#),
            "unknown or unsupported format type 'qcow'",
            38,
        ),
        (
            format!(r#"{{"type":"raw",{file},"snapshots":[{{"type":"raw","name":1,{file}}}]}}"#),
            "invalid snapshot name",
            22,
        ),
        (
            format!(
                r#"{{"type":"raw",{file},"snapshots":[{{"type":"raw","name":"a",{file}}},{{"type":"raw","name":"a",{file}}}]}}"#
            ),
            "two snapshots have the same name",
            22,
        ),
    ];
    for (text, clause, errno) in cases {
        assert_eq!(refusal(&text), (clause.to_owned(), errno), "{text}");
    }
}

#[test]
fn what_rbd_refuses_of_native_specs_is_refused_with_its_texts_and_numbers() {
    let cases = [
        (r#""pool_name":"p","pool_id":1"#, "cannot specify both pool name and pool id"),
        (r#""image_name":"i""#, "missing or invalid pool id"),
        (r#""pool_id":"x""#, "missing or invalid pool id"),
        (r#""pool_name":"p""#, "missing or invalid image name"),
        (r#""pool_name":"p","image_name":7"#, "missing or invalid image name"),
        (r#""pool_name":"p","image_name":"i""#, "snapshot required for import"),
        (r#""pool_name":"p","image_name":"i","snap_name":1"#, "invalid snap name"),
        (r#""pool_name":"p","image_name":"i","snap_id":"foo""#, "invalid snap id"),
        (
            r#""pool_name":"p","image_name":"i","snap_name":"s","snap_id":4"#,
            "cannot specify both snap name and snap id",
        ),
    ];
    for (keys, clause) in cases {
        let text = format!(r#"{{"type":"native",{keys}}}"#);
        assert_eq!(refusal(&text), (clause.to_owned(), 22), "{text}");
    }
}

/// The cluster that a native spec with these keys names.
fn cluster(keys: &str) -> Result<ClusterSpec> {
    let text = format!(r#"{{"type":"native",{keys},"pool_name":"p","image_name":"i","snap_name":"s"}}"#);
    let spec = SourceSpec::parse(&text)?;
    let Origin::Native(native) = spec.origin() else { panic!("not native") };
    Ok(*native.cluster.clone().unwrap())
}

#[test]
fn a_native_spec_names_another_cluster_and_its_user() {
    let named =
        cluster(r#""cluster_name":"far","client_name":"client.backup","key_ref":"config://k/1""#).unwrap();
    assert_eq!(named.config.as_deref(), Some(Path::new("/etc/ceph/far.conf")));
    assert_eq!(named.user.as_deref(), Some("backup"));
    assert_eq!(named.key.as_ref().and_then(|k| k.reference()), Some("k/1"));
    let by_monitor = cluster(r#""mon_host":"[v2:10.0.0.1:3300]","keyring_path":"/k""#).unwrap();
    assert_eq!((&by_monitor.config, by_monitor.mon_host.as_deref()), (&None, Some("[v2:10.0.0.1:3300]")));
    for cluster in [named, by_monitor] {
        let json = cluster.to_json().unwrap();
        assert_eq!(ClusterSpec::parse(json.as_object().unwrap()).unwrap(), Some(cluster));
    }
    let inline = cluster(r#""config_path":"/a","key":"hunter2""#).unwrap();
    assert_eq!(inline.to_json(), None, "a key goes into no record");
    assert!(!format!("{inline:?}").contains("hunter2"));
    for (keys, clause) in [
        (
            r#""client_name":"client.a""#,
            "another cluster needs one of 'cluster_name', 'config_path' and 'mon_host'",
        ),
        (r#""cluster_name":"../x""#, "invalid cluster name"),
        (r#""cluster_name":"x","client_name":"admin""#, "invalid client name"),
        (r#""cluster_name":"x","key_ref":"hunter2""#, "'key_ref' is no reference (config://KEY)"),
        (
            r#""cluster_name":"x","key_ref":"config://k","key":"v""#,
            "cannot specify both key and key reference",
        ),
        (r#""mon_host":7"#, "invalid mon host"),
    ] {
        let error = cluster(keys).unwrap_err();
        assert_eq!((error.clause(), error.errno().0), (clause, 22), "{keys}");
    }
}

#[test]
fn a_native_spec_takes_numbers_as_numbers_or_strings() {
    for id in ["7", r#""7""#] {
        let text = format!(r#"{{"type":"native","pool_id":{id},"image_name":"i","snap_id":{id}}}"#);
        let spec = SourceSpec::parse(&text).unwrap();
        let Origin::Native(native) = spec.origin() else { panic!("not native") };
        assert_eq!((&native.pool, &native.snap), (&PoolRef::Id(7), &SnapRef::Id(7)));
        assert_eq!((native.namespace.as_str(), native.image_id.as_deref()), ("", None));
    }
}

#[test]
fn keys_are_sorted_and_unknown_ones_are_kept() {
    let text = r#"{ "type":"raw", "zz":{"b":1,"a":[{"d":null,"c":true}]},
                    "stream":{"type":"file","file_path":"/x","note":"mine"} }"#;
    let spec = SourceSpec::parse(text).unwrap();
    let sorted = concat!(
        r#"{"stream":{"file_path":"/x","note":"mine","type":"file"},"type":"raw","#,
        r#""zz":{"a":[{"c":true,"d":null}],"b":1}}"#
    );
    assert_eq!(spec.to_json(), sorted);
    assert_eq!(SourceSpec::parse(sorted).unwrap(), spec);
}

#[test]
fn a_snapshot_without_a_name_gets_the_same_one_each_time() {
    let text = |path: &str| {
        format!(
            r#"{{"type":"raw","stream":{{"type":"file","file_path":"/x"}},"snapshots":[
               {{"type":"raw","stream":{{"type":"file","file_path":"{path}"}}}},
               {{"type":"raw","name":"","stream":{{"type":"file","file_path":"{path}"}}}},
               {{"type":"raw","name":"a@b","stream":{{"type":"file","file_path":"{path}"}}}}]}}"#
        )
    };
    let names = |text: &str| image(text).snapshots.into_iter().map(|s| s.name).collect::<Vec<_>>();
    let first = names(&text("/a"));
    assert_eq!(first, names(&text("/a")));
    assert_eq!((first[0].len(), first[2].as_str()), (36, "a@b"));
    assert_ne!(first[0], first[1]);
    assert_ne!(first[0], names(&text("/b"))[0]);
}

const SECRETIVE: &str = r#"{"type":"raw",
    "stream":{"type":"http","url":"https://us%40r:pa55@h:8443/p/q?sig=s1gned&x=1#part","headers":{"X-Key":"h3ader"}},
    "snapshots":[{"type":"raw","name":"s","stream":
        {"type":"s3","url":"http://h/b/k","access_key":"acc3ss","secret_key":"s3cret","session_token":"t0ken"}}]}"#;

#[test]
fn no_secret_is_shown_to_people() {
    let spec = SourceSpec::parse(SECRETIVE).unwrap();
    assert!(spec.has_inline_secrets());
    let shown = format!("{} {spec:?} {:?}", spec.redacted(), spec.origin());
    for secret in ["pa55", "s1gned", "h3ader", "acc3ss", "s3cret", "t0ken"] {
        assert!(spec.to_json().contains(secret), "{secret} is in the spec itself");
        assert!(!shown.contains(secret), "{secret} is shown: {shown}");
    }
    assert!(shown.contains("https://h:8443/p/q") && shown.contains("http://h/b/k"));
}

#[test]
fn secrets_are_replaced_by_references() {
    let spec = SourceSpec::parse(SECRETIVE).unwrap();
    let mut kept = Vec::new();
    let safe = spec
        .with_references(&mut |what, secret| {
            kept.push((what.to_owned(), secret.to_owned()));
            Ok(format!("k/{}", kept.len()))
        })
        .unwrap();
    kept.sort();
    let expected = [
        // base64 of `us@r:pa55`
        ("snapshots.0.stream.access_key", "acc3ss"),
        ("snapshots.0.stream.secret_key", "s3cret"),
        ("snapshots.0.stream.session_token", "t0ken"),
        ("stream.authorization", "Basic dXNAcjpwYTU1"),
        ("stream.headers.X-Key", "h3ader"),
        ("stream.query", "sig=s1gned&x=1"),
    ];
    assert_eq!(kept, expected.map(|(what, secret)| (what.to_owned(), secret.to_owned())));
    assert!(!safe.has_inline_secrets());
    assert_eq!(safe.references().len(), 6);
    assert_eq!(safe.redacted(), safe.to_json(), "a reference is no secret");
    let Origin::Image(before) = spec.origin() else { panic!("not an image") };
    let Origin::Image(after) = safe.origin() else { panic!("not an image") };
    let urls = |image: &ImageSpec| match &image.stream {
        StreamSpec::Http(http) => http.url.clone(),
        StreamSpec::File(_) | StreamSpec::S3(_) | StreamSpec::Nbd(_) => panic!("not http"),
    };
    assert_eq!(urls(before), urls(after));
    // Again changes nothing.
    let again = safe.with_references(&mut |_, _| panic!("there is no secret left"));
    assert_eq!(again.unwrap(), safe);
}

#[test]
fn a_secret_that_cannot_be_kept_is_an_error() {
    let spec = SourceSpec::parse(SECRETIVE).unwrap();
    let refused: Result<SourceSpec> = spec.with_references(&mut |_, _| Err(ferry_core::Error::busy("full")));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn a_spec_that_says_a_secret_twice_is_refused_and_not_quoted() {
    let text =
        r#"{"type":"raw","stream":{"type":"http","url":"http://u:pw1@h/","authorization":"Bearer pw2"}}"#;
    let e = SourceSpec::parse(text).unwrap_err().chain();
    assert!(e.contains("authorization") && !e.contains("pw1") && !e.contains("pw2"), "{e}");
}

#[test]
fn relative_paths_are_taken_from_the_given_directory() {
    let text = r#"{"type":"qcow2","stream":{"type":"file","file_path":"a.qcow2"},
        "backing":{"type":"raw","stream":{"type":"file","file_path":"/base.raw"}}}"#;
    let spec = SourceSpec::parse(text).unwrap().with_absolute_paths(Path::new("/here")).unwrap();
    let Origin::Image(image) = spec.origin() else { panic!("not an image") };
    let path = |s: &StreamSpec| PathBuf::from(s.place());
    assert_eq!(path(&image.stream), Path::new("/here/a.qcow2"));
    assert_eq!(path(&image.backing.as_ref().unwrap().stream), Path::new("/base.raw"));
}

#[test]
fn a_chain_that_is_too_long_is_refused() {
    let stream = r#""stream":{"type":"file","file_path":"/x"}"#;
    let chain = |length: usize| {
        let mut text = format!(r#"{{"type":"qcow2",{stream}}}"#);
        for _ in 1..length {
            text = format!(r#"{{"type":"qcow2",{stream},"backing":{text}}}"#);
        }
        SourceSpec::parse(&text)
    };
    assert!(chain(32).is_ok());
    assert_eq!(chain(33).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(chain(500).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn the_spec_of_a_file_is_what_one_would_write() {
    let spec = SourceSpec::of_file("vmdk", Path::new("/d/x \"y\".vmdk")).unwrap();
    assert_eq!(spec.to_json(), r#"{"stream":{"file_path":"/d/x \"y\".vmdk","type":"file"},"type":"vmdk"}"#);
    assert_eq!(SourceSpec::of_file("tar", Path::new("/x")).unwrap_err().errno().0, 38);
}
