//! Chooses the partition of a user's events. Any change here would break the order of events in existing topics. So the
//! golden vectors in the tests are part of the promise of order.

use std::fmt;
use std::str::FromStr;

/// The hash function for users. All producers of a topic must use the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Partitioner {
    /// `(murmur2(user) & 0x7fffffff) % partitions`, as in Kafka's Java client and most others.
    #[default]
    Murmur2,
    /// `|fnv1a_32(user) as i32| % partitions`, as in kafka-go's hash balancer and Sarama's hash partitioner.
    Fnv1a,
}

impl Partitioner {
    /// The partition of a user. `partitions` is at least 1.
    pub fn partition(self, user: &[u8], partitions: u32) -> u32 {
        match self {
            Self::Murmur2 => (murmur2(user) & 0x7fff_ffff) % partitions,
            Self::Fnv1a => {
                let hash = fnv1a(user) as i32 % i32::try_from(partitions).expect("partitions fit an i32");
                hash.unsigned_abs()
            }
        }
    }
}

impl FromStr for Partitioner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "murmur2" => Ok(Self::Murmur2),
            "fnv1a" => Ok(Self::Fnv1a),
            _ => Err(format!("unknown partitioner {text:?}: use murmur2 or fnv1a")),
        }
    }
}

impl fmt::Display for Partitioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Murmur2 => "murmur2",
            Self::Fnv1a => "fnv1a",
        })
    }
}

/// MurmurHash2 with the seed that Kafka's `Utils.murmur2` uses.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let (words, tail) = data.as_chunks::<4>();
    // Kafka hashes a Java array, whose length has 32 bits, so a longer length wraps.
    let mut h = SEED ^ data.len() as u32;
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (index, byte) in tail.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * index);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

fn fnv1a(data: &[u8]) -> u32 {
    data.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors come from Kafka's test `UtilsTest.testMurmur2` (clients/src/test/java/org/apache/kafka/common/utils).
    #[test]
    fn murmur2_agrees_with_kafkas_golden_vectors() {
        for (text, hash) in [
            ("21", -973932308i32),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
        assert_eq!(murmur2(b"abc") as i32, 479470107);
    }

    /// The vectors come from the test suite of the hash's authors (Landon Curt Noll).
    #[test]
    fn fnv1a_agrees_with_its_reference_vectors() {
        for (text, hash) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            assert_eq!(fnv1a(text.as_bytes()), hash, "{text}");
        }
    }

    #[test]
    fn users_get_the_partitions_that_other_clients_give_them() {
        let of = |user: &str| Partitioner::Murmur2.partition(user.as_bytes(), 3);
        // The expected values are (hash & 0x7fffffff) % 3 with the hashes above. The users are those of README's example.
        assert_eq!((of("foobar"), of("abc")), ((-790332482i32 as u32 & 0x7fff_ffff) % 3, 479470107 % 3));
        assert_eq!([of("user-1"), of("user-2"), of("user-4")], [2, 2, 1]);
        for user in 0..1000 {
            let user = format!("user-{user}");
            assert!(Partitioner::Fnv1a.partition(user.as_bytes(), 7) < 7);
        }
    }
}
