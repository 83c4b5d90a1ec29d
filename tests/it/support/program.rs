//! Runs `eventd` as a child process, which ends with the test. Processes are only ever ended by their own id.

use super::wait::PATIENCE;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One running `eventd`, in a folder of its own.
pub(crate) struct Program {
    child: Child,
    lines: Arc<Lines>,
    readers: Vec<JoinHandle<()>>,
    said: String,
}

#[derive(Default)]
struct Lines {
    state: Mutex<(Vec<String>, usize)>,
    more: Condvar,
}

/// The exit status of a run, and its output.
pub(crate) struct Ending {
    pub(crate) status: ExitStatus,
    /// Standard output and standard error.
    pub(crate) said: String,
}

impl Ending {
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {}\n{}", self.status, self.said))
    }
}

/// A command for `eventd` without the EVENTD_ variables of the shell that runs the tests.
pub(crate) fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eventd"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EVENTD_")) {
        command.env_remove(name);
    }
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Program {
    pub(crate) fn start(folder: &Path, arguments: &[&str]) -> Self {
        Self::spawn(command(folder, arguments), &arguments.join(" "))
    }

    pub(crate) fn spawn(mut command: Command, said: &str) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let lines = Arc::new(Lines::default());
        let out = child.stdout.take().map(|out| read(out, lines.clone()));
        // The stream is absent if the test has attached a terminal.
        let err = child.stderr.take().map(|err| read(err, lines.clone()));
        let readers: Vec<_> = out.into_iter().chain(err).collect();
        lines.state.lock().unwrap().1 = 2 - readers.len();
        Self { child, lines, readers, said: said.to_owned() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that contains all of these texts, and returns it.
    pub(crate) fn wait_for(&self, what: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lines.state.lock().unwrap();
        loop {
            if let Some(line) = state.0.iter().find(|line| what.iter().all(|what| line.contains(what))) {
                return line.clone();
            }
            let ended = state.1 == 2;
            let left = deadline.saturating_duration_since(Instant::now());
            if ended || left.is_zero() {
                let said = state.0.join("\n");
                drop(state);
                panic!("eventd {}: no line with {what:?} in\n{said}", self.said);
            }
            state = self.lines.more.wait_timeout(state, left).unwrap().0;
        }
    }

    /// The address on which ingest listens, from the log.
    pub(crate) fn address(&self) -> String {
        let line = self.wait_for(&["listening address="]);
        line.split("address=").nth(1).unwrap().trim().to_owned()
    }

    /// Sends a signal by its name: `TERM`, `INT`, `HUP`, `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        signal(&self.id().to_string(), name);
    }

    /// Waits until the process has ended.
    pub(crate) fn end(mut self) -> Ending {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "eventd {} does not end; its output:\n{}", self.said, self.lines());
            std::thread::sleep(Duration::from_millis(5));
        };
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Ending { status, said: self.lines() }
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub(crate) fn stop(self) -> Ending {
        self.signal("TERM");
        self.end()
    }

    /// Sends SIGKILL and waits until the process has ended.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn lines(&self) -> String {
        self.lines.state.lock().unwrap().0.join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Does nothing if the process has already ended.
        if self.child.kill().is_ok() {
            self.child.wait().expect("a killed child ends");
        }
    }
}

/// Sends a signal to a process by its id.
pub(crate) fn signal(process: &str, name: &str) {
    // The shell sends it, because std can only send SIGKILL.
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {process}")).status().unwrap();
    assert!(sent.success(), "kill -{name} {process}: {sent}");
}

/// Runs `eventd` to its end.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Ending {
    Program::start(folder, arguments).end()
}

fn read(from: impl std::io::Read + Send + 'static, lines: Arc<Lines>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            // The output of a killed process can end in the middle of a line.
            let Ok(line) = line else { break };
            lines.state.lock().unwrap().0.push(line);
            lines.more.notify_all();
        }
        lines.state.lock().unwrap().1 += 1;
        lines.more.notify_all();
    })
}
