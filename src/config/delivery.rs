//! The destinations of a command, and how to deliver to them.

use super::retries;
use super::secrets::{WebhookSecrets, is_http};
use crate::cli::{DeliveryFlags, LogFlags, RetryPreset, defaults};
use crate::core::parking::ParkingLimits;
use crate::core::side_topics::TOPIC_SUFFIX_CHARS_MAX;
use crate::destination::spec::{Spec, Target};
use crate::destination::{self, FaultDrill};
use crate::group::{JoinOptions, WhenHeld};
use crate::log::url::LogUrl;
use crate::{dispatch, limits};
use anyhow::{Context, bail, ensure};
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The smallest window of a destination, in bytes, however many destinations share `--window-bytes`. With a smaller one,
/// each read of the log would return only a few events.
const WINDOW_BYTES_MIN: usize = 1024 * 1024;

/// What to do if two destinations have the same derived name but had different ones in an earlier version. The earlier
/// names are not shown, because each contains a checksum of the password or token.
const KEEP_EARLIER_NAMES: &str = ". If they ran under an earlier version of eventd, each had a name of its own. To keep \
    their progress, write these names, as --dest EARLIER-NAME=DEST. To find them, run `ls *.lock` next to the database, or \
    `kafka-consumer-groups --list`. A destination with a new name starts at --start";

/// One destination, and how to deliver to it.
#[derive(Debug, Clone)]
pub struct DeliveryConfig {
    pub spec: Spec,
    pub settings: destination::DestinationSettings,
    pub dispatch: dispatch::Config,
    /// How the process joins the group of the destination.
    pub join_options: JoinOptions,
}

/// One [`DeliveryConfig`] for each typed destination, in the order in which they were typed. `preset` is for a command line
/// without `--retries`.
pub(super) fn deliveries(
    typed: &[String],
    flags: &DeliveryFlags,
    log: &LogFlags,
    url: &LogUrl,
    drain: Duration,
    preset: RetryPreset,
) -> anyhow::Result<Vec<DeliveryConfig>> {
    let specs = specs(typed, flags.name.as_deref(), &log.place.topic)?;
    if let LogUrl::Sqlite(database) = url {
        ensure!(
            flags.instance_id.is_none(),
            "--instance-id is for Kafka's consumer groups, but --url is a database (sqlite:): leave the flag out"
        );
        for spec in &specs {
            refuse_database(spec, database)?;
        }
    }
    let secrets = WebhookSecrets::new(&flags.webhook_secret_files, &specs)?;
    let dispatch = dispatch_config(flags, log, specs.len(), drain, preset)?;
    let drill = (flags.reliability > 0)
        .then(|| FaultDrill { one_in: flags.reliability, seed: flags.reliability_seed.unwrap_or_else(random_seed) });
    let delivery = |spec: Spec| {
        let settings = destination::DestinationSettings {
            attempt_timeout: flags.retries.attempt_timeout,
            retry_after_max: flags.retries.retry_after_max,
            concurrency: flags.concurrency,
            batch_events_max: flags.batch,
            secret: secrets.read(&spec)?,
            file_mode: flags.file_mode,
            drill,
            ..destination::DestinationSettings::default()
        };
        let join_options = JoinOptions {
            digest: spec.digest(),
            when_held: WhenHeld::Fail,
            start_given: flags.start.is_some(),
            session_timeout: flags.session_timeout,
            instance_id: flags.instance_id.clone(),
            keep_membership: flags.keep_membership,
        };
        Ok(DeliveryConfig { spec, settings, dispatch: dispatch.clone(), join_options })
    };
    specs.into_iter().map(delivery).collect()
}

/// Refuses `--batch` if no destination takes batches. A replay is not refused: the variable may be meant for dispatch.
pub(super) fn check_batch(flags: &DeliveryFlags, deliveries: &[DeliveryConfig]) -> anyhow::Result<()> {
    ensure!(
        flags.batch == 1 || deliveries.is_empty() || deliveries.iter().any(|delivery| is_http(&delivery.spec)),
        "--batch {} is for http destinations, but no --dest is http: leave the flag out",
        flags.batch
    );
    Ok(())
}

fn dispatch_config(
    flags: &DeliveryFlags,
    log: &LogFlags,
    destinations: usize,
    drain: Duration,
    preset: RetryPreset,
) -> anyhow::Result<dispatch::Config> {
    Ok(dispatch::Config {
        tries: retries::policy(&flags.retries, preset)?,
        attempt_timeout: flags.retries.attempt_timeout,
        concurrency: flags.concurrency,
        in_flight_events: limits::IN_FLIGHT_EVENTS_MAX,
        rate: flags.rate,
        window_events: flags.window,
        window_bytes: share_of_window(flags.window_bytes, destinations),
        parking: ParkingLimits { user_backlog: flags.user_backlog, users_max: flags.parked_users, may_park: true },
        commit_interval: flags.commit_interval,
        start: flags.start.unwrap_or(dispatch::Start::Earliest),
        on_gap: flags.on_gap,
        when_stopped: dispatch::WhenStopped::Stay,
        drain,
        dead_retention: log.dead_retention.unwrap_or(defaults::DEAD_RETENTION),
        seed: random_seed(),
    })
}

/// The bytes of `--window-bytes` that one destination may use. All shares are equal, and no destination borrows from
/// another one: a destination in an outage could not give the bytes back before it recovers.
fn share_of_window(window_bytes: usize, destinations: usize) -> usize {
    (window_bytes / destinations.max(1)).max(WINDOW_BYTES_MIN.min(window_bytes))
}

