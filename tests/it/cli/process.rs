//! The process as a whole: it continues if standard error cannot be written to, it reports a limit of threads, and it keeps
//! to its bound of memory.

use crate::support::client::Client;
use crate::support::delivered::lines;
use crate::support::program::{Program, command};
use crate::support::receiver::Receiver;
use crate::support::wait::eventually;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The address of a free port. With a broken standard error, no log line says which port the program chose.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A way in which standard error fails or blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BrokenStderr {
    ReaderGone,
    DiskFull,
    TerminalClosed,
    NotRead,
    /// Like `NotRead`, but a write fails instead of waiting.
    NotReadNonBlocking,
    /// The file has reached `ulimit -f`: a write fails, and the system sends a signal.
    FileTooLarge,
}

const ALL_BROKEN: [BrokenStderr; 6] = [
    BrokenStderr::ReaderGone,
    BrokenStderr::DiskFull,
    BrokenStderr::TerminalClosed,
    BrokenStderr::NotRead,
    BrokenStderr::NotReadNonBlocking,
    BrokenStderr::FileTooLarge,
];

/// Limit of the size of a file, in bytes. A small database fits in.
const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

impl BrokenStderr {
    /// A command with such a standard error, and the other end of it, which has to stay open until the program ends.
    fn command(self, folder: &Path, arguments: &[&str]) -> (Command, Option<OwnedFd>) {
        let mut command = command(folder, arguments);
        if self == Self::FileTooLarge {
            command = limited(&command, &format!("--fsize={FILE_BYTES_MAX}"));
        }
        let (stderr, lives) = self.stderr();
        command.stderr(stderr);
        (command, lives)
    }

    fn stderr(self) -> (Stdio, Option<OwnedFd>) {
        match self {
            Self::ReaderGone => (std::io::pipe().unwrap().1.into(), None),
            Self::DiskFull => (File::options().write(true).open("/dev/full").unwrap().into(), None),
            Self::TerminalClosed => {
                let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
                grantpt(&user).unwrap();
                unlockpt(&user).unwrap();
                let path = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
                (File::options().read(true).write(true).open(path).unwrap().into(), None)
            }
            Self::NotRead => {
                let (reader, mut writer) = std::io::pipe().unwrap();
                // This fills the pipe, so that the next byte waits for a reader.
                writer.write_all(&[b'x'; 64 * 1024]).unwrap();
                (writer.into(), Some(reader.into()))
            }
            Self::NotReadNonBlocking => {
                let (mut writer, reader) = UnixStream::pair().unwrap();
                writer.set_nonblocking(true).unwrap();
                while writer.write(&[b'x'; 4096]).is_ok() {}
                (OwnedFd::from(writer).into(), Some(reader.into()))
            }
            Self::FileTooLarge => {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&vec![b'x'; FILE_BYTES_MAX]).unwrap();
                (file.into(), None)
            }
        }
    }
}

/// The command with a limit that `prlimit` sets.
fn limited(program: &Command, limit: &str) -> Command {
    let mut limited = Command::new("prlimit");
    limited.arg(limit).arg(program.get_program()).args(program.get_args());
    for (name, _) in program.get_envs() {
        limited.env_remove(name);
    }
    limited.current_dir(program.get_current_dir().unwrap());
    limited.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    limited
}

/// A receiver that refuses events of the user `bad` and accepts all others.
fn receiver() -> Receiver {
    let receiver = Receiver::start();
    receiver.answers(|hook| if hook.user() == "bad" { 400 } else { 200 });
    receiver
}

