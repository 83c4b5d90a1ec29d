//! Names and secrets of destinations. A name contains no secret, a changed secret delivers nothing again without a
//! warning, and no output shows a secret of the command line.

use crate::conformance::unique;
use crate::kafka;
use crate::support::broker::tool;
use crate::support::client::Client;
use crate::support::program::{Program, command, run};
use crate::support::receiver::{Receiver, bodies};
use eventd::destination::spec::Spec;
use eventd::log::kafka::Kafka;
use eventd::log::{CreateTopic, Engine};
use eventd::net::BrokerSettings;
use std::path::Path;

const SECRET: &str = "hunter2";

fn post(program: &Program, body: &str) {
    let answer = Client::connect(&program.address()).unwrap().post(body).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// The receiver's URL with a user, a password and a query.
fn with_secrets(receiver: &Receiver, password: &str) -> String {
    format!("{}?token={password}", receiver.url.replace("http://", &format!("http://user:{password}@")))
}

/// Runs `up` until its log has this line, posts one event, waits until each destination has delivered it, and stops.
fn deliver(
    folder: &Path,
    log: &[&str],
    destinations: &[&str],
    says: &[&str],
    event: Option<(&str, &Receiver)>,
) -> String {
    let dest = destinations.iter().flat_map(|dest| ["--dest", dest]);
    let arguments: Vec<&str> =
        ["up", "--listen", "127.0.0.1:0"].into_iter().chain(log.iter().copied()).chain(dest).collect();
    let up = Program::start(folder, &arguments);
    up.wait_for(says);
    if let Some((payload, receiver)) = event {
        let before = receiver.count();
        post(&up, &one(payload));
        receiver.wait_for(before + destinations.len());
    }
    up.signal("TERM");
    let ending = up.end();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    ending.said
}

fn one(payload: &str) -> String {
    format!(r#"{{"UserID": "u", "Payload": "{payload}"}}"#)
}

fn payloads(receiver: &Receiver) -> Vec<String> {
    bodies(&receiver.take()).remove("u").unwrap_or_default()
}

/// A destination whose password and token change continues at its position, on either engine.
fn a_rotated_secret_repeats_nothing(log: &[&str]) {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start());
    let urls = ["first-secret", "second-secret"].map(|secret| with_secrets(&receiver, secret));
    deliver(folder.path(), log, &[&urls[0]], &["delivering"], Some(("a", &receiver)));
    let said = deliver(folder.path(), log, &[&urls[1]], &["delivering"], Some(("b", &receiver)));
    assert_eq!(payloads(&receiver), ["a", "b"], "{said}");
    assert!(!said.contains("new destination") && !said.contains("-secret"), "{said}");
    let name = Spec::parse(&receiver.url).unwrap().name;
    assert!(said.contains(&format!("destination={name} ")), "the name is the URL without secrets: {name}: {said}");
}

/// A destination whose commits are stored under the name of an earlier version keeps that name, and a warning says why
/// it should change.
fn an_earlier_name_is_kept(log: &[&str]) {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start());
    let url = with_secrets(&receiver, SECRET);
    let earlier = Spec::parse(&url).unwrap().earlier_name.unwrap();
    deliver(folder.path(), log, &[&format!("{earlier}={url}")], &["delivering", &earlier], Some(("a", &receiver)));
    let hint = format!("--dest {earlier}=URL");
    let said = deliver(folder.path(), log, &[&url], &["WARN", &earlier, &hint], Some(("b", &receiver)));
    assert_eq!(payloads(&receiver), ["a", "b"], "{said}");
    let replay: Vec<&str> = ["replay", "--dest", &url, "--from", "0"].into_iter().chain(log.iter().copied()).collect();
    let log = if log.is_empty() { &["--url", "sqlite:eventd.db"][..] } else { &[] };
    let plan = run(folder.path(), &[&replay[..], log].concat());
    assert!(plan.code() == 0 && plan.said.contains(&earlier), "{}", plan.said);
}

#[test]
fn a_rotated_secret_repeats_nothing_on_the_embedded_log() {
    a_rotated_secret_repeats_nothing(&[]);
}

#[test]
fn a_rotated_secret_repeats_nothing_on_kafka() {
    let (address, topic) = (kafka::address(), unique("rotated"));
    a_rotated_secret_repeats_nothing(&["--url", &address, "--topic", &topic, "--create-topic"]);
}

#[test]
fn an_earlier_name_is_kept_on_the_embedded_log() {
    an_earlier_name_is_kept(&[]);
}

