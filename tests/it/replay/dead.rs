//! Dead letters that are redriven: once, in order, with their own ids. A letter whose event fails again becomes a dead
//! letter again.

use super::*;
use crate::support::delivered;
use rusqlite::Connection;
use std::collections::HashMap;

/// Gives events up quickly, so that the test is short.
const QUICKLY: [&str; 4] = ["--attempts", "2", "--backoff", "1ms"];

/// 240 events. Those of `user-3` and `user-4` were given up, which makes 40 dead letters.
fn with_dead_letters() -> Delivered {
    let mut delivered = Delivered::empty(&["--url", "sqlite:log.db"]);
    delivered.receiver.answers(|hook| if gave_up(hook.user()) { 500 } else { 200 });
    let up = delivered
        .start("up", &[&["--listen", "127.0.0.1:0", "--dest", &delivered.destination()], &QUICKLY[..]].concat());
    delivered.post(&up, 0..240);
    delivered.receiver.wait_for(200);
    crate::support::wait::eventually(|| match letters(&delivered).len() {
        40 => Ok(()),
        letters => Err(format!("{letters} of 40 letters")),
    });
    assert_eq!(up.stop().code(), 0);
    delivered.receiver.take();
    delivered.receiver.answers(|_| 200);
    delivered
}

fn gave_up(user: &str) -> bool {
    ["user-3", "user-4"].contains(&user)
}

/// For each of these users, the payloads that were sent.
fn of(delivered: &Delivered, users: &[&str]) -> BTreeMap<String, Vec<String>> {
    users.iter().map(|user| ((*user).to_owned(), delivered.sent[*user].clone())).collect()
}

/// The headers of all dead letters, in order.
fn letters(delivered: &Delivered) -> Vec<Vec<(String, String)>> {
    let database = Connection::open(delivered.folder().join("log.db")).unwrap();
    let select = "SELECT r.headers FROM records r JOIN topics t ON t.id = r.topic
                  WHERE t.name = 'user-events.hook.dead' ORDER BY r.partition, r.offset";
    let mut statement = database.prepare(select).unwrap();
    let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    let headers = |bytes: Vec<u8>| {
        let record = eventd::core::event::Record::from_parts(None, None, &bytes, 0);
        let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        record.headers().map(|(name, value)| (name.to_owned(), text(value))).collect()
    };
    rows.map(|row| headers(row.unwrap())).collect()
}

fn said<'l>(letter: &'l [(String, String)], name: &str) -> Vec<&'l str> {
    letter.iter().filter(|(header, _)| header == name).map(|(_, value)| value.as_str()).collect()
}

