//! The users of the events. A small generator with a fixed seed draws the same events in every run.

use std::fmt;

/// The usual size of a payload.
pub(crate) const PAYLOAD_BYTES: usize = 200;

/// How the users of events are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    /// Uniformly among this many users.
    Uniform(u32),
    /// Among this many users, the k-th with a weight of 1/k.
    Zipf(u32),
    /// All events are of one user.
    One,
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform(1_000) => f.write_str("1k-users"),
            Self::Uniform(1_000_000) => f.write_str("1m-users"),
            Self::Uniform(n) => write!(f, "{n}-users"),
            Self::Zipf(_) => f.write_str("zipf"),
            Self::One => f.write_str("one-user"),
        }
    }
}

impl Users {
    /// Draws a user's number for each event, without end.
    pub(crate) fn draw(self) -> impl Iterator<Item = u32> {
        let mut random = SplitMix(0x5eed);
        let mut sums = Vec::new();
        if let Self::Zipf(n) = self {
            let mut sum = 0.0;
            sums.extend((1..=n).map(|rank| {
                sum += 1.0 / f64::from(rank);
                sum
            }));
        }
        std::iter::from_fn(move || {
            Some(match self {
                Self::Uniform(n) => (random.unit() * f64::from(n)) as u32,
                Self::Zipf(_) => {
                    let at = random.unit() * sums.last().copied().unwrap_or(1.0);
                    sums.partition_point(|sum| *sum < at) as u32
                }
                Self::One => 0,
            })
        })
    }
}

/// The id of a user.
pub(crate) fn id(user: u32) -> String {
    format!("user-{user}")
}

/// The payload of an event, whose size is a multiple of 20. The text needs no escaping, so it has the same size in JSON.
pub(crate) fn payload(bytes: usize) -> String {
    "0123456789abcdefghij".repeat(bytes / 20)
}

/// Sebastiano Vigna's splitmix64. It is good enough to draw users, and the same on every machine.
#[derive(Debug)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
