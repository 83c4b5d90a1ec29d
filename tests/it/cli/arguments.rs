//! The program as a person uses it: commands, exit codes, signals, and the errors of a wrong command line.

use crate::conformance::unique;
use crate::kafka;
use crate::support::client::Client;
use crate::support::delivered::{Line, lines};
use crate::support::load::Load;
use crate::support::program::{Program, command, run};
use crate::support::wait::eventually;
use eventd::log::Engine;
use eventd::log::kafka::Kafka;
use eventd::net::BrokerSettings;
use std::collections::{BTreeMap, HashSet};
use std::net::TcpListener;
use std::path::Path;

/// The second command of README.md.
const README_EVENTS: &str = r#"[
    {"UserID": "user-1","Payload": "event-1-payload"},
    {"UserID": "user-2","Payload": "event-1-payload"},
    {"UserID": "user-1","Payload": "event-2-payload"},
    {"UserID": "user-3","Payload": "event-1-payload"},
    {"UserID": "user-2","Payload": "event-2-payload"}
]"#;

const ANY_PORT: [&str; 2] = ["--listen", "127.0.0.1:0"];

/// The default log of `up`, for the other commands.
const SQLITE: [&str; 2] = ["--url", "sqlite:eventd.db"];

fn up(folder: &Path, more: &[&str]) -> Program {
    Program::start(folder, &[&["up"], &ANY_PORT[..], more].concat())
}

fn ingest(folder: &Path, more: &[&str]) -> Program {
    Program::start(folder, &[&["ingest"], &SQLITE[..], &ANY_PORT, more].concat())
}

fn dispatch(folder: &Path, more: &[&str]) -> Program {
    Program::start(folder, &[&["dispatch"], &SQLITE[..], more].concat())
}

fn post(program: &Program, body: &str) {
    let answer = Client::connect(&program.address()).unwrap().post(body).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// Waits until the file has at least `count` lines.
fn delivered(folder: &Path, file: &str, count: usize) -> Vec<Line> {
    eventually(|| match lines(&folder.join(file)) {
        lines if lines.len() >= count => Ok(lines),
        lines => Err(format!("{file} has {} of {count} lines: {lines:?}", lines.len())),
    })
}

fn payloads(lines: &[Line]) -> BTreeMap<&str, Vec<&str>> {
    let mut payloads = BTreeMap::<_, Vec<_>>::new();
    for line in lines {
        payloads.entry(line.user.as_str()).or_default().push(line.payload.as_str());
    }
    payloads
}

fn readme_payloads() -> BTreeMap<&'static str, Vec<&'static str>> {
    BTreeMap::from([
        ("user-1", vec!["event-1-payload", "event-2-payload"]),
        ("user-2", vec!["event-1-payload", "event-2-payload"]),
        ("user-3", vec!["event-1-payload"]),
    ])
}

#[test]
fn up_delivers_the_example_of_the_readme_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let up = up(folder.path(), &["--dest", "file-1"]);
    up.wait_for(&["try it: curl 127.0.0.1:", "/events -H 'Content-Type: application/json' --data-raw '[{\"UserID\""]);
    post(&up, README_EVENTS);
    assert_eq!(payloads(&delivered(folder.path(), "file-1", 5)), readme_payloads());
    assert!(folder.path().join("eventd.db").exists(), "README.md names this database");
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn separate_processes_share_one_log() {
    let folder = tempfile::tempdir().unwrap();
    let url = ["--url", "sqlite:log.db"];
    let ingest = Program::start(folder.path(), &[&["ingest"], &url[..], &ANY_PORT].concat());
    ingest.address();
    let first =
        Program::start(folder.path(), &[&["dispatch", "--dest", "file-1", "--reliability", "5"], &url[..]].concat());
    let second = Program::start(folder.path(), &[&["dispatch", "--dest", "again=file-2"], &url[..]].concat());
    post(&ingest, README_EVENTS);
    assert_eq!(payloads(&delivered(folder.path(), "file-1", 5)), readme_payloads());
    assert_eq!(payloads(&delivered(folder.path(), "file-2", 5)), readme_payloads());
    first.wait_for(&["drill", "one_in=5", "seed="]);
    for program in [ingest, first, second] {
        assert_eq!(program.stop().code(), 0);
    }
}

#[test]
fn up_and_dispatch_end_with_an_error_if_a_partition_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let healthy = up(folder.path(), &["--dest", "file-1"]);
    post(&healthy, README_EVENTS);
    delivered(folder.path(), "file-1", 5);
    assert_eq!(healthy.stop().code(), 0);
    let plain = rusqlite::Connection::open(folder.path().join("eventd.db")).unwrap();
    // All three users are in partition 2. The two other partitions continue.
    assert_eq!(plain.execute("UPDATE records SET crc32c = crc32c + 1 WHERE offset = 4", []), Ok(1));
    drop(plain);
    let up = up(folder.path(), &["--dest", "file-2"]);
    up.wait_for(&["partition=2", "this partition is stopped, the others continue", "offset 4"]);
    assert_eq!(delivered(folder.path(), "file-2", 4).len(), 4, "the events before the damage are delivered");
    assert_eq!(up.stop().code(), 1);
    let dispatch = dispatch(folder.path(), &["--dest", "file-2"]);
    dispatch.wait_for(&["this partition is stopped, the others continue"]);
    assert_eq!(dispatch.stop().code(), 1);
    assert_eq!(lines(&folder.path().join("file-2")).len(), 4, "no event is delivered again");
}

