//! A file on the disk as `file` needs it: opened and locked, its last line mended, synced.

use super::ConfigurationError;
use super::failure_words;
use super::file::Medium;
use super::line;
use crate::limits::TORN_LINE_BYTES_MAX;
use serde::de::IgnoredAny;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes that are read at a time while a line break is looked for from the end.
const LOOK_BACK_BYTES: usize = 64 * 1024;

/// Which file, and how long it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) len: u64,
}

impl Mark {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino(), len: metadata.len() }
    }

    fn is_same_file(self, other: Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    /// Permissions of a file that is made.
    mode: u32,
    file: Option<File>,
}

/// Why a file could not be opened: does somebody have to change something, or does it pass?
enum Fault {
    Configuration(String),
    Outage(String),
}

impl Fault {
    fn of(path: &Path, error: &io::Error) -> Self {
        let what = failure_words::of_file(path, "opened for writing", error);
        match error.kind() {
            ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::InvalidFilename
            | ErrorKind::InvalidInput => Self::Configuration(what),
            _ => Self::Outage(what),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Configuration(text) | Self::Outage(text) => text,
        }
    }
}

impl Disk {
    /// Opens a regular file at once. A pipe is opened with the first lines: that waits for its reader.
    pub(super) fn open(path: &Path, mode: u32) -> Result<Self, ConfigurationError> {
        Self::check_directory(path)?;
        let mut disk = Self::closed(path, mode);
        match disk.path.metadata() {
            Ok(metadata) if metadata.is_dir() => {
                return Err(ConfigurationError(format!("{} is a directory: name a file in it", path.display())));
            }
            Ok(metadata) if !metadata.is_file() => return Ok(disk),
            _ => {}
        }
        match open(&disk.path, mode) {
            Ok(file) => disk.file = Some(file),
            Err(Fault::Configuration(why)) => return Err(ConfigurationError(why)),
            // The first attempt meets it again, and says so.
            Err(Fault::Outage(_)) => {}
        }
        Ok(disk)
    }

    pub(super) fn closed(path: &Path, mode: u32) -> Self {
        Self { path: path.to_owned(), mode, file: None }
    }

