//! Decides which events of a range a replay delivers.

use super::range::TimeRange;
use crate::core::event::{Event, REPLAY};
use crate::dispatch::dead_letter;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The conditions that an event must meet. An empty list is not a condition. The audit record of a replay stores it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Selection {
    /// Select from the destination's dead letters instead of the topic.
    pub dead: bool,
    pub users: BTreeSet<String>,
    pub ids: BTreeSet<String>,
    /// For dead letters: the reasons for which they were given up.
    pub reasons: BTreeSet<String>,
    /// Also select events that came from a replay of another eventd. For dead letters: also those that were redriven.
    pub again: bool,
    /// When the event was accepted, or the dead letter was given up. An earlier eventd did not write these times into
    /// its audit records; for its replays the offsets alone are the range.
    #[serde(flatten)]
    pub times: TimeRange,
}

/// What a selection says about one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelectionResult {
    Selected,
    /// The event has another user, id or reason.
    NotSelected,
    /// The event would be selected, but its time is outside the range.
    OutsideTimes,
    /// The event would be selected, but it came from a replay of another eventd.
    FromReplay,
}

impl Selection {
    /// Checks one event. `topic` is the main topic, also for dead letters, because ids are made from it.
    pub fn check(&self, topic: &str, partition: u32, event: &Event) -> SelectionResult {
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
        // Two programs that replay into each other would never end. A dead letter of a replay is an event that failed
        // again, and an operator who redrives dead letters wants it.
        match !self.dead && !self.again && record.headers().any(|(name, _)| name == REPLAY) {
            true => SelectionResult::FromReplay,
            false => SelectionResult::Selected,
        }
    }
}

/// The user as it is written on the command line. `None`: the event has no user, or one that is not UTF-8.
pub fn user_of(event: &Event) -> Option<&str> {
    event.record.key().and_then(|key| std::str::from_utf8(key).ok())
}

/// The id that the receiver knows. A dead letter has the id of its event.
pub fn id_of(dead: bool, topic: &str, partition: u32, event: &Event) -> String {
    let source = if dead { source_of(event) } else { None };
    let (partition, offset) = source.unwrap_or((partition, event.offset));
    Event { offset, record: event.record.clone() }.id(topic, partition)
}

/// When the event was accepted, in milliseconds since the Unix epoch. A dead letter has that time in a header.
pub fn accepted_ms(dead: bool, event: &Event) -> i64 {
    let of_dead_letter = || event.record.header_text(dead_letter::TIME)?.parse().ok();
    (if dead { of_dead_letter() } else { None }).unwrap_or(event.record.timestamp_ms)
}

/// The partition and offset that a dead letter's event has in the main topic.
pub fn source_of(dead_letter: &Event) -> Option<(u32, i64)> {
    let (partition, offset) = dead_letter.record.header_text(dead_letter::SOURCE)?.split_once(':')?;
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
    fn an_event_is_selected_only_if_it_meets_every_condition() {
        let check = |selection: &Selection, event: &Event| selection.check("user-events", 2, event);
        let mine = event("user-1", &[(ID, "id-1")]);
        assert_eq!(check(&Selection::default(), &mine), SelectionResult::Selected);
        let users = Selection { users: set(&["user-1", "user-2"]), ..Selection::default() };
        assert_eq!(check(&users, &mine), SelectionResult::Selected);
        assert_eq!(check(&users, &event("user-3", &[])), SelectionResult::NotSelected);
        let both = Selection { ids: set(&["id-1", "user-events-2-17"]), ..users };
        assert_eq!(check(&both, &mine), SelectionResult::Selected);
        assert_eq!(
            check(&both, &event("user-1", &[])),
            SelectionResult::Selected,
            "an id that was made from its partition and offset"
        );
        assert_eq!(check(&both, &event("user-1", &[(ID, "id-2")])), SelectionResult::NotSelected);
        assert_eq!(check(&both, &event("user-3", &[(ID, "id-1")])), SelectionResult::NotSelected);
        let nameless = Event { offset: 17, record: Record::new(None, None, &[], 0) };
        assert_eq!(check(&Selection::default(), &nameless), SelectionResult::Selected);
        assert_eq!(check(&both, &nameless), SelectionResult::NotSelected);
    }

    #[test]
    fn an_event_of_another_replay_is_selected_only_if_asked_for() {
        let replayed = event("user-1", &[(REPLAY, "20260102-030405-abcd")]);
        let check = |selection: Selection| selection.check("user-events", 2, &replayed);
        assert_eq!(check(Selection::default()), SelectionResult::FromReplay);
        assert_eq!(check(Selection { again: true, ..Selection::default() }), SelectionResult::Selected);
        assert_eq!(check(Selection { users: set(&["user-2"]), ..Selection::default() }), SelectionResult::NotSelected);
        assert_eq!(
            check(Selection { dead: true, ..Selection::default() }),
            SelectionResult::Selected,
            "an event that failed again in a replay"
        );
    }

    #[test]
    fn an_event_outside_the_time_range_is_reported_only_if_it_meets_the_other_conditions() {
        let times = TimeRange { from_ms: Some(1), until_ms: None };
        let selection = Selection { users: set(&["user-1"]), times, ..Selection::default() };
        assert_eq!(selection.check("user-events", 2, &event("user-1", &[])), SelectionResult::OutsideTimes);
        assert_eq!(selection.check("user-events", 2, &event("user-2", &[])), SelectionResult::NotSelected);
        let text = serde_json::to_string(&selection).unwrap();
        assert!(text.contains(r#""from_ms":1"#) && !text.contains("until_ms"), "{text}");
        assert_eq!(serde_json::from_str::<Selection>(&text).unwrap(), selection);
        let without_times = r#"{"dead":false,"users":["user-1"],"ids":[],"reasons":[],"again":false}"#;
        assert!(serde_json::from_str::<Selection>(without_times).unwrap().times.is_unbounded());
    }

    #[test]
    fn a_dead_letter_is_selected_by_the_id_of_its_event_or_by_its_reason() {
        let dead_letter = event("user-1", &[(dead_letter::SOURCE, "2:5"), (dead_letter::REASON, "refused")]);
        assert_eq!(source_of(&dead_letter), Some((2, 5)));
        let ids = Selection { dead: true, ids: set(&["user-events-2-5"]), ..Selection::default() };
        assert_eq!(ids.check("user-events", 2, &dead_letter), SelectionResult::Selected);
        let reasons = |reason| Selection { dead: true, reasons: set(&[reason]), ..Selection::default() };
        assert_eq!(reasons("refused").check("user-events", 2, &dead_letter), SelectionResult::Selected);
        assert_eq!(reasons("exhausted").check("user-events", 2, &dead_letter), SelectionResult::NotSelected);
        for wrong in ["", "2", "2:", ":5", "a:5"] {
            assert_eq!(source_of(&event("user-1", &[(dead_letter::SOURCE, wrong)])), None, "{wrong}");
        }
    }
}
