//! What a plan says, and that exactly this is delivered.

use super::*;
use crate::support::wait::eventually;

#[test]
fn a_plan_counts_what_would_be_delivered_and_delivers_nothing() {
    let delivered = Delivered::new(600);
    let plan = delivered.plan(&["--from", "0", "--rate", "100/s"]);
    assert_eq!((&plan["events"], &plan["users"]), (&600.into(), &USERS.into()), "{plan}");
    assert_eq!(plan["estimate_secs"], 6.0, "{plan}");
    let parts = plan["partitions"].as_array().unwrap();
    let events = |part: &Value| part["events"].as_u64().unwrap();
    assert_eq!((parts.len(), parts.iter().map(events).sum::<u64>()), (3, 600), "{plan}");
    assert!(parts.iter().all(|part| part["until"].as_u64() == Some(events(part))), "{plan}");
    assert_eq!((plan["first"]["offset"].as_u64(), plan["last"]["id"].is_string()), (Some(0), true), "{plan}");
    for word in ["on_their_way", "replayed", "removed"] {
        assert_eq!(plan[word], 0, "{plan}");
    }

    let for_people = delivered.replay(&["--from", "0"]);
    assert_eq!(for_people.code(), 0, "{}", for_people.said);
    for word in ["600 from 12 users", "nothing was delivered: add --execute", &delivered.receiver.url] {
        assert!(for_people.said.contains(word), "{word}: {}", for_people.said);
    }
    assert_eq!(delivered.receiver.count(), 0);
    assert_eq!(delivered.listed(), Vec::<Value>::new(), "a plan leaves no trace");
}

