//! The three incidents of `docs/incident.md`. The commands are read from the page and run unchanged, and the output
//! that the page shows must appear.

use super::*;
use crate::support::delivered::lines;

const RECEIVER_OF_THE_PAGE: &str = "http://localhost:9000/hook";

/// What a section shows, in order.
enum Shown {
    Command(String),
    Output(String),
}

fn section(title: &str) -> Vec<Shown> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/incident.md")).unwrap();
    let (_, section) = page.split_once(&format!("## {title}\n")).unwrap_or_else(|| panic!("no section {title:?}"));
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let block = |block: &str| match block.split_once('\n').unwrap() {
        ("sh", command) => Shown::Command(command.trim().to_owned()),
        (_, output) => Shown::Output(output.to_owned()),
    };
    section.split("```").skip(1).step_by(2).map(block).collect()
}

/// The line without what differs between runs: each word with a digit becomes `#`, and so does the name of the account.
fn shape(line: &str) -> String {
    let differs = |word: &str| word.contains('@') || word.contains(|c: char| c.is_ascii_digit());
    line.split_whitespace().map(|word| if differs(word) { "#" } else { word }).collect::<Vec<_>>().join(" ")
}

fn assert_shows(output: &str, said: &str) {
    let came: Vec<String> = said.lines().map(shape).collect();
    for line in output.lines().filter(|line| !line.trim().is_empty()) {
        assert!(
            came.iter().any(|came| came.contains(&shape(line))),
            "the page shows {line:?}, but the output is\n{said}"
        );
    }
}

struct Incident {
    folder: TempDir,
    receiver: Receiver,
    sent: BTreeMap<String, Vec<String>>,
}

impl Incident {
    /// An incident after 600 events were accepted by an `up` with this destination, and settled.
    fn new(
        destination: &str,
        more: &[&str],
        receiver: Receiver,
        settled: impl Fn(&Incident) -> Result<(), String>,
    ) -> Self {
        let mut delivered = Delivered::empty(&["--url", "sqlite:eventd.db"]);
        let to = destination.replace(RECEIVER_OF_THE_PAGE, &receiver.url);
        let up = delivered.start("up", &[&["--listen", "127.0.0.1:0", "--dest", &to], more].concat());
        delivered.post(&up, 0..600);
        let incident = Self { folder: delivered.folder, receiver, sent: delivered.sent };
        crate::support::wait::eventually(|| settled(&incident));
        assert_eq!(up.stop().code(), 0);
        incident
    }

    fn start(&self, command: &str, id: &str) -> Program {
        let command = command.replace(RECEIVER_OF_THE_PAGE, &self.receiver.url).replace(" ID ", &format!(" {id} "));
        let words: Vec<&str> = command.split(' ').collect();
        assert_eq!(words[..2], ["eventd", "replay"], "{command}");
        Program::start(self.folder.path(), &words[1..])
    }

    /// Runs the next command of the page to its end, and compares its output with what the page shows after it.
    fn play(&self, shown: &mut std::vec::IntoIter<Shown>, id: &str) -> Ending {
        let Some(Shown::Command(command)) = shown.next() else { panic!("the page must show a command next") };
        let ending = self.start(&command, id).end();
        assert_eq!(ending.code(), 0, "{command}: {}", ending.said);
        self.holds(shown, &ending);
        ending
    }

    fn holds(&self, shown: &mut std::vec::IntoIter<Shown>, ending: &Ending) {
        let Some(Shown::Output(output)) = shown.next() else { panic!("the page must show its output next") };
        assert_shows(&output.replace(RECEIVER_OF_THE_PAGE, &self.receiver.url), &ending.said);
    }
}

fn until_all_were_sent(incident: &Incident) -> Result<(), String> {
    match incident.receiver.count() {
        600.. => Ok(()),
        count => Err(format!("{count} of 600 were delivered")),
    }
}

#[test]
fn a_bad_deploy_of_the_receiver() {
    let mut page = section("A bad deploy of the receiver").into_iter();
    let incident =
        Incident::new(&format!("billing={RECEIVER_OF_THE_PAGE}"), &[], Receiver::start(), until_all_were_sent);
    let lost = incident.receiver.take();
    incident.play(&mut page, "");
    assert_eq!(incident.receiver.count(), 0, "a plan must deliver nothing");

    let Some(Shown::Command(command)) = page.next() else { panic!("the page must show the replay next") };
    let replay = incident.start(&command, "");
    let line = replay.wait_for(&["replaying; if it stops, continue with --resume "]);
    let id = line.split("--resume ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    incident.receiver.wait_for(100);
    let ending = replay.stop();
    assert_eq!(ending.code(), 3, "{}", ending.said);
    incident.holds(&mut page, &ending);
    let before = incident.receiver.count();
    incident.play(&mut page, &id);
    incident.play(&mut page, "");
    assert!(page.next().is_none(), "the page shows more than the test runs");
    assert_eq!(bodies(&incident.receiver.take()), incident.sent, "every lost event was delivered again, in order");
    println!("# {} events were lost, {before} delivered again before Ctrl-C, the rest by --resume", lost.len());
}

#[test]
fn one_tenants_dead_letters() {
    let mut page = section("One tenant's dead letters").into_iter();
    let receiver = Receiver::start();
    receiver.answers(|hook| if ["user-3", "user-4"].contains(&hook.user()) { 500 } else { 200 });
    let quickly = ["--attempts", "2", "--backoff", "1ms"];
    let incident = Incident::new(&format!("billing={RECEIVER_OF_THE_PAGE}"), &quickly, receiver, |incident| {
        let database = rusqlite::Connection::open(incident.folder.path().join("eventd.db")).unwrap();
        let select =
            "SELECT count(*) FROM records r JOIN topics t ON t.id = r.topic WHERE t.name LIKE '%.billing.dead'";
        match database.query_row(select, [], |row| row.get::<_, i64>(0)) {
            Ok(100) if incident.receiver.count() == 500 => Ok(()),
            other => Err(format!("{other:?} of 100 letters, {} of 500 delivered", incident.receiver.count())),
        }
    });
    incident.receiver.take();
    incident.receiver.answers(|_| 200);
    for _ in 0..3 {
        incident.play(&mut page, "");
    }
    assert!(page.next().is_none(), "the page shows more than the test runs");
    let tenant = BTreeMap::from([("user-3".to_owned(), incident.sent["user-3"].clone())]);
    assert_eq!(bodies(&incident.receiver.take()), tenant, "once, in order, and only of this tenant");
}

#[test]
fn a_lost_destination() {
    let mut page = section("A lost destination").into_iter();
    let incident = Incident::new("file-1", &[], Receiver::start(), |incident| {
        match lines(&incident.folder.path().join("file-1")).len() {
            600 => Ok(()),
            count => Err(format!("file-1 has {count} of 600 lines")),
        }
    });
    let file = incident.folder.path().join("file-1");
    std::fs::remove_file(&file).unwrap();
    incident.play(&mut page, "");
    assert!(page.next().is_none(), "the page shows more than the test runs");
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for line in lines(&file) {
        found.entry(line.user).or_default().push(line.payload);
    }
    assert_eq!(found, incident.sent, "the file is complete again");

    let dispatch =
        Program::start(incident.folder.path(), &["dispatch", "--url", "sqlite:eventd.db", "--dest", "file-1"]);
    dispatch.wait_for(&["delivering"]);
    assert_eq!(dispatch.stop().code(), 0);
    assert_eq!(lines(&file).len(), 600, "dispatch continues at its position");
}
