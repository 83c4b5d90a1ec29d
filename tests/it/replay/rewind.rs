//! Resets of the destination's own position, backwards and forwards, while its dispatch is stopped and while it runs.

use super::*;
use crate::support::wait::eventually;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// 240 events. Those of `user-5` are not accepted.
fn with_one_user_waiting() -> (Delivered, Program) {
    let mut delivered = Delivered::empty(&["--url", "sqlite:log.db"]);
    delivered.receiver.answers(|hook| if hook.user() == "user-5" { 503 } else { 200 });
    let up = delivered.up();
    delivered.post(&up, 0..240);
    delivered.receiver.wait_for(220);
    (delivered, up)
}

fn assert_only_new_events_are_delivered(delivered: &mut Delivered, up: Program) {
    delivered.post(&up, 240..252);
    delivered.receiver.wait_for(12);
    assert_eq!(up.stop().code(), 0);
    let bodies: Vec<String> = delivered.receiver.take().into_iter().map(|hook| hook.body).collect();
    assert!(bodies.len() == 12 && bodies.iter().all(|body| body.parse::<u64>().unwrap() >= 240), "{bodies:?}");
}

#[test]
fn a_rewind_makes_dispatch_deliver_again_in_order_with_new_events() {
    let mut delivered = Delivered::new(600);
    let plan = delivered.plan(&["--rewind", "--from", "2h"]);
    assert_eq!((&plan["events"], &plan["users"]), (&600.into(), &USERS.into()), "{plan}");
    assert_eq!(delivered.listed(), Vec::<Value>::new(), "a plan moves no position");
    let ending = delivered.replay(&["--rewind", "--from", "2h", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert!(ending.said.contains("dispatch delivers 600 events again"), "{}", ending.said);
    assert_eq!(delivered.receiver.count(), 0, "a rewind delivers nothing itself");

    let up = delivered.up();
    delivered.post(&up, 600..720);
    delivered.receiver.wait_for(720);
    assert_eq!(up.stop().code(), 0);
    let hooks = delivered.receiver.take();
    assert_eq!(bodies(&hooks), delivered.sent, "old and new events of each user in one order");
    assert!(hooks.iter().all(|hook| hook.replay().is_empty()), "the deliveries are live traffic");
    let listed = &delivered.listed()[0];
    assert!(listed["state"] == "finished" && listed["what"].as_str().unwrap().contains("rewind of hook"), "{listed}");
}

#[test]
fn a_rewind_of_one_partition_does_not_touch_others_or_earlier_events() {
    let delivered = Delivered::new(600);
    let ending = delivered.replay(&["--rewind", "--from", "p1:150", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let again = delivered.replay(&["--rewind", "--from", "p1:150", "--execute"]);
    assert!(
        again.code() == 0 && again.said.contains("nothing to replay"),
        "a repeated rewind does nothing: {}",
        again.said
    );
    let up = delivered.up();
    delivered.receiver.wait_for(50);
    assert_eq!(up.stop().code(), 0);
    let hooks = delivered.receiver.take();
    let offsets: Vec<&str> = hooks.iter().map(|hook| hook.header("eventd-offset")).collect();
    assert_eq!(hooks.len(), 50, "{offsets:?}");
    let is_behind = |offset: &&str| offset.strip_prefix("1:").is_some_and(|at| at.parse::<u64>().unwrap() >= 150);
    assert!(offsets.iter().all(is_behind), "{offsets:?}");
}

#[test]
fn a_fast_forward_skips_only_events_that_were_not_delivered() {
    let (mut delivered, up) = with_one_user_waiting();
    assert_eq!(up.stop().code(), 0);
    delivered.receiver.take();
    delivered.receiver.answers(|_| 200);
    let plan = delivered.plan(&["--fast-forward", "0s"]);
    assert_eq!((&plan["events"], &plan["users"], &plan["on_their_way"]), (&20.into(), &1.into(), &0.into()), "{plan}");
    let for_people = delivered.replay(&["--fast-forward", "0s"]).said;
    for said in [
        "fast-forward of hook to 0s ago, in user-events",
        "only the position moves",
        "20 events will NEVER be delivered to hook, and they do not become dead letters",
        "the position was not moved: add --execute to move it",
    ] {
        assert!(for_people.contains(said), "{said}: {for_people}");
    }
    assert!(!for_people.contains("nothing was delivered") && !for_people.contains("--rate"), "{for_people}");
    let ending = delivered.replay(&["--fast-forward", "0s", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let listed = run(delivered.folder(), &["replay", "--url", "sqlite:log.db", "--list"]).said;
    assert!(listed.contains("moves the position over 20 events (p0 from ") && !listed.contains("0 of "), "{listed}");
    let up = delivered.up();
    assert_only_new_events_are_delivered(&mut delivered, up);
}

#[test]
fn a_running_dispatch_applies_a_rewind_and_delivers_in_order_with_new_events() {
    let mut delivered = Delivered::new(600);
    let up = delivered.up();
    delivered.post(&up, 600..660);
    delivered.receiver.wait_for(60);
    let ending = delivered.replay(&["--rewind", "--from", "2h", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert!(ending.said.contains("dispatch is running"), "{}", ending.said);
    assert!(ending.said.contains("events again (rewind of hook"), "{}", ending.said);
    delivered.post(&up, 660..720);
    delivered.receiver.wait_for(60 + 720);
    assert_eq!(up.stop().code(), 0);
    let hooks = delivered.receiver.take();
    assert_eq!(hooks.len(), 60 + 720, "once");
    assert!(hooks[..60].iter().all(|hook| hook.body.parse::<u64>().unwrap() >= 600));
    assert_eq!(bodies(&hooks[60..]), delivered.sent, "old and new events of each user in one order");
    assert_eq!(delivered.listed()[0]["state"], "finished");

    // The reset is done, so the next start must not repeat it.
    let up = delivered.up();
    delivered.post(&up, 720..732);
    delivered.receiver.wait_for(12);
    assert_eq!(up.stop().code(), 0);
    assert_eq!(delivered.receiver.take().len(), 12);
}

#[test]
fn a_running_dispatch_applies_a_fast_forward_and_unblocks_waiting_users() {
    let (mut delivered, up) = with_one_user_waiting();
    let ending = delivered.replay(&["--fast-forward", "0s", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    delivered.receiver.take();
    delivered.receiver.answers(|_| 200);
    assert_only_new_events_are_delivered(&mut delivered, up);
}

#[test]
fn a_requested_reset_is_applied_once_whichever_process_is_killed() {
    let mut delivered = Delivered::new(600);
    let (asked, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (was_asked, may_answer) = (Arc::clone(&asked), Arc::clone(&answers));
    delivered.receiver.answers(move |_| {
        was_asked.store(true, Ordering::Relaxed);
        while !may_answer.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        503
    });
    // An owner does not move the position while an attempt is in flight.
    let up = delivered.up();
    delivered.post(&up, 600..601);
    eventually(|| if asked.load(Ordering::Relaxed) { Ok(()) } else { Err("no attempt".to_owned()) });
    let rewind = delivered.replaying(&["--rewind", "--from", "0", "--execute"]);
    rewind.wait_for(&["dispatch is running"]);
    let ending = rewind.stop();
    assert_eq!(ending.code(), 3, "{}", ending.said);
    assert!(ending.said.contains("The new position is already requested"), "{}", ending.said);
    assert_eq!(delivered.listed()[0]["state"], "stopped");
    up.kill();
    answers.store(true, Ordering::Relaxed);
    delivered.receiver.answers(|_| 200);

    // Processes are killed at any moment around the reset. Each partition must be reset once.
    let mut moved = BTreeMap::new();
    for round in 1..=3 {
        let up = delivered.up();
        delivered.receiver.wait_for(40 * round);
        for line in up.lines().lines().filter(|line| line.contains("the position was moved back")) {
            *moved.entry(line.split("partition=").nth(1).unwrap()[..1].to_owned()).or_insert(0) += 1;
        }
        up.kill();
    }
    let up = delivered.up();
    let mut hooks = Vec::new();
    eventually(|| {
        hooks.extend(delivered.receiver.take());
        match without_repeats(&hooks) {
            seen if seen == delivered.sent => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    });
    assert_eq!(up.stop().code(), 0);
    hooks.extend(delivered.receiver.take());
    assert_in_order(&hooks);
    assert!(moved.values().all(|times| *times == 1), "{moved:?}");
    println!("# a rewind of 600 events, four kills: {} deliveries, moved {moved:?}", hooks.len());
}

#[test]
fn an_offset_reset_cannot_be_combined_with_a_selection_of_events() {
    let delivered = Delivered::new(60);
    for (arguments, says) in [
        (&["--rewind"][..], "--from"),
        (&["--rewind", "--from", "0", "--user", "user-1"], "cannot be used with"),
        (&["--rewind", "--from", "0", "--until", "5"], "cannot be used with"),
        (&["--rewind", "--from", "0", "--rate", "5/s"], "cannot be used with"),
        (&["--fast-forward", "5", "--from", "0"], "cannot be used with"),
        (&["--fast-forward", "2999-01-01"], "in the future"),
    ] {
        let ending = delivered.replay(arguments);
        assert_eq!(ending.code(), 2, "{arguments:?}: {}", ending.said);
        assert!(ending.said.contains(says), "{arguments:?}: {}", ending.said);
    }
    assert_eq!(delivered.replay(&["--rewind", "--from", "0", "--execute"]).code(), 0);
    let resumed = delivered.replay(&["--resume", &delivered.id(), "--execute"]);
    assert_eq!(resumed.code(), 2, "{}", resumed.said);
    assert!(resumed.said.contains("Give that command again"), "{}", resumed.said);
}

#[test]
fn a_fast_forward_over_a_gap_beyond_the_logs_end_is_refused() {
    let (delivered, up) = with_one_user_waiting();
    assert_eq!(up.stop().code(), 0);
    // All records are gone, and the position in the partition of `user-5` is before its end.
    let database = rusqlite::Connection::open(delivered.folder().join("log.db")).unwrap();
    let topic: i64 =
        database.query_row("SELECT id FROM topics WHERE name = 'user-events'", [], |row| row.get(0)).unwrap();
    for table in ["records", "times"] {
        database.execute(&format!("DELETE FROM {table} WHERE topic = ?1"), [topic]).unwrap();
    }
    let partitions =
        database.execute("UPDATE partitions SET earliest = next_offset WHERE topic = ?1", [topic]).unwrap();
    drop(database);
    let all: Vec<String> = (0..partitions).map(|partition| format!("p{partition}:1000")).collect();
    let with_another = format!("{},p99:5", all.join(","));
    for (place, says) in [
        ("1767350000", "write @1767350000"),
        ("p0:1767350000,p1:1000", "write @1767350000"),
        (&with_another, "--fast-forward p0:1000,p1:1000,p2:1000,p99:5: the topic has no partition 99"),
    ] {
        let ending = delivered.replay(&["--fast-forward", place, "--execute"]);
        assert_eq!(ending.code(), 1, "{place}: {}", ending.said);
        assert!(ending.said.contains(says), "{place}: {}", ending.said);
    }
    let ending = delivered.replay(&["--fast-forward", &all.join(","), "--execute"]);
    assert_eq!(ending.code(), 0, "only the gap is skipped: {}", ending.said);
    assert!(
        ending.said.contains("position moved: 0 events and 20 offsets that cannot be read will NEVER be delivered"),
        "{}",
        ending.said
    );
}
