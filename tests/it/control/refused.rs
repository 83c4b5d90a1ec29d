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
fn a_command_that_is_not_applied_in_time_stays_stored() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    dispatch.signal("STOP");
    let ending = controlled.control(&["pause", "--wait", "100ms"]);
    dispatch.signal("CONT");
    assert_eq!(ending.code(), 3, "{}", ending.said);
    assert!(ending.said.contains("not applied by p0, p1, p2 yet"), "{}", ending.said);
    dispatch.wait_for(&["the destination is paused since"]);
    assert_eq!(dispatch.stop().code(), 0);
}
