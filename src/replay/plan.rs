//! The plan of a replay: what it would deliver, and how an operator reads that.
//!
//! ```text
//!  range in one partition  from ………………………………………… until
//!  settled there           ✓ ✓ ✓ · ✓ · ✓ ✓ ✗✗✗✗✗✗✗✗     ✓ settled: counted, if the selection says so
//!                                                 · ✗   not settled yet: left out, because dispatch delivers them
//!  initial state           · and ✗ count as settled, ✓ does not: the replay delivers what its own state has not settled
//! ```

use super::range::OffsetRange;
use crate::clock::show_ms;
use crate::core::progress::PartitionState;
use crate::core::text::escaped;
use crate::core::token_bucket::Rate;
use crate::core::tries::OnExhausted;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What a replay does in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionPlan {
    pub offsets: OffsetRange,
    /// The first state of the replay's own progress. Every event of the range that must not be delivered counts as
    /// settled in it. The selection is applied later, event by event.
    pub initial_state: PartitionState,
    pub parked: ParkedInPlan,
}

/// What a plan does with the events of parked users that the destination has not settled. They wait in the log, although
/// their offsets count as settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkedInPlan {
    /// The plan is about settled events, and dispatch delivers these later.
    LeftOut,
    /// The plan is about unsettled events.
    Included,
}

/// The events that were counted. The audit record of a replay stores it, and `--json` prints it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub partitions: Vec<PlannedPartition>,
    /// Events that are delivered again. For a fast-forward: events that will never be delivered.
    pub events: u64,
    pub users: u64,
    /// There are more users than the plan can tell apart.
    pub users_at_least: bool,
    /// Events of the range that are not settled yet: dispatch delivers them.
    pub on_their_way: u64,
    /// Dead letters that were redriven before, and are left out. If the replay is resumed: since it last ran.
    #[serde(default)]
    pub redriven: u64,
    /// Events that came from a replay of another eventd, and are left out.
    pub replayed: u64,
    /// Events between those of a range by time that were accepted before or after it, and are left out.
    #[serde(default)]
    pub outside: u64,
    /// Events after the new position of a rewind or fast-forward to a time that were accepted before that time.
    /// Dispatch delivers them too.
    #[serde(default)]
    pub earlier: u64,
    /// Offsets of the range that retention has removed.
    pub removed: u64,
    /// Offsets of the range that are not settled and cannot be read, because their records are damaged or removed.
    #[serde(default)]
    pub unreadable: u64,
    /// The event that was accepted first, and the one that was accepted last.
    pub first: Option<EventSummary>,
    pub last: Option<EventSummary>,
}

/// The part of a plan that is in one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedPartition {
    pub partition: u32,
    pub from: i64,
    /// The first offset after the range.
    pub until: i64,
    pub events: u64,
}

/// One event, so that an operator recognizes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventSummary {
    pub partition: u32,
    pub offset: i64,
    pub user: Option<String>,
    pub id: String,
    pub timestamp_ms: i64,
}

/// How a replay delivers its plan, as far as the operator has to know it.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeliveryTerms<'p> {
    /// `None`: as fast as the destination takes the events.
    pub rate: Option<Rate>,
    /// The topic of the dead letters, if the replay takes its events from there.
    pub dead_letter_topic: Option<&'p str>,
    pub is_resumed: bool,
    /// The value of `EVENTD_ON_EXHAUSTED`, if it has no effect.
    pub ignored_policy: Option<OnExhausted>,
    /// `--on-exhausted drop` was typed.
    pub drops: bool,
}

impl DeliveryTerms<'_> {
    /// What the operator may not expect.
    pub fn notes(&self) -> Vec<String> {
        let of_dead_letters = self.dead_letter_topic.map(|topic| {
            format!(
                "partitions and offsets are those of {}, also in log lines; the receiver gets those of the events",
                escaped(topic)
            )
        });
        let of_variable = self.ignored_policy.map(|policy| {
            let why = match policy {
                OnExhausted::Drop => "only the flag lets a replay drop events",
                _ => "a replay cannot hold a user",
            };
            format!("EVENTD_ON_EXHAUSTED={policy} has no effect: {why}, so it uses dead-letter")
        });
        let of_drop = self.drops.then(|| {
            let marked = if self.dead_letter_topic.is_some() { "; its dead letter counts as replayed" } else { "" };
            format!(
                "--on-exhausted drop: an event whose tries end is not delivered, and does not become a dead letter{marked}"
            )
        });
        of_dead_letters.into_iter().chain(of_variable).chain(of_drop).collect()
    }
}

