//! Brokers that require a login or TLS. SASL and TLS are tested from end to end, and so is the error for each setting
//! that does not fit. (Tests that need such a broker start it, in `faults`.)

use super::address;
use super::side_topics::dead_letters_of_added_partitions_are_stored;
use crate::conformance::unique;
use crate::support::authority::{Authority, pem_file};
use crate::support::broker::{Broker, tool};
use crate::support::client::Client;
use crate::support::delivered::lines;
use crate::support::program::{Ending, Program, command, run};
use crate::support::receiver::Receiver;
use crate::support::wait::eventually;
use eventd::destination::spec::Spec;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

const USER: &str = "app";
const PASSWORD: &str = "s3cret p@ss:/%";
const WRONG_PASSWORD: &str = "wr0ng p@ss:/%";

/// How soon the error for a wrong setting must appear.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// Runs a command that must not start with these settings, and returns how it ended.
fn fails(address: &str, flags: &[&str], password: Option<&str>) -> Ending {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["dispatch", "--url", address, "--dest", "file-1"];
    let mut command = command(folder.path(), &[&arguments[..], flags].concat());
    command.env("EVENTD_LOG", "trace");
    if let Some(password) = password {
        command.env("EVENTD_SASL_PASSWORD", password);
    }
    let begun = Instant::now();
    let ending = Program::spawn(command, &flags.join(" ")).end();
    let took = begun.elapsed();
    assert!(took < TOLD_WITHIN, "{flags:?}: {took:?}");
    assert!(ending.said.contains(address), "{flags:?} does not name the address: {}", ending.said);
    assert!(!ending.said.contains("does not exist"), "{flags:?} are accepted: {}", ending.said);
    for secret in [PASSWORD, WRONG_PASSWORD] {
        assert!(!ending.said.contains(secret), "{flags:?} shows a password: {}", ending.said);
    }
    println!("# security: refused after {} ms: {}", took.as_millis(), ending.said.lines().last().unwrap_or_default());
    ending
}

/// Like [`fails`], and checks the exit code and that the output contains all of this.
fn refused(address: &str, flags: &[&str], password: Option<&str>, code: i32, says: &[&str]) {
    let ending = fails(address, flags, password);
    assert_eq!(ending.code(), code, "{flags:?}: {}", ending.said);
    for what in says {
        assert!(ending.said.contains(what), "{flags:?} does not say {what:?}: {}", ending.said);
    }
}

/// Accepts events and delivers them, through a topic that eventd creates.
fn works(address: &str, flags: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("secure");
    // A broker learns of a new user with a short delay.
    eventually(|| {
        let look = ["dispatch", "--url", address, "--dest", "null:", "--topic", &topic];
        let ending = run(folder.path(), &[&look[..], flags].concat());
        if ending.said.contains("does not exist") { Ok(()) } else { Err(ending.said) }
    });
    let shared = [&["--url", address, "--topic", &topic][..], flags].concat();
    let start = |mode: &[&str]| {
        let mut command = command(folder.path(), &[mode, &shared].concat());
        command.env("EVENTD_LOG", "trace");
        Program::spawn(command, &mode.join(" "))
    };
    let ingest = start(&["ingest", "--listen", "127.0.0.1:0", "--create-topic"]);
    let body =
        r#"[{"UserID":"user-1","Payload":"1"},{"UserID":"user-4","Payload":"2"},{"UserID":"user-1","Payload":"3"}]"#;
    let answer = Client::connect(&ingest.address()).unwrap().post(body).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let dispatch = start(&["dispatch", "--dest", "file-1"]);
    let delivered = eventually(|| match lines(&folder.path().join("file-1")) {
        lines if lines.len() >= 3 => Ok(lines),
        lines => Err(format!("{lines:?}; eventd said\n{}", dispatch.lines())),
    });
    let of_user_1: Vec<&str> =
        delivered.iter().filter(|line| line.user == "user-1").map(|line| line.payload.as_str()).collect();
    assert_eq!((delivered.len(), of_user_1), (3, vec!["1", "3"]));
    for program in [ingest, dispatch] {
        let ending = program.stop();
        assert_eq!(ending.code(), 0, "{}", ending.said);
        assert!(!ending.said.contains(PASSWORD), "{}", ending.said);
    }
}

#[test]
fn tls_or_a_login_at_a_plain_port_is_an_error_that_says_so() {
    let address = address();
    let ca = Authority::new();
    refused(&address, &["--tls-ca-file", text(ca.path())], None, 1, &["--tls"]);
    let login = ["--sasl-mechanism", "plain", "--sasl-username", USER];
    refused(&address, &login, Some(PASSWORD), 2, &["this port has no login", "--sasl-mechanism"]);
}