#[test]
fn a_stopped_partition_stays_owned_and_continues_after_a_fast_forward() {
    let folder = tempfile::tempdir().unwrap();
    let healthy = up(folder.path(), &["--dest", "file-1"]);
    post(&healthy, README_EVENTS);
    delivered(folder.path(), "file-1", 5);
    assert_eq!(healthy.stop().code(), 0);
    let plain = rusqlite::Connection::open(folder.path().join("eventd.db")).unwrap();
    assert_eq!(plain.execute("UPDATE records SET crc32c = crc32c + 1 WHERE offset = 4", []), Ok(1));
    drop(plain);
    let up = up(folder.path(), &["--dest", "file-2"]);
    let stopped = up.wait_for(&[
        "this partition is stopped",
        "offset 4",
        "eventd replay --dest file-2 --fast-forward p2:5 --execute",
    ]);
    assert_eq!(delivered(folder.path(), "file-2", 4).len(), 4, "the events before the damage are delivered");
    let second = dispatch(folder.path(), &["--dest", "file-2"]).end();
    assert!(second.said.contains(&format!("pid {}", up.id())), "the partition is still owned: {}", second.said);

    let replay = ["replay", "--url", "sqlite:eventd.db", "--dest", "file-2", "--fast-forward", "p2:5"];
    let plan = run(folder.path(), &replay);
    assert!(plan.code() == 0 && plan.said.contains("1 offsets of the range cannot be read"), "{}", plan.said);
    let ending = run(folder.path(), &[&replay[..], &["--execute"]].concat());
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert!(ending.said.contains("1 offset that cannot be read"), "{}", ending.said);
    post(&up, README_EVENTS);
    assert_eq!(delivered(folder.path(), "file-2", 9).len(), 9, "delivery continues after the damage");
    let again = up.lines().matches("this partition is stopped").count();
    let ending = up.stop();
    assert_eq!((ending.code(), again), (0, 1), "{stopped}: {}", ending.said);
    let last = ending.said.lines().last().unwrap_or_default();
    assert!(last.contains("stopped: all work in progress is finished"), "{last}");
}

#[test]
fn a_second_process_of_a_destination_is_refused_with_the_id_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let first = dispatch(folder.path(), &["--dest", "file-1"]);
    first.wait_for(&["delivering", "file-1"]);
    let second = dispatch(folder.path(), &["--dest", "file-1"]).end();
    assert_eq!(second.code(), 1, "{}", second.said);
    assert!(second.said.contains(&format!("pid {}", first.id())), "{}", second.said);
    let waiting = dispatch(folder.path(), &["--dest", "file-1", "--standby"]);
    waiting.wait_for(&["standing by", &format!("held_by={}", first.id())]);
    let impatient = dispatch(folder.path(), &["--dest", "file-1", "--standby"]);
    impatient.wait_for(&["standing by"]);
    assert_eq!(impatient.stop().code(), 0, "a standby can be stopped while it waits");
    assert_eq!(first.stop().code(), 0);
    waiting.wait_for(&["delivering", "file-1"]);
    assert_eq!(waiting.stop().code(), 0);
}

