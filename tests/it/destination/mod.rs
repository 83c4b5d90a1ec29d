//! Destinations: the file and HTTP destinations, their names, their failures, and what the log says of their trouble.
//! This file has the helpers that make delivery batches.

mod batches;
mod exhausted;
mod failures;
mod file;
mod health;
mod http;
mod names;
mod slow_users;

use eventd::core::event::{Event, Record};
use eventd::core::verdict::{Failed, Report};
use eventd::destination::spec::Spec;
use eventd::destination::{ConfigurationError, DeliveryBatch, Destination, DestinationSettings, Run, open};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long an attempt may take. Only a defect, or a server that hangs, uses all of it.
pub(crate) const ATTEMPT_TIME: Duration = Duration::from_secs(20);

pub(crate) fn opened(text: &str, settings: &DestinationSettings) -> Arc<dyn Destination> {
    open(&Spec::parse(text).unwrap(), settings).unwrap()
}

pub(crate) fn not_opened(text: &str) -> String {
    let ConfigurationError(why) = open(&Spec::parse(text).unwrap(), &DestinationSettings::default()).unwrap_err();
    why
}

pub(crate) fn event(offset: i64, user: &str, payload: &[u8]) -> Event {
    let id = format!("id-{offset}");
    let headers: &[(&str, Option<&[u8]>)] =
        &[("eventd-id", Some(id.as_bytes())), ("content-type", Some(b"text/plain; charset=utf-8"))];
    Event { offset, record: Record::new(Some(user.as_bytes()), Some(payload), headers, 1_767_323_045_678) }
}

/// One run for each of `runs`, of this many events, at the offsets from `first` on.
pub(crate) fn delivery_batch(partition: u32, first: i64, runs: &[usize], time: Duration) -> DeliveryBatch {
    let mut events = Vec::new();
    let mut ranges = Vec::new();
    for (lane, &len) in runs.iter().enumerate() {
        let start = events.len();
        for _ in 0..len {
            let offset = first + events.len() as i64;
            events.push(event(offset, &format!("user-{lane}"), format!("payload {offset}").as_bytes()));
        }
        ranges.push(Run { events: start..events.len(), attempt: 1, after_dead_letter: false });
    }
    DeliveryBatch {
        topic: "user-events".into(),
        partition,
        runs: ranges,
        events,
        deadline: (Instant::now() + time).into(),
    }
}

/// Hands over one event and tells what became of it.
pub(crate) async fn attempt(destination: &dyn Destination, event: Event, time: Duration) -> Result<(), Failed> {
    let runs = vec![Run { events: 0..1, attempt: 1, after_dead_letter: false }];
    let deadline = Instant::now() + time;
    let delivery_batch = DeliveryBatch {
        topic: "user-events".into(),
        partition: 0,
        runs,
        events: vec![event],
        deadline: deadline.into(),
    };
    let mut reports = destination.deliver(delivery_batch).await;
    assert_eq!(reports.len(), 1, "one report a run");
    let Report { delivered, failed } = reports.remove(0);
    assert_eq!(delivered, usize::from(failed.is_none()));
    failed.map_or(Ok(()), Err)
}
