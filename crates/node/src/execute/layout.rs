//! What a new image shall be: options first, then what it is made from, then the settings of its pool.

use ferry_core::store::StoreExt;
use ferry_core::{Error, PoolInfo};
use ferry_image::create::CreateOptions;
use ferry_image::features::Features;
use ferry_image::header::Header;
use ferry_image::pool::Pool;

use super::{Run, failed};
use crate::api::{Done, Failure, LayoutOptions};
use crate::options::Settings;

impl Run<'_> {
    /// How to make an image of `size` bytes in `pool`, like `model` where the options and nothing else say otherwise. `rbd` is
    /// the beginning of `rbd`'s line for a failure.
    pub(super) async fn create_options(
        &self,
        pool: &Pool,
        layout: &LayoutOptions,
        size: u64,
        model: Option<&Header>,
        rbd: &str,
    ) -> Done<CreateOptions> {
        // Zero says as much as nothing, but that the model's stripes are not wanted.
        let is_given = |number: Option<u64>| number.is_some_and(|n| n > 0);
        if is_given(layout.stripe_unit) != is_given(layout.stripe_count) {
            let error = Error::invalid("must specify both (or neither) of stripe-unit and stripe-count");
            let failure = Failure::of(&error, "cannot lay out the image", rbd);
            return Err(failure.after(format!("librbd: {}", error.clause())));
        }
        let settings = self.settings_in(pool).await?;
        let mut options = match model {
            Some(header) => like(header),
            None => by_settings(&settings, rbd)?,
        };
        options.size = size;
        let model_order = options.order;
        options.order = layout.order.or(model_order);
        if layout.order.is_some() && layout.order != model_order && layout.stripe_unit.is_none() {
            // Another object size makes the model's striping meaningless.
            (options.stripe_unit, options.stripe_count) = (None, None);
        }
        if is_given(layout.stripe_unit) {
            (options.stripe_unit, options.stripe_count) = (layout.stripe_unit, layout.stripe_count);
        } else if layout.stripe_unit.is_some() || layout.stripe_count.is_some() {
            (options.stripe_unit, options.stripe_count) = stripes_by(&settings);
        }
        options.features = layout.features.map(Features).or(options.features);
        if layout.shared {
            let features = options.features.unwrap_or(Features::DEFAULT);
            options.features = Some(features.without(Features::SINGLE_CLIENT));
        }
        let data_pool = layout.data_pool.as_deref().unwrap_or_else(|| settings.get("rbd_default_data_pool"));
        options.data_pool = self.data_pool(pool, data_pool, rbd).await?;
        Ok(options)
    }

    /// The pool for data, which lies in the same store.
    pub(super) async fn data_pool(&self, pool: &Pool, name: &str, rbd: &str) -> Done<Option<PoolInfo>> {
        if name.is_empty() {
            return Ok(None);
        }
        let found = pool.store.pool_by_name(name).await;
        found.map(Some).map_err(|e| {
            Failure::of(&e, format!("cannot open data pool {name}"), rbd).advise(format!(
                "a data pool lies in the store of its image's pool: {}",
                pool.store.describe()
            ))
        })
    }
}

/// As another image, as far as a new one can be.
fn like(header: &Header) -> CreateOptions {
    let internal = Features::INTERNAL.with(Features::JOURNALING).with(Features::DATA_POOL);
    let is_striped = header.features.contains(Features::STRIPING);
    CreateOptions {
        order: Some(header.order),
        features: Some(header.features.without(internal)),
        stripe_unit: is_striped.then_some(header.stripe_unit),
        stripe_count: is_striped.then_some(header.stripe_count),
        ..CreateOptions::default()
    }
}

/// As the settings say.
fn by_settings(settings: &Settings, rbd: &str) -> Done<CreateOptions> {
    let features = default_features(settings, rbd)?;
    let (stripe_unit, stripe_count) = stripes_by(settings);
    let order = settings.number("rbd_default_order").and_then(|o| u8::try_from(o).ok());
    Ok(CreateOptions {
        order,
        features: Some(features),
        stripe_unit,
        stripe_count,
        ..CreateOptions::default()
    })
}

/// What a new image can do as the settings say.
pub(super) fn default_features(settings: &Settings, rbd: &str) -> Done<Features> {
    Features::parse(settings.get("rbd_default_features"))
        .map_err(failed("the setting rbd_default_features cannot be read", rbd))
}

/// Stripe unit and count as the settings say.
fn stripes_by(settings: &Settings) -> (Option<u64>, Option<u64>) {
    let above_zero = |name: &str| settings.number(name).filter(|n| *n != 0);
    (above_zero("rbd_default_stripe_unit"), above_zero("rbd_default_stripe_count"))
}