    /// The directory has to be there: a mistyped one is not made.
    pub(super) fn check_directory(path: &Path) -> Result<(), ConfigurationError> {
        let Some(directory) = path.parent() else { return Ok(()) };
        match directory.metadata() {
            Ok(metadata) if !metadata.is_dir() => {
                Err(ConfigurationError(format!("{} is not a directory", directory.display())))
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(ConfigurationError(format!("the directory {} is missing: make it first", directory.display())))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, what: &str, error: &io::Error) -> String {
        failure_words::of_file(&self.path, what, error)
    }

    fn file(&self) -> Result<&File, String> {
        self.file.as_ref().ok_or_else(|| format!("{} is not open", self.path.display()))
    }
}

impl Medium for Disk {
    fn open(&mut self) -> Result<Mark, String> {
        if let Some(file) = &self.file {
            let metadata = file.metadata().map_err(|error| self.failed("looked at", &error))?;
            if metadata.nlink() > 0 || !metadata.is_file() {
                return Ok(Mark::of(&metadata));
            }
            // Deleted: what is written to it is lost when it is closed.
            self.file = None;
        }
        let file = open(&self.path, self.mode).map_err(Fault::text)?;
        let metadata = file.metadata().map_err(|error| self.failed("looked at", &error))?;
        self.file = Some(file);
        Ok(Mark::of(&metadata))
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), String> {
        self.file()?.write_all(lines).map_err(|error| self.failed("written", &error))
    }

    fn sync(&mut self) -> Result<(), String> {
        let file = self.file()?;
        let is_file = file.metadata().map_err(|error| self.failed("looked at", &error))?.is_file();
        if is_file { file.sync_data().map_err(|error| self.failed("synced", &error)) } else { Ok(()) }
    }

    fn cut(&mut self, to: Mark) -> Result<(), String> {
        let file = self.file()?;
        let metadata = file.metadata().map_err(|error| self.failed("looked at", &error))?;
        if !metadata.is_file() || !Mark::of(&metadata).is_same_file(to) || metadata.len() <= to.len {
            return Ok(());
        }
        file.set_len(to.len).and_then(|()| file.sync_all()).map_err(|error| self.failed("cut", &error))
    }

    fn close(&mut self) {
        self.file = None;
    }

    fn close_if_moved(&mut self) {
        let here = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|metadata| Mark::of(&metadata));
        let at_path = self.path.metadata().ok().map(|metadata| Mark::of(&metadata));
        if !here.zip(at_path).is_some_and(|(here, at_path)| here.is_same_file(at_path)) {
            self.file = None;
        }
    }
}

/// Opens, and of a regular file: locks, mends the last line, and makes its name durable.
fn open(path: &Path, mode: u32) -> Result<File, Fault> {
    let fault = |error: io::Error| Fault::of(path, &error);
    // To open a pipe for reading too would never fail, whether anybody reads it or not.
    let is_regular = path.metadata().map_or(true, |metadata| metadata.is_file());
    let mut options = OpenOptions::new();
    let file = options.append(true).read(is_regular).create(is_regular).mode(mode).open(path).map_err(fault)?;
    let metadata = file.metadata().map_err(fault)?;
    if !metadata.is_file() {
        return Ok(file);
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = holder(&metadata).map(|pid| format!(" (process {pid})")).unwrap_or_default();
            return Err(Fault::Configuration(format!(
                "{} is held by another eventd{holder}: stop that process first, or use another file, or {{partition}} in \
                 its name to have one a partition",
                path.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(fault(error)),
    }
    match last_line(&file, path, metadata.len())? {
        LastLine::Whole => {}
        LastLine::LacksLineBreak => (&file).write_all(b"\n").and_then(|()| file.sync_all()).map_err(fault)?,
        LastLine::Torn { whole } => file.set_len(whole).and_then(|()| file.sync_all()).map_err(fault)?,
    }
    if metadata.len() == 0
        && let Some(directory) = path.parent()
    {
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(fault)?;
    }
    Ok(file)
}

/// What a file ends with.
enum LastLine {
    /// A line break, or nothing.
    Whole,
    /// A line of ours, but for its line break.
    LacksLineBreak,
    /// The beginning of a line of ours, after so many bytes of whole lines.
    Torn { whole: u64 },
}

/// Looks at the end of the file. An error if the file, or what follows its last line break, is not ours: nothing of
/// another's is changed.
fn last_line(file: &File, path: &Path, len: u64) -> Result<LastLine, Fault> {
    let mut chunk = vec![0; LOOK_BACK_BYTES];
    let mut end = len;
    while end > 0 && len - end < TORN_LINE_BYTES_MAX {
        let start = end.saturating_sub(chunk.len() as u64);
        let chunk = &mut chunk[..(end - start) as usize];
        file.read_exact_at(chunk, start).map_err(|error| Fault::of(path, &error))?;
        if let Some(at) = chunk.iter().rposition(|byte| *byte == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if end == len {
        return Ok(LastLine::Whole);
    }
    let is_ours = || Ok(len - end < TORN_LINE_BYTES_MAX && begins_as_ours(file, end)? && is_torn(file, end..len)?);
    if is_ours().map_err(|error| Fault::of(path, &error))? {
        let lacks_line_break = is_json(file, end..len).map_err(|error| Fault::of(path, &error))?;
        return Ok(if lacks_line_break { LastLine::LacksLineBreak } else { LastLine::Torn { whole: end } });
    }
    Err(Fault::Configuration(format!(
        "{} ends without a line break, and not as a file that eventd wrote: end its last line, or use another file",
        path.display()
    )))
}

/// Whether the first of the file's whole lines is ours. One torn line may well be all that there is.
fn begins_as_ours(file: &File, whole: u64) -> io::Result<bool> {
    let beginning = beginning(file, &(0..whole))?;
    Ok(whole == 0 || line::BEGINNINGS.iter().any(|ours| beginning.starts_with(ours)))
}

/// Whether a line without an end begins as ours do. A crash may leave zeros in place of what was not written; where
/// they come so early that they decide, nothing else may follow them.
fn is_torn(file: &File, tail: Range<u64>) -> io::Result<bool> {
    let beginning = beginning(file, &tail)?;
    let zero = beginning.iter().position(|byte| *byte == 0);
    let written = &beginning[..zero.unwrap_or(beginning.len())];
    let as_ours = |ours: &&[u8]| ours.starts_with(written) || written.starts_with(ours);
    if !line::BEGINNINGS.iter().any(as_ours) {
        return Ok(false);
    }
    zero.map_or(Ok(true), |zero| is_zero(file, tail.start + zero as u64..tail.end))
}

/// Whether these bytes are one whole value of JSON.
fn is_json(file: &File, range: Range<u64>) -> io::Result<bool> {
    let bytes = BufReader::with_capacity(LOOK_BACK_BYTES, Part { file, range });
    match serde_json::from_reader::<_, IgnoredAny>(bytes) {
        Ok(_) => Ok(true),
        Err(error) if error.is_io() => Err(error.into()),
        Err(_) => Ok(false),
    }
}

/// A part of a file, read from its beginning.
struct Part<'f> {
    file: &'f File,
    range: Range<u64>,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..wanted], self.range.start)?;
        self.range.start += read as u64;
        Ok(read)
    }
}

/// As many of the first bytes as tell our lines from others.
fn beginning(file: &File, range: &Range<u64>) -> io::Result<Vec<u8>> {
    let longest = line::BEGINNINGS.iter().map(|ours| ours.len()).max().unwrap_or_default() as u64;
    let mut bytes = vec![0; longest.min(range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

fn is_zero(file: &File, range: Range<u64>) -> io::Result<bool> {
    let mut chunk = vec![0; LOOK_BACK_BYTES];
    for start in range.clone().step_by(LOOK_BACK_BYTES) {
        let chunk = &mut chunk[..(range.end - start).min(LOOK_BACK_BYTES as u64) as usize];
        file.read_exact_at(chunk, start)?;
        if chunk.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The process that holds the lock, where the system tells.
fn holder(metadata: &Metadata) -> Option<u32> {
    // `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`, device in hexadecimal digits.
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let device = metadata.dev();
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    let place = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&place.as_str())).then(|| fields[4].parse().ok())?
    })
}
