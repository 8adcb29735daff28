//! Ids of images.

use ferry_core::{ClientId, Error, Result, Rng};

/// Longest id made. Characters; Ceph's number, so that old clients' prefixes fit.
const LENGTH_MAX: usize = 14;

/// A new id: the client's number and 32 random bits, both in hex, the last 14 characters.
#[must_use]
pub fn new_image_id(client: ClientId, rng: &dyn Rng) -> String {
    let random = u32::try_from(rng.next_u64() >> 32).expect("32 bits are left");
    let id = format!("{:x}{random:x}", client.0);
    id[id.len().saturating_sub(LENGTH_MAX)..].to_owned()
}

/// Checks an id that came from outside.
///
/// # Errors
/// `Invalid` (22) where it is not made of ASCII letters and digits.
pub fn check_image_id(id: &str) -> Result<()> {
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Error::invalid("an image id is made of letters and digits").with("id", id));
    }
    Ok(())
}

/// A random UUID as text, version 4: the name of a snapshot in the trash.
#[must_use]
pub fn new_uuid(rng: &dyn Rng) -> String {
    let (a, b) = (rng.next_u64(), rng.next_u64());
    let (time_low, time_mid, time_high) = (a >> 32, (a >> 16) & 0xFFFF, a & 0xFFF);
    let (sequence, node) = (0x8000 | ((b >> 48) & 0x3FFF), b & 0xFFFF_FFFF_FFFF);
    format!("{time_low:08x}-{time_mid:04x}-4{time_high:03x}-{sequence:04x}-{node:012x}")
}

#[cfg(test)]
mod tests {
    use ferry_core::ClientId;
    use ferry_core::testing::TestRng;

    use super::{check_image_id, new_image_id, new_uuid};

    #[test]
    fn an_id_ends_with_the_random_part_and_is_at_most_14_long() {
        let rng = TestRng::new(1);
        for client in [1, 4155, u64::from(u32::MAX), u64::MAX] {
            let id = new_image_id(ClientId(client), &rng);
            assert!(id.len() <= 14, "{id}");
            check_image_id(&id).unwrap();
        }
        assert!(new_image_id(ClientId(0x105e), &rng).starts_with("105e"));
        assert_ne!(new_image_id(ClientId(1), &rng), new_image_id(ClientId(1), &rng));
        for bad in ["", "a/b", "a.b", "ä"] {
            assert!(check_image_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_uuid_has_the_shape_of_version_4() {
        let uuid = new_uuid(&TestRng::new(2));
        let parts: Vec<_> = uuid.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&uuid[14..15], "4");
        assert!(["8", "9", "a", "b"].contains(&&uuid[19..20]));
    }
}
