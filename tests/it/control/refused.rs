//! Commands that are refused, with what they say.

use super::*;

#[test]
fn a_wrong_command_line_is_an_error_that_says_what_to_write() {
    let controlled = Controlled::on_sqlite();
    for (words, says) in [
        (&["stop"][..], "[possible values: pause, resume, rate, probe, retry, hold, release, give-up]"),
        (&["pause", "5/s"], "only `rate` has a value"),
        (&["rate"], "the rate is missing"),
        (&["rate", "fast"], "write 500/s"),
        (&["hold"], "--user is missing"),
        (&["hold", "--user", ""], "it has 0 bytes: write 1 to 1024"),
        (&["hold", "--user", &"u".repeat(1100)], "it has 1100 bytes: write 1 to 1024"),
        (&["pause", "--create-topic"], "unexpected argument '--create-topic'"),
        (&["pause", "--max-db-bytes", "1GiB"], "unexpected argument '--max-db-bytes'"),
        (&["pause", "--user", "u"], "--user is only for"),
        (&["hold", "--user", "u", "--offset", "0:1"], "--offset is only for give-up"),
        (&["give-up", "--user", "u", "--offset", "1"], "write the partition and the offset"),
        (&["pause", "--reason", &"x".repeat(501)], "at most 500"),
    ] {
        let ending = controlled.control(words);
        assert_eq!(ending.code(), 2, "{words:?}: {}", ending.said);
        assert!(ending.said.contains(says), "{words:?}: {}", ending.said);
    }
}

#[test]
fn an_unknown_destination_is_refused_and_nothing_is_created() {
    let controlled = Controlled::on_sqlite();
    let ending = controlled.control(&["pause"]);
    assert_eq!(ending.code(), 2, "{}", ending.said);
    assert!(
        ending.said.contains("no destination \"hook\" has delivered the topic \"user-events\" yet"),
        "{}",
        ending.said
    );
    let database = rusqlite::Connection::open(controlled.folder.path().join("log.db")).unwrap();
    let topics: i64 =
        database.query_row("SELECT count(*) FROM topics WHERE name LIKE '%.control'", [], |row| row.get(0)).unwrap();
    assert_eq!(topics, 0);
}

#[test]
fn an_unknown_destination_is_told_the_names_that_exist() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    assert_eq!(dispatch.stop().code(), 0);
    let ending = controlled.control_of("hok", &["pause"]);
    assert_eq!(ending.code(), 2, "{}", ending.said);
    assert!(ending.said.contains("Destinations of this topic: hook"), "{}", ending.said);
}

#[test]
fn a_topic_that_does_not_exist_is_not_to_be_created() {
    let controlled = Controlled::on_sqlite();
    let ending = controlled.control(&["pause", "--topic", "user-evnts"]);
    assert_eq!(ending.code(), 2, "{}", ending.said);
    let says = "does not exist: correct --topic or --url";
    assert!(ending.said.contains(says) && !ending.said.contains("--create-topic"), "{}", ending.said);
}

#[test]
fn a_mistyped_user_is_refused_and_nothing_is_stored() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    for command in ["release", "retry"] {
        let ending = controlled.control(&[command, "--user", "usr-1"]);
        assert_eq!(ending.code(), 1, "{}", ending.said);
        let says = "is not held and has no events that wait: nothing to do. Check --user";
        assert!(ending.said.contains(says) && !ending.said.contains("stored"), "{}", ending.said);
    }
    let ending = controlled.control(&["give-up", "--user", "usr-1"]);
    assert_eq!(ending.code(), 1, "{}", ending.said);
    assert!(ending.said.contains("there is nothing to give up. Check --user"), "{}", ending.said);
    let ending = controlled.control(&["give-up", "--user", "user-1", "--offset", "99:1"]);
    assert_eq!(ending.code(), 2, "{}", ending.said);
    assert!(ending.said.contains("--offset 99:1: the topic has partitions 0 to 2"), "{}", ending.said);
    let said = controlled.applied(&["hold", "--user", "usr-1"]);
    assert!(said.contains("no event of this user waits; if you expected some, check --user"), "{said}");
    assert_eq!(dispatch.stop().code(), 0);
}

#[test]
fn a_command_that_is_not_applied_in_time_stays_stored() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    dispatch.signal("STOP");
    let ending = controlled.control(&["pause", "--wait", "100ms"]);
    dispatch.signal("CONT");
    assert_eq!(ending.code(), 3, "{}", ending.said);
    assert!(ending.said.contains("not applied within 100ms in partitions 0, 1, 2"), "{}", ending.said);
    dispatch.wait_for(&["the destination is paused since"]);
    assert_eq!(dispatch.stop().code(), 0);
}