#[test]
fn a_destination_that_cannot_start_affects_neither_ingest_nor_other_destinations() {
    let folder = tempfile::tempdir().unwrap();
    let holder = dispatch(folder.path(), &["--dest", "held"]);
    holder.wait_for(&["delivering", "held"]);
    let up = up(folder.path(), &["--dest", "file-1", "--dest", "held", "--dest", "missing=nowhere/file-2"]);
    up.wait_for(&["destination=held", "not started", &format!("pid {}", holder.id())]);
    up.wait_for(&["destination=missing", "nowhere"]);
    post(&up, README_EVENTS);
    assert_eq!(payloads(&delivered(folder.path(), "file-1", 5)), readme_payloads());
    assert_eq!(payloads(&delivered(folder.path(), "held", 5)), readme_payloads());
    // When the missing folder exists, the destination starts by itself.
    std::fs::create_dir(folder.path().join("nowhere")).unwrap();
    assert_eq!(payloads(&delivered(folder.path(), "nowhere/file-2", 5)), readme_payloads());
    assert_eq!(holder.stop().code(), 0);
    up.wait_for(&["delivering", "destination=held"]);
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn a_stop_by_a_signal_drains_and_no_event_is_delivered_twice() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--dest", "file-1", "--commit-interval", "1h"];
    let mut program = up(folder.path(), &flags);
    let load = Load::start(&program.address());
    let mut before = 0;
    for signal in ["TERM", "INT", "TERM"] {
        before = delivered(folder.path(), "file-1", before + 200).len();
        program.signal(signal);
        let ending = program.end();
        assert_eq!(ending.code(), 0, "{}", ending.said);
        program = up(folder.path(), &flags);
        load.turn_to(&program.address());
    }
    let answered = load.stop();
    let sent = answered.count();
    let lines = delivered(folder.path(), "file-1", sent);
    assert_eq!(program.stop().code(), 0);
    let records: HashSet<(u32, i64)> = lines.iter().map(|line| (line.partition, line.offset)).collect();
    assert_eq!(records.len(), lines.len(), "no event is delivered twice");
}

#[test]
fn a_second_signal_stops_at_once() {
    let folder = tempfile::tempdir().unwrap();
    // The receiver accepts the connection but never answers, so the attempt would take ten minutes.
    let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
    let hook = format!("http://{}/hook", receiver.local_addr().unwrap());
    let up = up(folder.path(), &["--dest", &hook, "--attempt-timeout", "10m", "--drain", "10m"]);
    post(&up, r#"{"UserID":"user-1","Payload":1}"#);
    let _attempt = receiver.accept().unwrap();
    up.signal("TERM");
    up.wait_for(&["a second signal stops at once"]);
    up.signal("TERM");
    let ending = up.end();
    assert_eq!(ending.code(), 3, "{}", ending.said);
    assert!(ending.said.contains("work left"), "{}", ending.said);
}

#[test]
fn a_drain_that_takes_too_long_leaves_work_and_has_its_own_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
    let hook = format!("http://{}/hook", receiver.local_addr().unwrap());
    let up = up(folder.path(), &["--dest", &hook, "--attempt-timeout", "10m", "--drain", "200ms"]);
    post(&up, r#"{"UserID":"user-1","Payload":1}"#);
    let _attempt = receiver.accept().unwrap();
    let ending = up.stop();
    assert_eq!(ending.code(), 3, "{}", ending.said);
}

#[test]
fn sighup_opens_the_file_again_after_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let up = up(folder.path(), &["--dest", "file-1"]);
    post(&up, README_EVENTS);
    delivered(folder.path(), "file-1", 5);
    std::fs::rename(folder.path().join("file-1"), folder.path().join("file-1.old")).unwrap();
    up.signal("HUP");
    eventually(|| {
        post(&up, r#"{"UserID":"user-1","Payload":"event-3-payload"}"#);
        let new = lines(&folder.path().join("file-1"));
        if new.is_empty() { Err("the new file is empty".into()) } else { Ok(()) }
    });
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn flags_can_be_set_by_variables_and_log_lines_can_be_json() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path(), &["up"]);
    command.env("EVENTD_LISTEN", "127.0.0.1:0").env("EVENTD_LOG_FORMAT", "json").env("EVENTD_URL", "sqlite:other.db");
    command.env("EVENTD_DEST", "file-1\ntwo=file-2").env("EVENTD_LOG", "info,eventd::commands::up=debug");
    let up = Program::spawn(command, "up, configured by variables");
    let line: serde_json::Value = serde_json::from_str(&up.wait_for(&["listening"])).unwrap();
    let mut client = Client::connect(line["address"].as_str().unwrap()).unwrap();
    assert_eq!(client.post(README_EVENTS).unwrap().status, 200);
    delivered(folder.path(), "file-1", 5);
    delivered(folder.path(), "file-2", 5);
    assert!(folder.path().join("other.db").exists());
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn an_unknown_environment_variable_gets_a_warning_with_the_nearest_known_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path(), &["up", "--listen", "127.0.0.1:0"]);
    command
        .env("EVENTD_DESTT", "file-1")
        .env("EVENTD_PORT_8090_TCP", "tcp://10.0.0.1:8090")
        .env("EVENTD_TOPIC", "events");
    let up = Program::spawn(command, "up, with an unknown variable");
    up.wait_for(&["WARN", "no effect", "EVENTD_DESTT (did you mean EVENTD_DEST?)"]);
    up.address();
    let ending = up.stop();
    assert!(!ending.said.contains("EVENTD_PORT") && !ending.said.contains("EVENTD_TOPIC"), "{}", ending.said);
}

