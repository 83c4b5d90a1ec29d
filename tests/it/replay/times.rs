//! Ranges by time, whatever the order of the times in the log, and however a time is written.

use super::*;
use crate::conformance::unique;
use crate::kafka::address;
use crate::support::block_on;
use eventd::core::event::Record;
use eventd::log::{CreateTopic, Engine};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

const MINUTE_MS: i64 = 60_000;

/// Appends events to one partition. Each has the time of a minute ago plus its offset in milliseconds, and its number
/// as payload.
async fn append(engine: Arc<dyn Engine>, topic: &str, first: usize, times_ms: &[i64]) {
    let log = engine.open(topic, Some(CreateTopic { partitions: 1, retention: None })).await.unwrap();
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let record = |(n, ms): (usize, &i64)| {
        Record::new(Some(b"user-1"), Some(n.to_string().as_bytes()), &[], now_ms - MINUTE_MS + ms)
    };
    log.append(0, times_ms.iter().enumerate().map(|(n, ms)| record((first + n, ms))).collect()).await.unwrap();
}

impl Delivered {
    /// 22 events. One was stamped by a clock that was 50 minutes ahead, and one by a clock that was 2 hours late.
    fn with_wrong_clocks(url: &[&str]) -> Self {
        let delivered = Self::empty(url);
        let mut times_ms = vec![0; 22];
        (times_ms[5], times_ms[9]) = (50 * MINUTE_MS, -120 * MINUTE_MS);
        block_on(async { append(delivered.engine().await, delivered.topic(), 0, &times_ms).await });
        let dispatch = delivered.start("dispatch", &["--dest", &delivered.destination()]);
        delivered.receiver.wait_for(22);
        assert_eq!(dispatch.stop().code(), 0, "everything must be committed");
        delivered.receiver.take();
        delivered
    }

    fn assert_a_range_takes_exactly_its_events(&self) {
        let range = ["--from", "10m", "--until", "1s"];
        let plan = self.plan(&range);
        assert_eq!((&plan["events"], &plan["outside"]), (&20.into(), &2.into()), "{plan}");
        let ending = self.replay(&range);
        assert!(ending.said.contains("2 in between that were accepted before or after the range"), "{}", ending.said);
        let expected: Vec<String> = (0..22).filter(|n| ![5, 9].contains(n)).map(|n| n.to_string()).collect();
        let expected = BTreeMap::from([("user-1".to_owned(), expected)]);

        // The rest are events of the range too.
        self.receiver.answers(|hook| if hook.body.parse::<u64>().unwrap() > 7 { 503 } else { 200 });
        let ending = self.replay(&[&range[..], &["--execute", "--stop-after-failures", "2"]].concat());
        assert_eq!(ending.code(), 3, "{}", ending.said);
        self.receiver.answers(|_| 200);
        let ending = self.replay(&["--resume", &self.id(), "--execute"]);
        assert_eq!(ending.code(), 0, "{}", ending.said);
        assert_eq!(without_repeats(&self.receiver.take()), expected);

        let ahead = self.plan(&["--from", "50m", "--until", "1s", "--limit", "3"]);
        assert_eq!((&ahead["events"], &ahead["last"]["offset"]), (&3.into(), &2.into()), "{ahead}");
        let rewind = self.plan(&["--rewind", "--from", "10m"]);
        assert_eq!(
            (&rewind["events"], &rewind["earlier"]),
            (&22.into(), &1.into()),
            "a position is a single offset: {rewind}"
        );
    }
}

#[test]
fn a_range_by_time_takes_every_event_accepted_in_it() {
    Delivered::with_wrong_clocks(&["--url", "sqlite:log.db"]).assert_a_range_takes_exactly_its_events();
}

#[test]
fn a_range_by_time_on_kafka_takes_every_event_accepted_in_it() {
    let (address, topic) = (address(), unique("wrong-clocks"));
    let url = ["--url", &address, "--topic", &topic];
    Delivered::with_wrong_clocks(&url).assert_a_range_takes_exactly_its_events();
}

#[test]
fn a_fast_forward_to_now_skips_everything_and_one_to_a_time_only_earlier_events() {
    let delivered = Delivered::with_wrong_clocks(&["--url", "sqlite:log.db"]);
    let times_ms = [0, 50 * MINUTE_MS, 0, 0];
    block_on(async { append(delivered.engine().await, delivered.topic(), 22, &times_ms).await });
    let plan = delivered.plan(&["--fast-forward", "0s"]);
    assert_eq!((&plan["events"], &plan["earlier"]), (&4.into(), &0.into()), "{plan}");
    // The first event with that time or later is the one whose clock was ahead.
    let plan = delivered.plan(&["--fast-forward", "1s"]);
    assert_eq!((&plan["events"], &plan["earlier"]), (&0.into(), &3.into()), "{plan}");
    let ending = delivered.replay(&["--fast-forward", "1s"]);
    assert!(ending.said.contains("3 after the new position were accepted before that time"), "{}", ending.said);
}

#[test]
fn a_time_of_day_means_today_and_an_unknown_zone_is_an_error() {
    let delivered = Delivered::new(60);
    let plan = |zone: &str, from: &str| {
        let arguments = delivered.arguments("replay", &["--dest", &delivered.destination(), "--from", from]);
        let mut command = command(delivered.folder(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        command.env("TZ", zone);
        Program::spawn(command, "replay in a time zone").end()
    };
    for midnight in ["00:00", "0:00", "00:00:00"] {
        let ending = plan("UTC0", midnight);
        assert_eq!(ending.code(), 0, "{}", ending.said);
        assert!(ending.said.contains("T00:00:00.000Z"), "{midnight} is midnight: {}", ending.said);
    }
    // West of Greenwich by an hour and a half: its midnight is at half past one.
    assert!(plan("XXX1:30", "0:00").said.contains("T01:30:00.000Z"));
    for local in ["00:00", "2026-01-02 10:30", "2026-01-02"] {
        let ending = plan("Europe/Berln", local);
        assert_eq!(ending.code(), 2, "{local}: {}", ending.said);
        assert!(ending.said.contains("Europe/Berln") && ending.said.contains("time zone"), "{}", ending.said);
    }
    for fine in ["2h", "2026-01-02T10:30:00Z", "0", "p0:0", "@1767350000"] {
        assert_eq!(plan("Europe/Berln", fine).code(), 0, "{fine}");
    }
}

#[test]
fn partition_offsets_without_a_p_are_accepted_with_a_warning() {
    let delivered = Delivered::new(60);
    let old = delivered.replay(&["--from", "0:1", "--until", "0:4,1:9"]);
    assert_eq!(old.code(), 0, "{}", old.said);
    assert!(old.said.contains("deprecated") && old.said.contains("write p0:1"), "{}", old.said);
    assert!(old.said.contains("write p0:4,p1:9") && old.said.contains("events    3 from"), "{}", old.said);
    let new = delivered.replay(&["--from", "p0:1", "--until", "p0:4,p1:9"]);
    assert!(!new.said.contains("deprecated") && new.said.contains("events    3 from"), "{}", new.said);
    let rewind = delivered.replay(&["--rewind", "--from", "0:1"]);
    assert!(rewind.said.contains("deprecated"), "{}", rewind.said);
}
