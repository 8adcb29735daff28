//! Snapshots of an image.
