//! Reads the small files that people name on the command line: secrets, certificates, lists of users.

use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// Bytes of a file with a secret: the longest that Standard Webhooks allows has 64 bytes, and a password is short too.
pub(crate) const SECRET_FILE_BYTES_MAX: usize = 16 * 1024;

/// Bytes of a file with certificates: the bundle of a whole system has about 256 KiB.
pub(crate) const CERTIFICATE_FILE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long reading may take: a pipe that nobody writes into would hold a start forever.
const READ_MAX: Duration = Duration::from_secs(10);

/// Reads the whole file. A pipe is fine (`<(vault read …)`).
///
/// # Errors
/// The file cannot be read, is longer than `bytes_max` (`/dev/zero` never ends), or does not end within 10 s.
pub(crate) fn read(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    read_within(path, bytes_max, READ_MAX)
}

/// Like [`read`], for text in UTF-8.
pub(crate) fn read_text(path: &Path, bytes_max: usize) -> io::Result<String> {
    let text = String::from_utf8(read(path, bytes_max)?);
    text.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8"))
}

fn read_within(path: &Path, bytes_max: usize, time_max: Duration) -> io::Result<Vec<u8>> {
    let (answer, answered) = mpsc::sync_channel(1);
    let path = path.to_owned();
    // The thread is left behind if it hangs, because nothing can interrupt it. The caller then ends the process.
    std::thread::Builder::new().spawn(move || answer.send(read_bounded(&path, bytes_max)))?;
    answered.recv_timeout(time_max).unwrap_or_else(|_| {
        let why = format!("it did not end within {time_max:?}: if it is a pipe, does a program write into it?");
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    })
}

fn read_bounded(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_an_error_and_not_a_hanging_start() {
        let endless = read(Path::new("/dev/zero"), 100).unwrap_err();
        assert_eq!(endless.kind(), io::ErrorKind::FileTooLarge, "{endless}");
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let silent = read_within(&pipe, 100, Duration::from_millis(50)).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut, "{silent}");
        assert!(read(folder.path(), 100).is_err(), "a folder");
    }

    #[test]
    fn a_file_of_just_the_limit_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "x".repeat(100)).unwrap();
        assert_eq!(read_text(&path, 100).unwrap().len(), 100);
        assert!(read(&path, 99).is_err());
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path, 100).unwrap_err().to_string().contains("UTF-8"));
    }
}
