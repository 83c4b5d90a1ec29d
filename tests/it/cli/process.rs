//! The process as a whole: what becomes of it if standard error cannot be written to, if it gets no thread, and how
//! much memory it holds.

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

/// A port that nobody has now. With a broken standard error no line tells which one was taken.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Ways in which standard error fails, or stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    ReaderGone,
    DiskFull,
    TerminalClosed,
    NotRead,
    /// As `NotRead`, and a write is an error instead of a wait.
    NotReadNonBlocking,
    /// `ulimit -f`: a write is an error, and a signal too.
    FileTooLarge,
}

const EVERY_WAY: [Broken; 6] = [
    Broken::ReaderGone,
    Broken::DiskFull,
    Broken::TerminalClosed,
    Broken::NotRead,
    Broken::NotReadNonBlocking,
    Broken::FileTooLarge,
];

/// Bytes of the largest file: enough for a small database.
const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

impl Broken {
    /// The program with such a standard error, and what has to live as long as it.
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
                // As much as a pipe holds: the next byte waits for a reader.
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

/// The program under a limit of `prlimit`.
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

/// Takes everything but what `bad` sends.
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

/// Posts an event that is refused for ever, and then others, which all have to be delivered.
fn deliver_some(address: &str, receiver: &Receiver) {
    for good in ["one", "two", "three"] {
        let count = receiver.count();
        for user in ["bad", good, "good"] {
            assert_eq!(post(address, &event(user)), 200);
        }
        eventually(|| match receiver.count() - count {
            2 => Ok(()),
            other => Err(format!("{other} of 2 were delivered after {good}")),
        });
    }
}

#[test]
fn up_delivers_on_and_drains_if_standard_error_cannot_be_written_to() {
    std::thread::scope(|scope| {
        for broken in EVERY_WAY {
            scope.spawn(move || up_with(broken));
        }
    });
}

fn up_with(broken: Broken) {
    let (folder, receiver, address) = (tempfile::tempdir().unwrap(), receiver(), free_address());
    let hook = format!("hook={}", receiver.url);
    let dead = format!("dead=http://{}/hook", free_address());
    let destinations = ["--dest", &hook, "--dest", &dead, "--dest", "missing=nowhere/file", "--dest", "file-1"];
    let arguments = [&["up", "--listen", &address, "--attempts", "2"], &destinations[..]].concat();
    let (command, _lives) = broken.command(folder.path(), &arguments);
    let up = Program::spawn(command, &format!("up, {broken:?}"));
    deliver_some(&address, &receiver);
    // Ingest's first refusal is a log line too, and has to be an answer.
    let holding = rusqlite::Connection::open(folder.path().join("eventd.db")).unwrap();
    holding.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(post(&address, &event("good")), 503, "{broken:?}");
    holding.execute_batch("ROLLBACK").unwrap();
    deliver_some(&address, &receiver);
    eventually(|| match lines(&folder.path().join("file-1")).len() {
        18 => Ok(()),
        other => Err(format!("{other} of 18 lines, {broken:?}")),
    });
    assert_eq!(up.stop().code(), 0, "{broken:?}");
}

#[test]
fn dispatch_delivers_on_and_drains_if_standard_error_cannot_be_written_to() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), receiver());
    let url = ["--url", "sqlite:eventd.db"];
    let ingest = Program::start(folder.path(), &[&["ingest", "--listen", "127.0.0.1:0"], &url[..]].concat());
    let address = ingest.address();
    for broken in EVERY_WAY {
        let hook = format!("{broken:?}={}", receiver.url);
        let arguments = [&["dispatch", "--dest", &hook, "--attempts", "2", "--start", "latest"], &url[..]].concat();
        let (command, _lives) = broken.command(folder.path(), &arguments);
        let dispatch = Program::spawn(command, &format!("dispatch, {broken:?}"));
        // It begins at the end of the log, wherever that is when it is there.
        eventually(|| {
            let count = receiver.count();
            post(&address, &event("first"));
            if receiver.count() > count { Ok(()) } else { Err(format!("not delivering yet, {broken:?}")) }
        });
        settled(&receiver);
        deliver_some(&address, &receiver);
        assert_eq!(dispatch.stop().code(), 0, "{broken:?}");
    }
    assert_eq!(ingest.stop().code(), 0);
}

/// Waits until nothing has come for a while.
fn settled(receiver: &Receiver) {
    let mut seen = (receiver.count(), 0);
    eventually(|| {
        let count = receiver.count();
        seen = if count == seen.0 { (count, seen.1 + 1) } else { (count, 0) };
        if seen.1 < 100 { Err("more is coming".into()) } else { Ok(()) }
    });
}

