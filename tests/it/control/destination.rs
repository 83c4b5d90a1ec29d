//! Commands about the whole destination.

use super::*;

fn a_pause_lasts_over_a_restart_until_a_resume(controlled: &Controlled) {
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..12);
    controlled.receiver.wait_for(12);
    let said = controlled.applied(&["pause", "--reason", "deploy of billing"]);
    assert!(said.contains("pause of hook"), "{said}");
    dispatch.wait_for(&["the destination is paused since", "deploy of billing", "eventd control resume"]);
    controlled.post(12..24);
    std::thread::sleep(A_WHILE);
    assert_eq!(controlled.receiver.count(), 12, "nothing is attempted while it is paused");
    assert_eq!(dispatch.stop().code(), 0);

    let dispatch = controlled.dispatch(&[]);
    dispatch.wait_for(&["the destination is paused since", "deploy of billing"]);
    std::thread::sleep(A_WHILE);
    assert_eq!(controlled.receiver.count(), 12, "nor after a restart");
    let said = controlled.applied(&["resume"]);
    assert!(said.contains("paused since") && said.contains("12 events wait"), "{said}");
    controlled.receiver.wait_for(24);
    dispatch.wait_for(&["the destination was resumed"]);
    assert_eq!(dispatch.stop().code(), 0);
    assert_eq!(controlled.payloads("user-1"), [1, 7, 13, 19]);
}

#[test]
fn a_pause_lasts_over_a_restart_until_a_resume_on_sqlite() {
    a_pause_lasts_over_a_restart_until_a_resume(&Controlled::on_sqlite());
}

#[test]
fn a_pause_lasts_over_a_restart_until_a_resume_on_kafka() {
    a_pause_lasts_over_a_restart_until_a_resume(&Controlled::on_kafka());
}

fn a_command_without_an_owner_is_applied_at_the_next_start(controlled: &Controlled) {
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    assert_eq!(dispatch.stop().code(), 0);
    let ending = controlled.control(&["pause"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert!(ending.said.contains("no process delivers to hook now"), "{}", ending.said);
    controlled.post(6..12);
    let dispatch = controlled.dispatch(&[]);
    dispatch.wait_for(&["the destination is paused since"]);
    std::thread::sleep(A_WHILE);
    assert_eq!(controlled.receiver.count(), 6, "it is applied before the first attempt");
    controlled.applied(&["resume"]);
    controlled.receiver.wait_for(12);
    assert_eq!(dispatch.stop().code(), 0);
}

#[test]
fn a_command_without_an_owner_is_applied_at_the_next_start_on_sqlite() {
    a_command_without_an_owner_is_applied_at_the_next_start(&Controlled::on_sqlite());
}

#[test]
fn a_command_without_an_owner_is_applied_at_the_next_start_on_kafka() {
    a_command_without_an_owner_is_applied_at_the_next_start(&Controlled::on_kafka());
}

#[test]
fn a_rate_is_kept_by_the_owner_and_over_a_restart() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    controlled.applied(&["rate", "20/s"]);
    dispatch.wait_for(&["the rate of events was changed: 20/s"]);
    assert_eq!(dispatch.stop().code(), 0);
    controlled.receiver.take();
    let dispatch = controlled.dispatch(&[]);
    controlled.post(6..46);
    controlled.receiver.wait_for(40);
    let hooks = controlled.receiver.take();
    let took = hooks.last().unwrap().at - hooks.first().unwrap().at;
    assert!(took >= Duration::from_millis(1_600), "40 events at 20/s took {took:?}");
    let plan = &controlled.json(&["rate", "off"])[0];
    assert_eq!((&plan["command"], &plan["rate_before"]), (&"rate".into(), &"20/s".into()), "{plan}");
    assert_eq!(plan["rate"], "off", "{plan}");
    dispatch.wait_for(&["the rate of events was changed: no limit"]);
    assert_eq!(dispatch.stop().code(), 0);
}

#[test]
fn the_flag_of_dispatch_limits_the_rate() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&["--rate", "20/s"]);
    controlled.post(0..40);
    controlled.receiver.wait_for(40);
    let hooks = controlled.receiver.take();
    let took = hooks.last().unwrap().at - hooks.first().unwrap().at;
    assert!(took >= Duration::from_millis(1_600), "40 events at 20/s took {took:?}");
    assert_eq!(dispatch.stop().code(), 0);
}

#[test]
fn two_processes_are_paused_and_limited_together_on_kafka() {
    let controlled = Controlled::on_kafka();
    let (one, two) = (controlled.dispatch(&[]), controlled.dispatch(&[]));
    controlled.post(0..24);
    controlled.receiver.wait_for(24);
    controlled.applied(&["pause"]);
    one.wait_for(&["the destination is paused since"]);
    two.wait_for(&["the destination is paused since"]);
    controlled.post(24..48);
    std::thread::sleep(A_WHILE);
    assert_eq!(controlled.receiver.count(), 24);
    assert_eq!(one.stop().code(), 0);
    std::thread::sleep(A_WHILE);
    assert_eq!(controlled.receiver.count(), 24, "the partitions are still paused at their next owner");
    controlled.applied(&["resume"]);
    controlled.receiver.wait_for(48);
    assert_eq!(two.stop().code(), 0);
}

