//! Error text for files: why a file cannot be used, and what to do about it.

use std::io::{self, ErrorKind};
use std::path::Path;

/// Describes why a file cannot be used. `participle` is "opened" or "written", for example.
pub(super) fn describe(path: &Path, participle: &str, error: &io::Error) -> String {
    let path = path.display();
    let advice = match error.kind() {
        ErrorKind::StorageFull => "its disk is full: make room",
        ErrorKind::QuotaExceeded => "the disk quota of this user is used up: make room, or raise the quota",
        ErrorKind::IsADirectory => "it is a directory: name a file in it, or move the directory away",
        ErrorKind::NotADirectory => "a part of the path is not a directory: correct the path",
        ErrorKind::NotFound => "its directory is missing: create the directory",
        ErrorKind::PermissionDenied => "this user must not write to it: change its owner or its permissions",
        ErrorKind::ReadOnlyFilesystem => "its file system is read-only: mount it for writing",
        ErrorKind::FileTooLarge => "it has reached the largest size that is allowed: move it away and send SIGHUP",
        _ => return format!("{path} cannot be {participle}: {error}"),
    };
    format!("{path} cannot be {participle}: {advice} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_why_a_file_cannot_be_written_and_what_to_do() {
        for (kind, expected) in [
            (ErrorKind::StorageFull, "its disk is full: make room"),
            (ErrorKind::QuotaExceeded, "the disk quota"),
            (ErrorKind::IsADirectory, "it is a directory"),
            (ErrorKind::PermissionDenied, "must not write to it"),
            (ErrorKind::ReadOnlyFilesystem, "read-only"),
            (ErrorKind::NotFound, "its directory is missing"),
        ] {
            let words = describe(Path::new("/data/out.jsonl"), "written", &kind.into());
            assert!(words.starts_with("/data/out.jsonl cannot be written: ") && words.contains(expected), "{words}");
        }
        // 122 is EDQUOT.
        let quota = describe(Path::new("out"), "written", &io::Error::from_raw_os_error(122));
        assert!(quota.contains("the disk quota"), "{quota}");
    }
}
