//! Striping: which bytes of which data object hold a byte of the image, and back.
//!
//! An image is cut into stripe units of `U` bytes dealt round-robin over `C` objects; when those are full, the next `C`
//! objects follow. Inside one object the image offsets grow with the object offsets, and a contiguous range of the image is
//! one contiguous range in every object it touches: all arithmetic here rests on that.
//!
//! # Source
//! Ceph, "File striping"; checked against objects written by stock `rbd` (see the tests).

#[cfg(test)]
mod tests;

use ferry_core::{Error, Result};

/// Smallest object: order 12. Log2 of bytes.
pub const ORDER_MIN: u8 = 12;

/// Largest object: order 25, as `rbd` allows. Log2 of bytes.
pub const ORDER_MAX: u8 = 25;

/// Smallest stripe unit `rbd` accepts. Bytes.
pub const STRIPE_UNIT_MIN: u64 = 512;

/// Number of a data object of an image, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectNo(pub u64);

/// A contiguous range inside one data object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectExtent {
    /// Which object.
    pub object: ObjectNo,
    /// Bytes from the start of the object.
    pub offset: u64,
    /// Bytes, never 0.
    pub length: u64,
}

/// A contiguous range of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageExtent {
    /// Bytes from the start of the image.
    pub offset: u64,
    /// Bytes, never 0.
    pub length: u64,
}

impl ImageExtent {
    /// The first byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// How an image is cut into objects.
///
/// # Invariants
/// The order is in `ORDER_MIN..=ORDER_MAX`, the unit divides the object size and is not below 512 bytes, the count is not 0
/// and a whole object set is shorter than 2^63 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    order: u8,
    stripe_unit: u64,
    stripe_count: u64,
}

impl Layout {
    /// A layout of objects of `1 << order` bytes, striped in units of `stripe_unit` bytes over `stripe_count` objects.
    ///
    /// # Errors
    /// `Invalid` (33 for the order, 22 for the others) where a number is out of its range.
    pub fn new(order: u8, stripe_unit: u64, stripe_count: u64) -> Result<Self> {
        if !(ORDER_MIN..=ORDER_MAX).contains(&order) {
            return Err(Error::invalid("the object size is out of range")
                .errno_is(ferry_core::Errno::EDOM)
                .with("order", order));
        }
        let object_size = 1_u64 << order;
        let unit_fits = stripe_unit >= STRIPE_UNIT_MIN && object_size.is_multiple_of(stripe_unit);
        let count_fits = stripe_count != 0 && stripe_count < 1 << (63 - order);
        if !unit_fits || !count_fits {
            return Err(Error::invalid("the stripe unit or count is out of range")
                .with("stripe_unit", stripe_unit)
                .with("stripe_count", stripe_count));
        }
        Ok(Self { order, stripe_unit, stripe_count })
    }

    /// Objects of `1 << order` bytes one after the other.
    ///
    /// # Errors
    /// `Invalid` (33) where the order is out of range.
    pub fn plain(order: u8) -> Result<Self> {
        let unit = 1_u64.checked_shl(u32::from(order)).unwrap_or(0);
        Self::new(order, unit.max(STRIPE_UNIT_MIN), 1)
    }

    /// Log2 of the object size.
    #[must_use]
    pub fn order(&self) -> u8 {
        self.order
    }

    /// Bytes.
    #[must_use]
    pub fn object_size(&self) -> u64 {
        1 << self.order
    }

    /// Bytes.
    #[must_use]
    pub fn stripe_unit(&self) -> u64 {
        self.stripe_unit
    }

    /// Objects written side by side.
    #[must_use]
    pub fn stripe_count(&self) -> u64 {
        self.stripe_count
    }

    /// Whether the image is not simply object after object.
    #[must_use]
    pub fn is_striped(&self) -> bool {
        self.stripe_count != 1
    }

