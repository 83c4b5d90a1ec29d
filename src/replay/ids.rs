//! Makes the ids of replays and of offset resets: a time, and random bits that keep two ids of the same time apart.
//!
//! ```text
//!  replay   20260102-103000-5f0a1c     the second, then 24 random bits
//!  reset    1853241743835365916        the millisecond, then 20 random bits; higher than every earlier reset's id
//! ```
//!
//! The time and the random bits come from an [`IdSource`], because the order of ids decides what happens: an owner ignores
//! a reset whose id is not higher than the last one that it applied. A simulation passes a source that repeats its ids.

use crate::clock;
use crate::core::progress::{OffsetReset, PartitionState};
use std::fmt;
use uuid::Uuid;

/// The low bits of a reset's id are random, so that two commands within one millisecond get different ids.
const RESET_RANDOM_BITS: u32 = 20;

/// The low bits of a replay's id are random, so that two replays within one second get different ids.
const REPLAY_RANDOM_BITS: u32 = 24;

/// The time and the random bits that ids are made of.
pub trait IdSource: Send + Sync + fmt::Debug {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;

    /// Random bits, other ones for each call.
    fn random(&self) -> u64;
}

/// The wall clock, and the random bits of a new UUID.
#[derive(Debug)]
pub struct SystemIds;

impl IdSource for SystemIds {
    fn now_ms(&self) -> i64 {
        clock::now_ms()
    }

    fn random(&self) -> u64 {
        Uuid::now_v7().as_u128() as u64
    }
}

/// A new id of a replay. Ids sort by the second in which they were made.
pub(super) fn new_replay_id(source: &dyn IdSource) -> String {
    let now = jiff::Timestamp::from_millisecond(source.now_ms()).unwrap_or_default();
    format!("{}-{:06x}", now.strftime("%Y%m%d-%H%M%S"), low_bits(source.random(), REPLAY_RANDOM_BITS))
}

/// An id that is higher than that of every earlier reset, even if another machine's clock is ahead. Owners ignore a
/// reset whose id is not higher than the last one that they applied.
pub(super) fn new_reset_id(
    source: &dyn IdSource,
    states: &[Option<PartitionState>],
    requested: &[Option<OffsetReset>],
) -> u64 {
    let now = u64::try_from(source.now_ms()).unwrap_or_default() << RESET_RANDOM_BITS;
    let applied = states.iter().flatten().filter_map(|state| state.last_reset);
    let highest = applied.chain(requested.iter().flatten().map(|reset| reset.id)).max();
    let id = now | low_bits(source.random(), RESET_RANDOM_BITS);
    id.max(highest.map_or(0, |highest| highest.saturating_add(1)))
}

fn low_bits(random: u64, bits: u32) -> u64 {
    random & ((1 << bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::progress::ResetTarget;

    #[derive(Debug)]
    struct Fixed {
        now_ms: i64,
        random: u64,
    }

    impl IdSource for Fixed {
        fn now_ms(&self) -> i64 {
            self.now_ms
        }

        fn random(&self) -> u64 {
            self.random
        }
    }

    #[test]
    fn a_replay_id_has_its_second_and_random_bits() {
        let source = Fixed { now_ms: 1_767_349_800_123, random: 0xffff_ff5f_0a1c };
        assert_eq!(new_replay_id(&source), "20260102-103000-5f0a1c");
    }

    #[test]
    fn a_later_reset_id_is_higher_whatever_the_random_bits_are() {
        let (earlier, later) = (Fixed { now_ms: 7, random: u64::MAX }, Fixed { now_ms: 8, random: 0 });
        assert!(new_reset_id(&earlier, &[], &[]) < new_reset_id(&later, &[], &[]));
    }

    #[test]
    fn a_reset_id_is_higher_than_those_of_resets_that_were_applied_or_requested_by_a_clock_that_is_ahead() {
        let (behind, ahead) = (Fixed { now_ms: 7, random: 3 }, 1 << 60);
        let applied = PartitionState { last_reset: Some(ahead), ..PartitionState::at(0) };
        assert_eq!(new_reset_id(&behind, &[None, Some(applied)], &[]), ahead + 1);
        let requested = OffsetReset { id: ahead, to: ResetTarget::Back(0) };
        assert_eq!(new_reset_id(&behind, &[], &[None, Some(requested)]), ahead + 1);
    }
}