#[test]
fn a_wrong_value_of_a_variable_is_refused_like_that_of_its_flag() {
    let folder = tempfile::tempdir().unwrap();
    let bad = [
        ("EVENTD_ATTEMPTS", "ten"),
        ("EVENTD_DRAIN", "30"),
        ("EVENTD_JITTER", "perhaps"),
        ("EVENTD_TLS", "perhaps"),
        ("EVENTD_LOG", "a=b=c"),
        ("EVENTD_LOG", "inof"),
        ("EVENTD_LOG", "warning"),
        ("EVENTD_LOG", "eventd=inof"),
        ("EVENTD_LOG", "evntd=debug"),
        ("EVENTD_LOG", "eventd::dispach=debug"),
        ("EVENTD_URL", "sqlite:eventd.db\n"),
    ];
    for (variable, value) in bad {
        let mut command = command(folder.path(), &["up"]);
        command.env(variable, value);
        let ending = Program::spawn(command, variable).end();
        assert_eq!(ending.code(), 2, "{variable}: {}", ending.said);
        let flag = variable.trim_start_matches("EVENTD_").to_lowercase();
        assert!(ending.said.to_lowercase().contains(&flag), "{variable}: {}", ending.said);
    }
}

#[test]
fn an_empty_variable_is_refused_with_its_name_and_its_flag() {
    let folder = tempfile::tempdir().unwrap();
    let with = |arguments: &[&str], variable: &str, value: &str| {
        let mut command = command(folder.path(), arguments);
        command.env(variable, value);
        Program::spawn(command, &format!("{variable}={value:?} {arguments:?}"))
    };
    let login = ["ingest", "--url", "localhost:1", "--sasl-mechanism", "plain", "--sasl-username", "app"];
    for (arguments, variable, value, flag) in [
        (&["up"][..], "EVENTD_LISTEN", "", "--listen"),
        (&["up"], "EVENTD_DEST", "", "--dest"),
        (&["up"], "EVENTD_DEST", "\r\n\n", "--dest"),
        (&["dispatch"], "EVENTD_DEST", "", "--dest"),
        (&["dispatch", "--dest", "null:"], "EVENTD_NAME", " ", "--name"),
        (&["ingest"], "EVENTD_URL", "", "--url"),
        (&["up"], "EVENTD_JITTER", "", "--jitter"),
        (&["up"], "EVENTD_TLS_CA_FILE", "", "--tls-ca-file"),
        (&["replay", "--list"], "EVENTD_TOPIC", "", "--topic"),
        (&["up"], "EVENTD_LOG", "", "EVENTD_LOG"),
        (&["up", "--dest", "http://h/"], "EVENTD_WEBHOOK_SECRET", "", "EVENTD_WEBHOOK_SECRET"),
        (&login, "EVENTD_SASL_PASSWORD", "", "EVENTD_SASL_PASSWORD"),
    ] {
        let ending = with(arguments, variable, value).end();
        assert_eq!(ending.code(), 2, "{variable} {arguments:?}: {}", ending.said);
        let says = [variable, flag, "is empty"];
        assert!(says.iter().all(|what| ending.said.contains(what)), "{variable} {arguments:?}: {}", ending.said);
    }
    assert!(!folder.path().join("eventd.db").exists(), "none of these creates a database");
    // A flag wins over its variable, and a command ignores variables of other commands.
    let up = with(&["up", "--listen", "127.0.0.1:0"], "EVENTD_LISTEN", "");
    up.address();
    let dispatch = with(&["dispatch", "--url", "sqlite:eventd.db", "--dest", "null:"], "EVENTD_LISTEN", "");
    dispatch.wait_for(&["delivering"]);
    assert_eq!((dispatch.stop().code(), up.stop().code()), (0, 0));
    assert_eq!(with(&["up", "--help"], "EVENTD_LISTEN", "").end().code(), 0);
}

#[test]
fn line_breaks_at_the_end_of_a_variable_and_its_empty_lines_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let mut several = command(folder.path(), &["up", "--listen", "127.0.0.1:0"]);
    several.env("EVENTD_DEST", "file-1\r\n\r\ntwo=file-2\r\n");
    let up = Program::spawn(several, "up, with line breaks");
    let mut one = command(folder.path(), &["dispatch", "--url", "sqlite:eventd.db"]);
    up.address();
    one.env("EVENTD_DEST", "file-3\n");
    let dispatch = Program::spawn(one, "dispatch, with a line break");
    post(&up, README_EVENTS);
    for file in ["file-1", "file-2", "file-3"] {
        delivered(folder.path(), file, 5);
    }
    assert_eq!((dispatch.stop().code(), up.stop().code()), (0, 0));
    // On the command line nothing is ignored: an empty value there is probably a shell variable that is not set.
    refused(folder.path(), &["up", "--dest", "file-1", "--dest", ""], &["--dest", "missing"]);
}

