//! Reads small files that are named on the command line: secrets, certificates, lists of users.

use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// Largest file with a secret, in bytes. The longest secret of Standard Webhooks has 64 bytes, and passwords are short.
pub(crate) const SECRET_FILE_BYTES_MAX: usize = 16 * 1024;

/// Largest file with certificates, in bytes. The bundle of a whole system has about 256 KiB.
pub(crate) const CERTIFICATE_FILE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long reading may take. A pipe without a writer would otherwise delay the start for ever.
const READ_MAX: Duration = Duration::from_secs(10);

/// Reads the whole file, which may be a pipe (`<(vault read …)`).
///
/// # Errors
/// The file cannot be read, has more than `bytes_max` bytes (`/dev/zero` never ends), or does not end within 10 s.
pub(crate) fn read(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    read_within(path, bytes_max, READ_MAX)
}

/// Like [`read`], for text in UTF-8.
pub(crate) fn read_text(path: &Path, bytes_max: usize) -> io::Result<String> {
    let text = String::from_utf8(read(path, bytes_max)?);
    text.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the file is not UTF-8 text"))
}

fn read_within(path: &Path, bytes_max: usize, time_max: Duration) -> io::Result<Vec<u8>> {
    let (answer, answered) = mpsc::sync_channel(1);
    let path = path.to_owned();
    // A read that hangs cannot be interrupted, so the thread is abandoned then. The caller ends the process anyway.
    std::thread::Builder::new().spawn(move || answer.send(read_bounded(&path, bytes_max)))?;
    answered.recv_timeout(time_max).unwrap_or_else(|_| {
        let why =
            format!("the file did not end within {time_max:?}. If it is a pipe, check the program that writes to it");
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    })
}

fn read_bounded(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("the file has more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_never_ends_is_an_error_and_does_not_hang() {
        let endless = read(Path::new("/dev/zero"), 100).unwrap_err();
        assert_eq!(endless.kind(), io::ErrorKind::FileTooLarge, "{endless}");
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let silent = read_within(&pipe, 100, Duration::from_millis(50)).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut, "{silent}");
        assert!(read(folder.path(), 100).is_err(), "a folder cannot be read");
    }

    #[test]
    fn a_file_of_exactly_the_limit_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "x".repeat(100)).unwrap();
        assert_eq!(read_text(&path, 100).unwrap().len(), 100);
        assert!(read(&path, 99).is_err());
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path, 100).unwrap_err().to_string().contains("UTF-8"));
    }
}