#[test]
fn dead_letters_are_redriven_once_in_order_with_their_own_ids() {
    let delivered = with_dead_letters();
    let plan = delivered.plan(&["--dead"]);
    assert_eq!((&plan["events"], &plan["users"], &plan["redriven"]), (&40.into(), &2.into(), &0.into()), "{plan}");
    let ending = delivered.replay(&["--dead", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let hooks = delivered.receiver.take();
    assert_eq!(bodies(&hooks), of(&delivered, &["user-3", "user-4"]));
    let id = delivered.id();
    let places: HashMap<String, String> = letters(&delivered)
        .iter()
        .map(|letter| (said(letter, "eventd-id")[0].to_owned(), said(letter, "eventd-source")[0].to_owned()))
        .collect();
    for hook in &hooks {
        let own = format!("e{}", hook.body);
        assert_eq!((hook.header("webhook-id"), hook.replay()), (own.as_str(), id.as_str()));
        assert_eq!(hook.header("eventd-offset"), places[&own], "the place of the event, not of its dead letter");
    }

    let plan = delivered.plan(&["--dead"]);
    assert_eq!((&plan["events"], &plan["redriven"]), (&0.into(), &40.into()), "{plan}");
    let ending = delivered.replay(&["--dead", "--execute"]);
    assert!(ending.code() == 0 && ending.said.contains("nothing to replay"), "{}", ending.said);
    assert_eq!(delivered.receiver.count(), 0, "a letter is redriven again only on request");
    let ending = delivered.replay(&["--dead", "--again", "--user", "user-4", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert_eq!(bodies(&delivered.receiver.take()), of(&delivered, &["user-4"]));
}

#[test]
fn redriving_one_users_dead_letters_does_not_touch_the_others() {
    let delivered = with_dead_letters();
    let ending = delivered.replay(&["--dead", "--user", "user-3", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert_eq!(bodies(&delivered.receiver.take()), of(&delivered, &["user-3"]));
    for (arguments, events, redriven) in [
        (&["--dead"][..], 20, 20),
        (&["--dead", "--user", "user-4"], 20, 0),
        (&["--dead", "--reason", "exhausted"], 20, 20),
        (&["--dead", "--reason", "refused"], 0, 0),
        (&["--dead", "--since", "1h"], 20, 20),
        (&["--dead", "--limit", "5"], 5, 0),
        (&["--dead", "--again"], 40, 0),
    ] {
        let plan = delivered.plan(arguments);
        assert_eq!(plan["events"], events, "{arguments:?}: {plan}");
        // A plan that was cut short by its limit only counts up to the limit.
        assert!(plan["redriven"] == redriven || arguments.contains(&"--limit"), "{arguments:?}: {plan}");
    }
    let ending = delivered.replay(&["--dead", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert_eq!(bodies(&delivered.receiver.take()), of(&delivered, &["user-4"]), "the remaining letters");
}

#[test]
fn an_event_that_fails_again_becomes_a_dead_letter_with_its_history() {
    let delivered = with_dead_letters();
    let before = letters(&delivered);
    delivered.receiver.answers(|hook| if hook.user() == "user-3" { 503 } else { 200 });
    let mut ids = Vec::new();
    for life in 2..=3 {
        let ending = delivered.replay(&[&["--dead", "--execute", "--json"], &QUICKLY[..]].concat());
        // In the last one no event is delivered.
        assert_eq!(ending.code(), life - 2, "{}", ending.said);
        assert_eq!(
            ending.said.contains("delivered no event: all 20 were given up again"),
            life == 3,
            "{}",
            ending.said
        );
        let summary = json_lines(&ending).pop().unwrap();
        let expected = if life == 2 { 20 } else { 0 };
        assert_eq!((&summary["delivered"], &summary["given_up"]), (&expected.into(), &20.into()), "{summary}");
        ids.push(summary["id"].as_str().unwrap().to_owned());
    }
    let mut lives: BTreeMap<String, Vec<Vec<(String, String)>>> = BTreeMap::new();
    for letter in letters(&delivered) {
        lives.entry(said(&letter, "eventd-source")[0].to_owned()).or_default().push(letter);
    }
    assert_eq!(lives.len(), before.len(), "the letters are of the same events: {:?}", lives.keys());
    let thrice: Vec<_> = lives.into_values().filter(|lives| lives.len() == 3).collect();
    assert_eq!(thrice.len(), 20);
    for lives in &thrice {
        let [first, .., last] = &lives[..] else { panic!("{lives:?}") };
        for same in ["eventd-source", "eventd-time", "eventd-first-attempt", "eventd-id", "eventd-topic"] {
            assert_eq!(said(first, same), said(last, same), "{same}");
            assert_eq!(said(last, same).len(), 1, "{same}: {last:?}");
        }
        assert_eq!((said(first, "eventd-attempts"), said(last, "eventd-attempts")), (vec!["2"], vec!["6"]));
        assert_eq!(said(last, "eventd-replay"), [ids[1].as_str()]);
        let earlier = said(last, "eventd-earlier");
        assert!(
            earlier.len() == 2 && earlier[0].starts_with("exhausted after 2 attempts, the last at "),
            "{earlier:?}"
        );
        assert!(earlier[0].contains(": 500") && earlier[1].contains(": 503"), "oldest first: {earlier:?}");
    }
    delivered.receiver.take();
    delivered.receiver.answers(|_| 200);
    let ending = delivered.replay(&["--dead", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert_eq!(bodies(&delivered.receiver.take()), of(&delivered, &["user-3"]), "once, although it has three letters");
}

#[test]
fn a_killed_redrive_is_resumed_and_marks_every_dead_letter() {
    let delivered = with_dead_letters();
    let replay = delivered.replaying(&["--dead", "--execute", "--rate", "20/s"]);
    delivered.receiver.wait_for(12);
    replay.kill();
    let (id, before) = (delivered.id(), delivered.receiver.count());
    let marked = delivered.plan(&["--dead"])["redriven"].as_u64().unwrap();
    assert!(marked > 0 && marked <= before as u64, "{marked} of {before} letters are marked");
    let ending = delivered.replay(&["--resume", &id, "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let hooks = delivered.receiver.take();
    assert_eq!(without_repeats(&hooks), of(&delivered, &["user-3", "user-4"]));
    assert_in_order(&hooks);
    let plan = delivered.plan(&["--dead"]);
    assert_eq!((&plan["events"], &plan["redriven"]), (&0.into(), &40.into()), "{plan}");
    println!("# killed with {marked} of 40 letters marked, {} delivered twice", hooks.len() - 40);
}

#[test]
fn a_resumed_redrive_leaves_out_dead_letters_that_another_one_has_sent() {
    let delivered = with_dead_letters();
    delivered.receiver.answers(|_| 503);
    let stopped = delivered.replay(&["--dead", "--execute", "--stop-after-failures", "3"]);
    assert_eq!(stopped.code(), 3, "{}", stopped.said);
    let id = delivered.id();
    delivered.receiver.answers(|_| 200);
    assert_eq!(delivered.replay(&["--dead", "--user", "user-3", "--execute"]).code(), 0);
    delivered.receiver.take();
    let plan = delivered.plan(&["--resume", &id]);
    assert_eq!((&plan["events"], &plan["redriven"]), (&20.into(), &20.into()), "{plan}");
    let ending = delivered.replay(&["--resume", &id, "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    for says in ["left out  20 redriven meanwhile", "20 delivered, 20 redriven meanwhile"] {
        assert!(ending.said.contains(says), "{says}: {}", ending.said);
    }
    assert_eq!(bodies(&delivered.receiver.take()), of(&delivered, &["user-4"]));
    let said = run(delivered.folder(), &["replay", "--url", "sqlite:log.db", "--list"]).said;
    let line = "20 of 40 delivered, 0 given up, 20 redriven meanwhile\n";
    assert!(said.contains(line), "{said}");
}

/// The rows of the commits of a group.
fn commits(database: &Connection, group: &str) -> Vec<(i64, i64, String)> {
    let mut statement = database.prepare("SELECT partition, watermark, settled FROM commits WHERE name = ?1").unwrap();
    let rows = statement.query_map([group], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn dead_letters_that_a_killed_redrive_has_marked_itself_are_its_own() {
    let delivered = with_dead_letters();
    let replay = delivered.replaying(&["--dead", "--execute", "--rate", "20/s"]);
    delivered.receiver.wait_for(1);
    let (id, database) = (delivered.id(), Connection::open(delivered.folder().join("log.db")).unwrap());
    let group = format!("hook.replay.{id}");
    let before = commits(&database, &group);
    let marked = || delivered.plan(&["--dead"])["redriven"].as_u64().unwrap();
    let first = marked();
    crate::support::wait::eventually(|| match marked() > first {
        true => Ok(()),
        false => Err("no further dead letter is marked".to_owned()),
    });
    replay.kill();
    // As if the process had been killed after the marks and before its own commit.
    for (partition, watermark, settled) in before {
        let update = "UPDATE commits SET watermark = ?1, settled = ?2 WHERE name = ?3 AND partition = ?4";
        assert_eq!(database.execute(update, (watermark, settled, &group, partition)).unwrap(), 1);
    }
    let plan = delivered.plan(&["--resume", &id]);
    assert_eq!((plan["events"].as_u64(), plan["redriven"].as_u64()), (Some(40 - marked()), Some(0)), "{plan}");
    let ending = delivered.replay(&["--resume", &id, "--execute"]);
    assert!(ending.code() == 0 && !ending.said.contains("meanwhile"), "{}", ending.said);
    let listed = &delivered.listed()[0];
    let sum = listed["counts"]["delivered"].as_u64().unwrap() + listed["settled_by_killed_runs"].as_u64().unwrap();
    assert_eq!((sum, &listed["redriven_meanwhile"]), (40, &0.into()), "{listed}");
}

#[test]
fn a_redrive_of_what_is_not_there_says_so_in_terms_of_dead_letters() {
    let delivered = with_dead_letters();
    for (arguments, code, says) in [
        (["--dead", "--user", "user-5"], 1, "there is no dead letter of the user user-5"),
        (["--dead", "--id", "e5"], 1, "no dead letter has the id e5"),
        (["--dead", "--user", ""], 2, "--user has 0 bytes"),
        (["--dead", "--limit", "1"], 0, "note      partitions and offsets are those of user-events.hook.dead"),
        (["--dead", "--reason", "refused"], 0, "events    0 from 0 users\n  note "),
    ] {
        let ending = delivered.replay(&arguments);
        assert!(ending.code() == code && ending.said.contains(says), "{arguments:?}: {}", ending.said);
    }
}

#[test]
fn a_redrive_to_a_file_writes_the_events_own_line() {
    let delivered = with_dead_letters();
    let mut command = command(delivered.folder(), &["replay", "--url", "sqlite:log.db", "--dest", "hook=lines"]);
    command.args(["--dead", "--execute"]);
    let ending = Program::spawn(command, "replay --dead to a file").end();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let lines = delivered::lines(&delivered.folder().join("lines"));
    let ending = run(
        delivered.folder(),
        &["replay", "--url", "sqlite:log.db", "--dest", "hook=all", "--from", "0", "--execute"],
    );
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let all = delivered::lines(&delivered.folder().join("all"));
    assert_eq!((lines.len(), all.len()), (40, 240));
    assert!(
        lines.iter().all(|line| all.contains(line)),
        "each line has the event's own user, payload, id, partition and offset"
    );
}
