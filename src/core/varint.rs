//! Varints as in Kafka and Protocol Buffers: a number takes as few bytes as it needs, with 7 bits in each byte, the lowest
//! first.

/// Appends an unsigned number.
pub fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Removes an unsigned number from the front. `None` if the bytes end too early or do not encode a number.
pub fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Appends a signed number in zigzag encoding, in which small numbers of either sign are short.
pub fn put_signed(value: i64, out: &mut Vec<u8>) {
    put(((value << 1) ^ (value >> 63)) as u64, out);
}

/// Removes a signed number in zigzag encoding from the front. `None` if the bytes end too early or do not
/// encode a number.
pub fn take_signed(rest: &mut &[u8]) -> Option<i64> {
    let zigzag = take(rest)?;
    Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
}

/// Removes a byte string, which follows its signed length, from the front. `None` if the bytes end too early.
/// `Some(None)` is null, which is encoded as a negative length.
pub fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    match usize::try_from(take_signed(rest)?) {
        Err(_) => Some(None),
        Ok(len) => {
            let (head, tail) = rest.split_at_checked(len)?;
            *rest = tail;
            Some(Some(head))
        }
    }
}