#[test]
fn a_port_in_use_is_reported_with_its_address() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for mode in ["up", "ingest"] {
        let ending = run(folder.path(), &[mode, "--listen", &address]);
        assert_eq!(ending.code(), 1, "{}", ending.said);
        assert!(ending.said.contains(&address) && ending.said.contains("another program uses"), "{}", ending.said);
    }
}

/// Checks that the command ends with exit code 2, and that its error contains all of `says`.
fn refused(folder: &Path, arguments: &[&str], says: &[&str]) {
    let ending = run(folder, arguments);
    assert_eq!(ending.code(), 2, "{arguments:?}: {}", ending.said);
    for what in says {
        assert!(ending.said.contains(what), "{arguments:?} does not say {what:?}: {}", ending.said);
    }
    assert!(!ending.said.contains("panicked"), "{arguments:?}: {}", ending.said);
}

#[test]
fn a_wrong_command_line_is_refused_with_the_name_of_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], says: &[&str]| refused(folder.path(), arguments, says);
    refused(&["dispatch", "--dest", "ftp://host/file"], &["--dest", "unknown scheme", "ftp", "https://"]);
    refused(&["dispatch", "--dest", ""], &["--dest", "missing"]);
    refused(&["dispatch"], &["--dest"]);
    refused(&["up", "--dest", "http://:80/"], &["--dest", "host"]);
    for url in ["postgres://localhost/db", "localhost", "localhost:0", "localhost:99999", ":9092", "::1:9092", ""] {
        refused(&["ingest", "--url", url], &["--url", "sqlite:PATH", "localhost:9092"]);
    }
    for url in ["kafka://", "kafka:localhost:9092", "kafka://h1:9092,h2", "h1:9092,,h2:9092", "h1:9092,http://h2:9092"]
    {
        refused(&["ingest", "--url", url], &["--url", "HOST:PORT"]);
    }
    refused(&["ingest", "--url", "sqlite:"], &["--url", "sqlite:eventd.db"]);
    refused(&["ingest", "--listen", "localhost"], &["--listen", "HOST:PORT"]);
    refused(&["up", "--listen", "http://localhost:1"], &["--listen", "HOST:PORT, without a scheme or user"]);
    refused(
        &["up", "--listen", "ada:s3cret@localhost:1"],
        &["'***@localhost:1'", "HOST:PORT, without a scheme or user"],
    );
    refused(&["up", "--listen", "localhost/hook:1"], &["--listen", "HOST:PORT"]);
    refused(&["ingest", "--topic", "no/topic"], &["--topic"]);
    for url in ["events.db", "localhost:1"] {
        refused(&["ingest", "--url", url, "--topic", "orders.crm.dead"], &["--topic", "\".dead\"", "reserved"]);
    }
    refused(&["ingest", "--partitioner", "crc"], &["--partitioner", "murmur2"]);
    refused(&["ingest", "--max-body", "1MiB", "--max-pending", "1KiB"], &["--max-body", "--max-pending"]);
    refused(&["ingest", "--max-event", "16MiB"], &["--max-event", "dead letter"]);
    refused(&["dispatch", "--dest", "null:", "--drain", "300000000000y"], &["--drain", "100 years"]);
    refused(&["up", "--log-format", "xml"], &["--log-format", "text or json"]);
    refused(&["up", "--no-such-flag"], &["--no-such-flag"]);
    refused(&["up", "--dest", "null:", "--on-gap", "wait"], &["--on-gap", "stop or skip"]);
    refused(&["up", "--dest", "null:", "--start", "middle"], &["--start", "earliest or latest"]);
    refused(&["up", "--dest", "null:", "--backoff", "3s", "--backoff-max", "1s"], &["--backoff-max"]);
    refused(&["up", "--dest", "file-1", "--dest", "file-1"], &["two destinations", "file-1", "NAME=DEST"]);
    refused(&["up", "--dest", "a=file-1", "--dest", "a=file-2"], &["two destinations", "\"a\""]);
    refused(&["up", "--dest", "file-1", "--dest", "file-2", "--name", "a"], &["--name", "NAME=DEST"]);
    refused(&["up", "--dest", "file-1", "--name", "a b"], &["--name", "a b"]);
    refused(&["up", "--dest", "file-1", "--webhook-secret-file", "secret"], &["--webhook-secret-file", "http"]);
    refused(&["up", "--dest", "http://h/", "--webhook-secret-file", "secret"], &["--webhook-secret-file", "secret"]);
    let topic = "t".repeat(240);
    refused(&["up", "--dest", "file-1", "--topic", &topic], &["--topic", "too long"]);
    assert!(!folder.path().join("eventd.db").exists(), "none of these creates a database");
}