#[test]
fn the_number_of_lost_lines_is_told_when_there_is_a_reader_again() {
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
    // The only reader is gone. (It was closed with the iterator.)
    deliver_some(&address, &receiver);
    let mut told = BufReader::new(File::open(&fifo).unwrap()).lines().map(Result::unwrap);
    let line = told.next().unwrap();
    assert!(line.contains("WARN") && line.contains("log lines were lost"), "{line}");
    let lost: u64 = line.rsplit_once("lines=").unwrap().1.parse().unwrap();
    assert!(lost > 0, "{line}");
    up.signal("TERM");
    let after: Vec<String> = told.collect();
    assert!(after.iter().any(|line| line.contains("stopping")), "{after:?}");
    assert!(!after.iter().any(|line| line.contains("lost")), "told once: {after:?}");
    assert_eq!(up.end().code(), 0);
}

#[test]
fn a_fatal_error_and_a_usage_error_end_with_their_exit_code_although_they_cannot_be_told() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for broken in EVERY_WAY {
        let ends = |arguments: &[&str], code: i32| {
            let (command, _lives) = broken.command(folder.path(), arguments);
            assert_eq!(Program::spawn(command, &format!("{arguments:?}")).end().code(), code, "{broken:?}");
        };
        ends(&["up", "--listen", &address], 1);
        // A person who types a wrong flag reads what is said about it; and signals are heard a little later.
        if ![Broken::NotRead, Broken::FileTooLarge].contains(&broken) {
            ends(&["up", "--window", "0"], 2);
            ends(&["up", "--backoff", "3s", "--backoff-max", "1s"], 2);
        }
    }
}

#[test]
fn a_standard_output_that_nobody_reads_is_a_destination_that_fails_and_no_more() {
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

/// Whoever may start as many processes as they like, this one may not. (Limits do not hold for root.)
const LIMITED_USER: u32 = 54_321;

#[test]
fn a_limit_of_threads_ends_the_start_in_words_or_is_high_enough() {
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
        let began = eventually(|| {
            let said = up.lines();
            let ended = said.contains("pids.max").then_some(false);
            ended.or(said.contains("to=file-1").then_some(true)).ok_or(said)
        });
        let ending = if began { up.stop() } else { up.end() };
        assert_eq!(ending.code(), if began { 0 } else { 1 }, "{limit} threads: {}", ending.said);
        refused += usize::from(!began);
    }
    println!("# threads: {refused} of 11 limits were too low");
    assert!(refused > 0, "no limit held, so nothing was tested");
}

/// A control group with a limit of memory, for one process. It is removed with this value.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None`: whoever runs the tests may not make one here.
    fn new(bytes_max: usize) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("eventd-test-{}", std::process::id());
        // The second version of control groups, and the first.
        let versions = [(root.join(&name), "memory.max"), (root.join("memory").join(&name), "memory.limit_in_bytes")];
        versions.into_iter().find_map(|(folder, limit)| {
            std::fs::create_dir(&folder).ok()?;
            let group = Self(folder);
            std::fs::write(group.0.join(limit), bytes_max.to_string()).is_ok().then_some(group)
        })
    }

    fn take(&self, process: u32) {
        std::fs::write(self.0.join("cgroup.procs"), process.to_string()).unwrap();
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A group that still holds a process that is just ending stays; it limits nobody.
        std::fs::remove_dir(&self.0).unwrap_or_default();
    }
}

/// The most memory that the process has held, in bytes.
fn peak_bytes(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn the_memory_of_several_dead_destinations_is_one_window_and_stays_below_what_is_told() {
    const MIB: usize = 1024 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let few = ["--max-connections", "50", "--max-pending", "8MiB", "--listen", "127.0.0.1:0"];
    let filling = Program::start(folder.path(), &[&["up"], &few[..]].concat());
    let address = filling.address();
    let mut client = Client::connect(&address).unwrap();
    // 96 MiB of events of 8 KiB, for 100 users.
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
    // Three windows would be killed in it.
    let group = MemoryGroup::new(program + 2 * 48 * MIB);
    let up = Program::start(folder.path(), &[&["up"], &few[..], &window, &dead].concat());
    if let Some(group) = &group {
        group.take(up.id());
    }
    let told = up.wait_for(&["memory_bound="]);
    let (_, told) = told.split_once("memory_bound=").unwrap();
    let told = told.split(' ').next().unwrap().parse::<usize>().unwrap() * MIB;
    // Nothing is delivered, so a window that is full stays full: then the peak stands still.
    let mut seen = (0, 0);
    let peak = eventually(|| {
        let peak = peak_bytes(up.id());
        seen = if peak == seen.0 && peak > program + 32 * MIB { (peak, seen.1 + 1) } else { (peak, 0) };
        if seen.1 < 200 { Err(format!("the windows are not full: {} MiB", peak / MIB)) } else { Ok(peak) }
    });
    let mib = |bytes: usize| bytes / MIB;
    let limited = if group.is_some() { "in a control group" } else { "without a control group" };
    let (idle, dead, told_mib) = (mib(program), mib(peak), mib(told));
    println!("# memory, {limited}: {idle} MiB idle, {dead} MiB with three dead, {told_mib} MiB told");
    assert!(peak < program + told, "{} MiB held, {} MiB told", mib(peak), mib(told));
    assert!(peak < program + 2 * 48 * MIB, "{} MiB held, with one window of 48 MiB", mib(peak));
    assert_eq!(up.stop().code(), 0);
}
