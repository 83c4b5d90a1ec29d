//! Which events of a range a replay takes.

use super::range::TimeRange;
use crate::core::event::{Event, REPLAY};
use crate::dispatch::dead_letter;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Everything that an event is asked about. Where a list is empty, it asks nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Selection {
    /// Of dead letters, and not of the topic itself.
    pub dead: bool,
    pub users: BTreeSet<String>,
    pub ids: BTreeSet<String>,
    /// Of dead letters: why they were given up.
    pub reasons: BTreeSet<String>,
    /// Also what came from a replay of another eventd (of dead letters: also those that were redriven).
    pub again: bool,
    /// When it was accepted (of dead letters: when it was given up). A replay that an earlier eventd wrote down has
    /// none: its offsets say everything.
    #[serde(flatten)]
    pub times: TimeRange,
}

/// What a selection says of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelectionResult {
    Selected,
    /// Somebody else's, or of another id or reason.
    NotSelected,
    /// It would be taken, if its time were in the range.
    OutsideTimes,
    /// It would be taken, if it had not come from a replay.
    FromReplay,
}

impl Selection {
    /// Looks at one event; `topic` is where it was before it became a dead letter.
    pub fn judge(&self, topic: &str, partition: u32, event: &Event) -> SelectionResult {
        let record = &event.record;
        if !self.users.is_empty() && !user_of(event).is_some_and(|user| self.users.contains(user)) {
            return SelectionResult::NotSelected;
        }
        if !self.ids.is_empty() && !self.ids.contains(&id_of(self.dead, topic, partition, event)) {
            return SelectionResult::NotSelected;
        }
        if !self.reasons.is_empty()
            && !record.header_text(dead_letter::REASON).is_some_and(|reason| self.reasons.contains(reason))
        {
            return SelectionResult::NotSelected;
        }
        if !self.times.contains(record.timestamp_ms) {
            return SelectionResult::OutsideTimes;
        }
        // A letter of a replay is an event that failed again: whoever redrives it does so on purpose.
        match !self.dead && !self.again && record.headers().any(|(name, _)| name == REPLAY) {
            true => SelectionResult::FromReplay,
            false => SelectionResult::Selected,
        }
    }
}

/// The user as the command line writes it.
pub fn user_of(event: &Event) -> Option<&str> {
    event.record.key().and_then(|key| std::str::from_utf8(key).ok())
}

/// The id that the receiver knows: of a dead letter, that of its event.
pub fn id_of(dead: bool, topic: &str, partition: u32, event: &Event) -> String {
    let place = if dead { source_of(event) } else { None };
    let (partition, offset) = place.unwrap_or((partition, event.offset));
    Event { offset, record: event.record.clone() }.id(topic, partition)
}

/// When the event was accepted, in milliseconds since the Unix epoch.
pub fn accepted_ms(dead: bool, event: &Event) -> i64 {
    let told = || event.record.header_text(dead_letter::TIME)?.parse().ok();
    (if dead { told() } else { None }).unwrap_or(event.record.timestamp_ms)
}

