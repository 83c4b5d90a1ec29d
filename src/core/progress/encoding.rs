//! The text in which a state is stored. The watermark is stored separately.
//!
//! ```text
//!   1 <ranges>                                    the settled map
//!   2 <reset id> <ranges>                         after an offset reset
//!   3 <flags> [reset id] [control] <n> <ranges> <n> <answers> <n> <users>
//! ```
//!
//! The first character is the format, and a state is written in the first one that has room for all of it. The rest is
//! base64url of varints and strings with their length. A range is its distance from the end of the previous one (first from
//! the watermark) and its length. Many users have the same last answer, so each answer is stored once.

use super::users::{CommandFailure, ControlState, FailedCommand, FailedHead, ParkedUser, Pause, UserKey, UserState};
use super::{PartitionState, varint};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::HashMap;
use std::ops::Range;

/// The settled map only.
const FORMAT_MAP: char = '1';
/// The id of the last offset reset, then the settled map.
const FORMAT_WITH_RESET: char = '2';
/// Everything. A newer eventd may write others, which this one refuses.
const FORMAT_FULL: char = '3';

/// Flags of the full format.
const HAS_RESET: u64 = 1;
const HAS_CONTROL: u64 = 2;
/// Flags of the control section.
const IS_PAUSED: u64 = 1;
const HAS_RATE: u64 = 2;
const HAS_FAILED_COMMANDS: u64 = 4;
/// Flags of a user.
const IS_PARKED: u64 = 1;
const IS_HELD: u64 = 2;
const HAS_GIVE_UP: u64 = 4;
const HAS_FAILED: u64 = 8;

impl PartitionState {
    /// The settled map, the last reset, the listed users and the control state as ASCII text. The watermark is stored
    /// separately.
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(self.settled.len() * 3 + self.users.len() * 32);
        let format = match self.last_reset {
            _ if self.needs_full_format() => {
                self.put_full(&mut bytes);
                FORMAT_FULL
            }
            Some(id) => {
                varint::put(id, &mut bytes);
                self.put_ranges(&mut bytes);
                FORMAT_WITH_RESET
            }
            None => {
                self.put_ranges(&mut bytes);
                FORMAT_MAP
            }
        };
        let mut text = String::from(format);
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        text
    }

    /// Whether the state has more than a settled map and an offset reset.
    pub fn needs_full_format(&self) -> bool {
        !self.users.is_empty() || self.control != ControlState::default()
    }

    /// Decodes the text that [`PartitionState::encode`] returned for a state with this watermark.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn decode(watermark: i64, text: &str) -> Result<Self, String> {
        let mut chars = text.chars();
        let format = match chars.next() {
            Some(format @ (FORMAT_MAP | FORMAT_WITH_RESET | FORMAT_FULL)) => format,
            Some(format @ '0'..='9') => return Err(unknown_format(format)),
            Some(_) | None => return Err("the stored progress does not begin with a digit for its format".into()),
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(chars.as_str())
            .map_err(|error| format!("the stored progress is not base64url: {error}"))?;
        let mut rest = bytes.as_slice();
        let mut state = Self::at(watermark);
        if format == FORMAT_FULL {
            state.take_full(&mut rest).ok_or("the stored progress ends early or is out of range")?;
            return Ok(state);
        }
        if format == FORMAT_WITH_RESET {
            let id = varint::take(&mut rest).ok_or("the stored progress has no id of its offset reset")?;
            state.last_reset = Some(id);
        }
        let mut at = watermark;
        while !rest.is_empty() {
            let range = take_range(at, &mut rest);
            let range = range.ok_or("the settled map of the stored progress ends early or is out of range")?;
            at = range.end;
            state.settled.push(range);
        }
        Ok(state)
    }

    fn put_ranges(&self, out: &mut Vec<u8>) {
        let mut at = self.watermark;
        for range in &self.settled {
            varint::put((range.start - at) as u64, out);
            varint::put((range.end - range.start) as u64, out);
            at = range.end;
        }
    }

    fn put_full(&self, out: &mut Vec<u8>) {
        let has_control = self.control != ControlState::default();
        varint::put(flag(self.last_reset.is_some(), HAS_RESET) | flag(has_control, HAS_CONTROL), out);
        if let Some(id) = self.last_reset {
            varint::put(id, out);
        }
        if has_control {
            put_control(&self.control, out);
        }
        varint::put(self.settled.len() as u64, out);
        self.put_ranges(out);
        let mut answers: Vec<&str> = Vec::new();
        let mut places: HashMap<&str, u64> = HashMap::new();
        for failed in self.users.values().filter_map(|user| user.failed.as_ref()) {
            places.entry(&failed.answer).or_insert_with(|| {
                answers.push(&failed.answer);
                answers.len() as u64 - 1
            });
        }
        varint::put(answers.len() as u64, out);
        for answer in answers {
            put_text(answer, out);
        }
        varint::put(self.users.len() as u64, out);
        for (key, user) in &self.users {
            put_user(key, user, &places, out);
        }
    }

    /// Reads everything but the watermark. `None`: the text ends early, has more at its end, or has an impossible number.
    fn take_full(&mut self, rest: &mut &[u8]) -> Option<()> {
        let flags = varint::take(rest).filter(|flags| *flags <= HAS_RESET | HAS_CONTROL)?;
        if flags & HAS_RESET != 0 {
            self.last_reset = Some(varint::take(rest)?);
        }
        if flags & HAS_CONTROL != 0 {
            self.control = take_control(rest)?;
        }
        let mut at = self.watermark;
        for _ in 0..varint::take(rest)? {
            let range = take_range(at, rest)?;
            at = range.end;
            self.settled.push(range);
        }
        let mut answers = Vec::new();
        for _ in 0..varint::take(rest)? {
            answers.push(take_text(rest)?);
        }
        for _ in 0..varint::take(rest)? {
            let (key, user) = take_user(&answers, rest)?;
            // They are stored in ascending order, each once.
            if self.users.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return None;
            }
            self.users.insert(key, user);
        }
        rest.is_empty().then_some(())
    }
}

