//! How far a destination got in one partition: the *watermark*, below which everything is settled, and the *settled
//! map* above it. One commit stores both, so that a restart redelivers only what was really in flight.
//!
//! ```text
//!   offsets    0 ……………… 41 │ 42  43  44  45  46  47  48 …
//!              all settled  │  ·   ✓   ✓   ·   ✓   ·         ✓ settled above it: the map, as ranges
//!                       watermark = 42                        · unsettled, or not yet read
//! ```
//!
//! The map costs one entry a hole, so it is bounded by the events in the window, not by the distance that they span.

use super::varint;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::BTreeMap;
use std::ops::Range;

/// The first character of an encoded map: alone, or behind the id of the last move. Another one is of a newer eventd, and
/// refused.
const FORMAT: char = '1';
const FORMAT_MOVED: char = '2';

/// What a commit stores, of one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionState {
    /// Everything below it is settled.
    pub watermark: i64,
    /// What is settled above it: in order, not touching each other, none empty, all past the watermark.
    pub settled: Vec<Range<i64>>,
    /// The id of the last [`OffsetReset`] that is in it: so each is applied once, whoever dies.
    pub moved: Option<u64>,
}

impl PartitionState {
    /// Nothing settled from this offset on.
    pub fn at(watermark: i64) -> Self {
        Self { watermark, settled: Vec::new(), moved: None }
    }

    /// What a redelivery of `range` begins with that has to leave out whatever is not settled here: there, those count
    /// as settled, and what is settled here does not.
    pub fn inverted(&self, range: Range<i64>) -> Self {
        let mut progress = Progress::new(&Self::at(range.start));
        let mut at = self.watermark.max(range.start);
        for settled in &self.settled {
            progress.settle(at..settled.start.min(range.end));
            at = at.max(settled.end);
        }
        progress.settle(at..range.end);
        progress.state()
    }

    /// The part of it in `range`, as the state of something that begins there.
    pub fn within(&self, range: Range<i64>) -> Self {
        let mut progress = Progress::new(&Self::at(range.start));
        progress.settle(range.start..self.watermark.min(range.end));
        for settled in &self.settled {
            progress.settle(settled.start..settled.end.min(range.end));
        }
        progress.state()
    }

    /// Everything that is settled in either of them.
    pub fn and(&self, other: &Self) -> Self {
        let mut progress = Progress::new(self);
        progress.settle(self.watermark..other.watermark);
        for settled in &other.settled {
            progress.settle(settled.clone());
        }
        progress.state()
    }

    /// The same with nothing settled from this offset on; what was not settled below it still is not.
    pub fn rewound(&self, to: i64) -> Self {
        let mut progress = Progress::new(&Self::at(self.watermark.min(to)));
        for settled in &self.settled {
            progress.settle(settled.start..settled.end.min(to));
        }
        progress.state()
    }

    /// The same with everything settled below this offset.
    pub fn settled_below(&self, to: i64) -> Self {
        let mut progress = Progress::new(self);
        progress.settle(self.watermark..to);
        progress.state()
    }

    /// Whether this move is still to be applied to it. Ids grow, so an older one that comes back is none.
    pub fn awaits(&self, wanted: &OffsetReset) -> bool {
        self.moved.is_none_or(|moved| moved < wanted.id)
    }

    /// The same after the move.
    pub fn after(&self, wanted: &OffsetReset) -> Self {
        let moved = match wanted.to {
            ResetTarget::Back(to) => self.rewound(to),
            ResetTarget::Ahead(to) => self.settled_below(to),
        };
        Self { moved: Some(wanted.id), ..moved }
    }

    /// The end of what is settled: the watermark, where the map is empty.
    pub fn settled_end(&self) -> i64 {
        self.settled.last().map_or(self.watermark, |range| range.end)
    }

    /// The settled map as plain ASCII: a format digit, then the id of the last move if there was one, then for each range
    /// the distance from what came before and the length, as varints in base64url. The watermark is stored beside it.
    pub fn encode_settled(&self) -> String {
        let mut bytes = Vec::with_capacity(self.settled.len() * 3);
        if let Some(id) = self.moved {
            varint::put(id, &mut bytes);
        }
        let mut at = self.watermark;
        for range in &self.settled {
            varint::put((range.start - at) as u64, &mut bytes);
            varint::put((range.end - range.start) as u64, &mut bytes);
            at = range.end;
        }
        let mut text = String::from(if self.moved.is_some() { FORMAT_MOVED } else { FORMAT });
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        text
    }