/// Where a dead letter's event was: partition and offset.
pub fn source_of(letter: &Event) -> Option<(u32, i64)> {
    let (partition, offset) = letter.record.header_text(dead_letter::SOURCE)?.split_once(':')?;
    Some((partition.parse().ok()?, offset.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{ID, Record};

    fn event(user: &str, headers: &[(&str, &str)]) -> Event {
        let headers: Vec<(&str, Option<&[u8]>)> =
            headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))).collect();
        Event { offset: 17, record: Record::new(Some(user.as_bytes()), Some(b"payload"), &headers, 0) }
    }

    fn set(texts: &[&str]) -> BTreeSet<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn an_event_is_taken_only_where_everything_that_was_asked_says_yes() {
        let judge = |selection: &Selection, event: &Event| selection.judge("user-events", 2, event);
        let mine = event("user-1", &[(ID, "id-1")]);
        assert_eq!(judge(&Selection::default(), &mine), SelectionResult::Selected);
        let users = Selection { users: set(&["user-1", "user-2"]), ..Selection::default() };
        assert_eq!(judge(&users, &mine), SelectionResult::Selected);
        assert_eq!(judge(&users, &event("user-3", &[])), SelectionResult::NotSelected);
        let both = Selection { ids: set(&["id-1", "user-events-2-17"]), ..users };
        assert_eq!(judge(&both, &mine), SelectionResult::Selected);
        assert_eq!(judge(&both, &event("user-1", &[])), SelectionResult::Selected, "an id that was made of the place");
        assert_eq!(judge(&both, &event("user-1", &[(ID, "id-2")])), SelectionResult::NotSelected);
        assert_eq!(judge(&both, &event("user-3", &[(ID, "id-1")])), SelectionResult::NotSelected);
        let nameless = Event { offset: 17, record: Record::new(None, None, &[], 0) };
        assert_eq!(judge(&Selection::default(), &nameless), SelectionResult::Selected);
        assert_eq!(judge(&both, &nameless), SelectionResult::NotSelected);
    }

    #[test]
    fn what_came_from_a_replay_is_taken_only_when_asked_for() {
        let replayed = event("user-1", &[(REPLAY, "20260102-030405-abcd")]);
        let judge = |selection: Selection| selection.judge("user-events", 2, &replayed);
        assert_eq!(judge(Selection::default()), SelectionResult::FromReplay);
        assert_eq!(judge(Selection { again: true, ..Selection::default() }), SelectionResult::Selected);
        assert_eq!(judge(Selection { users: set(&["user-2"]), ..Selection::default() }), SelectionResult::NotSelected);
        assert_eq!(
            judge(Selection { dead: true, ..Selection::default() }),
            SelectionResult::Selected,
            "it failed again there"
        );
    }

    #[test]
    fn an_event_whose_time_is_not_in_the_range_is_outside_if_it_would_be_taken_otherwise() {
        let times = TimeRange { from_ms: Some(1), until_ms: None };
        let selection = Selection { users: set(&["user-1"]), times, ..Selection::default() };
        assert_eq!(selection.judge("user-events", 2, &event("user-1", &[])), SelectionResult::OutsideTimes);
        assert_eq!(selection.judge("user-events", 2, &event("user-2", &[])), SelectionResult::NotSelected);
        let text = serde_json::to_string(&selection).unwrap();
        assert!(text.contains(r#""from_ms":1"#) && !text.contains("until_ms"), "{text}");
        assert_eq!(serde_json::from_str::<Selection>(&text).unwrap(), selection);
        let earlier = r#"{"dead":false,"users":["user-1"],"ids":[],"reasons":[],"again":false}"#;
        assert!(serde_json::from_str::<Selection>(earlier).unwrap().times.is_unbounded());
    }

    #[test]
    fn a_dead_letter_has_the_id_of_its_event_and_a_reason() {
        let letter = event("user-1", &[(dead_letter::SOURCE, "2:5"), (dead_letter::REASON, "refused")]);
        assert_eq!(source_of(&letter), Some((2, 5)));
        let ids = Selection { dead: true, ids: set(&["user-events-2-5"]), ..Selection::default() };
        assert_eq!(ids.judge("user-events", 2, &letter), SelectionResult::Selected);
        let reasons = |reason| Selection { dead: true, reasons: set(&[reason]), ..Selection::default() };
        assert_eq!(reasons("refused").judge("user-events", 2, &letter), SelectionResult::Selected);
        assert_eq!(reasons("exhausted").judge("user-events", 2, &letter), SelectionResult::NotSelected);
        for wrong in ["", "2", "2:", ":5", "a:5"] {
            assert_eq!(source_of(&event("user-1", &[(dead_letter::SOURCE, wrong)])), None, "{wrong}");
        }
    }
}