/// Why a stored text with this format digit cannot be read.
pub fn unknown_format(format: char) -> String {
    format!("a newer version of eventd has written it, in format {format}, which this version does not know")
}

fn take_range(at: i64, rest: &mut &[u8]) -> Option<Range<i64>> {
    let mut step = || varint::take(rest).filter(|n| *n > 0).and_then(|n| i64::try_from(n).ok());
    let (gap, len) = (step()?, step()?);
    let start = at.checked_add(gap)?;
    Some(start..start.checked_add(len)?)
}

fn put_control(control: &ControlState, out: &mut Vec<u8>) {
    let ControlState { next, paused, rate_per_hour, failed } = control;
    let flags = flag(paused.is_some(), IS_PAUSED)
        | flag(rate_per_hour.is_some(), HAS_RATE)
        | flag(!failed.is_empty(), HAS_FAILED_COMMANDS);
    varint::put(flags, out);
    varint::put_signed(*next, out);
    if let Some(Pause { since_ms, by, reason }) = paused {
        varint::put_signed(*since_ms, out);
        put_text(by, out);
        put_text(reason, out);
    }
    if let Some(rate) = rate_per_hour {
        varint::put(*rate, out);
    }
    if !failed.is_empty() {
        varint::put(failed.len() as u64, out);
        for FailedCommand { offset, why } in failed {
            varint::put_signed(*offset, out);
            varint::put(why.code(), out);
        }
    }
}

fn take_control(rest: &mut &[u8]) -> Option<ControlState> {
    let flags = varint::take(rest).filter(|flags| *flags <= IS_PAUSED | HAS_RATE | HAS_FAILED_COMMANDS)?;
    let next = varint::take_signed(rest)?;
    let paused = match flags & IS_PAUSED != 0 {
        true => Some(Pause { since_ms: varint::take_signed(rest)?, by: take_text(rest)?, reason: take_text(rest)? }),
        false => None,
    };
    let rate_per_hour = match flags & HAS_RATE != 0 {
        true => Some(varint::take(rest)?),
        false => None,
    };
    let mut failed = Vec::new();
    if flags & HAS_FAILED_COMMANDS != 0 {
        for _ in 0..varint::take(rest)? {
            let offset = varint::take_signed(rest)?;
            failed.push(FailedCommand { offset, why: CommandFailure::of_code(varint::take(rest)?)? });
        }
    }
    Some(ControlState { next, paused, rate_per_hour, failed })
}