#[test]
fn an_earlier_name_is_kept_on_kafka() {
    let (address, topic) = (kafka::address(), unique("earlier"));
    an_earlier_name_is_kept(&["--url", &address, "--topic", &topic, "--create-topic"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_name_whose_commits_expired_is_kept_and_requires_start() {
    let (address, topic) = (kafka::address(), unique("expired"));
    let log = ["--url", &address, "--topic", &topic, "--create-topic"];
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start());
    let url = with_secrets(&receiver, SECRET);
    let earlier = Spec::parse(&url).unwrap().earlier_name.unwrap();
    deliver(folder.path(), &log, &[&format!("{earlier}={url}")], &["delivering", &earlier], Some(("a", &receiver)));
    // This is what remains of a destination that has given up an event.
    let brokers = Kafka::connect(BrokerSettings::plain(vec![address.clone()])).await.unwrap();
    let create = CreateTopic { partitions: 1, retention: None };
    brokers.open(&format!("{topic}.{earlier}.dead"), Some(create)).await.unwrap();
    tool("kafka-consumer-groups", &address, &["--delete", "--group", &earlier]);

    let dispatch =
        |flags: &[&str]| Program::start(folder.path(), &[&["dispatch", "--dest", &url][..], &log[..4], flags].concat());
    let stopped = dispatch(&[]);
    stopped.wait_for(&["this partition is stopped", "has expired", &earlier, "--start"]);
    stopped.stop();
    let dispatch = dispatch(&["--start", "earliest"]);
    receiver.wait_for(2);
    assert_eq!(payloads(&receiver), ["a", "a"]);
    assert_eq!(dispatch.stop().code(), 0);
}

#[test]
fn only_a_new_destination_says_what_it_will_deliver() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start();
    let first = format!("first={}", receiver.url);
    let said =
        deliver(folder.path(), &[], &[&first], &["INFO", "new destination", "no events"], Some(("a", &receiver)));
    assert!(!said.contains("WARN"), "{said}");
    let said = deliver(folder.path(), &[], &[&first], &["delivering"], Some(("b", &receiver)));
    assert!(!said.contains("new destination"), "{said}");
    let expected = ["WARN", "new destination", "starts at the earliest event", "destination=file-2 ", "events=2"];
    let said = deliver(folder.path(), &[], &[&first, "file-2"], &expected, None);
    assert_eq!(said.matches("new destination").count(), 1, "{said}");
    assert!(said.contains("oldest=\"20") && said.contains("first_offsets=\"p"), "{said}");
    let latest = ["WARN", "new destination", "will NOT be delivered", "destination=file-3 ", "events=2"];
    deliver(folder.path(), &["--start", "latest"], &["file-3"], &latest, None);
    assert!(!folder.path().join("file-3").exists() || std::fs::read(folder.path().join("file-3")).unwrap().is_empty());
}

#[test]
fn two_urls_that_differ_only_in_a_secret_need_explicit_names() {
    let folder = tempfile::tempdir().unwrap();
    let up = ["up", "--listen", "127.0.0.1:0"];
    let refused = run(folder.path(), &[&up[..], &["--dest", "http://h/?a=1", "--dest", "http://h/?a=2"]].concat());
    assert!(refused.code() == 2 && refused.said.contains("NAME=DEST"), "{}", refused.said);
    let receiver = Receiver::start();
    let [a, b] = ["a", "b"].map(|name| format!("{name}={}?is={name}", receiver.url));
    deliver(folder.path(), &[], &[&a, &b], &["delivering", "destination=b "], Some(("x", &receiver)));
    assert_eq!(payloads(&receiver), ["x", "x"]);
}

#[test]
fn no_error_shows_a_secret_of_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let urls = [
        "kafka://user:hunter2@localhost:9092",
        "user:hunter2@localhost:9092",
        "kafka://user:hunter2@localhost:9092,localhost:9093",
        "kafka://user:hun/hunter2@localhost",
        "kafka:user:hunter2@localhost:9092",
        "kafka://localhost:9092?sasl.password=hunter2",
        "kafka://localhost:9092,localhost:9093?password=hunter2",
        "postgres://user:hunter2@localhost/db",
        "user:hunter2@h1:9092,h2:9092",
        "sqlite://user:hunter2@x.db",
        "sqlite:x.db?password=hunter2",
    ];
    let destinations = [
        "http://user:hunter2@",
        "http://user:hunter2@h:port/",
        "http://user:hunter2@h/a b",
        "http://user:hun ter/hunter2@h/",
        "http://h:x/?token=hunter2",
        "htp://user:hunter2@h/",
        "http://user:hunter2@bücher.example/?x=hunter2",
        "n a m e=http://user:hunter2@h/",
        "http//user:hunter2@h/",
        "h/hook?token=hunter2",
        "http://user:hunter2@h/x,http://user:hunter2@h/y",
    ];
    let mut said = Vec::new();
    for url in urls {
        for mode in [&["ingest", "--url", url][..], &["dispatch", "--dest", "null:", "--url", url], &["up", url]] {
            said.push(run(folder.path(), mode));
        }
        let mut by_variable = command(folder.path(), &["ingest"]);
        by_variable.env("EVENTD_URL", url);
        said.push(Program::spawn(by_variable, url).end());
    }
    for destination in destinations {
        for mode in [
            &["up", "--dest", destination][..],
            &["dispatch", "--dest", destination],
            &["replay", "--dest", destination, "--from", "0"],
            &["up", destination],
            &[destination],
            &["--dest", destination, "up"],
        ] {
            said.push(run(folder.path(), mode));
        }
    }
    for ending in said {
        assert!(ending.code() == 2 && !ending.said.contains(SECRET), "{}", ending.said);
        assert!(ending.said.contains("error"), "{}", ending.said);
    }
    let mut help = command(folder.path(), &["up", "--help"]);
    help.env("EVENTD_URL", urls[0]);
    let help = Program::spawn(help, "up --help").end();
    assert!(help.code() == 0 && !help.said.contains(SECRET), "{}", help.said);
    assert!(!folder.path().join("eventd.db").exists(), "a refused command line creates nothing");
}

