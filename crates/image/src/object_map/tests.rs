use ferry_core::Errno;
use proptest::prelude::*;

use super::{Loaded, OBJECTS_MAX, ObjectMap, ObjectState, load};
use crate::layout::ObjectNo;

/// A map with object 0 of 16 existing, as stock `rbd` stores it.
const SIXTEEN: [u8; 38] = [
    0x0e, 0, 0, 0, 1, 1, 8, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0x0c, 0, 0, 0, 0xe6, 0xb3,
    0xc1, 0x6e, 1, 0, 0, 0, 0xe7, 0x5f, 0xa6, 0xab,
];

/// A map of no objects, as stock `rbd` stores it.
const EMPTY: [u8; 30] =
    [0x0e, 0, 0, 0, 1, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0x52, 0xba, 0xb7, 0xea, 0, 0, 0, 0];

fn map_of(states: &[ObjectState]) -> ObjectMap {
    let mut map = ObjectMap::new(states.len() as u64).unwrap();
    for (n, state) in states.iter().enumerate() {
        map.set(ObjectNo(n as u64), *state);
    }
    map
}

fn states_of(map: &ObjectMap) -> Vec<ObjectState> {
    map.states().map(|(_, s)| s).collect()
}

#[test]
fn the_encoding_is_rbds_to_the_byte() {
    let mut map = ObjectMap::new(16).unwrap();
    map.set(ObjectNo(0), ObjectState::Exists);
    assert_eq!(map.encode(), &SIXTEEN[..]);
    assert_eq!(ObjectMap::decode(&SIXTEEN).unwrap(), map);
    assert_eq!(ObjectMap::new(0).unwrap().encode(), &EMPTY[..]);
    assert_eq!(ObjectMap::decode(&EMPTY).unwrap().count(), 0);
}

#[test]
fn the_header_checksum_of_a_large_map_is_rbds() {
    let bytes = ObjectMap::new(25_600).unwrap().encode();
    let footer = 18 + 6400 + 4;
    assert_eq!(bytes[footer..footer + 4], 0x08bb_fb44_u32.to_le_bytes());
    assert_eq!(bytes[footer + 4..footer + 8], 2_u32.to_le_bytes());
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    for at in 0..SIXTEEN.len() {
        assert!(ObjectMap::decode(&SIXTEEN[..at]).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut bytes = SIXTEEN;
            bytes[at] ^= 1 << bit;
            assert!(ObjectMap::decode(&bytes).is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn a_map_cannot_make_the_reader_allocate_more_than_it_was_given() {
    let mut bytes = SIXTEEN;
    bytes[10..18].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(ObjectMap::decode(&bytes).is_err());
    bytes[10..18].copy_from_slice(&OBJECTS_MAX.to_le_bytes());
    assert!(ObjectMap::decode(&bytes).is_err());
    assert_eq!(ObjectMap::new(OBJECTS_MAX + 1).unwrap_err().errno(), Errno::EFBIG);
}

#[test]
fn a_snapshot_turns_what_exists_clean() {
    use ObjectState::{Absent, Clean, Exists, Pending};
    let mut map = map_of(&[Absent, Exists, Pending, Clean, Exists]);
    map.mark_clean();
    assert_eq!(states_of(&map), [Absent, Clean, Pending, Clean, Clean]);
}

#[test]
fn removing_a_snapshot_hands_its_changes_to_the_next_newer_map() {
    use ObjectState::{Absent, Clean, Exists, Pending};
    let removed = map_of(&[Exists, Clean, Exists, Absent]);
    let mut newer = map_of(&[Clean, Clean, Absent, Exists, Clean, Pending]);
    newer.absorb_removed(&removed);
    // The fifth lies behind the removed map's end: it came into being after it.
    assert_eq!(states_of(&newer), [Exists, Clean, Absent, Exists, Exists, Pending]);
}

#[test]
fn shrinking_over_an_object_that_may_exist_is_refused() {
    use ObjectState::{Absent, Exists};
    let mut map = map_of(&[Exists, Absent, Exists, Absent]);
    assert_eq!(map.resize(2).unwrap_err().errno(), Errno::ESTALE);
    map.resize(3).unwrap();
    map.resize(9).unwrap();
    assert_eq!(states_of(&map)[..4], [Exists, Absent, Exists, Absent]);
    assert_eq!(map, ObjectMap::decode(&map.encode()).unwrap());
}

#[test]
fn what_is_wrong_with_a_stored_map_makes_it_invalid() {
    assert!(
        matches!(load(None, 5).unwrap(), Loaded::Invalid { replacement, .. } if replacement.count() == 5)
    );
    assert!(
        matches!(load(Some(&[]), 5).unwrap(), Loaded::Invalid { replacement, .. } if replacement.count() == 5)
    );
    let Loaded::Invalid { replacement, .. } = load(Some(&SIXTEEN), 17).unwrap() else {
        panic!("a map smaller than its image must be invalid")
    };
    assert_eq!((replacement.count(), replacement.get(ObjectNo(0))), (17, ObjectState::Exists));
    assert!(matches!(load(Some(&SIXTEEN), 10).unwrap(), Loaded::Valid(map) if map.count() == 16));
}

fn state() -> impl Strategy<Value = ObjectState> {
    (0_u8..4).prop_map(ObjectState::from_bits)
}

proptest! {
    #[test]
    fn maps_come_back_as_they_were_stored(states in prop::collection::vec(state(), 0..300)) {
        let map = map_of(&states);
        prop_assert_eq!(&states_of(&map), &states);
        prop_assert_eq!(ObjectMap::decode(&map.encode()).unwrap(), map);
    }

    #[test]
    fn a_partial_update_stores_what_a_full_one_would(
        count in 1_u64..70_000, first in 0_u64..70_000, n in 1_u64..40_000, state in state()
    ) {
        let mut map = ObjectMap::new(count).unwrap();
        let mut stored = map.encode().to_vec();
        let range = first.min(count)..(first + n).min(count);
        for object in range.clone() {
            map.set(ObjectNo(object), state);
        }
        for (offset, bytes) in map.stored_update(range) {
            let at = usize::try_from(offset).unwrap();
            stored[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        prop_assert_eq!(stored, map.encode().to_vec());
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        // Most are refused; a lucky one must at least come back the same.
        if let Ok(map) = ObjectMap::decode(&bytes) {
            prop_assert_eq!(ObjectMap::decode(&map.encode()).unwrap(), map);
        }
    }
}