    /// Bytes of the image that one set of `stripe_count` objects holds.
    #[must_use]
    pub fn period(&self) -> u64 {
        self.stripe_count << self.order
    }

    /// How many objects an image of `size` bytes may have.
    #[must_use]
    pub fn object_count(&self, size: u64) -> u64 {
        let rest = size % self.period();
        let sets = size.div_ceil(self.period());
        let units_last = rest.div_ceil(self.stripe_unit);
        let unused =
            if rest > 0 && units_last < self.stripe_count { self.stripe_count - units_last } else { 0 };
        sets * self.stripe_count - unused
    }

    /// How many bytes of `object` lie before byte `image_offset` of the image: what is left of it in an image of that size.
    #[must_use]
    pub fn bytes_before(&self, object: ObjectNo, image_offset: u64) -> u64 {
        let (set, position) = (object.0 / self.stripe_count, object.0 % self.stripe_count);
        let set_at = image_offset / self.period();
        if set_at != set {
            return if set_at > set { self.object_size() } else { 0 };
        }
        let in_set = image_offset % self.period();
        let stripe = self.stripe_unit * self.stripe_count;
        let in_stripe = in_set % stripe;
        let (position_at, in_unit) = (in_stripe / self.stripe_unit, in_stripe % self.stripe_unit);
        let last = match position_at.cmp(&position) {
            std::cmp::Ordering::Greater => self.stripe_unit,
            std::cmp::Ordering::Equal => in_unit,
            std::cmp::Ordering::Less => 0,
        };
        in_set / stripe * self.stripe_unit + last
    }

    /// The part of `object` that holds bytes of the image range, if any.
    #[must_use]
    pub fn extent_in(&self, object: ObjectNo, offset: u64, length: u64) -> Option<ObjectExtent> {
        let from = self.bytes_before(object, offset);
        let to = self.bytes_before(object, offset.saturating_add(length));
        (to > from).then(|| ObjectExtent { object, offset: from, length: to - from })
    }

    /// The objects a range of the image touches, one extent for each, ascending.
    pub fn extents(&self, offset: u64, length: u64) -> impl Iterator<Item = ObjectExtent> + Send + use<> {
        let layout = *self;
        let end = offset.saturating_add(length);
        let first = offset / self.period() * self.stripe_count;
        let last = end.div_ceil(self.period()) * self.stripe_count;
        let objects = if length == 0 { 0..0 } else { first..last };
        objects.filter_map(move |object| layout.extent_in(ObjectNo(object), offset, length))
    }

    /// Where the bytes of an object range lie in the image, ascending, neighbours joined.
    ///
    /// # Panics
    /// If the range leaves the object or the image offset does not fit 64 bits.
    pub fn image_extents(&self, extent: ObjectExtent) -> impl Iterator<Item = ImageExtent> + Send + use<> {
        assert!(
            extent.offset <= self.object_size() && extent.length <= self.object_size() - extent.offset,
            "an object extent lies inside its object"
        );
        let layout = *self;
        let end = extent.offset + extent.length;
        let mut at = extent.offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let until_unit = layout.stripe_unit - at % layout.stripe_unit;
            let length = if layout.is_striped() { until_unit.min(end - at) } else { end - at };
            let offset = layout.image_offset(extent.object, at);
            at += length;
            Some(ImageExtent { offset, length })
        })
    }

    /// The image byte that byte `offset` of `object` holds.
    ///
    /// # Panics
    /// If it does not fit 64 bits.
    #[must_use]
    pub fn image_offset(&self, object: ObjectNo, offset: u64) -> u64 {
        let (set, position) = (object.0 / self.stripe_count, object.0 % self.stripe_count);
        let (stripe, in_unit) = (offset / self.stripe_unit, offset % self.stripe_unit);
        let start = set.checked_mul(self.period()).expect("an object of an image lies below 2^64 bytes");
        start + (stripe * self.stripe_count + position) * self.stripe_unit + in_unit
    }
}