fn event(user: &str) -> String {
    format!(r#"{{"UserID":"{user}","Payload":1}}"#)
}

fn post(address: &str, body: &str) -> u16 {
    eventually(|| {
        let answer = Client::connect(address).and_then(|mut client| client.post(body));
        answer.map(|answer| answer.status).map_err(|error| error.to_string())
    })
}

/// Posts events that the receiver always refuses, and others, which have to be delivered.
fn deliver_some(address: &str, receiver: &Receiver) {
    for good in ["one", "two", "three"] {
        let count = receiver.count();
        for user in ["bad", good, "good"] {
            assert_eq!(post(address, &event(user)), 200);
        }
        eventually(|| match receiver.count() - count {
            2 => Ok(()),
            other => Err(format!("{other} of 2 events were delivered after {good}")),
        });
    }
}

#[test]
fn up_continues_to_deliver_and_drains_if_standard_error_cannot_be_written_to() {
    std::thread::scope(|scope| {
        for broken in ALL_BROKEN {
            scope.spawn(move || check_up_with(broken));
        }
    });
}

fn check_up_with(broken: BrokenStderr) {
    let (folder, receiver, address) = (tempfile::tempdir().unwrap(), receiver(), free_address());
    let hook = format!("hook={}", receiver.url);
    let dead = format!("dead=http://{}/hook", free_address());
    let destinations = ["--dest", &hook, "--dest", &dead, "--dest", "missing=nowhere/file", "--dest", "file-1"];
    let arguments = [&["up", "--listen", &address, "--attempts", "2"], &destinations[..]].concat();
    let (command, _lives) = broken.command(folder.path(), &arguments);
    let up = Program::spawn(command, &format!("up, {broken:?}"));
    deliver_some(&address, &receiver);
    // The first refusal of ingest writes a log line, too, and must still be answered.
    let holding = rusqlite::Connection::open(folder.path().join("eventd.db")).unwrap();
    holding.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(post(&address, &event("good")), 503, "{broken:?}");
    holding.execute_batch("ROLLBACK").unwrap();
    deliver_some(&address, &receiver);
    eventually(|| match lines(&folder.path().join("file-1")).len() {
        18 => Ok(()),
        other => Err(format!("{other} of 18 lines were written, {broken:?}")),
    });
    assert_eq!(up.stop().code(), 0, "{broken:?}");
}

#[test]
fn dispatch_continues_to_deliver_and_drains_if_standard_error_cannot_be_written_to() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), receiver());
    let url = ["--url", "sqlite:eventd.db"];
    let ingest = Program::start(folder.path(), &[&["ingest", "--listen", "127.0.0.1:0"], &url[..]].concat());
    let address = ingest.address();
    for broken in ALL_BROKEN {
        let hook = format!("{broken:?}={}", receiver.url);
        let arguments = [&["dispatch", "--dest", &hook, "--attempts", "2", "--start", "latest"], &url[..]].concat();
        let (command, _lives) = broken.command(folder.path(), &arguments);
        let dispatch = Program::spawn(command, &format!("dispatch, {broken:?}"));
        // Dispatch starts at the end of the log, so events are posted until one of them is delivered.
        eventually(|| {
            let count = receiver.count();
            post(&address, &event("first"));
            if receiver.count() > count { Ok(()) } else { Err(format!("not delivering yet, {broken:?}")) }
        });
        wait_until_quiet(&receiver);
        deliver_some(&address, &receiver);
        assert_eq!(dispatch.stop().code(), 0, "{broken:?}");
    }
    assert_eq!(ingest.stop().code(), 0);
}

/// Waits until no request has come for a while.
fn wait_until_quiet(receiver: &Receiver) {
    let mut seen = (receiver.count(), 0);
    eventually(|| {
        let count = receiver.count();
        seen = if count == seen.0 { (count, seen.1 + 1) } else { (count, 0) };
        if seen.1 < 100 { Err("requests are still coming".into()) } else { Ok(()) }
    });
}