#[test]
fn a_flag_for_one_kind_of_log_is_refused_with_the_other_kind() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], says: &[&str]| refused(folder.path(), arguments, says);
    refused(&["dispatch", "--dest", "null:", "--standby"], &["--standby", "sqlite:"]);
    refused(&["ingest", "--max-db-bytes", "1GiB"], &["--max-db-bytes", "Kafka"]);
    refused(&["ingest", "--retention", "1h"], &["--retention", "--create-topic", "retention.ms"]);
    let login = ["--sasl-mechanism", "plain", "--sasl-username", "app"];
    for kafkas in [&["--tls"][..], &["--tls-ca-file", "ca.pem"], &login] {
        refused(&[&["up"], kafkas].concat(), &[kafkas[0], "Kafka", "sqlite:"]);
    }
    let on_kafka = |flags: &[&str], says: &[&str]| refused(&[&["ingest"], flags].concat(), says);
    on_kafka(&login, &["--sasl-password-file", "EVENTD_SASL_PASSWORD"]);
    on_kafka(&[&login[..], &["--sasl-password-file", "nowhere"]].concat(), &["--sasl-password-file", "nowhere"]);
    on_kafka(&login[..2], &["--sasl-username"]);
    on_kafka(&login[2..], &["--sasl-mechanism"]);
    on_kafka(&["--sasl-mechanism", "gssapi", "--sasl-username", "app"], &["--sasl-mechanism", "scram-sha-512"]);
    on_kafka(&["--tls-cert-file", "cert.pem"], &["--tls-key-file"]);
    on_kafka(&["--tls-key-file", "key.pem"], &["--tls-cert-file"]);
    on_kafka(&["--tls-ca-file", "nowhere.pem"], &["--tls", "nowhere.pem"]);
    assert!(!folder.path().join("eventd.db").exists(), "none of these creates a database");
}

#[test]
fn ingest_and_dispatch_connect_to_a_local_broker_by_default() {
    let folder = tempfile::tempdir().unwrap();
    // A topic that no cluster has, in case a broker runs at this address.
    let topic = unique("not-created");
    for mode in [&["ingest", "--listen", "127.0.0.1:0"][..], &["dispatch", "--dest", "null:"]] {
        let ending = run(folder.path(), &[mode, &["--topic", &topic]].concat());
        let (no_broker, no_topic) = (
            ["no Kafka broker answers at localhost:9092 (--url)", "--url sqlite:eventd.db"],
            [topic.as_str(), "--create-topic"],
        );
        let says = |what: &[&str]| what.iter().all(|what| ending.said.contains(what));
        match ending.code() {
            1 => assert!(says(&no_broker), "{mode:?}: {}", ending.said),
            code => assert!(code == 2 && says(&no_topic), "{mode:?}: {code}: {}", ending.said),
        }
    }
    assert!(!folder.path().join("eventd.db").exists());
}

