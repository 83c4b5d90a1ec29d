//! Numbers that look random but depend only on the caller's input: the same input gives the same numbers.

/// The increment of SplitMix64: `mix(seed)`, `mix(seed + STEP)` and so on are its sequence.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// One step of SplitMix64. Every bit of the result depends on every bit of the input.
pub fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected numbers come from the author's program (Sebastiano Vigna, splitmix64.c) with the seed 1234567.
    #[test]
    fn the_numbers_agree_with_the_reference_implementation() {
        let numbers = [0, 1, 2].map(|n: u64| mix(1_234_567u64.wrapping_add(n.wrapping_mul(STEP))));
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }
}
