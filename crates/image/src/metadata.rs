//! Image-meta, pool metadata and configuration.
