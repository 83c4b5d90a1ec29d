//! What cannot be replayed, and the error for it. A refused replay leaves no trace.

use super::*;

#[test]
fn a_replay_that_is_not_possible_is_refused_and_leaves_no_trace() {
    let delivered = Delivered::new(60);
    let elsewhere = ["--dest", "null:"];
    std::fs::write(delivered.folder().join("nobody"), "\n").unwrap();
    for (code, arguments, says) in [
        (2, &["--dest", "null:", "--from", "0"][..], "was ever delivered under the name \"null\""),
        (2, &["--from", "0"], "--dest"),
        (2, &elsewhere, "nothing says what to replay"),
        (2, &["--dest", "hook=null:", "--from", "yesterday"], "not understood"),
        (2, &["--dest", "hook=null:", "--from", "p1:0,p1:5"], "named twice"),
        (2, &["--dest", "hook=null:", "--from", "2999-01-01"], "in the future"),
        (2, &["--dest", "hook=null:", "--from", "24:00"], "24:00 today is still to come"),
        (2, &["--dest", "hook=null:", "--from", "02:75"], "not a time of day"),
        (1, &["--dest", "hook=null:", "--from", "1767350000"], "write @1767350000"),
        (
            1,
            &["--dest", "hook=null:", "--from", "0", "--until", "1767350000123"],
            "(2026-01-02T10:33:20.123Z), write @1767350000.123",
        ),
        (
            1,
            &["--dest", "hook=null:", "--fast-forward", "1767350000"],
            "--fast-forward 1767350000 is read as an offset",
        ),
        (1, &["--dest", "hook=null:", "--fast-forward", "0"], "--fast-forward 0 is outside the log"),
        (2, &["--dest", "hook=null:", "--from", "9", "--until", "3"], "--from 9 is not before --until 3"),
        (2, &["--dest", "hook=null:", "--from", "1h", "--until", "2h"], "not before"),
        (2, &["--dest", "hook=null:", "--from", "0", "--rate", "5"], "500/s"),
        (2, &["--dest", "hook=null:", "--from", "0", "--limit", "0"], "--limit"),
        (2, &["--dest", "hook=null:", "--user", "@missing"], "missing"),
        (2, &["--dest", "hook=null:", "--user", "@nobody"], "the file is empty"),
        (2, &["--dest", "hook=null:", "--resume", "20260102-030405-abcdef"], "there is no replay"),
        (2, &["--dest", "hook=null:", "--resume", "../other"], "--resume"),
        (2, &["--dest", "hook=null:", "--resume", "a", "--from", "0"], "cannot be used with"),
        (2, &["--list"], "cannot be used with"),
        (2, &["--dest", "hook=null:", "--dead", "--from", "0"], "cannot be used with"),
        (2, &["--dest", "hook=null:", "--from", "0", "--reason", "refused"], "cannot be used with"),
        (2, &["--dest", "hook=null:", "--user", "user-1", "--since", "2h"], "--dead"),
        (2, &["--dest", "hook=null:", "--dead", "--reason", "bored"], "exhausted"),
        (2, &["--dest", "hook=null:", "--dead", "--since", "5"], "an age"),
        (1, &["--dest", "hook=null:", "--dead"], "\"hook\" has no dead letters"),
        (1, &["--dest", "hook=null:", "--from", "60"], "--from 60 is outside the log: the log holds partition 0"),
        (1, &["--dest", "hook=null:", "--from", "p0:1000"], "past the end"),
        (
            1,
            &["--dest", "hook=null:", "--from", "p7:0"],
            "--from p7:0: the topic has no partition 7, its partitions are 0 to 2",
        ),
        (1, &["--dest", "hook=null:", "--from", "0", "--user", "nobody"], "no event of the user nobody"),
        (1, &["--dest", "hook=null:", "--id", "e1", "--id", "e61"], "no event in the range has the id e61"),
    ] {
        let arguments = delivered.arguments("replay", &[arguments, &["--execute"]].concat());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ending = run(delivered.folder(), &arguments);
        assert_eq!(ending.code(), code, "{arguments:?}: {}", ending.said);
        assert!(ending.said.contains(says), "{arguments:?} does not say {says:?}: {}", ending.said);
    }
    for missing in [["--url", "sqlite:missing.db"], ["--topic", "missing"]] {
        let arguments =
            delivered.arguments("replay", &[&["--dest", "hook=null:", "--from", "0"], &missing[..]].concat());
        // Giving a flag twice would be an error of its own, so `missing` replaces the usual log.
        let arguments: Vec<&str> = match missing[0] {
            "--url" => [&["replay"], &missing[..], &["--dest", "hook=null:", "--from", "0"]].concat(),
            _ => arguments.iter().map(String::as_str).collect(),
        };
        let ending = run(delivered.folder(), &arguments);
        assert_eq!(ending.code(), 2, "{arguments:?}: {}", ending.said);
        assert!(ending.said.contains("missing"), "{arguments:?}: {}", ending.said);
    }
    assert_eq!(delivered.listed(), Vec::<Value>::new());
    assert!(!delivered.folder().join("missing.db").exists(), "a replay must not create a database");
}

