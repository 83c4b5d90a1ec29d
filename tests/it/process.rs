//! The process as a whole: what becomes of it if standard error cannot be written to, and if it gets no thread.

use crate::support::client::Client;
use crate::support::delivered::lines;
use crate::support::program::{Program, command, eventually};
use crate::support::receiver::Receiver;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
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
}

const EVERY_WAY: [Broken; 4] = [Broken::ReaderGone, Broken::DiskFull, Broken::TerminalClosed, Broken::NotRead];

impl Broken {
    /// What to start the program with, and what has to live as long as it.
    fn stderr(self) -> (Stdio, Option<std::io::PipeReader>) {
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