/// The destinations. No two of them have the same name or write to the same file.
pub(super) fn specs(typed: &[String], name: Option<&str>, topic: &str) -> anyhow::Result<Vec<Spec>> {
    let mut specs = Vec::with_capacity(typed.len());
    for text in typed {
        specs.push(Spec::parse(text).context("--dest")?);
    }
    if let Some(name) = name {
        ensure!(
            specs.len() == 1,
            "--name {name:?} names a single destination, but --dest is given {} times: write --dest NAME=DEST instead",
            specs.len()
        );
        specs = vec![specs.remove(0).with_name(name).context("--name")?];
    }
    let (mut names, mut files) = (HashSet::new(), HashSet::new());
    for spec in &specs {
        check_side_topic(spec, topic)?;
        if !names.insert(spec.name.as_str()) {
            let are_alike = |other: &&Spec| other.name == spec.name;
            let had_others = specs.iter().filter(are_alike).any(|other| other.earlier_name.is_some());
            bail!(
                "two destinations have the name {:?}: write --dest NAME=DEST to give one of them another name (user, \
                 password and query of a URL are not part of a derived name){}",
                spec.name,
                if had_others { KEEP_EARLIER_NAMES } else { "" }
            );
        }
        // A device such as /dev/null may be used by several destinations, so only regular and missing files are compared.
        if let Target::File(path) = &spec.target
            && !path.metadata().is_ok_and(|file| !file.is_file())
        {
            ensure!(
                files.insert(resolved(path)),
                "two destinations write to the same file {}: use another file for one of them",
                path.display()
            );
        }
    }
    Ok(specs)
}

/// Refuses a name with which the topic of dead letters would have a name that is too long.
fn check_side_topic(spec: &Spec, topic: &str) -> anyhow::Result<()> {
    let chars = topic.len() + 1 + spec.name.len() + TOPIC_SUFFIX_CHARS_MAX;
    ensure!(
        chars <= limits::TOPIC_CHARS_MAX,
        "--topic and the destination's name {:?} are too long together: the topic of its dead letters would have {chars} \
         characters, but at most {} are possible. Shorten one of them",
        spec.name,
        limits::TOPIC_CHARS_MAX
    );
    Ok(())
}

/// Refuses a file that is the database, or one of the files that SQLite keeps next to it. Lines written into them would
/// destroy the log.
fn refuse_database(spec: &Spec, database: &Path) -> anyhow::Result<()> {
    let Target::File(path) = &spec.target else { return Ok(()) };
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut file = database.as_os_str().to_owned();
        file.push(suffix);
        ensure!(
            resolved(path) != resolved(Path::new(&file)),
            "--dest {} is the database itself (--url): write the events to another file",
            path.display()
        );
    }
    Ok(())
}

/// The path without symbolic links and `..`, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let by_folder = || {
        let folder = path.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        Some(folder?.canonicalize().ok()?.join(path.file_name()?))
    };
    path.canonicalize().ok().or_else(by_folder).unwrap_or_else(|| path.to_owned())
}

/// A number that differs from run to run, for jitter and drills. The keys of a standard hasher are random. This is not a
/// secret, so it does not have to be unpredictable.
fn random_seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_share_the_window_and_each_has_enough_to_work_with() {
        const MIB: usize = 1024 * 1024;
        let shares = |window_bytes, counts: [usize; 4]| counts.map(|count| share_of_window(window_bytes, count));
        assert_eq!(shares(64 * MIB, [0, 1, 2, 64]), [64 * MIB, 64 * MIB, 32 * MIB, MIB]);
        assert_eq!(share_of_window(64 * MIB, 1_000), MIB, "a share is never below the minimum");
        assert_eq!(share_of_window(1_000, 3), 1_000, "a share is never above the value of the flag");
    }

    #[test]
    fn a_destination_that_is_the_database_is_refused_however_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (database, link) = (folder.path().join("eventd.db"), folder.path().join("link"));
        let is_refused = |path: &Path| {
            let spec = Spec::parse(&format!("d=file:{}", path.display())).unwrap();
            refuse_database(&spec, &database).is_err()
        };
        let detour = folder.path().join(".").join("eventd.db");
        assert!(is_refused(&database) && is_refused(&detour), "even before the database is created");
        assert!(is_refused(&folder.path().join("eventd.db-wal")));
        std::fs::write(&database, "").unwrap();
        std::os::unix::fs::symlink(&database, &link).unwrap();
        assert!(is_refused(&database) && is_refused(&detour) && is_refused(&link));
        assert!(!is_refused(&folder.path().join("eventd.jsonl")));
    }

    #[test]
    fn two_urls_with_the_same_derived_name_are_refused_with_advice_and_without_a_secret() {
        let error = |typed: [&str; 2]| {
            let typed = typed.map(str::to_owned);
            format!("{:#}", specs(&typed, None, "events").unwrap_err())
        };
        for typed in [
            ["https://h/x?t=s3cret", "https://h/x?t=t0ken"],
            ["https://a:s3cret@h/x", "https://b:t0ken@h/x"],
            ["https://h/x", "https://h/x?t=s3cret"],
            ["https://h/x?t=s3cret", "https://h/x"],
        ] {
            let says = error(typed);
            for part in ["NAME=DEST", "keep their progress", "ls *.lock", "kafka-consumer-groups --list", "--start"] {
                assert!(says.contains(part), "{part:?} is missing in {says}");
            }
            let earlier = typed.map(|url| Spec::parse(url).unwrap().earlier_name);
            for secret in earlier.iter().flatten().map(String::as_str).chain(["s3cret", "t0ken"]) {
                assert!(!says.contains(secret), "{secret:?} is shown in {says}");
            }
        }
        for typed in [["https://h/x", "https://h/x"], ["n=https://h/x?t=a", "n=https://h/x?t=b"], ["out", "./out"]] {
            let says = error(typed);
            assert!(says.contains("NAME=DEST") && !says.contains("earlier"), "{says}");
        }
    }
}