#[test]
fn an_address_of_a_broker_can_be_written_in_several_ways() {
    let folder = tempfile::tempdir().unwrap();
    let (address, topic) = (kafka::address(), unique("not-created"));
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [address.clone(), format!("kafka://{address}"), format!("kafka://{unused}, {address}")] {
        // The error about the topic shows that a broker answered.
        refused(
            folder.path(),
            &["dispatch", "--url", &url, "--dest", "null:", "--topic", &topic],
            &["does not exist", &topic, "--create-topic"],
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_on_kafka_is_created_only_on_request_and_with_the_given_settings() {
    let folder = tempfile::tempdir().unwrap();
    let (address, topic) = (kafka::address(), unique("made"));
    let log = ["--url", &address, "--topic", &topic];
    let refused = |mode: &[&str], more: &[&str], says: &[&str]| {
        refused(folder.path(), &[mode, &log, more].concat(), says);
    };
    let start = |mode: &[&str], more: &[&str]| Program::start(folder.path(), &[mode, &log, more].concat());
    let (ingest, dispatch) = (&["ingest", "--listen", "127.0.0.1:0"], &["dispatch", "--dest", "null:"]);

    refused(ingest, &[], &["does not exist", &topic, "--create-topic"]);
    refused(dispatch, &["--partitions", "2"], &["does not exist", &topic, "--create-topic"]);
    let asked = ["--create-topic", "--partitions", "2", "--retention", "90m"];
    let up = start(&["up", "--listen", "127.0.0.1:0", "--dest", "file-1"], &asked);
    up.wait_for(&["retention.ms", "longer than 1h 30m"]);
    post(&up, README_EVENTS);
    assert_eq!(payloads(&delivered(folder.path(), "file-1", 5)), readme_payloads());
    assert_eq!(up.stop().code(), 0);
    let engine = Kafka::connect(BrokerSettings::plain(vec![address.clone()])).await.unwrap();
    assert_eq!(engine.open(&topic, None).await.unwrap().partitions().await, Ok(2));

    for more in [&["--partitions", "3"][..], &["--partitions", "3", "--create-topic"]] {
        refused(dispatch, more, &["--partitions 3", "has 2"]);
    }
    for more in [&["--partitions", "2"][..], &["--create-topic"], &[]] {
        let dispatch = start(dispatch, more);
        dispatch.wait_for(&["delivering"]);
        assert_eq!(dispatch.stop().code(), 0);
    }
}

#[test]
fn the_compose_file_is_valid() {
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("compose/check");
    let ended = std::process::Command::new(check).arg(env!("CARGO_BIN_EXE_eventd")).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && out.contains("3 services run eventd"), "{}\n{out}\n{err}", ended.status);
}

#[test]
fn a_duration_without_a_unit_and_a_senseless_zero_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let durations = ["attempt-timeout", "retry-after-max", "commit-interval", "backoff", "backoff-max", "retention"];
    let more = ["dead-retention", "header-timeout", "body-timeout"];
    for flag in durations.iter().chain(&more).map(|name| format!("--{name}")) {
        refused(folder.path(), &["up", &flag, "10"], &[&flag, "unit"]);
        refused(folder.path(), &["up", &flag, "0s"], &[&flag, "above zero"]);
    }
    refused(folder.path(), &["up", "--drain", "30"], &["--drain", "unit"]);
    let sizes = ["max-body", "max-event", "max-pending", "max-db-bytes", "window-bytes"];
    let counts = ["max-batch", "max-connections", "concurrency", "batch", "window"];
    for flag in sizes.iter().chain(&counts).map(|name| format!("--{name}")) {
        refused(folder.path(), &["up", &flag, "0"], &[&flag, "above zero"]);
        refused(folder.path(), &["up", &flag, "many"], &[&flag]);
    }
    refused(folder.path(), &["up", "--attempts", "many"], &["--attempts", "0 for no limit"]);
    refused(folder.path(), &["up", "--give-up-after", "0s"], &["--give-up-after", "above zero", "write never"]);
    refused(folder.path(), &["up", "--give-up-after", "24"], &["--give-up-after", "unit", "never"]);
    refused(folder.path(), &["up", "--retries", "fast"], &["--retries", "patient or quick"]);
    refused(folder.path(), &["up", "--batch", "0"], &["--batch", "1 sends each event alone"]);
    refused(folder.path(), &["up", "--partitions", "0"], &["--partitions"]);
    refused(folder.path(), &["up", "--reliability", "1"], &["--reliability", "0 is off"]);
}

#[test]
fn a_value_outside_the_range_of_its_flag_is_refused_with_the_flag_and_the_range() {
    let folder = tempfile::tempdir().unwrap();
    let large = "99999999999999999999";
    for (flag, says) in [
        ("--attempts", "write a whole number from 1 to 4294967295, or 0 for no limit"),
        ("--batch", "write a whole number from 1 to 1000; 1 sends each event alone"),
        ("--concurrency", "write a whole number from 1 to 1000000000"),
        ("--reliability", "write 0 to turn the drill off, or a whole number from 2 to 4294967295"),
        ("--reliability-seed", "write a whole number from 0 to 18446744073709551615"),
    ] {
        for value in ["-1", "x", "1.5", large] {
            refused(folder.path(), &["up", flag, value], &[&format!("'{value}' for '{flag} "), says]);
        }
    }
    let replay = ["replay", "--dest", "null:"];
    let failures = [&replay[..], &["--from", "0", "--stop-after-failures", "-1"]].concat();
    refused(folder.path(), &failures, &["--stop-after-failures", "18446744073709551615; 0 is never"]);
    refused(folder.path(), &[&replay[..], &["--from", "-5"]].concat(), &["'-5' for '--from ", "not understood"]);
    refused(folder.path(), &["up", "--rate", "-5/s"], &["--rate", "from 1 to 4294967295: write 500/s"]);
    refused(folder.path(), &["up", "--give-up-after", "-1s"], &["--give-up-after", "cannot be negative", "never"]);
    refused(folder.path(), &["up", "--drain", "soon"], &["--drain", "write a number and a unit"]);
    refused(folder.path(), &["up", "--drain", &format!("{large}s")], &["--drain", "100 years"]);
    refused(folder.path(), &["up", "--jitter=maybe"], &["--jitter", "write on or off"]);
    refused(folder.path(), &["up", "--dest", "file-1", "--batch", "10"], &["--batch 10", "http", "leave the flag out"]);
    assert!(!folder.path().join("eventd.db").exists(), "none of these creates a database");
}

#[test]
fn a_flag_that_does_not_exist_is_answered_with_a_similar_one() {
    let folder = tempfile::tempdir().unwrap();
    for (typed, value, similar) in [
        ("--max-attempts", "5", "'--attempts'"),
        ("--retry", "quick", "'--retries'"),
        ("--on-exhaust", "hold", "'--on-exhausted'"),
    ] {
        refused(folder.path(), &["up", "--dest", "null:", typed, value], &[typed, similar]);
    }
}

#[test]
fn the_default_retention_of_one_process_does_not_replace_the_flag_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let told = ingest(folder.path(), &["--retention", "30d"]);
    told.address();
    let plain = dispatch(folder.path(), &["--dest", "null:"]);
    plain.wait_for(&["delivering"]);
    let retained = rusqlite::Connection::open(folder.path().join("eventd.db")).unwrap().query_row(
        "SELECT retention_ms FROM topics WHERE name = 'user-events'",
        [],
        |row| row.get::<_, i64>(0),
    );
    assert_eq!(retained, Ok(30 * 24 * 3_600_000));
}