#[test]
fn everything_is_delivered_again_in_order_with_its_own_ids_and_the_replays_id() {
    let delivered = Delivered::new(600);
    let ending = delivered.replay(&["--from", "0", "--execute", "--json"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let hooks = delivered.receiver.take();
    assert_eq!(bodies(&hooks), delivered.sent, "every event once, in order");
    let id = delivered.id();
    for hook in &hooks {
        assert_eq!((hook.header("webhook-id"), hook.replay()), (format!("e{}", hook.body).as_str(), id.as_str()));
    }
    let summary = json_lines(&ending).pop().unwrap();
    assert_eq!((summary["id"].as_str(), summary["outcome"].as_str()), (Some(id.as_str()), Some("finished")));
    assert_eq!((&summary["delivered"], &summary["left"]), (&600.into(), &0.into()), "{summary}");
    let listed = &delivered.listed()[0];
    assert_eq!((listed["state"].as_str(), &listed["counts"]["delivered"]), (Some("finished"), &600.into()), "{listed}");
    assert!(listed["by"]["pid"].is_u64() && listed["what"].as_str().unwrap().contains("from 0"), "{listed}");

    // A group that is left would hold up retention, and its lock would never go away.
    let database = rusqlite::Connection::open(delivered.folder().join("log.db")).unwrap();
    let kept: i64 =
        database.query_row("SELECT count(*) FROM commits WHERE name LIKE '%.replay.%'", [], |row| row.get(0)).unwrap();
    let locks = std::fs::read_dir(delivered.folder()).unwrap().map(|file| file.unwrap().file_name());
    let locks: Vec<_> = locks.filter(|name| name.to_string_lossy().contains(".replay.")).collect();
    assert_eq!((kept, locks.len()), (0, 0), "{locks:?}");
    println!("# {} events delivered again, of {} users", hooks.len(), delivered.sent.len());
}

#[test]
fn a_range_users_ids_and_a_limit_choose_what_is_delivered() {
    let delivered = Delivered::new(600);
    let all = delivered.plan(&["--from", "0"]);
    let first = all["partitions"][0]["events"].as_u64().unwrap();
    for (arguments, events) in [
        (&["--from", "p0:10", "--until", "p0:15"][..], 5),
        (&["--from", "10", "--until", "15"], 15),
        (&["--from", "p0:0", "--user", "user-0"], 0),
        (&["--from", "1h", "--user", "user-1", "--user", "user-2"], 100),
        (&["--user", "user-1", "--until", "1h"], 0),
        (&["--id", "e17"], 1),
        (&["--id", "e17", "--id", "e18", "--user", "user-6"], 1),
        (&["--from", "0", "--limit", "7"], 7),
        (&["--from", "0", "--limit", "7", "--user", "user-1"], 7),
        (&["--from", "1970-01-01T00:00:00Z", "--until", "1m"], 0),
    ] {
        let ending = delivered.replay(&[arguments, &["--json"]].concat());
        let plan = match ending.code() {
            0 => json_lines(&ending).remove(0),
            // This user is not in the partition that was chosen.
            1 if events == 0 => continue,
            _ => panic!("{arguments:?}: {}", ending.said),
        };
        assert_eq!(plan["events"], events, "{arguments:?}: {plan}");
    }
    let limited = delivered.plan(&["--from", "0", "--limit", &(first + 1).to_string()]);
    let events = |at: usize| limited["partitions"][at]["events"].as_u64();
    assert_eq!((events(0), events(1), events(2)), (Some(first), Some(1), Some(0)), "{limited}");

    std::fs::write(delivered.folder().join("users"), "user-3\n\nuser-4\n").unwrap();
    let ending = delivered.replay(&["--user", "@users", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let both = ["user-3", "user-4"].map(|user| (user.to_owned(), delivered.sent[user].clone()));
    assert_eq!(bodies(&delivered.receiver.take()), BTreeMap::from(both), "and no other user's events");
}

#[test]
fn unsettled_events_are_left_to_dispatch() {
    let mut delivered = Delivered::empty(&["--url", "sqlite:log.db"]);
    delivered.receiver.answers(|hook| if hook.user() == "user-5" { 503 } else { 200 });
    let up = delivered.up();
    delivered.post(&up, 0..240);
    delivered.receiver.wait_for(220);
    assert_eq!(up.stop().code(), 0, "an event in backoff does not delay the end");
    delivered.receiver.take();
    delivered.receiver.answers(|_| 200);
    let plan = delivered.plan(&["--from", "0"]);
    assert_eq!((&plan["events"], &plan["on_their_way"]), (&220.into(), &20.into()), "{plan}");
    let ending = delivered.replay(&["--from", "0", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let mut others = delivered.sent.clone();
    let blocked = others.remove("user-5").unwrap();
    assert_eq!(bodies(&delivered.receiver.take()), others);

    let up = delivered.up();
    delivered.receiver.wait_for(20);
    assert_eq!(up.stop().code(), 0);
    let hooks = delivered.receiver.take();
    assert_eq!(bodies(&hooks), BTreeMap::from([("user-5".to_owned(), blocked)]), "dispatch continued at its position");
    assert!(hooks.iter().all(|hook| hook.replay().is_empty()));
}

#[test]
fn ingest_and_live_delivery_continue_during_a_replay() {
    let mut delivered = Delivered::new(600);
    let up = delivered.up();
    let replay = delivered.replaying(&["--from", "0", "--execute", "--rate", "300/s"]);
    replay.wait_for(&["replaying"]);
    for round in 0..10 {
        delivered.post(&up, 600 + round * 60..660 + round * 60);
    }
    let ending = replay.end();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    delivered.receiver.wait_for(1200);
    assert_eq!(up.stop().code(), 0);
    let (again, live): (Vec<Hook>, Vec<Hook>) =
        delivered.receiver.take().into_iter().partition(|hook| !hook.replay().is_empty());
    let beside = live.iter().filter(|hook| again.iter().any(|old| old.at > hook.at)).count();
    assert_eq!((again.len(), live.len()), (600, 600), "each event once, as replay and as live traffic");
    assert!(bodies(&live).values().flatten().all(|payload| payload.parse::<u64>().unwrap() >= 600));
    assert!(beside > 300, "only {beside} live events were delivered during the replay");
    println!("# {} events delivered live while {} were replayed", beside, again.len());
}

#[test]
fn a_replay_keeps_to_its_rate() {
    let delivered = Delivered::new(1_200);
    let ending = delivered.replay(&["--from", "0", "--execute", "--rate", "400/s"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let hooks = delivered.receiver.take();
    let (first, last) =
        (hooks.iter().map(|hook| hook.at).min().unwrap(), hooks.iter().map(|hook| hook.at).max().unwrap());
    let rate = (hooks.len() - 1) as f64 / (last - first).as_secs_f64();
    assert!(rate < 400.0 * 1.02, "{rate} a second");
    // A lower rate can come from the machine, which runs other tests at the same time.
    assert!(rate > 400.0 * 0.8, "{rate} events per second");
    println!("# {} events at {rate:.1}/s, with --rate 400/s", hooks.len());
}

#[test]
fn events_that_came_from_a_replay_are_not_replayed_again() {
    let mut delivered = Delivered::new(60);
    let up = delivered.up();
    let address = up.address();
    // Another eventd replays into our ingest.
    let body = r#"{"UserID":"user-1","Payload":"again","ID":"theirs"}"#;
    let request = format!(
        "POST /events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\neventd-replay: 20260102-030405-abcdef\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = raw(&address, &request);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    delivered.post(&up, 60..72);
    delivered.receiver.wait_for(13);
    assert_eq!(up.stop().code(), 0);
    let hooks = delivered.receiver.take();
    let theirs: Vec<&str> = hooks.iter().filter(|hook| hook.body == "again").map(Hook::replay).collect();
    assert_eq!(theirs, ["20260102-030405-abcdef"], "the replay's id is passed on");
    let plan = delivered.plan(&["--from", "0"]);
    assert_eq!((&plan["events"], &plan["replayed"]), (&72.into(), &1.into()), "{plan}");
    let plan = delivered.plan(&["--from", "0", "--again"]);
    assert_eq!((&plan["events"], &plan["replayed"]), (&73.into(), &0.into()), "{plan}");
    let ending = delivered.replay(&["--from", "0", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert_eq!(bodies(&delivered.receiver.take()), delivered.sent);
}

fn raw(address: &str, request: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn events_that_retention_removed_are_reported_and_the_rest_is_delivered() {
    let delivered = Delivered::new(120);
    let database = rusqlite::Connection::open(delivered.folder().join("log.db")).unwrap();
    let topic: i64 =
        database.query_row("SELECT id FROM topics WHERE name = 'user-events'", [], |row| row.get(0)).unwrap();
    for table in ["records", "times"] {
        let sql = format!("DELETE FROM {table} WHERE topic = ?1 AND partition = 0 AND offset < 5");
        database.execute(&sql, [topic]).unwrap();
    }
    database.execute("UPDATE partitions SET earliest = 5 WHERE topic = ?1 AND partition = 0", [topic]).unwrap();
    drop(database);
    let plan = delivered.plan(&["--from", "0"]);
    assert_eq!(
        (&plan["events"], &plan["removed"], &plan["partitions"][0]["from"]),
        (&115.into(), &5.into(), &5.into())
    );
    let ending = delivered.replay(&["--from", "p0:0", "--until", "p0:5"]);
    assert_eq!(ending.code(), 1, "{}", ending.said);
    assert!(ending.said.contains("outside the log") && ending.said.contains("partition 0: 5 to"), "{}", ending.said);
    let ending = delivered.replay(&["--from", "0", "--execute"]);
    assert_eq!((ending.code(), delivered.receiver.count()), (0, 115), "{}", ending.said);
}

#[test]
fn a_damaged_record_stops_the_plan_unless_it_is_to_be_skipped() {
    let delivered = Delivered::new(120);
    let database = rusqlite::Connection::open(delivered.folder().join("log.db")).unwrap();
    let spoil = "UPDATE records SET crc32c = crc32c + 1 WHERE partition = 1 AND offset = 3";
    assert_eq!(database.execute(spoil, []), Ok(1));
    let ending = delivered.replay(&["--from", "0"]);
    assert_eq!(ending.code(), 1, "{}", ending.said);
    assert!(ending.said.contains("offset 3") && ending.said.contains("--on-gap skip"), "{}", ending.said);
    let ending = delivered.replay(&["--from", "0", "--execute", "--on-gap", "skip"]);
    assert_eq!((ending.code(), delivered.receiver.count()), (0, 119), "{}", ending.said);
}

#[test]
fn a_file_that_dispatch_holds_is_refused_and_another_one_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let url = ["--url", "sqlite:log.db"];
    let up =
        Program::start(folder.path(), &[&["up", "--listen", "127.0.0.1:0", "--dest", "file-1"], &url[..]].concat());
    let mut client = Client::connect(&up.address()).unwrap();
    assert_eq!(client.post(r#"[{"UserID":"a","Payload":"1"},{"UserID":"a","Payload":"2"}]"#).unwrap().status, 200);
    // An event counts as settled when its commit is stored.
    let replay = |destination| {
        run(folder.path(), &[&["replay", "--dest", destination, "--from", "0", "--json"], &url[..]].concat())
    };
    eventually(|| match replay("file-1") {
        ending if ending.said.contains("\"events\":2") => Ok(()),
        ending => Err(ending.said),
    });
    let held = run(folder.path(), &[&["replay", "--dest", "file-1", "--from", "0", "--execute"], &url[..]].concat());
    assert_eq!(held.code(), 2, "{}", held.said);
    assert!(held.said.contains("file-1"), "{}", held.said);
    let other = ["replay", "--dest", "file-1=file-1-again", "--from", "0", "--execute"];
    let other = run(folder.path(), &[&other[..], &url].concat());
    assert_eq!(other.code(), 0, "{}", other.said);
    let lines = crate::support::delivered::lines(&folder.path().join("file-1-again"));
    assert_eq!(lines.iter().map(|line| line.payload.as_str()).collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(up.stop().code(), 0);
}