    /// The state of a watermark and the map that [`PartitionState::encode_settled`] made with it; else says what is wrong.
    pub fn decode(watermark: i64, settled: &str) -> Result<Self, String> {
        let encoded = settled.strip_prefix([FORMAT, FORMAT_MOVED]).ok_or_else(|| {
            format!("progress in a format that this eventd does not know: {:?}", settled.chars().next())
        })?;
        let was_moved = settled.starts_with(FORMAT_MOVED);
        let bytes =
            URL_SAFE_NO_PAD.decode(encoded).map_err(|error| format!("progress that is not base64url: {error}"))?;
        let (mut rest, mut at, mut settled) = (bytes.as_slice(), watermark, Vec::new());
        let moved = match was_moved {
            true => Some(varint::take(&mut rest).ok_or("progress whose move has no id")?),
            false => None,
        };
        while !rest.is_empty() {
            let mut step = || varint::take(&mut rest).filter(|n| *n > 0).and_then(|n| i64::try_from(n).ok());
            let range = step().and_then(|gap| Some((gap, step()?))).and_then(|(gap, len)| {
                let start = at.checked_add(gap)?;
                Some(start..start.checked_add(len)?)
            });
            let range = range.ok_or("progress whose settled map is cut short or out of range")?;
            at = range.end;
            settled.push(range);
        }
        Ok(Self { watermark, settled, moved })
    }
}

/// A wish to move a destination's position in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetReset {
    /// Higher than that of every move before it.
    pub id: u64,
    pub to: ResetTarget,
}

/// Which way a position moves, and where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTarget {
    /// Nothing is settled from this offset on.
    Back(i64),
    /// Everything is settled below this offset.
    Ahead(i64),
}

impl OffsetReset {
    /// The offset, which is stored beside the text of [`OffsetReset::encode`].
    pub fn offset(&self) -> i64 {
        match self.to {
            ResetTarget::Back(to) | ResetTarget::Ahead(to) => to,
        }
    }

    /// The way and the id, as plain ASCII.
    pub fn encode(&self) -> String {
        let way = match self.to {
            ResetTarget::Back(_) => BACK,
            ResetTarget::Ahead(_) => AHEAD,
        };
        format!("{way}{:x}", self.id)
    }

    /// The move of an offset and the text that [`OffsetReset::encode`] made with it; else says what is wrong.
    pub fn decode(offset: i64, text: &str) -> Result<Self, String> {
        let to = match text.chars().next() {
            Some(BACK) => ResetTarget::Back(offset),
            Some(AHEAD) => ResetTarget::Ahead(offset),
            way => return Err(format!("a move of a kind that this eventd does not know: {way:?}")),
        };
        let id = u64::from_str_radix(&text[1..], 16).map_err(|error| format!("a move without an id: {error}"))?;
        Ok(Self { id, to })
    }
}

const BACK: char = 'r';
const AHEAD: char = 'f';

/// The progress of an owner: built from a [`PartitionState`], told what was passed and settled, and asked for the next one.
#[derive(Debug, Clone)]
pub struct Progress {
    watermark: i64,
    /// start → end; not touching, all past the watermark.
    settled: BTreeMap<i64, i64>,
    moved: Option<u64>,
}

impl Progress {
    pub fn new(state: &PartitionState) -> Self {
        let mut progress = Self { watermark: state.watermark, settled: BTreeMap::new(), moved: state.moved };
        for range in &state.settled {
            progress.settle(range.clone());
        }
        progress
    }

    pub fn watermark(&self) -> i64 {
        self.watermark
    }

    pub fn is_settled(&self, offset: i64) -> bool {
        offset < self.watermark || self.settled.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }

    /// Settles these offsets: events that were delivered or given up, or offsets that hold no event.
    pub fn settle(&mut self, offsets: Range<i64>) {
        let (mut start, mut end) = (offsets.start.max(self.watermark), offsets.end);
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.settled.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&after, &after_end)) = self.settled.range(start..=end).next() {
            end = end.max(after_end);
            self.settled.remove(&after);
        }
        if start <= self.watermark {
            self.watermark = end;
        } else {
            self.settled.insert(start, end);
        }
    }

    /// What a commit stores now.
    pub fn state(&self) -> PartitionState {
        let settled = self.settled.iter().map(|(start, end)| *start..*end).collect();
        PartitionState { watermark: self.watermark, settled, moved: self.moved }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn the_watermark_is_the_first_unsettled_offset_of_a_plain_set(
            start in 0i64..20,
            settles in proptest::collection::vec((0i64..80, 1i64..6), 0..80),
            moved in any::<Option<u64>>(),
        ) {
            let mut progress = Progress::new(&PartitionState { moved, ..PartitionState::at(start) });
            let mut model: BTreeSet<i64> = (0..start).collect();
            for (from, len) in settles {
                progress.settle(from..from + len);
                model.extend(from..from + len);
                let watermark = (0..).find(|offset| !model.contains(offset)).unwrap();
                prop_assert_eq!(progress.watermark(), watermark);
                for offset in 0..90 {
                    prop_assert_eq!(progress.is_settled(offset), model.contains(&offset), "offset {}", offset);
                }
                let state = progress.state();
                prop_assert!(state.settled.iter().all(|range| range.start > watermark && range.start < range.end));
                prop_assert!(state.settled.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert_eq!(PartitionState::decode(watermark, &state.encode_settled()), Ok(state.clone()));
                prop_assert_eq!(Progress::new(&state).state(), state);
            }
        }

        #[test]
        fn a_state_is_inverted_cut_rewound_and_moved_ahead_as_a_plain_set_would_be(
            settles in proptest::collection::vec((0i64..80, 1i64..6), 0..30),
            start in 0i64..60,
            len in 0i64..40,
        ) {
            let mut settled = Progress::new(&PartitionState::at(5));
            for (from, len) in settles {
                settled.settle(from..from + len);
            }
            let state = settled.state();
            let (inverted, within) = (Progress::new(&state.inverted(start..start + len)), state.within(start..start + len));
            let within = Progress::new(&within);
            for offset in start..start + len {
                prop_assert_eq!(inverted.is_settled(offset), !settled.is_settled(offset), "inverted, {}", offset);
                prop_assert_eq!(within.is_settled(offset), settled.is_settled(offset), "within, {}", offset);
            }
            prop_assert_eq!(PartitionState::at(start).and(&state), state.and(&PartitionState::at(start)));
            let (rewound, ahead) = (Progress::new(&state.rewound(start)), Progress::new(&state.settled_below(start)));
            let both = Progress::new(&state.and(&PartitionState::at(start)));
            for offset in 0..100 {
                prop_assert_eq!(both.is_settled(offset), ahead.is_settled(offset), "both, {}", offset);
                let was = settled.is_settled(offset);
                prop_assert_eq!(rewound.is_settled(offset), was && offset < start, "rewound, {}", offset);
                prop_assert_eq!(ahead.is_settled(offset), was || offset < start, "ahead, {}", offset);
            }
            for (name, part) in [("inverted", inverted), ("within", within)] {
                prop_assert!(!part.is_settled(start + len), "{}", name);
                prop_assert!(part.watermark() >= start && part.state().settled_end() <= start + len, "{}", name);
            }
        }

        #[test]
        fn a_move_comes_back_and_is_applied_once(
            id in 1u64.., offset in 0i64..100, ahead in any::<bool>(), watermark in 0i64..100,
        ) {
            let wanted = OffsetReset { id, to: if ahead { ResetTarget::Ahead(offset) } else { ResetTarget::Back(offset) } };
            prop_assert_eq!(OffsetReset::decode(wanted.offset(), &wanted.encode()), Ok(wanted));
            let state = PartitionState::at(watermark);
            prop_assert!(state.awaits(&wanted));
            let after = state.after(&wanted);
            prop_assert_eq!(after.watermark, if ahead { watermark.max(offset) } else { watermark.min(offset) });
            let older = OffsetReset { id: id - 1, ..wanted };
            prop_assert!(!after.awaits(&wanted) && !after.awaits(&older));
            prop_assert_eq!(Progress::new(&after).state(), after);
        }

        #[test]
        fn what_is_no_move_is_an_error_and_never_a_panic(text in ".{0,20}", offset in any::<i64>()) {
            if let Ok(wanted) = OffsetReset::decode(offset, &text) {
                prop_assert_eq!(wanted.offset(), offset);
            }
        }

        #[test]
        fn what_is_no_progress_is_an_error_and_never_a_panic(text in "[0-9A-Za-z_=-]{0,40}", watermark in any::<i64>()) {
            if let Ok(state) = PartitionState::decode(watermark, &text) {
                prop_assert_eq!(PartitionState::decode(watermark, &state.encode_settled()), Ok(state));
            }
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let error = PartitionState::decode(0, "9AAAA").unwrap_err();
        assert!(error.contains("does not know") && error.contains('9'), "{error}");
    }
}
