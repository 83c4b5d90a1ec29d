//! A destination whose requests are signed. A replay without the secret is refused, and not sent without a signature.

use super::*;
use crate::conformance::unique;
use crate::kafka::address;
use crate::support::wait::eventually;

const SECRET: [&str; 2] = ["--webhook-secret-file", "secret"];

/// Sixty events, all sent with a signature. Those of `user-3` are dead letters.
fn signed(url: &[&str]) -> Delivered {
    let mut delivered = Delivered::empty(url);
    std::fs::write(delivered.folder().join("secret"), "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz\n").unwrap();
    delivered.receiver.answers(|hook| if hook.user() == "user-3" { 500 } else { 200 });
    let ingest = delivered.start("ingest", &["--listen", "127.0.0.1:0", "--create-topic"]);
    ingest.address();
    let quickly = ["--attempts", "2", "--backoff", "1ms"];
    let dispatch =
        delivered.start("dispatch", &[&["--dest", &delivered.destination()], &quickly[..], &SECRET].concat());
    delivered.post(&ingest, 0..60);
    eventually(|| match delivered.replay(&["--dead", "--json"]) {
        ending if ending.said.contains("\"events\":5,") => Ok(()),
        ending => Err(ending.said),
    });
    assert_eq!((dispatch.stop().code(), ingest.stop().code()), (0, 0));
    assert!(delivered.receiver.take().iter().all(is_signed), "dispatch signs every request");
    delivered.receiver.answers(|_| 200);
    delivered
}

fn is_signed(hook: &Hook) -> bool {
    hook.header("webhook-signature").starts_with("v1,")
}

impl Delivered {
    fn assert_it_is_redriven_only_with_the_secret(&self) {
        for what in [&["--dead"][..], &["--from", "0"], &["--user", "user-1"]] {
            let ending = self.replay(&[what, &["--execute"]].concat());
            assert_eq!(ending.code(), 2, "{what:?}: {}", ending.said);
            assert!(
                ending.said.contains("--webhook-secret-file") && ending.said.contains("--unsigned"),
                "{}",
                ending.said
            );
            let plan = self.replay(what);
            assert_eq!(plan.code(), 0, "{what:?}: {}", plan.said);
            assert!(plan.said.contains("nothing was delivered: dispatch signs"), "{what:?}: {}", plan.said);
        }
        assert_eq!(
            (self.receiver.count(), self.listed()),
            (0, Vec::new()),
            "nothing was sent, and no replay was recorded"
        );
        let ending = self.replay(&[&["--dead", "--execute"], &SECRET[..]].concat());
        assert_eq!(ending.code(), 0, "{}", ending.said);
        let hooks = self.receiver.take();
        assert!(hooks.len() == 5 && hooks.iter().all(is_signed), "{} hooks", hooks.len());
    }
}

#[test]
fn a_redrive_of_a_signed_destination_without_the_secret_is_refused() {
    let delivered = signed(&["--url", "sqlite:log.db"]);
    delivered.assert_it_is_redriven_only_with_the_secret();

    // A replay that was stopped needs the secret for the rest too.
    delivered.receiver.answers(|_| 503);
    let stopping = ["--from", "0", "--execute", "--stop-after-failures", "3"];
    assert_eq!(delivered.replay(&[&stopping[..], &SECRET].concat()).code(), 3);
    delivered.receiver.answers(|_| 200);
    delivered.receiver.take();
    let id = delivered.listed().pop().unwrap()["id"].as_str().unwrap().to_owned();
    let ending = delivered.replay(&["--resume", &id, "--execute"]);
    assert_eq!((ending.code(), delivered.receiver.count()), (2, 0), "{}", ending.said);
    // A reset of the position sends no request, and a file needs no signature.
    assert_eq!(delivered.replay(&["--rewind", "--from", "0"]).code(), 0);
    let file = delivered.arguments("replay", &["--dest", "hook=file-1", "--user", "user-1", "--execute"]);
    let ending = run(delivered.folder(), &file.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(ending.code(), 0, "{}", ending.said);

    // `--unsigned` is a decision, so a secret in the environment does not matter.
    let arguments = delivered
        .arguments("replay", &["--dest", &delivered.destination(), "--resume", &id, "--execute", "--unsigned"]);
    let mut command = command(delivered.folder(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    command.env("EVENTD_WEBHOOK_SECRET", "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz");
    let ending = Program::spawn(command, "an unsigned replay").end();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let hooks = delivered.receiver.take();
    assert!(!hooks.is_empty() && !hooks.iter().any(is_signed), "{} hooks", hooks.len());
}

#[test]
fn a_redrive_on_kafka_of_a_signed_destination_without_the_secret_is_refused() {
    let (address, topic) = (address(), unique("signed"));
    signed(&["--url", &address, "--topic", &topic]).assert_it_is_redriven_only_with_the_secret();
}

#[test]
fn a_destination_that_is_no_longer_signed_is_replayed_without_a_secret() {
    let delivered = signed(&["--url", "sqlite:log.db"]);
    let dispatch = delivered.start("dispatch", &["--dest", &delivered.destination()]);
    dispatch.wait_for(&["requests were signed before and are not signed now"]);
    dispatch.wait_for(&["delivering"]);
    assert_eq!(dispatch.stop().code(), 0);
    let ending = delivered.replay(&["--dead", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let again = delivered.start("dispatch", &["--dest", &delivered.destination()]);
    again.wait_for(&["delivering"]);
    assert!(!again.stop().said.contains("were signed before"), "the warning appears once");
}
