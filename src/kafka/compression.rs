//! Decompresses the batches of other producers. Every decoder is written in Rust, and its output has a bound.

use std::io::{self, Read};

/// Kafka's Java client frames snappy blocks in the format of the library xerial: this magic, two version numbers, and
/// then each block after its length.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;

/// Decompresses the records of a batch, at most `bytes_max` bytes. `codec` is the number in the batch's attributes, 1 to 4.
pub(super) fn decompress(codec: u8, data: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
    let failed = |name: &str, error: io::Error| format!("its {name} cannot be decompressed: {error}");
    match codec {
        1 => read(flate2::read::MultiGzDecoder::new(data), bytes_max).map_err(|error| failed("gzip", error)),
        2 => snappy(data, bytes_max).map_err(|error| failed("snappy", error)),
        3 => read(lz4_flex::frame::FrameDecoder::new(data), bytes_max).map_err(|error| failed("lz4", error)),
        4 => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(data);
            let decoder = decoder.map_err(|error| failed("zstd", io::Error::other(error.to_string())))?;
            read(decoder, bytes_max).map_err(|error| failed("zstd", error))
        }
        _ => Err(format!("it is compressed with codec {codec}, which eventd does not know")),
    }
}

fn read(from: impl Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    // Reading one byte more than allowed shows whether the data is too large or just fits.
    from.take(bytes_max as u64 + 1).read_to_end(&mut out)?;
    if out.len() > bytes_max { Err(too_large(bytes_max)) } else { Ok(out) }
}

fn too_large(bytes_max: usize) -> io::Error {
    io::Error::other(format!("it holds more than {bytes_max} bytes"))
}

fn snappy(data: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    if !data.starts_with(XERIAL_MAGIC) {
        snappy_block(data, &mut out, bytes_max)?;
        return Ok(out);
    }
    let truncated = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let mut rest = data.get(XERIAL_HEADER_BYTES..).ok_or_else(truncated)?;
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*len) as usize;
        let (block, after) = after.split_at_checked(len).ok_or_else(truncated)?;
        snappy_block(block, &mut out, bytes_max)?;
        rest = after;
    }
    if rest.is_empty() { Ok(out) } else { Err(truncated()) }
}

fn snappy_block(block: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> io::Result<()> {
    let (begin, len) = (out.len(), snap::raw::decompress_len(block)?);
    let end = begin.checked_add(len).filter(|end| *end <= bytes_max).ok_or_else(|| too_large(bytes_max))?;
    out.resize(end, 0);
    let written = snap::raw::Decoder::new().decompress(block, &mut out[begin..])?;
    out.truncate(begin + written);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn xerial(data: &[u8]) -> Vec<u8> {
        let mut framed = XERIAL_MAGIC.to_vec();
        framed.extend([0, 0, 0, 1, 0, 0, 0, 1]);
        for block in data.chunks(1000) {
            let block = snap::raw::Encoder::new().compress_vec(block).unwrap();
            framed.extend((block.len() as u32).to_be_bytes());
            framed.extend(block);
        }
        framed
    }

    fn lz4(data: &[u8]) -> Vec<u8> {
        let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn decompression_restores_the_data_and_stops_at_the_bound() {
        let data: Vec<u8> = (0..10_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for (codec, compressed) in [(1, gzip(&data)), (2, xerial(&data)), (3, lz4(&data)), (4, zstd(&data))] {
            assert_eq!(decompress(codec, &compressed, data.len()).as_ref(), Ok(&data), "codec {codec}");
            let error = decompress(codec, &compressed, data.len() - 1).unwrap_err();
            assert!(error.contains("more than"), "codec {codec}: {error}");
        }
        let plain = snap::raw::Encoder::new().compress_vec(&data).unwrap();
        assert_eq!(decompress(2, &plain, data.len()).as_ref(), Ok(&data));
        assert!(decompress(5, &data, data.len()).unwrap_err().contains('5'));
    }

    proptest! {
        #[test]
        fn invalid_data_is_an_error_and_never_a_panic(
            codec in 0u8..8, junk in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..60,
        ) {
            let _ = decompress(codec, &junk, 10_000);
            let data = vec![7; 5_000];
            for (codec, compressed) in [(1, gzip(&data)), (2, xerial(&data)), (3, lz4(&data)), (4, zstd(&data))] {
                let mut cut_short = compressed[..cut.min(compressed.len())].to_vec();
                cut_short.extend(&junk);
                let _ = decompress(codec, &cut_short, 10_000);
            }
        }
    }
}
