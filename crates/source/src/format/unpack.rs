//! Decompression of clusters.

use bytes::Bytes;
use ferry_core::{Error, Result};
use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::limits::ZSTD_WINDOW_LOG_MAX;

/// How clusters of an image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Deflate without a header, as zlib makes it.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// The cluster of `length` bytes that `packed` begins with; what follows it is not looked at.
///
/// # Errors
/// `Corrupt` where it is not one, or is shorter.
pub(crate) fn unpack(packing: Packing, packed: &[u8], length: usize) -> Result<Bytes> {
    let mut cluster = vec![0; length];
    let made = match packing {
        Packing::Deflate => inflate(packed, &mut cluster),
        Packing::Zstd => unzstd(packed, &mut cluster),
    };
    let broken = || {
        Error::corrupt("a compressed cluster cannot be decompressed")
            .with("packing", format!("{packing:?}").to_lowercase())
    };
    match made {
        Ok(made) if made == length => Ok(Bytes::from(cluster)),
        Ok(made) => Err(broken().with("length", made).with("expected", length)),
        Err(e) => Err(broken().because(e)),
    }
}

fn inflate(packed: &[u8], cluster: &mut [u8]) -> std::io::Result<usize> {
    let mut inflater = Decompress::new(false);
    // One that fills the cluster without its end in sight is complete too: QEMU takes it.
    inflater.decompress(packed, cluster, FlushDecompress::Finish)?;
    Ok(usize::try_from(inflater.total_out()).expect("no more than the cluster"))
}

fn unzstd(packed: &[u8], cluster: &mut [u8]) -> std::io::Result<usize> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
    let mut input = InBuffer::around(packed);
    let mut output = OutBuffer::around(cluster);
    loop {
        let (read, made) = (input.pos(), output.pos());
        decoder.run(&mut input, &mut output)?;
        let is_full = output.pos() == output.capacity();
        if is_full || (input.pos(), output.pos()) == (read, made) {
            return Ok(output.pos());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use ferry_core::ErrorKind;

    use super::{Packing, unpack};

    fn packed(packing: Packing, bytes: &[u8]) -> Vec<u8> {
        match packing {
            Packing::Deflate => {
                let mut to = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
                to.write_all(bytes).unwrap();
                to.finish().unwrap()
            }
            Packing::Zstd => zstd::bulk::compress(bytes, 3).unwrap(),
        }
    }

    #[test]
    fn a_cluster_is_what_was_packed_whatever_follows_it() {
        let bytes: Vec<u8> = (0..65536_u32).map(|i| u8::try_from(i / 7 % 256).unwrap()).collect();
        for packing in [Packing::Deflate, Packing::Zstd] {
            let mut source = packed(packing, &bytes);
            assert_eq!(unpack(packing, &source, 65536).unwrap(), bytes);
            source.extend([0xa5; 700]);
            assert_eq!(unpack(packing, &source, 65536).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_cut_off_or_damaged_is_corrupt() {
        let bytes: Vec<u8> = (0..65536_u32).map(|i| u8::try_from(i * i / 7 % 256).unwrap()).collect();
        for packing in [Packing::Deflate, Packing::Zstd] {
            let source = packed(packing, &bytes);
            for cut in [0, 1, source.len() / 2, source.len() - 20] {
                assert_eq!(unpack(packing, &source[..cut], 65536).unwrap_err().kind(), ErrorKind::Corrupt);
            }
            assert_eq!(unpack(packing, &source, 65537).unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(unpack(packing, &[0xff; 600], 65536).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn a_frame_that_asks_for_a_huge_window_is_refused() {
        // Magic, a descriptor without a size, a window of 2^27 bytes, an empty last block.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (27 - 10) << 3, 0x01, 0x00, 0x00];
        assert_eq!(unpack(Packing::Zstd, &frame, 65536).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