/// What a plan is for.
#[derive(Debug, Clone, Copy)]
pub enum PlanKind<'p> {
    /// The replay delivers the events itself.
    Deliver(DeliveryTerms<'p>),
    /// Dispatch delivers the events, because the destination's position moves back.
    Rewind,
    /// No process delivers the events, because the destination's position moves ahead.
    FastForward,
}

impl Plan {
    /// The plan as an operator reads it. `title` says what is replayed, `name` is the destination's name and `to` its
    /// target.
    pub fn text<'p>(
        &'p self,
        title: &'p str,
        name: &'p str,
        to: &'p str,
        kind: PlanKind<'p>,
    ) -> impl fmt::Display + 'p {
        PlanText { plan: self, title, name, to, kind }
    }

    /// The number of events, and of offsets that cannot be read, for example "20 events and 3 offsets that cannot be
    /// read".
    pub(super) fn describe_events(&self) -> String {
        let events = count_of(self.events, "event", "events");
        match self.unreadable {
            0 => events,
            unreadable => {
                format!("{events} and {} that cannot be read", count_of(unreadable, "offset", "offsets"))
            }
        }
    }
}

/// A number with its noun, in the singular if it is 1.
pub(super) fn count_of(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

struct PlanText<'p> {
    plan: &'p Plan,
    title: &'p str,
    name: &'p str,
    to: &'p str,
    kind: PlanKind<'p>,
}

impl fmt::Display for PlanText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, title, name, to, kind } = self;
        match kind {
            PlanKind::Deliver(_) => writeln!(f, "replay of {}\n    to {}\n", escaped(title), escaped(to))?,
            PlanKind::Rewind | PlanKind::FastForward => writeln!(f, "{}\n", escaped(title))?,
        }
        writeln!(f, "  {:>9}  {:>12}  {:>12}  {:>12}", "partition", "from", "until", "events")?;
        for part in &plan.partitions {
            writeln!(f, "  {:>9}  {:>12}  {:>12}  {:>12}", part.partition, part.from, part.until, part.events)?;
        }
        let more_than = if plan.users_at_least { "more than " } else { "" };
        writeln!(f, "\n  events    {} from {more_than}{}", plan.events, count_of(plan.users, "user", "users"))?;
        self.write_first_and_last(f)?;
        self.write_left_out(f)?;
        match kind {
            PlanKind::Deliver(_) | PlanKind::Rewind if plan.events == 0 => Ok(()),
            PlanKind::Deliver(DeliveryTerms { rate: Some(rate), .. }) => {
                let time = humantime::format_duration(rounded(rate.time_of(plan.events)));
                writeln!(f, "  duration  {time} at {rate}")
            }
            PlanKind::Deliver(_) => {
                writeln!(f, "  duration  as long as the destination needs, because there is no --rate")
            }
            PlanKind::Rewind => writeln!(f, "  duration  a moment: only the position moves, and dispatch delivers"),
            PlanKind::FastForward => {
                writeln!(f, "  duration  a moment: only the position moves")?;
                writeln!(
                    f,
                    "\n{} will NEVER be delivered to {}, and they do not become dead letters",
                    plan.describe_events(),
                    escaped(name)
                )
            }
        }
    }
}

impl PlanText<'_> {
    fn write_first_and_last(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { first, last, .. } = self.plan;
        if let (Some(first), Some(last)) = (first, last) {
            let span = Duration::from_millis(last.timestamp_ms.abs_diff(first.timestamp_ms));
            writeln!(f, "  accepted  within {}", humantime::format_duration(rounded(span)))?;
        }
        for (label, event) in [("first", first), ("last", last)] {
            if let Some(EventSummary { partition, offset, user, id, timestamp_ms }) = event {
                let (user, id) = (escaped(user.as_deref().unwrap_or("(no user)")), escaped(id));
                writeln!(f, "  {label:<8}  {}  {user}  p{partition}:{offset}  {id}", show_ms(*timestamp_ms))?;
            }
        }
        Ok(())
    }

    /// Says what is in the range and not among the events, and why.
    fn write_left_out(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan;
        let redriven = match self.kind {
            PlanKind::Deliver(DeliveryTerms { is_resumed: true, .. }) => "redriven meanwhile",
            _ => "replayed before (--again includes them)",
        };
        let lines = [
            (
                "left out",
                plan.on_their_way,
                "not settled yet: dispatch delivers them, unless their user is held (`eventd control release`)",
            ),
            ("left out", plan.redriven, redriven),
            ("left out", plan.replayed, "came from a replay of another eventd (--again includes them)"),
            ("left out", plan.outside, "in between that were accepted before or after the range"),
            ("note", plan.earlier, "after the new position were accepted before that time: dispatch delivers them too"),
            ("note", plan.removed, "offsets of the range were removed by retention"),
            ("note", plan.unreadable, "offsets of the range cannot be read"),
        ];
        for (label, count, what) in lines.into_iter().filter(|(_, count, _)| *count > 0) {
            writeln!(f, "  {label:<8}  {count} {what}")?;
        }
        if let PlanKind::Deliver(terms) = self.kind {
            for note in terms.notes() {
                writeln!(f, "  note      {note}")?;
            }
        }
        Ok(())
    }
}

