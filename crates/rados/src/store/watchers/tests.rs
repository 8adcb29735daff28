use super::*;

/// As Ceph 16.2.15 tells it.
const TOLD: &str = r#"[
    {"namespace": "", "object": "rbd_header.a1", "entity_name": {"type": "client", "num": 4123}, "cookie": 140303696678976,
     "timeout": 10, "entity_addr_t": {"type": "any", "addr": "127.0.0.1:0", "nonce": 239080395}},
    {"namespace": "blue", "object": "rbd_header.a1", "entity_name": {"type": "client", "num": 4124}, "cookie": 7,
     "timeout": 10, "entity_addr_t": {"type": "any", "addr": "[::1]:0", "nonce": 3}}
]"#;

#[test]
fn only_those_of_the_object_are_listed() {
    let listed = watchers(TOLD.as_bytes(), "rbd_header.a1", "").unwrap();
    let wanted = WatcherInfo {
        client: ClientId(4123),
        handle: WatchHandle(140_303_696_678_976),
        address: "127.0.0.1:0/239080395".to_owned(),
    };
    assert_eq!(listed, [wanted]);
    let blue = watchers(TOLD.as_bytes(), "rbd_header.a1", "blue").unwrap();
    assert_eq!((blue.len(), &*blue[0].address), (1, "[::1]:0/3"));
    assert_eq!(watchers(TOLD.as_bytes(), "rbd_header.a2", ""), Some(vec![]));
}

#[test]
fn an_answer_that_is_not_understood_lists_nobody() {
    for told in ["", "{}", r#"[{"namespace": "", "object": "o", "cookie": 1}]"#] {
        assert_eq!(watchers(told.as_bytes(), "o", ""), None, "{told}");
    }
}

#[test]
fn the_osd_that_serves_an_object_is_the_acting_primary() {
    let map = r#"{"pgid":"2.4","up":[1,0],"up_primary":1,"acting":[0,1],"acting_primary":0}"#;
    assert_eq!(primary(map.as_bytes()), Some(0));
    assert_eq!(primary(br#"{"acting":[],"acting_primary":-1}"#), None);
    assert_eq!(primary(b"no"), None);
}