#[test]
fn the_number_of_lost_lines_is_logged_when_there_is_a_reader_again() {
    let (folder, receiver, address) = (tempfile::tempdir().unwrap(), receiver(), free_address());
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let both = File::options().read(true).write(true).open(&fifo).unwrap();
    let stderr = File::options().write(true).open(&fifo).unwrap();
    let hook = format!("hook={}", receiver.url);
    let mut command = command(folder.path(), &["up", "--listen", &address, "--dest", &hook, "--attempts", "2"]);
    command.stderr(stderr);
    let up = Program::spawn(command, "up, with a fifo");
    let first = BufReader::new(both).lines().map(Result::unwrap).find(|line| line.contains("delivering"));
    assert!(first.is_some());
    // The only reader was closed with the iterator.
    deliver_some(&address, &receiver);
    let mut later = BufReader::new(File::open(&fifo).unwrap()).lines().map(Result::unwrap);
    let line = later.next().unwrap();
    assert!(line.contains("WARN") && line.contains("log lines were lost"), "{line}");
    let lost: u64 = line.rsplit_once("lines=").unwrap().1.parse().unwrap();
    assert!(lost > 0, "{line}");
    up.signal("TERM");
    let after: Vec<String> = later.collect();
    assert!(after.iter().any(|line| line.contains("stopping")), "{after:?}");
    assert!(!after.iter().any(|line| line.contains("lost")), "the number is logged once: {after:?}");
    assert_eq!(up.end().code(), 0);
}

#[test]
fn a_fatal_error_and_a_usage_error_have_their_exit_code_even_if_they_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for broken in ALL_BROKEN {
        let ends = |arguments: &[&str], code: i32| {
            let (command, _lives) = broken.command(folder.path(), arguments);
            assert_eq!(Program::spawn(command, &format!("{arguments:?}")).end().code(), code, "{broken:?}");
        };
        ends(&["up", "--listen", &address], 1);
        // A usage error is written before the queue of log lines and the signal handlers exist, so it may block or be
        // killed here. A person at a terminal reads it.
        if ![BrokenStderr::NotRead, BrokenStderr::FileTooLarge].contains(&broken) {
            ends(&["up", "--window", "0"], 2);
            ends(&["up", "--backoff", "3s", "--backoff-max", "1s"], 2);
        }
    }
}

#[test]
fn a_standard_output_without_a_reader_only_fails_its_destination() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), receiver());
    let hook = format!("hook={}", receiver.url);
    let mut command = command(folder.path(), &["up", "--listen", "127.0.0.1:0", "--dest", "-", "--dest", &hook]);
    command.stdout(std::io::pipe().unwrap().1);
    let up = Program::spawn(command, "up, to a closed pipe");
    deliver_some(&up.address(), &receiver);
    let ending = up.stop();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert!(!ending.said.contains("panicked"), "{}", ending.said);
}

/// A user for whom the limit of threads counts. It does not count for root.
const LIMITED_USER: u32 = 54_321;

#[test]
fn a_limit_of_threads_is_either_high_enough_or_reported_at_start() {
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut refused = 0;
    for limit in [1, 2, 3, 4, 5, 6, 8, 11, 14, 18, 200] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let program = command(folder.path(), &["up", "--listen", "127.0.0.1:0", "--dest", "file-1"]);
        let mut limited = limited(&program, &format!("--nproc={limit}"));
        if is_root {
            limited.uid(LIMITED_USER).gid(LIMITED_USER);
        }
        let up = Program::spawn(limited, &format!("up, with {limit} threads"));
        let has_started = eventually(|| {
            let said = up.lines();
            let ended = said.contains("pids.max").then_some(false);
            ended.or(said.contains("to=file-1").then_some(true)).ok_or(said)
        });
        let ending = if has_started { up.stop() } else { up.end() };
        assert_eq!(ending.code(), if has_started { 0 } else { 1 }, "{limit} threads: {}", ending.said);
        refused += usize::from(!has_started);
    }
    println!("# threads: {refused} of 11 limits were too low");
    assert!(refused > 0, "no limit was too low, so this tested nothing");
}