fn put_user(key: &UserKey, user: &UserState, answers: &HashMap<&str, u64>, out: &mut Vec<u8>) {
    match key {
        None => varint::put(0, out),
        Some(key) => {
            varint::put(key.len() as u64 + 1, out);
            out.extend_from_slice(key);
        }
    }
    let parked = user.parked.unwrap_or_default();
    let flags = flag(user.parked.is_some(), IS_PARKED)
        | flag(parked.held, IS_HELD)
        | flag(parked.give_up_below.is_some(), HAS_GIVE_UP)
        | flag(user.failed.is_some(), HAS_FAILED);
    varint::put(flags, out);
    if user.parked.is_some() {
        varint::put_signed(parked.first, out);
    }
    if let Some(below) = parked.give_up_below {
        varint::put_signed(below, out);
    }
    if let Some(failed) = &user.failed {
        for number in [failed.offset, failed.first_failure_ms, failed.last_failure_ms, failed.next_try_ms] {
            varint::put_signed(number, out);
        }
        for number in [failed.failures.into(), failed.tries.into(), failed.counted_ms, answers[&*failed.answer]] {
            varint::put(number, out);
        }
    }
}

fn take_user(answers: &[Box<str>], rest: &mut &[u8]) -> Option<(UserKey, UserState)> {
    let key = match varint::take(rest)? {
        0 => None,
        len => Some(take_slice(len - 1, rest)?.into()),
    };
    let flags = varint::take(rest).filter(|flags| *flags <= IS_PARKED | IS_HELD | HAS_GIVE_UP | HAS_FAILED)?;
    let mut user = UserState::default();
    if flags & IS_PARKED != 0 {
        let first = varint::take_signed(rest)?;
        let give_up_below = match flags & HAS_GIVE_UP != 0 {
            true => Some(varint::take_signed(rest)?),
            false => None,
        };
        user.parked = Some(ParkedUser { first, held: flags & IS_HELD != 0, give_up_below });
    }
    if flags & HAS_FAILED != 0 {
        let [offset, first_failure_ms, last_failure_ms, next_try_ms] = {
            let mut next = || varint::take_signed(rest);
            [next()?, next()?, next()?, next()?]
        };
        let mut next = || varint::take(rest);
        user.failed = Some(FailedHead {
            offset,
            first_failure_ms,
            last_failure_ms,
            next_try_ms,
            failures: u32::try_from(next()?).ok()?,
            tries: u32::try_from(next()?).ok()?,
            counted_ms: next()?,
            answer: answers.get(usize::try_from(next()?).ok()?)?.clone(),
        });
    }
    let flags_of_a_parked_user = flags & (IS_HELD | HAS_GIVE_UP);
    (!user.is_empty() && (user.parked.is_some() || flags_of_a_parked_user == 0)).then_some((key, user))
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    varint::put(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

fn take_text(rest: &mut &[u8]) -> Option<Box<str>> {
    let len = varint::take(rest)?;
    Some(std::str::from_utf8(take_slice(len, rest)?).ok()?.into())
}

fn take_slice<'a>(len: u64, rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *rest = tail;
    Some(head)
}

fn flag(is_set: bool, flag: u64) -> u64 {
    if is_set { flag } else { 0 }
}

/// The listed users that a test gives, each with something to list.
#[cfg(test)]
pub(super) fn any_users() -> impl proptest::strategy::Strategy<Value = super::users::ListedUsers> {
    use proptest::prelude::*;
    let parked = (0i64..100, any::<bool>(), any::<Option<u16>>()).prop_map(|(first, held, below)| ParkedUser {
        first,
        held,
        give_up_below: below.map(i64::from),
    });
    let failed =
        (0i64..100, any::<(u32, u32, i64, i64, u64, i64)>(), ".{0,6}").prop_map(|(offset, numbers, answer)| {
            let (failures, tries, first_failure_ms, last_failure_ms, counted_ms, next_try_ms) = numbers;
            FailedHead {
                offset,
                failures,
                tries,
                first_failure_ms,
                last_failure_ms,
                counted_ms,
                next_try_ms,
                answer: answer.into(),
            }
        });
    let user = (proptest::option::of(parked), proptest::option::of(failed))
        .prop_map(|(parked, failed)| UserState { parked, failed })
        .prop_filter("nothing is listed without a reason", |user| !user.is_empty());
    let key = any::<Option<[u8; 2]>>().prop_map(|key| key.map(|key| key.as_slice().into()));
    proptest::collection::btree_map(key, user, 0..8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_state_reads_back_as_itself_in_the_first_format_that_has_room_for_it(
            watermark in 0i64..1 << 50,
            gaps in proptest::collection::vec((1i64..1_000, 1i64..1_000), 0..20),
            last_reset in any::<Option<u64>>(),
            users in any_users(),
            control in any::<Option<(i64, Option<i64>, Option<u64>, Vec<i64>)>>(),
        ) {
            let mut state = PartitionState { last_reset, users, ..PartitionState::at(watermark) };
            let mut at = watermark;
            for (gap, len) in gaps {
                state.settled.push(at + gap..at + gap + len);
                at += gap + len;
            }
            if let Some((next, since_ms, rate_per_hour, failed)) = control {
                let paused = since_ms.map(|since_ms| Pause { since_ms, by: "ann".into(), reason: "deploy".into() });
                let why = [CommandFailure::ListIsFull, CommandFailure::NotReadInTime, CommandFailure::NotPossible];
                let failed = failed.into_iter().zip(why.into_iter().cycle());
                let failed = failed.map(|(offset, why)| FailedCommand { offset, why }).collect();
                state.control = ControlState { next, paused, rate_per_hour, failed };
            }
            let text = state.encode();
            let format = match last_reset {
                _ if state.needs_full_format() => '3',
                Some(_) => '2',
                None => '1',
            };
            prop_assert!(text.is_ascii() && text.starts_with(format));
            prop_assert_eq!(PartitionState::decode(watermark, &text), Ok(state));
        }

        #[test]
        fn decoding_invalid_progress_is_an_error_and_never_a_panic(
            text in "[123][0-9A-Za-z_=-]{0,60}", watermark in any::<i64>(),
        ) {
            if let Ok(state) = PartitionState::decode(watermark, &text) {
                prop_assert_eq!(PartitionState::decode(watermark, &state.encode()), Ok(state));
            }
        }

        #[test]
        fn a_text_that_is_cut_short_or_has_more_at_its_end_is_an_error(users in any_users(), cut in any::<prop::sample::Index>()) {
            let text = PartitionState { users, ..PartitionState::at(3) }.encode();
            if text.starts_with(FORMAT_FULL) {
                let bytes = URL_SAFE_NO_PAD.decode(&text[1..]).unwrap();
                let decode = |bytes: &[u8]| PartitionState::decode(3, &format!("3{}", URL_SAFE_NO_PAD.encode(bytes)));
                prop_assert!(decode(&bytes[..cut.index(bytes.len())]).is_err());
                prop_assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
            }
        }
    }

    #[test]
    fn a_newer_format_is_refused_and_named_in_the_error() {
        let error = PartitionState::decode(0, "9AAAA").unwrap_err();
        assert!(error.contains("newer version") && error.contains("format 9"), "{error}");
        for damaged in ["", "x1", "é"] {
            let error = PartitionState::decode(0, damaged).unwrap_err();
            assert!(error.contains("does not begin with a digit"), "{damaged:?}: {error}");
        }
    }

    /// Texts that earlier versions have stored, and one of this version: what is stored must stay readable.
    #[test]
    fn stored_texts_keep_their_meaning() {
        let map = |last_reset| PartitionState { settled: vec![12..13, 20..24], last_reset, ..PartitionState::at(10) };
        assert_eq!(PartitionState::decode(10, "1AgEHBA"), Ok(map(None)));
        assert_eq!(PartitionState::decode(10, "2BQIBBwQ"), Ok(map(Some(5))));
        let parked = ParkedUser { first: 7, held: true, give_up_below: None };
        let user = UserState { parked: Some(parked), failed: None };
        let state = PartitionState { users: [(Some(b"u-1".as_slice().into()), user)].into(), ..map(None) };
        assert_eq!(PartitionState::decode(10, "3AAICAQcEAAEEdS0xAw4"), Ok(state));
    }
}