#[test]
fn a_server_that_is_not_a_broker_is_named_in_the_error() {
    let ca = Authority::new();
    let http = answering(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    refused(&http, &[], None, 2, &["HTTP", "--url"]);
    refused(&http, &["--tls-ca-file", text(ca.path())], None, 2, &["does not speak TLS", "--tls"]);
    refused(&answering(b"SSH-2.0-OpenSSH_9.2p1\r\n"), &[], None, 2, &["SSH-", "--url"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    refused(&silent.local_addr().unwrap().to_string(), &[], None, 1, &["in time", "--url", "eventd up"]);
    drop(silent);
    let closed_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    refused(&closed_port, &[], None, 1, &["refused", "--url", "eventd up"]);
}

/// Starts a server that answers every connection with these bytes. Returns its address.
fn answering(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The connection stays open, because closing it with unread bytes would discard the answer.
            if stream.write_all(bytes).is_ok() {
                kept.push(stream);
            }
        }
    });
    address
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

mod faults {
    use super::*;

    /// Starts a broker whose client port speaks this protocol with these settings. SASL knows [`USER`] with every
    /// mechanism.
    fn broker(name: &str, protocol: &str, mechanisms: &str, settings: &[String]) -> Broker {
        let modules = "org.apache.kafka.common.security";
        let mut all = vec![
            format!("listener.security.protocol.map=CLIENT:{protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT"),
            format!("sasl.enabled.mechanisms={mechanisms}"),
            format!(
                "listener.name.client.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required \
                 user_{USER}=\"{PASSWORD}\";"
            ),
        ];
        let scrams: Vec<&str> = mechanisms.split(',').filter(|mechanism| mechanism.starts_with("SCRAM")).collect();
        for mechanism in &scrams {
            let key = format!("listener.name.client.{}.sasl.jaas.config", mechanism.to_lowercase());
            all.push(format!("{key}={modules}.scram.ScramLoginModule required;"));
        }
        all.extend_from_slice(settings);
        let flags: Vec<&str> = all.iter().flat_map(|setting| ["--set", setting]).collect();
        let broker = Broker::start(name, &flags);
        for mechanism in scrams {
            let credential = format!("{mechanism}=[iterations=4096,password={PASSWORD}]");
            let user = ["--alter", "--entity-type", "users", "--entity-name", USER];
            let alter = [&user[..], &["--add-config", &credential]].concat();
            tool("kafka-configs", &broker.internal(), &alter);
        }
        broker
    }

    /// Settings that give a broker a certificate of this authority.
    fn keystore(authority: &Authority) -> (tempfile::NamedTempFile, Vec<String>) {
        let (certificate, key) = authority.issue();
        let file = pem_file(&[key.serialize_pem(), certificate.pem()].concat());
        let settings =
            vec!["ssl.keystore.type=PEM".to_owned(), format!("ssl.keystore.location={}", file.path().display())];
        (file, settings)
    }

    #[test]
    fn sasl_accepts_only_the_right_password() {
        let broker = broker("sasl", "SASL_PLAINTEXT", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512", &[]);
        let (address, password) = (broker.addresses(), pem_file(&format!("{PASSWORD}\n")));
        for mechanism in ["plain", "scram-sha-256", "SCRAM-SHA-512"] {
            let login = ["--sasl-mechanism", mechanism, "--sasl-username", USER];
            works(address, &[&login[..], &["--sasl-password-file", text(password.path())]].concat());
            let says = ["rejects the login of \"app\"", &mechanism.to_uppercase(), "SaslAuthenticationFailed"];
            refused(address, &login, Some(WRONG_PASSWORD), 2, &says);
        }
        let stranger = ["--sasl-mechanism", "scram-sha-256", "--sasl-username", "nobody"];
        refused(
            address,
            &stranger,
            Some(PASSWORD),
            2,
            &["rejects the login of \"nobody\"", "SaslAuthenticationFailed"],
        );
        refused(address, &[], None, 1, &["--sasl-mechanism"]);
    }

    #[test]
    fn a_login_that_fails_for_a_while_does_not_end_a_running_dispatch() {
        let broker = broker("sasl-restart", "SASL_PLAINTEXT", "PLAIN", &[]);
        let (address, password) = (broker.addresses().to_owned(), pem_file(PASSWORD));
        let (folder, topic) = (tempfile::tempdir().unwrap(), unique("secure"));
        let login = ["--sasl-mechanism", "plain", "--sasl-username", USER, "--sasl-password-file"];
        let shared = [&["--url", &address, "--topic", &topic], &login[..], &[text(password.path())]].concat();
        let ingest = ["ingest", "--listen", "127.0.0.1:0", "--create-topic"];
        let ingest = Program::start(folder.path(), &[&ingest, &shared[..]].concat());
        let http = ingest.address();
        let dispatch = ["dispatch", "--dest", "file-1", "--session-timeout", "3s"];
        let dispatch = Program::start(folder.path(), &[&dispatch, &shared[..]].concat());
        let post = |payload: &str| {
            let body = format!(r#"[{{"UserID":"user-1","Payload":"{payload}","ID":"{payload}"}}]"#);
            eventually(|| match Client::connect(&http).and_then(|mut client| client.post(&body)) {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(format!("{}: {}", answer.status, answer.body)),
                Err(error) => Err(error.to_string()),
            });
        };
        let delivered = |payload: &str| {
            eventually(|| match lines(&folder.path().join("file-1")) {
                lines if lines.iter().any(|line| line.payload == payload) => Ok(()),
                lines => Err(format!("{lines:?}; eventd said\n{}", dispatch.lines())),
            });
        };
        post("before");
        delivered("before");
        let users = |password: &str| {
            let module = "org.apache.kafka.common.security.plain.PlainLoginModule required";
            format!("listener.name.client.plain.sasl.jaas.config={module} user_{USER}=\"{password}\";")
        };
        broker.kill(1);
        broker.start_again_with(&["--set", &users(WRONG_PASSWORD)]);
        dispatch.wait_for(&[
            "cannot join the group, trying again",
            "rejects the login of \"app\"",
            "SaslAuthenticationFailed",
        ]);
        // Its session expires, and it loses its partitions.
        dispatch.wait_for(&["lost all partitions"]);
        broker.kill(1);
        broker.start_again_with(&["--set", &users(PASSWORD)]);
        post("after");
        delivered("after");
        for program in [ingest, dispatch] {
            let ending = program.stop();
            assert_eq!(ending.code(), 0, "{}", ending.said);
            assert!(!ending.said.contains(PASSWORD), "{}", ending.said);
        }
    }

    #[test]
    fn sasl_over_tls_needs_the_right_authority_and_an_offered_mechanism() {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let (_keystore, settings) = keystore(&ours);
        let broker = broker("sasl-tls", "SASL_SSL", "PLAIN,SCRAM-SHA-512", &settings);
        let (address, password) = (broker.addresses(), pem_file(PASSWORD));
        let file = ["--sasl-username", USER, "--sasl-password-file", text(password.path())];
        let trust = ["--tls-ca-file", text(ours.path())];
        for mechanism in ["plain", "scram-sha-512"] {
            works(address, &[&["--sasl-mechanism", mechanism], &file[..], &trust].concat());
        }
        let login = ["--sasl-mechanism", "scram-sha-512", "--sasl-username", USER];
        let with = |more: &[&'static str]| [&login[..], &trust, more].concat();
        refused(address, &with(&[]), Some(WRONG_PASSWORD), 2, &["SaslAuthenticationFailed"]);
        let other = [&["--sasl-mechanism", "scram-sha-256"], &file[..], &trust].concat();
        refused(address, &other, None, 2, &["UnsupportedSaslMechanism", "PLAIN, SCRAM-SHA-512"]);
        refused(address, &login, Some(PASSWORD), 2, &["speaks TLS", "--tls"]);
        let mistrust = [&login[..], &["--tls-ca-file", text(theirs.path())]].concat();
        refused(address, &mistrust, Some(PASSWORD), 2, &["certificate", "--tls-ca-file"]);
        refused(address, &[&login[..], &["--tls"]].concat(), Some(PASSWORD), 2, &["certificate", "--tls-ca-file"]);
        let by_number = address.replace("localhost", "127.0.0.1");
        refused(&by_number, &with(&[]), Some(PASSWORD), 2, &["127.0.0.1", "by the name in its certificate"]);
    }

    #[test]
    fn without_the_right_to_add_partitions_dead_letters_go_to_the_existing_ones() {
        let authorizer = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned();
        let settings = [authorizer, "super.users=User:ANONYMOUS".to_owned()];
        let broker = broker("acl", "SASL_PLAINTEXT", "PLAIN", &settings);
        let (internal, password) = (broker.internal(), pem_file(PASSWORD));
        let principal = format!("User:{USER}");
        let mut allow = vec!["--add", "--allow-principal", &principal, "--topic", "*"];
        for right in ["Read", "Write", "Create", "Describe", "DescribeConfigs"] {
            allow.extend(["--operation", right]);
        }
        tool("kafka-acls", &internal, &allow);
        let groups = ["--group", "*", "--operation", "Read", "--operation", "Describe"];
        tool("kafka-acls", &internal, &[&allow[..3], &groups].concat());
        let login = ["--sasl-mechanism", "plain", "--sasl-username", USER, "--sasl-password-file"];
        let login = [&login[..], &[text(password.path())]].concat();
        dead_letters_of_added_partitions_are_stored(broker.addresses(), &internal, &login, false);
    }

    #[test]
    fn a_destination_starts_with_the_rights_for_only_one_of_its_two_names() {
        let authorizer = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned();
        let settings = [authorizer, "super.users=User:ANONYMOUS".to_owned()];
        let broker = broker("acl-names", "SASL_PLAINTEXT", "PLAIN", &settings);
        let (internal, password) = (broker.internal(), pem_file(PASSWORD));
        let principal = format!("User:{USER}");
        let rights = ["--operation", "Read", "--operation", "Describe"];
        let allow = |what: &[&str]| {
            let add = ["--add", "--allow-principal", &principal];
            tool("kafka-acls", &internal, &[&add[..], what, &rights].concat());
        };
        allow(&["--topic", "*", "--operation", "Write", "--operation", "Create", "--operation", "DescribeConfigs"]);
        let folder = tempfile::tempdir().unwrap();
        for is_earlier in [false, true] {
            let receiver = Receiver::start();
            let url = format!("{}?token=secret", receiver.url);
            let spec = Spec::parse(&url).unwrap();
            let name = if is_earlier { spec.earlier_name.unwrap() } else { spec.name };
            allow(&["--group", &name, "--group", &format!("{name}.rewind")]);
            let topic = unique("named");
            let up = ["up", "--listen", "127.0.0.1:0", "--url", broker.addresses(), "--topic", &topic];
            let login = ["--create-topic", "--sasl-mechanism", "plain", "--sasl-username", USER];
            let flags = ["--sasl-password-file", text(password.path()), "--dest", &url];
            let up = Program::start(folder.path(), &[&up[..], &login, &flags].concat());
            up.wait_for(&["delivering", &format!("destination={name} ")]);
            let answer = Client::connect(&up.address()).unwrap().post(r#"{"UserID":"u","Payload":"1"}"#).unwrap();
            assert_eq!(answer.status, 200, "{}", answer.body);
            receiver.wait_for(1);
            assert_eq!(up.stop().code(), 0);
        }
    }

    #[test]
    fn a_broker_that_requires_a_client_certificate_gets_one() {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let (_keystore, mut settings) = keystore(&ours);
        settings.push("ssl.client.auth=required".into());
        settings.push("ssl.truststore.type=PEM".into());
        settings.push(format!("ssl.truststore.location={}", ours.path().display()));
        let broker = broker("tls", "SSL", "PLAIN", &settings);
        let address = broker.addresses();
        let identity = |authority: &Authority| {
            let (certificate, key) = authority.issue();
            (pem_file(&certificate.pem()), pem_file(&key.serialize_pem()))
        };
        let trust = ["--tls-ca-file", text(ours.path())];
        let (certificate, key) = identity(&ours);
        let shown = ["--tls-cert-file", text(certificate.path()), "--tls-key-file", text(key.path())];
        works(address, &[&trust[..], &shown].concat());

        let ending = fails(address, &trust, None);
        assert!(ending.code() > 0 && ending.said.contains("--tls-cert-file"), "{}", ending.said);
        let (certificate, other_key) = identity(&theirs);
        let stranger = ["--tls-cert-file", text(certificate.path()), "--tls-key-file", text(other_key.path())];
        let ending = fails(address, &[&trust[..], &stranger].concat(), None);
        assert!(ending.code() > 0, "{}", ending.said);
        let mixed = ["--tls-cert-file", text(certificate.path()), "--tls-key-file", text(key.path())];
        let folder = tempfile::tempdir().unwrap();
        let arguments = [&["dispatch", "--url", address, "--dest", "null:"], &trust[..], &mixed].concat();
        let ending = run(folder.path(), &arguments);
        assert!(ending.code() == 2 && ending.said.contains(text(certificate.path())), "{}", ending.said);
    }
}
