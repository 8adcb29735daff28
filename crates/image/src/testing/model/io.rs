//! Reading and writing.

use bytes::Bytes;
use ferry_core::{BlockDevice, ExtentState, Result};

use super::shadow::to_usize;
use super::{World, mismatch};
use crate::device::ImageDevice;

impl World {
    /// A few writes and discards through a device, each read back.
    pub(super) async fn change(&mut self, n: usize) -> Result<()> {
        self.doing = format!("writing {}", self.images[n].name);
        let device = self.open_device(n).await?;
        for _ in 0..=self.rng.below(3) {
            let Some((offset, length)) = self.random_range(self.images[n].size()) else { break };
            let range = to_usize(offset)..to_usize(offset + length);
            match self.rng.below(10) {
                0..=5 => {
                    let data = self.random_bytes(length);
                    self.doing = format!("write {} {offset}+{length}", self.images[n].name);
                    device.write(offset, Bytes::from(data.clone())).await?;
                    self.images[n].head[range].copy_from_slice(&data);
                }
                6..=7 => {
                    self.doing = format!("write_zeroes {} {offset}+{length}", self.images[n].name);
                    device.write_zeroes(offset, length).await?;
                    self.images[n].head[range].fill(0);
                }
                _ => {
                    self.doing = format!("discard {} {offset}+{length}", self.images[n].name);
                    device.discard(offset, length).await?;
                    self.images[n].head[range].fill(0);
                }
            }
            self.compare_around(&device, n, offset, length).await?;
        }
        device.flush().await?;
        device.close().await
    }

    /// Compares a range and what lies beside it.
    async fn compare_around(&self, device: &ImageDevice, n: usize, offset: u64, length: u64) -> Result<()> {
        let (start, end) = (offset.saturating_sub(5000), (offset + length + 5000).min(device.size()));
        let found = device.read(start, end - start).await?;
        let expected = &self.images[n].head[to_usize(start)..to_usize(end)];
        if found != expected {
            let at = found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(0);
            return Err(mismatch("a range reads otherwise than written").with("at", start + at as u64));
        }
        let mut at = start;
        for extent in device.extents(start, end - start).await? {
            let bytes =
                &self.images[n].head[to_usize(extent.offset)..to_usize(extent.offset + extent.length)];
            let is_wrong = extent.state == ExtentState::Zero && bytes.iter().any(|b| *b != 0);
            if extent.offset != at || is_wrong {
                return Err(mismatch("an extent is wrong").with("at", extent.offset));
            }
            at += extent.length;
        }
        if at != end {
            return Err(mismatch("extents end before the range"));
        }
        Ok(())
    }
}