#[test]
fn a_probe_tries_an_open_breaker_at_once() {
    let controlled = Controlled::on_sqlite();
    controlled.receiver.answers(|_| 503);
    let dispatch = controlled.dispatch(&["--backoff", "100ms"]);
    controlled.post(0..60);
    eventually(|| if controlled.receiver.refused() > 0 { Ok(()) } else { Err("no attempt yet".to_owned()) });
    eventually(|| {
        let ending = controlled.control(&["probe"]);
        assert_eq!(ending.code(), 0, "{}", ending.said);
        match dispatch.lines().contains("a probe is sent now, as was asked for") {
            true => Ok(()),
            false => Err(format!("{}\n{}", ending.said, dispatch.lines())),
        }
    });
    controlled.receiver.answers(|_| 200);
    controlled.receiver.wait_for(60);
    assert_eq!(dispatch.stop().code(), 0);
}

#[test]
fn a_second_pause_says_who_paused_first_and_changes_nothing() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    let said = controlled.applied(&["pause", "--reason", "deploy of billing"]);
    assert!(said.contains("now: paused since") && said.contains("(deploy of billing)"), "{said}");
    let said = controlled.applied(&["pause", "--reason", "me, too"]);
    assert_eq!(said.matches("(deploy of billing)").count(), 2, "before and after: {said}");
    assert!(said.contains("already, and that stays") && !said.contains("me, too"), "{said}");
    let plan = &controlled.json(&["resume"])[0];
    assert_eq!(plan["paused_reason"], "deploy of billing", "{plan}");
    assert!(plan["paused_since_ms"].is_i64() && plan["paused_by"].is_string(), "{plan}");
    assert_eq!(dispatch.stop().code(), 0);
}

#[test]
fn commands_that_are_stored_and_not_applied_are_told_and_a_start_logs_what_they_leave() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    assert_eq!(dispatch.stop().code(), 0);
    for words in [&["pause"][..], &["rate", "5/s"], &["rate", "7/s"]] {
        assert_eq!(controlled.control(words).code(), 0, "{words:?}");
    }
    let ending = controlled.control(&["resume"]);
    assert!(ending.said.contains("note: a pause by"), "{}", ending.said);
    assert!(ending.said.contains("is stored and not applied yet"), "{}", ending.said);
    assert!(!ending.said.contains("which is not paused"), "{}", ending.said);
    let ending = controlled.control(&["hold", "--user", "ann"]);
    assert!(!ending.said.contains("note: "), "it is about something else: {}", ending.said);
    let ending = controlled.control(&["release", "--user", "ann"]);
    assert_eq!(ending.code(), 0, "the user will be held: {}", ending.said);
    let dispatch = controlled.dispatch(&[]);
    dispatch.wait_for(&["the rate of events was changed: 7/s"]);
    controlled.post(6..12);
    controlled.receiver.wait_for(12);
    let lines = dispatch.stop().said;
    assert!(!lines.contains("paused since") && !lines.contains("changed: 5/s"), "{lines}");
}

#[test]
fn the_log_lines_about_a_resume_and_a_rate_each_have_their_own_reason() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    controlled.applied(&["pause"]);
    // The owners find both commands in one look.
    dispatch.signal("STOP");
    for words in [&["resume", "--reason", "deploy is over"][..], &["rate", "50/s", "--reason", "their database"]] {
        assert_eq!(controlled.control(&[words, &["--wait", "0s"]].concat()).code(), 3, "{words:?}");
    }
    dispatch.signal("CONT");
    dispatch.wait_for(&["the destination was resumed"]);
    dispatch.wait_for(&["the rate of events was changed: 50/s"]);
    let lines = dispatch.stop().said;
    for (line, reason) in [("was resumed", "deploy is over"), ("was changed: 50/s", "their database")] {
        let line = lines.lines().find(|other| other.contains(line)).unwrap();
        assert!(line.contains(reason), "{reason}: {line}");
    }
}

#[test]
fn line_breaks_of_an_operator_forge_no_line() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    let forged = "now: not paused";
    let arguments = ["control", "pause", "--url", "sqlite:log.db", "--dest", "hook", "--wait", "60s"];
    let mut pause = command(controlled.folder.path(), &arguments);
    pause.args(["--reason", &format!("deploy\n{forged}")]).env("USER", format!("ann\n{forged}\n"));
    let paused = Program::spawn(pause, "pause of an operator with line breaks").end();
    assert_eq!(paused.code(), 0, "{}", paused.said);
    let resumed = controlled.applied(&["resume"]);
    for (said, lines_max) in [(&paused.said, 0), (&resumed, 1)] {
        assert!(said.contains("by ann\\nnow: not paused\\n@"), "{said}");
        assert_eq!(said.lines().filter(|line| line.starts_with(forged)).count(), lines_max, "{said}");
    }
    assert_eq!(dispatch.stop().code(), 0);
}
