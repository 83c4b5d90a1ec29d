//! Clients cannot use up the file descriptors that the log and the deliveries need. The tests run the program itself
//! under a limit.

use crate::support::client::Client;
use crate::support::ingesting::event;
use crate::support::program::{Program, command};
use crate::support::receiver::Receiver;
use crate::support::wait::eventually;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// `eventd` with these limits, which are flags of the shell's `ulimit`.
fn limited(folder: &Path, limits: &str, arguments: &[&str]) -> Program {
    let plain = command(folder, arguments);
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(format!("ulimit {limits}; exec \"$@\"")).arg("bash");
    shell.arg(plain.get_program()).args(plain.get_args()).current_dir(folder);
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Program::spawn(shell, &format!("{} (ulimit {limits})", arguments.join(" ")))
}

const UP: [&str; 5] = ["up", "--listen", "127.0.0.1:0", "--url", "sqlite:eventd.db"];

#[test]
fn the_soft_limit_is_raised_to_the_hard_one_and_logged_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let up =
        limited(folder.path(), "-Sn 128; ulimit -Hn 2048", &[&UP[..], &["--dest", "http://127.0.0.1:1/"]].concat());
    let line = up.wait_for(&["file descriptors", "limit=2048"]);
    // 64 for the log. For the destination: 16, twice `--concurrency`, and 128 for answers that are still being read.
    assert!(line.contains("reserved=720 for_partitions=0") && line.contains("connections=1328"), "{line}");
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn deliveries_and_the_log_keep_their_descriptors_with_as_many_idle_clients_as_possible() {
    // If there are few descriptors, the destination makes fewer attempts at once, and clients keep a share.
    for (limit, concurrency, clients) in [(512, 64, 176), (256, 22, 44), (128, 5, 18)] {
        let folder = tempfile::tempdir().unwrap();
        let receiver = Receiver::start();
        let destination = ["--dest", &receiver.url, "--concurrency", "64"];
        let up = limited(folder.path(), &format!("-n {limit}"), &[&UP[..], &destination].concat());
        up.wait_for(&[&format!("limit={limit}"), &format!("connections={clients}")]);
        if concurrency < 64 {
            up.wait_for(&["WARN", "--concurrency", "asked=64", &format!("concurrency={concurrency}"), "ulimit -n"]);
        }
        let address = up.address();
        // Twice as many clients as there is room for: the rest waits to be accepted.
        let idle: Vec<TcpStream> = (0..2 * clients).map(|_| TcpStream::connect(&address).unwrap()).collect();
        let begun = Instant::now();
        let mut client = Client::connect(&address).unwrap();
        let events: Vec<String> = (0..100).map(|user| event(&format!("user-{user}"), "x")).collect();
        for round in 0..10 {
            let answer = client.post(&format!("[{}]", events.join(","))).unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            if round == 0 {
                let (ms, idle) = (begun.elapsed().as_millis(), idle.len());
                println!("# a new client with {idle} idle ones and room for {clients} was answered after {ms} ms");
            }
        }
        receiver.wait_for(1_000);
        drop(idle);
        let ending = up.stop();
        assert_eq!(ending.code(), 0);
        for bad in ["cannot read the log", "cannot accept", "Too many open files", "os error 24"] {
            assert!(!ending.said.contains(bad), "{}", ending.said);
        }
    }
}

#[test]
fn each_partitions_file_keeps_its_descriptor_with_as_many_idle_clients_as_possible() {
    const PARTITIONS: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let destination = ["--partitions", "100", "--dest", "out-{partition}.jsonl"];
    let up = limited(folder.path(), "-n 256", &[&UP[..], &destination].concat());
    // 64 for the log, 16 for the destination, and one file for each partition.
    up.wait_for(&["file descriptors", "limit=256 reserved=180 for_partitions=100 connections=76"]);
    let address = up.address();
    let idle: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut client = Client::connect(&address).unwrap();
    // Enough users that each partition has some.
    let events: Vec<String> = (0..5_000).map(|user| event(&format!("user-{user}"), "x")).collect();
    for batch in events.chunks(1_000) {
        let answer = client.post(&format!("[{}]", batch.join(","))).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    eventually(|| {
        let files = (0..PARTITIONS).map(|partition| folder.path().join(format!("out-{partition}.jsonl")));
        let lines = files.map(|file| std::fs::read_to_string(file).map_or(0, |text| text.lines().count()));
        match lines.sum() {
            5_000 => Ok(()),
            lines => Err(format!("{lines} of 5000 events were delivered; {}", up.lines())),
        }
    });
    drop(idle);
    let ending = up.stop();
    assert_eq!(ending.code(), 0);
    assert!(!ending.said.contains("os error 24"), "no file descriptor was missing: {}", ending.said);
}

#[test]
fn too_few_descriptors_for_the_files_of_all_partitions_give_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let destination = ["--partitions", "100", "--dest", "out-{partition}.jsonl"];
    let up = limited(folder.path(), "-n 150", &[&UP[..], &destination].concat());
    up.wait_for(&["WARN", "files of all partitions", "limit=150 needed=100 reserved=54", "ulimit -n"]);
    up.wait_for(&["limit=150 reserved=134 for_partitions=54 connections=16"]);
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn a_number_of_connections_that_is_not_possible_is_reduced_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let up = limited(folder.path(), "-n 256", &[&UP[..], &["--max-connections", "5000", "--dest", "null:"]].concat());
    up.wait_for(&["WARN", "--max-connections", "is reduced", "asked=5000", "connections=176", "ulimit -n"]);
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn a_limit_that_leaves_nothing_for_clients_is_an_error_that_says_what_to_raise() {
    let folder = tempfile::tempdir().unwrap();
    let destination = ["--dest", "http://127.0.0.1:1/"];
    let ending = limited(folder.path(), "-n 96", &[&UP[..], &destination].concat()).end();
    assert_eq!(ending.code(), 2, "{}", ending.said);
    for part in ["is 96,", "at least 102 ", "ulimit -Hn"] {
        assert!(ending.said.contains(part), "{part} in {}", ending.said);
    }
}

#[test]
fn if_the_system_has_no_descriptor_left_an_idle_connection_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let up = limited(folder.path(), "-n 1024", &[&UP[..], &["--dest", "null:"]].concat());
    let address = up.address();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", up.id())).unwrap().count();
    let before = open();
    let idle: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(&address).unwrap()).collect();
    eventually(|| match open() {
        open if open >= before + 50 => Ok(()),
        open => Err(format!("{open} descriptors are open, before it were {before}")),
    });
    // No descriptor is left, so each new one has to wait until another is closed.
    let process = Pid::from_raw(up.id() as i32).unwrap();
    let limit = Some(open() as u64);
    prlimit(Some(process), Resource::Nofile, Rlimit { current: limit, maximum: Some(1024) }).unwrap();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(&address).unwrap()).collect();
    for client in &mut clients {
        assert_eq!(client.post(&event("user-1", "x")).unwrap().status, 200);
    }
    drop(idle);
    up.wait_for(&["WARN", "cannot accept connections"]);
}
