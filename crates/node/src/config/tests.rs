use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ferry_core::ErrorKind;

use super::{Home, PoolPlace, RadosPlace};
use crate::api::{Cluster, ClusterPools};

#[test]
fn the_home_is_the_first_that_is_set() {
    let home = |set: &[(&str, &str)]| {
        Home::from_env(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
            .map(|h| h.dir().to_path_buf())
            .ok()
    };
    assert_eq!(home(&[("FERRY_HOME", "/f"), ("HOME", "/h")]), Some(PathBuf::from("/f")));
    assert_eq!(home(&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")]), Some(PathBuf::from("/x/ferry")));
    assert_eq!(home(&[("FERRY_HOME", ""), ("HOME", "/h")]), Some(PathBuf::from("/h/.local/share/ferry")));
    assert_eq!(home(&[]), None);
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path().join("new"));
    assert!(home.load().unwrap().pools.is_empty());
    home.update(|c| {
        c.pools.insert("rbd".to_owned(), home.relative(&home.default_store()).into());
        c.pools.insert("far".to_owned(), home.relative(Path::new("/srv/far")).into());
        c.config
            .entry("global".to_owned())
            .or_default()
            .insert("rbd_default_order".to_owned(), "23".to_owned());
        Ok(())
    })
    .unwrap();
    let config = home.load().unwrap();
    assert_eq!(home.store_of(&config, "rbd"), Some(home.default_store()));
    assert_eq!(home.store_of(&config, "far"), Some(PathBuf::from("/srv/far")));
    assert_eq!(home.store_of(&config, "no"), None);
    assert_eq!(config.config["global"]["rbd_default_order"], "23");
    let text = std::fs::read_to_string(home.config_file()).unwrap();
    assert!(text.contains("rbd = \"store\""), "{text}");
}

#[test]
fn a_pool_of_a_cluster_is_kept_with_the_way_there() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path());
    let cluster = Cluster {
        conf: Some("/etc/ceph/b.conf".into()),
        user: Some("ferry".to_owned()),
        settings: [("keyring".to_owned(), "/k".to_owned())].into(),
        pools: ClusterPools::All,
    };
    let place = RadosPlace::new("vms".to_owned(), &cluster);
    home.update(|c| Ok(c.pools.insert("far".to_owned(), PoolPlace::Rados(place.clone())))).unwrap();
    home.update(|c| Ok(c.pools.insert("near".to_owned(), PathBuf::from("store").into()))).unwrap();
    let config = home.load().unwrap();
    assert_eq!(config.rados_place("far"), Some(&place));
    assert_eq!((config.rados_place("near"), home.store_of(&config, "far")), (None, None));
    assert_eq!(config.names_in(&cluster), [("vms".to_owned(), "far".to_owned())].into());
    assert_eq!(config.names_in(&Cluster { user: None, ..cluster }), [].into());
    assert_eq!(home.place_name(&config, "far"), "Ceph pool vms of /etc/ceph/b.conf");
}

#[test]
fn a_refused_change_leaves_the_file_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path());
    home.update(|c| {
        c.pools.insert("a".to_owned(), PathBuf::from("store").into());
        Ok(())
    })
    .unwrap();
    let refused = home.update(|c| {
        c.pools.clear();
        Err::<(), _>(ferry_core::Error::exists("no"))
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Exists);
    assert!(home.load().unwrap().pools.contains_key("a"));
}

#[test]
fn a_file_that_is_no_configuration_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path());
    std::fs::write(home.config_file(), "[polls]\n").unwrap();
    let error = home.load().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("ferry.toml"), "{error}");
}

#[test]
fn secrets_are_for_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path());
    home.update_secrets(|s| {
        s.insert("s3/key".to_owned(), "hush".to_owned());
        Ok(())
    })
    .unwrap();
    assert_eq!(home.secrets().unwrap()["s3/key"], "hush");
    let mode = std::fs::metadata(dir.path().join("secrets.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