#[test]
fn a_log_without_events_is_called_so() {
    let delivered = Delivered::empty(&["--url", "sqlite:log.db"]);
    let up = delivered.up();
    up.wait_for(&["delivering"]);
    assert_eq!(up.stop().code(), 0);
    for from in ["0", "p0:0"] {
        let ending = delivered.replay(&["--from", from]);
        assert_eq!(ending.code(), 1, "{}", ending.said);
        assert!(ending.said.contains("the log has no events yet"), "{}", ending.said);
    }
}

#[test]
fn an_end_alone_starts_at_the_beginning_of_the_log() {
    let delivered = Delivered::new(60);
    let plan = delivered.plan(&["--until", "p0:5,p1:5,p2:5"]);
    assert!(
        plan["partitions"].as_array().unwrap().iter().all(|part| part["from"] == 0 && part["until"] == 5),
        "{plan}"
    );
    let plan = delivered.plan(&["--until", "1h"]);
    assert_eq!(plan["events"], 0, "{plan}");
}

#[test]
fn a_replay_of_one_destination_is_not_resumed_for_another() {
    let delivered = Delivered::new(60);
    delivered.receiver.answers(|_| 503);
    assert_eq!(delivered.replay(&["--from", "0", "--execute", "--stop-after-failures", "3"]).code(), 3);
    let id = delivered.id();
    let other = run(delivered.folder(), &["replay", "--url", "sqlite:log.db", "--dest", "null:", "--resume", &id]);
    assert_eq!(other.code(), 2, "{}", other.said);
    assert!(other.said.contains("is of destination \"hook\", and --dest is \"null\""), "{}", other.said);
}

#[test]
fn users_of_a_file_without_events_in_the_range_are_reported_without_an_error() {
    let delivered = Delivered::new(60);
    // Some editors begin a file with a byte order mark.
    std::fs::write(delivered.folder().join("users"), "\u{feff}user-1\r\nnobody\r\n").unwrap();
    let ending = delivered.replay(&["--user", "@users"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert!(ending.said.contains("no event of the user nobody"), "{}", ending.said);
    assert!(ending.said.contains("events    5 from 1 user\n"), "{}", ending.said);
}

#[test]
fn no_environment_variable_executes_a_replay() {
    let delivered = Delivered::new(60);
    let mut command = command(delivered.folder(), &["replay", "--from", "0"]);
    command.env("EVENTD_URL", "sqlite:log.db").env("EVENTD_DEST", delivered.destination()).env("EVENTD_RATE", "30/s");
    command.env("EVENTD_EXECUTE", "true").env("EVENTD_FROM", "59");
    let ending = Program::spawn(command, "replay, configured by its environment").end();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert!(ending.said.contains("2s at 30/s") && ending.said.contains("nothing was delivered"), "{}", ending.said);
    assert_eq!(delivered.receiver.count(), 0);
}