#[test]
fn dispatch_waits_while_the_log_cannot_be_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let ingest = ingest(folder.path(), &[]);
    ingest.address();
    let plain = rusqlite::Connection::open(folder.path().join("eventd.db")).unwrap();
    plain.execute_batch("BEGIN IMMEDIATE").unwrap();
    let dispatch = dispatch(folder.path(), &["--dest", "null:"]);
    dispatch.wait_for(&["not started", "log-busy"]);
    plain.execute_batch("ROLLBACK").unwrap();
    dispatch.wait_for(&["delivering"]);
    assert_eq!(dispatch.stop().code(), 0);
}

#[test]
fn a_foreign_database_is_refused_and_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("text"),
        "this is not a database, and longer than one page's header\n".repeat(20),
    )
    .unwrap();
    std::fs::create_dir(folder.path().join("directory")).unwrap();
    rusqlite::Connection::open(folder.path().join("foreign")).unwrap().execute_batch("create table t (a)").unwrap();
    let before = std::fs::read(folder.path().join("foreign")).unwrap();
    for file in ["text", "directory", "foreign", "no-such-directory/db"] {
        let url = format!("sqlite:{file}");
        for mode in [&["ingest", "--listen", "127.0.0.1:0"][..], &["dispatch", "--dest", "file-1"]] {
            refused(folder.path(), &[mode, &["--url", &url]].concat(), &[file.trim_end_matches("/db")]);
        }
    }
    assert_eq!(std::fs::read(folder.path().join("foreign")).unwrap(), before);
}

#[test]
fn a_path_that_cannot_be_written_is_a_configuration_error_of_dispatch() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("directory")).unwrap();
    for (destination, says) in [("nowhere/file-1", "nowhere"), ("file:directory", "directory")] {
        refused(folder.path(), &[&["dispatch", "--dest", destination], &SQLITE[..]].concat(), &[says]);
    }
}

#[test]
fn another_number_of_partitions_is_an_error_only_with_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    let first = ingest(folder.path(), &["--partitions", "2"]);
    first.address();
    let other = [&["dispatch", "--dest", "null:", "--partitions", "3"], &SQLITE[..]].concat();
    refused(folder.path(), &other, &["--partitions 3", "has 2"]);
    let second = dispatch(folder.path(), &["--dest", "null:"]);
    second.wait_for(&["delivering"]);
    assert_eq!(second.stop().code(), 0);
    assert_eq!(first.stop().code(), 0);
}

#[test]
fn the_help_of_a_command_is_printed_as_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for (mode, says) in [("up", "Exit codes:"), ("dispatch", "--standby"), ("replay", "@FILE names a file")] {
        let mut help = command(folder.path(), &[mode, "--help"]);
        let ended = help.output().unwrap();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{mode}: {}", ended.status);
        assert!(String::from_utf8_lossy(&ended.stdout).contains(says), "{mode} --help does not say {says:?}");
    }
}

#[test]
fn log_lines_and_help_show_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let mut with_secrets = command(folder.path(), &["up", "--listen", "127.0.0.1:0", "--drain", "1s"]);
    with_secrets.env("EVENTD_DEST", "http://user:hunter2@127.0.0.1:9/hook").env("EVENTD_LOG", "trace");
    with_secrets.env("EVENTD_WEBHOOK_SECRET", "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIy");
    let up = Program::spawn(with_secrets, "up");
    up.wait_for(&["delivering"]);
    post(&up, README_EVENTS);
    up.signal("TERM");
    let said = up.end().said;
    let mut help = command(folder.path(), &["up", "--help"]);
    help.env("EVENTD_DEST", "http://user:hunter2@127.0.0.1:9/hook")
        .env("EVENTD_WEBHOOK_SECRET", "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIy");
    let help = Program::spawn(help, "up --help").end().said;
    for (what, said) in [("log", said), ("help", help)] {
        assert!(!said.contains("hunter2") && !said.contains("aHVudGVyM"), "the {what} shows a secret: {said}");
    }
}
