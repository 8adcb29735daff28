use ferry_core::Errno;
use proptest::prelude::*;

use super::{ImageExtent, Layout, ObjectExtent, ObjectNo};

const MIB: u64 = 1 << 20;

fn striped() -> Layout {
    Layout::new(20, 64 << 10, 4).unwrap()
}

#[test]
fn offsets_match_what_stock_rbd_wrote() {
    let at = |offset| striped().extents(offset, 1).next().unwrap();
    let one = |object, offset| ObjectExtent { object: ObjectNo(object), offset, length: 1 };
    assert_eq!(at(5 * (64 << 10) + 10), one(1, 65546));
    assert_eq!(at(4 * MIB + 6 * (64 << 10)), one(6, 65536));
}

#[test]
fn object_counts_match_the_maps_of_stock_rbd() {
    assert_eq!(striped().object_count(10 * MIB), 12);
    assert_eq!(Layout::plain(22).unwrap().object_count(64 * MIB), 16);
    assert_eq!(Layout::plain(22).unwrap().object_count(64 * MIB + 1), 17);
    assert_eq!(striped().object_count(0), 0);
    assert_eq!(striped().object_count(1), 1);
    assert_eq!(striped().object_count(4 * MIB + (64 << 10) + 1), 6);
}

#[test]
fn a_plain_range_is_cut_at_object_ends() {
    let layout = Layout::plain(12).unwrap();
    let extents: Vec<_> = layout.extents(4000, 5000).collect();
    assert_eq!(
        extents,
        [
            ObjectExtent { object: ObjectNo(0), offset: 4000, length: 96 },
            ObjectExtent { object: ObjectNo(1), offset: 0, length: 4096 },
            ObjectExtent { object: ObjectNo(2), offset: 0, length: 808 },
        ]
    );
    assert_eq!(
        layout.image_extents(extents[1]).collect::<Vec<_>>(),
        [ImageExtent { offset: 4096, length: 4096 }]
    );
}

#[test]
fn impossible_layouts_are_refused_with_rbds_numbers() {
    assert_eq!(Layout::plain(11).unwrap_err().errno(), Errno::EDOM);
    assert_eq!(Layout::plain(26).unwrap_err().errno(), Errno::EDOM);
    assert_eq!(Layout::plain(255).unwrap_err().errno(), Errno::EDOM);
    for (unit, count) in [(0, 1), (256, 1), (3000, 1), (8192, 1), (4096, 0), (512, u64::MAX)] {
        assert_eq!(Layout::new(12, unit, count).unwrap_err().errno(), Errno::EINVAL, "{unit} {count}");
    }
}

#[test]
fn an_empty_range_touches_nothing() {
    assert_eq!(striped().extents(12345, 0).count(), 0);
}

prop_compose! {
    fn any_layout()(order in 12_u8..15)(order in Just(order), shift in 0..=(order - 9), count in 1_u64..7) -> Layout {
        Layout::new(order, 1 << (order - shift), count).unwrap()
    }
}

proptest! {
    #[test]
    fn every_byte_has_one_place_and_comes_back(layout in any_layout(), offset in 0_u64..1 << 40, length in 1_u64..100_000) {
        let mut pieces = Vec::new();
        let mut last = None;
        for extent in layout.extents(offset, length) {
            prop_assert!(last < Some(extent.object));
            last = Some(extent.object);
            prop_assert!(extent.length > 0 && extent.offset + extent.length <= layout.object_size());
            let mut at = extent.offset;
            for piece in layout.image_extents(extent) {
                prop_assert_eq!(layout.image_offset(extent.object, at), piece.offset);
                at += piece.length;
                pieces.push((piece.offset, piece.length));
            }
            prop_assert_eq!(at, extent.offset + extent.length);
        }
        pieces.sort_unstable();
        let mut at = offset;
        for (from, n) in pieces {
            prop_assert_eq!(from, at);
            at += n;
        }
        prop_assert_eq!(at, offset + length);
    }

    #[test]
    fn one_byte_lies_where_the_formula_says(layout in any_layout(), offset in 0_u64..1 << 40) {
        let (unit, count) = (layout.stripe_unit(), layout.stripe_count());
        let block = offset / unit;
        let (stripe, position, units) = (block / count, block % count, layout.object_size() / unit);
        let object = ObjectNo(stripe / units * count + position);
        let expected = ObjectExtent { object, offset: stripe % units * unit + offset % unit, length: 1 };
        prop_assert_eq!(layout.extents(offset, 1).collect::<Vec<_>>(), vec![expected]);
        prop_assert_eq!(layout.bytes_before(object, offset), expected.offset);
        prop_assert_eq!(layout.bytes_before(object, offset + 1), expected.offset + 1);
    }

    #[test]
    fn the_object_count_is_the_last_object_touched(layout in any_layout(), size in 1_u64..1 << 30) {
        let start = size.saturating_sub(layout.period());
        let last = layout.extents(start, size - start).last().unwrap().object.0;
        prop_assert_eq!(layout.object_count(size), last + 1);
    }
}
