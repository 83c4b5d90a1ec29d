//! Child processes: `eventd` itself, and this program again in one of its [`roles`](crate::roles). Their resource use
//! is read from `/proc`. Only children of this process are ever stopped, and none outlives its handle.

use crate::roles::now_ns;
use anyhow::{Context as _, bail, ensure};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child as Process, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a child may take to end after SIGTERM. `--drain` is 30 s by default, but nothing is in flight at that time.
const END_WITHIN: Duration = Duration::from_secs(40);

/// `USER_HZ`, the unit of `/proc/<pid>/stat` on every Linux that Rust supports.
const TICKS_A_SECOND: f64 = 100.0;

/// How many lines of a child may wait to be read. Beyond that the child waits.
const LINES_WAITING_MAX: usize = 16;

/// A running child process.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    process: Process,
}

/// A line that a child wrote.
#[derive(Debug)]
pub(crate) struct Line {
    /// When it arrived, in nanoseconds since the Unix epoch.
    pub(crate) came_ns: u64,
    pub(crate) text: String,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// User and system time of all threads, including ended ones.
    pub(crate) cpu_s: f64,
    /// The most memory that was resident at once (`VmHWM`).
    pub(crate) peak_mb: f64,
    /// The memory that is resident now (`VmRSS`).
    pub(crate) resident_mb: f64,
}

impl Child {
    /// Starts `eventd` with these arguments. Its log goes to the file `log`.
    pub(crate) fn eventd(arguments: &[&str], log: &Path) -> anyhow::Result<Self> {
        let log = appended(log)?;
        Self::start(arguments, log.try_clone()?.into(), log)
    }

    /// Like [`eventd`](Self::eventd), and returns the lines of its standard output as they arrive, with their times.
    pub(crate) fn talking(arguments: &[&str], log: &Path) -> anyhow::Result<(Self, mpsc::Receiver<Line>)> {
        let mut child = Self::start(arguments, Stdio::piped(), appended(log)?)?;
        let lines = BufReader::new(child.process.stdout.take().context("a child's standard output")?).lines();
        let (tell, told) = mpsc::sync_channel(LINES_WAITING_MAX);
        // The thread ends with the child, which closes its end of the pipe.
        std::thread::spawn(move || {
            for text in lines.map_while(Result::ok) {
                let Ok(()) = tell.send(Line { came_ns: now_ns(), text }) else { return };
            }
        });
        Ok((child, told))
    }

    fn start(arguments: &[&str], stdout: Stdio, stderr: File) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eventd"));
        command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let process = command.spawn().context("start eventd")?;
        Ok(Self { name: format!("eventd {}", arguments.join(" ")), process })
    }

    /// The processor time and memory that the process has used.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        usage(self.process.id())
    }

    /// Fails if the process has ended without being told to.
    pub(crate) fn assert_running(&mut self) -> anyhow::Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself: {status}", self.name),
        }
    }

    /// Sends SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Sends SIGTERM, and waits for exit code 0.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        let told = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().context("run kill")?;
        ensure!(told.success(), "kill -TERM of {} failed: {told}", self.name);
        self.wait()
    }

    /// Like [`stop`](Self::stop), for a process that is not needed any more.
    pub(crate) fn terminate(mut self) -> anyhow::Result<()> {
        self.stop()
    }

    /// Waits until the process ends by itself with exit code 0.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        self.wait()
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + END_WITHIN;
        loop {
            if let Some(status) = self.process.try_wait()? {
                ensure!(status.success(), "{} ended with {status}", self.name);
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} still runs after {END_WITHIN:?}", self.name);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn appended(path: &Path) -> anyhow::Result<File> {
    File::options().create(true).append(true).open(path).with_context(|| format!("open {path:?}"))
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both calls fail if the child has already ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Another process next to `eventd`: this program in another role as a server or client, or a peer. It answers each line with one line. It ends
/// with its standard input, so it never outlives this process.
#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts the role and returns its first line.
    pub(crate) fn start(role: &[&str]) -> anyhow::Result<(Self, String)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--role").args(role);
        Self::spawn(&role.join(" "), command)
    }

    /// Starts another program that keeps the rules of a role, and returns its first line.
    pub(crate) fn spawn(name: &str, mut command: Command) -> anyhow::Result<(Self, String)> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {name}: {command:?}"))?;
        let questions = process.stdin.take().context("a child's standard input")?;
        let answers = BufReader::new(process.stdout.take().context("a child's standard output")?);
        let mut helper = Self { child: Child { name: name.to_owned(), process }, questions, answers };
        let first = helper.answer()?;
        Ok((helper, first))
    }

    /// Sends one line and waits for the answer.
    pub(crate) fn ask(&mut self, question: &str) -> anyhow::Result<String> {
        writeln!(self.questions, "{question}")?;
        self.questions.flush()?;
        self.answer()
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        self.child.usage()
    }

    /// Fails if the process has ended.
    pub(crate) fn assert_running(&mut self) -> anyhow::Result<()> {
        self.child.assert_running()
    }

    /// Sends SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()
    }

    /// Waits for its next line.
    pub(crate) fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "the helper {:?} ended", self.child.name);
        Ok(line.trim_end().to_owned())
    }
}

/// The resource use of this process. Limits that are measured through the library run in it.
pub(crate) fn own_usage() -> anyhow::Result<Usage> {
    usage(std::process::id())
}

fn usage(pid: u32) -> anyhow::Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the command is in parentheses and may contain blanks. After it, utime and stime are fields 12 and 13.
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("the form of /proc/<pid>/stat")?.1.split_whitespace().collect();
    let ticks = |index: usize| -> anyhow::Result<f64> {
        Ok(fields.get(index).context("a field of /proc/<pid>/stat")?.parse::<u64>()? as f64)
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let megabytes = |key: &str| -> anyhow::Result<f64> {
        let line =
            status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("{key} in status"))?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? as f64 * 1024.0 / 1e6)
    };
    Ok(Usage {
        cpu_s: (ticks(11)? + ticks(12)?) / TICKS_A_SECOND,
        peak_mb: megabytes("VmHWM:")?,
        resident_mb: megabytes("VmRSS:")?,
    })
}