#[test]
fn a_file_that_cannot_be_a_secret_is_refused_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("short"), "x\n").unwrap();
    std::fs::write(path("two"), "the first secret of two\nthe second secret of two\n").unwrap();
    std::fs::write(path("binary"), [0xff; 32]).unwrap();
    std::fs::write(path("empty"), "\n").unwrap();
    let (short, two, binary, empty) = (path("short"), path("two"), path("binary"), path("empty"));
    let folder_itself = folder.path().to_str().unwrap();
    let webhook = |file: &str, why: &str| {
        let ending = run(folder.path(), &["dispatch", "--dest", "http://h/", "--webhook-secret-file", file]);
        assert!(
            ending.code() == 2 && ending.said.contains(why) && ending.said.contains(file),
            "{file}: {}",
            ending.said
        );
    };
    webhook(&short, "too short");
    webhook(&two, "more than one line");
    webhook(&binary, "UTF-8");
    webhook(&empty, "is empty");
    webhook("/dev/zero", "more than 16384 bytes");
    webhook("/dev/null", "is empty");
    webhook(folder_itself, "directory");
    let webhook = ["dispatch", "--dest", "http://h/", "--webhook-secret-file"];
    for given in ["whsec_aHVudGVyMmh1bnRlcjJodW50ZXIy", "whsec_aHVudGVyMg==", "crm=whsec_aHVudGVyMg=="] {
        let ending = run(folder.path(), &[&webhook[..], &[given]].concat());
        assert!(ending.code() == 2 && ending.said.contains("is a secret"), "{}", ending.said);
        assert!(!ending.said.contains("aHVudGVyM"), "{}", ending.said);
    }
    let login = ["--sasl-mechanism", "plain", "--sasl-username", "u", "--sasl-password-file"];
    for (file, why) in [("/dev/zero", "more than"), (&two, "more than one line"), (&empty, "is empty")] {
        let ending = run(folder.path(), &[&["ingest"], &login[..], &[file]].concat());
        assert!(ending.code() == 2 && ending.said.contains(why) && ending.said.contains(file), "{}", ending.said);
    }
    for file in ["/dev/zero", "/dev/null", folder_itself] {
        let ending = run(folder.path(), &["ingest", "--tls-ca-file", file]);
        assert!(ending.code() == 2 && ending.said.contains(file), "{}", ending.said);
    }
}

#[test]
fn two_destinations_cannot_write_to_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let up = ["up", "--listen", "127.0.0.1:0", "--dest", "a=out.jsonl", "--dest", "b=./out.jsonl"];
    let refused = run(folder.path(), &up);
    assert!(refused.code() == 2 && refused.said.contains("the same file"), "{}", refused.said);
}

#[test]
fn a_closed_standard_output_is_refused_and_delivers_no_event() {
    let folder = tempfile::tempdir().unwrap();
    let shell = |script: &str| {
        let mut command = std::process::Command::new("sh");
        command.arg("-c").arg(script).arg("sh").arg(env!("CARGO_BIN_EXE_eventd")).current_dir(folder.path());
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
        Program::spawn(
            {
                command.stderr(std::process::Stdio::piped());
                command
            },
            script,
        )
    };
    let closed = shell("exec \"$1\" dispatch --url sqlite:eventd.db --dest - >&-").end();
    assert!(closed.code() == 2 && closed.said.contains("standard output is closed"), "{}", closed.said);
    let discarded = shell("exec \"$1\" dispatch --url sqlite:eventd.db --dest - >/dev/null");
    discarded.wait_for(&["delivering"]);
    assert_eq!(discarded.stop().code(), 0, "throwing events away was asked for");
}