/// A control group with a limit of memory, for one process. Dropping the value removes the group.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None`: the user who runs the tests may not create a group.
    fn new(bytes_max: usize) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("eventd-test-{}", std::process::id());
        // Version 2 of control groups, and version 1.
        let versions = [(root.join(&name), "memory.max"), (root.join("memory").join(&name), "memory.limit_in_bytes")];
        versions.into_iter().find_map(|(folder, limit)| {
            std::fs::create_dir(&folder).ok()?;
            let group = Self(folder);
            std::fs::write(group.0.join(limit), bytes_max.to_string()).is_ok().then_some(group)
        })
    }

    fn add(&self, process: u32) {
        std::fs::write(self.0.join("cgroup.procs"), process.to_string()).unwrap();
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // If the process is still ending, the group cannot be removed. It does no harm.
        std::fs::remove_dir(&self.0).unwrap_or_default();
    }
}

/// The largest amount of memory that the process has used so far, in bytes.
fn peak_bytes(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn several_dead_destinations_share_one_window_and_keep_to_the_logged_memory_bound() {
    const MIB: usize = 1024 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let few = ["--max-connections", "50", "--max-pending", "8MiB", "--listen", "127.0.0.1:0"];
    let filling = Program::start(folder.path(), &[&["up"], &few[..]].concat());
    let address = filling.address();
    let mut client = Client::connect(&address).unwrap();
    // Events of 8 KiB for 100 users, 96 MiB in all.
    let payload = "x".repeat(8 * 1024);
    for request in 0..40 {
        let event = |at: usize| format!(r#"{{"UserID":"user-{}","Payload":"{payload}"}}"#, (request * 300 + at) % 100);
        let events: Vec<String> = (0..300).map(event).collect();
        assert_eq!(client.post(&format!("[{}]", events.join(","))).unwrap().status, 200);
    }
    assert_eq!(filling.stop().code(), 0);

    let window = ["--window-bytes", "48MiB", "--concurrency", "16"];
    let idle = Program::start(folder.path(), &[&["up"], &few[..], &window].concat());
    idle.address();
    let program = peak_bytes(idle.id());
    assert_eq!(idle.stop().code(), 0);
    let dead: Vec<String> = (0..3).map(|number| format!("dead-{number}=http://{}/hook", free_address())).collect();
    let dead: Vec<&str> = dead.iter().flat_map(|dead| ["--dest", dead]).collect();
    // A process with three windows would be killed in this group.
    let group = MemoryGroup::new(program + 2 * 48 * MIB);
    let up = Program::start(folder.path(), &[&["up"], &few[..], &window, &dead].concat());
    if let Some(group) = &group {
        group.add(up.id());
    }
    let logged = up.wait_for(&["memory_bound="]);
    let (_, bound) = logged.split_once("memory_bound=").unwrap();
    let bound = bound.split(' ').next().unwrap().parse::<usize>().unwrap() * MIB;
    // No event is delivered, so a full window stays full. Then the peak no longer changes.
    let mut seen = (0, 0);
    let peak = eventually(|| {
        let peak = peak_bytes(up.id());
        seen = if peak == seen.0 && peak > program + 32 * MIB { (peak, seen.1 + 1) } else { (peak, 0) };
        if seen.1 < 200 { Err(format!("the windows are not full: {} MiB", peak / MIB)) } else { Ok(peak) }
    });
    let mib = |bytes: usize| bytes / MIB;
    let limited = if group.is_some() { "in a control group" } else { "without a control group" };
    let (idle, dead, bound_mib) = (mib(program), mib(peak), mib(bound));
    println!("# memory, {limited}: {idle} MiB idle, {dead} MiB with three dead, {bound_mib} MiB logged");
    assert!(peak < program + bound, "{} MiB used, {} MiB logged", mib(peak), mib(bound));
    assert!(peak < program + 2 * 48 * MIB, "{} MiB used, with one window of 48 MiB", mib(peak));
    assert_eq!(up.stop().code(), 0);
}
