//! Replays at a terminal: the question before anything is delivered, and the progress bar.

use super::*;
use eventd::core::event::{ID, Record};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::File;
use std::io::{Read, Write};

/// A replay in a terminal. The test types into it, and collects what it shows.
struct Terminal {
    replay: Program,
    keys: File,
    screen: std::thread::JoinHandle<String>,
}

impl Terminal {
    fn replaying(delivered: &Delivered, more: &[&str]) -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let path = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).open(path).unwrap();
        let arguments = delivered.arguments("replay", &[&["--dest", &delivered.destination()], more].concat());
        let mut command = command(delivered.folder(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        command.stdin(terminal.try_clone().unwrap()).stderr(terminal);
        let keys = File::from(user);
        let mut shown = keys.try_clone().unwrap();
        let replay = Program::spawn(command, "replay at a terminal");
        // The thread ends when the program has closed the terminal.
        let screen = std::thread::spawn(move || {
            let (mut text, mut some) = (Vec::new(), [0; 4096]);
            while let Ok(read @ 1..) = shown.read(&mut some) {
                text.extend_from_slice(&some[..read]);
            }
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { replay, keys, screen }
    }

    fn types(mut self, keys: &str) -> (Ending, String) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        let ending = self.replay.end();
        (ending, self.screen.join().unwrap())
    }
}

#[test]
fn a_replay_at_a_terminal_asks_and_only_a_yes_delivers() {
    let delivered = Delivered::new(60);
    for no in ["n\n", "\n", "yesterday\n", "\u{4}"] {
        let (ending, shown) = Terminal::replaying(&delivered, &["--from", "0"]).types(no);
        assert_eq!(ending.code(), 0, "{no:?}: {shown}");
        let question = format!("deliver 60 events to hook ({}) now? [y/N]", delivered.receiver.url);
        assert!(shown.contains(&question), "{no:?}: {shown}");
        assert!(shown.contains("nothing was delivered"), "{no:?}: {shown}");
    }
    assert_eq!((delivered.receiver.count(), delivered.listed()), (0, Vec::new()));
    let (ending, shown) = Terminal::replaying(&delivered, &["--from", "0"]).types("y\n");
    assert_eq!(ending.code(), 0, "{shown}");
    assert_eq!(bodies(&delivered.receiver.take()), delivered.sent);
    let (ending, shown) = Terminal::replaying(&delivered, &["--rewind", "--from", "0"]).types("n\n");
    assert_eq!(ending.code(), 0, "{shown}");
    assert!(
        shown.contains("move the position of hook back, so that dispatch delivers 60 events again? [y/N]"),
        "{shown}"
    );
}

#[test]
fn the_progress_bar_is_shown_and_its_line_is_erased() {
    let delivered = Delivered::new(600);
    let (ending, shown) = Terminal::replaying(&delivered, &["--from", "0", "--rate", "600/s"]).types("yes\n");
    assert_eq!(ending.code(), 0, "{shown}");
    assert!(shown.contains("of 600, ") && shown.contains("[#") && shown.contains("s left"), "{shown}");
    assert!(ending.said.contains("600 delivered"), "{}", ending.said);
    // The last text on the bar's line is erased.
    let (_, behind) = shown.rsplit_once("\r\u{1b}[K").unwrap();
    assert!(!behind.contains(" of 600"), "{shown}");
}

/// A user whose name would move the cursor, hide and reverse text, and forge a line.
const EVIL: &str = "u\u{1b}[2J\u{7}\u{9b}2J\u{202e}\u{2028}\u{2066}\u{200b}\u{7f}\nforged\r";

fn assert_harmless(said: &str, what: &str) {
    let raw =
        said.chars().find(|character| EVIL[1..].contains(*character) && character.is_control() && *character != '\n');
    assert_eq!(raw, None, "{what}: {said:?}");
    let raw = said.chars().find(|character| !character.is_ascii() && EVIL.contains(*character));
    assert_eq!(raw, None, "{what}: {said:?}");
    assert!(!said.lines().any(|line| line.starts_with("forged")), "{what}: {said}");
}

#[test]
fn text_of_a_producer_reaches_the_terminal_only_escaped() {
    let delivered = Delivered::new(60);
    crate::support::block_on(async {
        let log = delivered.engine().await.open("user-events", None).await.unwrap();
        let evil = Some(EVIL.as_bytes());
        let now_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
        log.append(0, vec![Record::new(evil, evil, &[(ID, evil)], now_ms)]).await.unwrap();
    });
    let dispatch = delivered.start("dispatch", &["--dest", &delivered.destination()]);
    delivered.receiver.wait_for(1);
    assert_eq!(dispatch.stop().code(), 0);
    let escaped = r"u\u{1b}[2J\u{7}\u{9b}2J\u{202e}\u{2028}\u{2066}\u{200b}\u{7f}\nforged\r";
    for (more, says) in [
        (&[][..], escaped),
        (&["--json"], r"u\u001b[2J\u0007\u009b2J\u202e\u2028"),
        (&["--user", "nobody", "--user", EVIL], escaped),
        (&["--id", EVIL, "--execute"], "1 delivered"),
    ] {
        let ending = delivered.replay(&[&["--from", "0"], more].concat());
        assert_harmless(&ending.said, &format!("{more:?}"));
        assert!(ending.said.contains(says) || more.contains(&"nobody"), "{more:?}: {}", ending.said);
    }
    for format in ["text", "json"] {
        let ending = delivered.replay(&["--from", "0", "--user", &EVIL.repeat(2), "--log-format", format]);
        assert_eq!(ending.code(), 1, "{}", ending.said);
        assert_harmless(&ending.said, format);
        assert!(ending.said.contains("no event of the user"), "{format}: {}", ending.said);
    }
    for json in [&[][..], &["--json"]] {
        let arguments = delivered.arguments("replay", &[&["--list"], json].concat());
        let ending = run(delivered.folder(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_harmless(&ending.said, "--list");
        assert!(ending.said.contains("forged"), "{}", ending.said);
    }
    let arguments = delivered.arguments("replay", &["--dest", "hook=-", "--from", "0", "--execute"]);
    let ending = run(delivered.folder(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_harmless(&ending.said, "standard output");
    let lines = json_lines(&ending);
    assert!(lines.iter().any(|line| line["user"] == EVIL && line["payload"] == EVIL), "{}", ending.said);
}
