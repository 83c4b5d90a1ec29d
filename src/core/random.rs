//! Numbers that look random, from what the caller gives: the same in, the same out.

/// What the state of [`mix`] grows by from one number to the next.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// One step of SplitMix64, whose bits all depend on all bits of the input.
pub fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the author's own program (Sebastiano Vigna, splitmix64.c), seeded with 1234567.
    #[test]
    fn it_agrees_with_the_reference() {
        let numbers = [0, 1, 2].map(|n: u64| mix(1_234_567u64.wrapping_add(n.wrapping_mul(STEP))));
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }
}
