//! Whole numbers in as few bytes as they need: 7 bits a byte, the lowest first (the varints of Kafka and Protocol
//! Buffers).

/// Appends the number.
pub fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a number off the front. `None`: the bytes are cut short, or are none.
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

/// Appends a number of either sign, zigzag: small numbers of either sign are short.
pub fn put_signed(value: i64, out: &mut Vec<u8>) {
    put(((value << 1) ^ (value >> 63)) as u64, out);
}

/// Takes such a number off the front.
pub fn take_signed(rest: &mut &[u8]) -> Option<i64> {
    let zigzag = take(rest)?;
    Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
}

/// Takes bytes behind their signed length off the front. `None`: they are cut short. `Some(None)`: null.
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
