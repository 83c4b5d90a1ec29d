//! File permissions: who may read what eventd creates, and what it does if it may not write.

use super::processes::{ingest, post};
use crate::support::delivered::lines;
use crate::support::program::{Program, command, run};
use crate::support::wait::eventually;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

const UP: [&str; 7] = ["up", "--url", "sqlite:eventd.db", "--listen", "127.0.0.1:0", "--dest", "out"];

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o7777
}

/// Runs `up` with this umask until it has delivered an event.
fn delivered(folder: &Path, umask: &str, more: &[&str]) -> Program {
    let plain = command(folder, &[&UP, more].concat());
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(plain.get_program()).args(plain.get_args());
    shell.current_dir(folder).stdin(std::process::Stdio::null());
    shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let program = Program::spawn(shell, "up");
    post(&program, 0);
    eventually(|| if lines(&folder.join("out")).is_empty() { Err(program.lines()) } else { Ok(()) });
    program
}

#[test]
fn created_files_are_only_for_their_owner() {
    let folder = tempfile::tempdir().unwrap();
    let program = delivered(folder.path(), "000", &[]);
    for file in ["eventd.db", "eventd.db-wal", "eventd.db-shm", "eventd.db.out.lock", "out"] {
        assert_eq!(mode(&folder.path().join(file)), 0o600, "{file}");
    }
    assert_eq!(program.stop().code(), 0);
}

#[test]
fn a_delivered_file_has_the_configured_permissions() {
    for (asked, umask, expected) in [("0640", "000", 0o640), ("666", "022", 0o644), ("0660", "077", 0o600)] {
        let folder = tempfile::tempdir().unwrap();
        let program = delivered(folder.path(), umask, &["--file-mode", asked]);
        assert_eq!(mode(&folder.path().join("out")), expected, "{asked} with umask {umask}");
        assert_eq!(mode(&folder.path().join("eventd.db")), 0o600);
        assert_eq!(program.stop().code(), 0);
    }
    for wrong in ["0400", "0777", "4600", "rw-------", "", "0680"] {
        let folder = tempfile::tempdir().unwrap();
        let refused = run(folder.path(), &[&UP[..], &["--file-mode", wrong]].concat());
        assert_eq!(refused.code(), 2, "{wrong:?}: {}", refused.said);
        assert!(refused.said.contains("--file-mode"), "{wrong:?}: {}", refused.said);
    }
}

#[test]
fn existing_files_keep_their_permissions_and_locks_get_those_of_the_database() {
    let folder = tempfile::tempdir().unwrap();
    for (file, permissions) in [("eventd.db", 0o660), ("out", 0o644)] {
        fs::write(folder.path().join(file), "").unwrap();
        fs::set_permissions(folder.path().join(file), fs::Permissions::from_mode(permissions)).unwrap();
    }
    let program = delivered(folder.path(), "007", &[]);
    for (file, expected) in [
        ("eventd.db", 0o660),
        ("eventd.db-wal", 0o660),
        ("eventd.db-shm", 0o660),
        ("eventd.db.out.lock", 0o660),
        ("out", 0o644),
    ] {
        assert_eq!(mode(&folder.path().join(file)), expected, "{file}");
    }
    assert_eq!(program.stop().code(), 0);
}

#[test]
fn a_lock_file_that_is_a_link_or_a_pipe_is_neither_followed_nor_waited_for() {
    for (kind, says) in
        [("link", "it is a symbolic link"), ("pipe", "it is not a regular file"), ("folder", "directory")]
    {
        let folder = tempfile::tempdir().unwrap();
        let (lock, victim) = (folder.path().join("eventd.db.out.lock"), folder.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        match kind {
            "link" => symlink(&victim, &lock).unwrap(),
            "pipe" => assert!(Command::new("mkfifo").arg(&lock).status().unwrap().success()),
            _ => fs::create_dir(&lock).unwrap(),
        }
        let ending = run(folder.path(), &["dispatch", "--url", "sqlite:eventd.db", "--dest", "out"]);
        assert_eq!(ending.code(), 2, "{kind}: {}", ending.said);
        assert!(ending.said.contains("eventd.db.out.lock") && ending.said.contains(says), "{kind}: {}", ending.said);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }
    // A link whose target is missing must not create the target.
    let folder = tempfile::tempdir().unwrap();
    symlink(folder.path().join("nowhere"), folder.path().join("eventd.db.out.lock")).unwrap();
    assert_eq!(run(folder.path(), &["dispatch", "--url", "sqlite:eventd.db", "--dest", "out"]).code(), 2);
    assert!(!folder.path().join("nowhere").exists());
}

/// Runs eventd as an account that may not write here: this account, or another one if this one is root.
fn as_a_guest(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let plain = command(folder, arguments);
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut guest = if is_root { Command::new("setpriv") } else { Command::new("env") };
    if is_root {
        guest.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        // The program may be in a folder that only root can read.
        let copy = folder.join("eventd-for-a-guest");
        fs::copy(plain.get_program(), &copy).unwrap();
        guest.arg(copy);
    } else {
        guest.arg(plain.get_program());
    }
    let output = guest.args(plain.get_args()).current_dir(folder).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

/// Creates a database with a finished replay, in a folder that guests may only read.
fn replayed(folder: &Path) {
    let program = delivered(folder, "022", &[]);
    assert_eq!(program.stop().code(), 0);
    let replay = run(folder, &["replay", "--url", "sqlite:eventd.db", "--dest", "out", "--from", "0", "--execute"]);
    assert_eq!(replay.code(), 0, "{}", replay.said);
    fs::set_permissions(folder.join("eventd.db"), fs::Permissions::from_mode(0o444)).unwrap();
}

const LIST: [&str; 4] = ["replay", "--list", "--url", "sqlite:eventd.db"];

#[test]
fn replays_are_listed_in_a_folder_that_is_not_writable() {
    let folder = tempfile::tempdir().unwrap();
    replayed(folder.path());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let before: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let (code, said) = as_a_guest(folder.path(), &LIST);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("finished"), "{said}");
    let mut after: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    after.retain(|name| name != "eventd-for-a-guest");
    assert_eq!(after.len(), before.len(), "the list creates no file: {after:?}");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn replays_are_listed_while_another_account_has_the_database_open() {
    let folder = tempfile::tempdir().unwrap();
    replayed(folder.path());
    let program = ingest(folder.path());
    post(&program, 1);
    for file in ["eventd.db-wal", "eventd.db-shm"] {
        fs::set_permissions(folder.path().join(file), fs::Permissions::from_mode(0o444)).unwrap();
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let (code, said) = as_a_guest(folder.path(), &LIST);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("finished"), "{said}");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    post(&program, 2);
    assert_eq!(program.stop().code(), 0);
}

#[test]
fn an_unreadable_write_ahead_log_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    replayed(folder.path());
    let program = ingest(folder.path());
    post(&program, 1);
    program.kill();
    // This happens if two of the three files are copied to a read-only disk.
    fs::remove_file(folder.path().join("eventd.db-shm")).unwrap();
    fs::set_permissions(folder.path().join("eventd.db-wal"), fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let (code, said) = as_a_guest(folder.path(), &LIST);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("eventd.db-wal holds a part of it"), "{said}");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // A process that may write can still read everything, and nothing was changed.
    assert_eq!(run(folder.path(), &LIST).code(), 0);
}
