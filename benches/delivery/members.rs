//! How fast several `eventd dispatch` of one destination deliver together, if the destination's latency is the limit
//! and not the processor. Counting starts a moment after every member has its share of the partitions. It ends while
//! there is still work. So neither joining nor the last events count.

use crate::child::{Child, Helper};
use crate::drain::measured;
use crate::report::Measured;
use crate::roles::{Seen, now_ns};
use crate::run::Run;
use crate::store::{Content, Store};
use crate::users::Users;
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A multiple of the number of members, so that all have the same share.
const PARTITIONS: u32 = 12;

/// With this many users an event hardly ever waits for another event of its user.
const USERS: Users = Users::Uniform(100_000);

/// `--concurrency` of each member.
const CONCURRENCY: &str = "64";

/// How long the destination takes for each event.
const LATENCY_MS: &str = "10";

/// How long the members may take to share the partitions. The first member has all of them and releases some.
const SHARED_WITHIN: Duration = Duration::from_secs(30);

/// Measures one round with this number of members.
pub(crate) fn round(run: &Run, store: &mut dyn Store, members: u32) -> anyhow::Result<Measured> {
    let place = store.loaded(Content { partitions: PARTITIONS, ..Content::of(USERS, run.drain_events) })?;
    let (mut sink, address) = Helper::start(&["server", LATENCY_MS])?;
    let dest = format!("{}=http://{address}/hook", place.destination);
    let own = ["--url", &place.url, "--topic", &place.topic, "--dest", &dest, "--concurrency", CONCURRENCY];
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut running = Vec::new();
    for member in 0..members {
        let log = folder.path().join(format!("member-{member}"));
        running.push((Child::eventd(&[&["dispatch"], &own[..]].concat(), &log)?, log));
    }
    let deadline = Instant::now() + SHARED_WITHIN;
    while !are_shared(&mut running)? {
        ensure!(Instant::now() < deadline, "{members} members do not share the partitions within {SHARED_WITHIN:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(run.warm_up);

    let before = sample(&mut sink, &running)?;
    std::thread::sleep(run.load_for);
    let after = sample(&mut sink, &running)?;
    ensure!(are_shared(&mut running)?, "partitions moved while deliveries were counted");
    ensure!(after.requests < run.drain_events, "all {} events were delivered before the end", after.requests);
    for (member, _) in running {
        member.terminate()?;
    }
    let (events, elapsed_ns) = (after.requests - before.requests, after.at_ns - before.at_ns);
    Ok(measured(events, elapsed_ns, after.cpu_s - before.cpu_s, after.peak_mb))
}

/// Whether every member's latest line says that it has its share and is not revoking any partition.
fn are_shared(members: &mut [(Child, PathBuf)]) -> anyhow::Result<bool> {
    let share = format!(" owned={} leaving=0", PARTITIONS as usize / members.len());
    for (member, log) in members {
        member.assert_running()?;
        if !last_assigned(log)?.is_some_and(|line| line.contains(&share)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The process's latest log line about assigned partitions.
fn last_assigned(log: &Path) -> anyhow::Result<Option<String>> {
    let text = std::fs::read_to_string(log).with_context(|| format!("read {log:?}"))?;
    Ok(text.lines().rfind(|line| line.contains("partitions assigned")).map(str::to_owned))
}

/// What all members have done up to one moment.
struct Sample {
    at_ns: u64,
    requests: u64,
    cpu_s: f64,
    /// The peak memory of the largest member.
    peak_mb: f64,
}

fn sample(sink: &mut Helper, members: &[(Child, PathBuf)]) -> anyhow::Result<Sample> {
    let seen: Seen = sink.ask("stats")?.parse()?;
    let mut looked = Sample { at_ns: now_ns(), requests: seen.requests, cpu_s: 0.0, peak_mb: 0.0 };
    for (member, _) in members {
        let usage = member.usage()?;
        looked.cpu_s += usage.cpu_s;
        looked.peak_mb = looked.peak_mb.max(usage.peak_mb);
    }
    Ok(looked)
}