/// Rounds down to whole seconds, or to whole milliseconds below one second.
fn rounded(duration: Duration) -> Duration {
    if duration < Duration::from_secs(1) {
        return Duration::from_millis(duration.as_millis() as u64);
    }
    Duration::from_secs(duration.as_secs())
}

/// What the attempts of a replay came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryCounts {
    pub delivered: u64,
    /// Events that were given up and kept as dead letters.
    pub given_up: u64,
    /// Events whose tries have ended and that were not kept (`--on-exhausted drop`). Older audit records do not have it.
    #[serde(default)]
    pub dropped: u64,
    /// Attempts that failed.
    pub failed: u64,
}

impl DeliveryCounts {
    /// The sum of two runs.
    pub fn and(self, other: Self) -> Self {
        Self {
            delivered: self.delivered + other.delivered,
            given_up: self.given_up + other.given_up,
            dropped: self.dropped + other.dropped,
            failed: self.failed + other.failed,
        }
    }

    /// Events whose tries have ended.
    pub fn not_delivered(self) -> u64 {
        self.given_up + self.dropped
    }

    pub fn settled(self) -> u64 {
        self.delivered + self.not_delivered()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(plan: &Plan, kind: PlanKind) -> String {
        plan.text("events for billing, from 0", "billing", "null:", kind).to_string()
    }

    #[test]
    fn a_plan_that_discards_events_says_how_many_will_never_be_delivered() {
        let plan = |events, unreadable| Plan { events, users: 1, unreadable, ..Plan::default() };
        for (plan, says) in [
            (plan(20, 0), "20 events will NEVER be delivered to billing"),
            (plan(1, 0), "1 event will NEVER be delivered to billing"),
            (plan(0, 3), "0 events and 3 offsets that cannot be read will NEVER be delivered to billing"),
        ] {
            let shown = text(&plan, PlanKind::FastForward);
            assert!(shown.contains(says), "{shown}");
            for delivers in [PlanKind::Rewind, PlanKind::Deliver(DeliveryTerms::default())] {
                assert!(!text(&plan, delivers).contains("NEVER"));
            }
        }
    }

    #[test]
    fn a_plan_names_only_what_it_leaves_out() {
        let terms = DeliveryTerms { rate: Some("30/s".parse().unwrap()), ..DeliveryTerms::default() };
        let kind = PlanKind::Deliver(terms);
        let plain = text(&Plan { events: 60, users: 12, ..Plan::default() }, kind);
        assert!(plain.contains("  events    60 from 12 users\n  duration  2s at 30/s\n"), "{plain}");
        let plan = Plan { on_their_way: 5, outside: 2, ..Plan::default() };
        let shown = text(&plan, kind);
        assert!(
            shown.contains("  left out  5 not settled yet: dispatch delivers them, unless their user is held"),
            "{shown}"
        );
        assert!(shown.contains("  left out  2 in between that were accepted before or after the range\n"), "{shown}");
        assert!(!shown.contains("replayed") && !shown.contains("retention"), "{shown}");
        assert!(!shown.contains("duration") && !shown.contains("note"), "a plan of 0 events takes no time: {shown}");
        let plan = Plan { events: 1, redriven: 3, ..Plan::default() };
        assert!(text(&plan, kind).contains("  left out  3 replayed before (--again includes them)\n"));
        let terms = DeliveryTerms {
            dead_letter_topic: Some("t.d.dead"),
            is_resumed: true,
            ignored_policy: Some(OnExhausted::Hold),
            drops: true,
            ..terms
        };
        let shown = text(&plan, PlanKind::Deliver(terms));
        for says in [
            "  left out  3 redriven meanwhile",
            "note      partitions and offsets are those of t.d.dead",
            "note      EVENTD_ON_EXHAUSTED=hold has no effect: a replay cannot hold a user",
            "does not become a dead letter; its dead letter counts as replayed\n",
        ] {
            assert!(shown.contains(says), "{says}: {shown}");
        }
    }
}
