//! What a replay delivers again, and how.

use super::log::{self, HasIngest, LogConfig};
use super::secrets::is_http;
use super::{DeliveryConfig, delivery};
use crate::cli::{LogFlags, ReplayFlags, RetryPreset, defaults};
use crate::core::text::shell_quoted;
use crate::core::tries::OnExhausted;
use crate::destination::spec::Spec;
use crate::replay::range::{Range, RangeFlags};
use crate::replay::rewind::Reposition;
use crate::replay::select::Selection;
use crate::replay::signing::Signature;
use crate::{clock, replay, small_file};
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::path::Path;

/// Users or ids in the list of one replay. The list is stored with the replay's audit record.
const REPLAY_NAMED_MAX: usize = 10_000;

/// Bytes of all users or ids in that list.
const REPLAY_NAMED_BYTES_MAX: usize = 512 * 1024;

/// The largest file of users or ids, in bytes: as many names as one replay accepts, with blanks and line breaks.
const NAMES_FILE_BYTES_MAX: usize = 2 * REPLAY_NAMED_BYTES_MAX;

/// The configuration of `eventd replay`.
#[derive(Debug, Clone)]
pub struct ReplayConfig {
    /// Neither the database nor the topic is created.
    pub log: LogConfig,
    pub action: ReplayAction,
}

#[derive(Debug, Clone)]
pub enum ReplayAction {
    /// Show the past replays of one destination, or of all.
    List { destination: Option<Box<Spec>>, json: bool },
    /// Show a plan, and execute it if that was asked for.
    Run { delivery: Box<DeliveryConfig>, replay: Box<replay::Config> },
}

impl ReplayConfig {
    /// Checks the flags and fills in the defaults.
    ///
    /// # Errors
    /// A flag has a wrong value, or two flags contradict each other.
    pub fn new(flags: &ReplayFlags) -> anyhow::Result<Self> {
        let url = log::url(&flags.log.place, log::local_broker)?;
        let log = LogConfig::new(&flags.log, &url, HasIngest::No)?.without_creation();
        let typed: Vec<String> = flags.destination.iter().cloned().collect();
        if flags.list {
            let specs = delivery::specs(&typed, flags.delivery.name.as_deref(), &flags.log.place.topic)?;
            let destination = specs.into_iter().next().map(Box::new);
            return Ok(Self { log, action: ReplayAction::List { destination, json: flags.json } });
        }
        ensure!(
            flags.delivery.retries.on_exhausted != OnExhausted::Hold,
            "--on-exhausted hold: a replay cannot hold a user, because it delivers events that are settled already. Write \
             --on-exhausted dead-letter, drop or halt"
        );
        // An operator waits for a replay, and what it gives up becomes a dead letter again. So its default is not a day.
        let (drain, preset) = (flags.process.drain, RetryPreset::Quick);
        let deliveries = delivery::deliveries(&typed, &flags.delivery, &flags.log, &url, drain, preset)?;
        let mut delivery = Box::new(deliveries.into_iter().next().context("--dest is missing")?);
        if flags.unsigned {
            delivery.settings.secret = None;
        }
        let signature = match delivery.settings.secret {
            _ if !is_http(&delivery.spec) => Signature::Present,
            _ if flags.unsigned => Signature::Waived,
            Some(_) => Signature::Present,
            None => Signature::Missing,
        };
        let repeated = replay::RepeatedFlags {
            log: log_flags(&flags.log),
            others: flags.repeated.iter().map(|word| format!(" {}", shell_quoted(word))).collect(),
            needs_secrets: needs_secrets(flags, &delivery),
        };
        let replay = Box::new(replay_config(flags, signature, repeated)?);
        Ok(Self { log, action: ReplayAction::Run { delivery, replay } })
    }
}

/// Whether a repeated command line needs secrets that it does not show.
fn needs_secrets(flags: &ReplayFlags, delivery: &DeliveryConfig) -> bool {
    let is_repeated = |flag: &str| flags.repeated.iter().any(|word| word == flag);
    // A URL is shown without its secrets.
    let is_cut = flags.destination.as_ref().is_some_and(|typed| !typed.ends_with(&delivery.spec.to_string()));
    let signs = delivery.settings.secret.is_some() && !is_repeated("--webhook-secret-file");
    let logs_in = flags.log.kafka.sasl_mechanism.is_some() && !is_repeated("--sasl-password-file");
    is_cut || signs || logs_in
}

fn replay_config(
    flags: &ReplayFlags,
    signature: Signature,
    repeated: replay::RepeatedFlags,
) -> anyhow::Result<replay::Config> {
    let config = |request| replay::Config {
        request,
        execute: flags.execute,
        json: flags.json,
        rate: flags.delivery.rate,
        stop_after_failures: flags.stop_after_failures,
        repeated: repeated.clone(),
        ignored_policy: flags.ignored_policy,
        signature,
    };
    let request = match (&flags.resume, &flags.fast_forward) {
        (Some(id), _) => replay::ReplayRequest::Resume { id: id.clone() },
        (None, Some(to)) => {
            let range = Range { from: None, until: Some(to.clone()) };
            range.check(clock::now_ms(), RangeFlags::FastForward).map_err(anyhow::Error::msg)?;
            replay::ReplayRequest::Reposition(Reposition::FastForward(to.clone()))
        }
        (None, None) => {
            let range = Range { from: flags.from.clone(), until: flags.until.clone() };
            let range = if flags.dead { Range { from: flags.since.clone(), until: None } } else { range };
            let range_flags = if flags.dead { RangeFlags::Since } else { RangeFlags::FromUntil };
            range.check(clock::now_ms(), range_flags).map_err(anyhow::Error::msg)?;
            if let Some(to) = flags.from.clone().filter(|_| flags.rewind) {
                return Ok(config(replay::ReplayRequest::Reposition(Reposition::Rewind(to))));
            }
            let (users, from_file) = names("--user", &flags.users)?;
            let (ids, _) = names("--id", &flags.ids)?;
            ensure!(
                flags.dead || range.from.is_some() || range.until.is_some() || !users.is_empty() || !ids.is_empty(),
                "nothing says what to replay. Write --from 0 for all events of the log, --dead for the dead letters, \
                 --user or --id for some events, --resume for a replay that stopped, or --list to see past replays"
            );
            let reasons = flags.reasons.iter().cloned().collect();
            let again = flags.again;
            let selection = Selection { dead: flags.dead, users, ids, reasons, again, ..Selection::default() };
            replay::ReplayRequest::New { range, selection, limit: flags.limit, users_must_exist: !from_file }
        }
    };
    Ok(config(request))
}

/// The flags that select the same log again, quoted for a shell. A URL that holds a password was refused before.
fn log_flags(flags: &LogFlags) -> String {
    let url = shell_quoted(flags.place.url.as_deref().unwrap_or(defaults::BROKER));
    match flags.place.topic == defaults::TOPIC {
        true => format!("--url {url}"),
        false => format!("--url {url} --topic {}", shell_quoted(&flags.place.topic)),
    }
}

/// The users or ids of a flag, each typed or in a file (`@FILE`); and whether there was a file.
fn names(flag: &str, typed: &[String]) -> anyhow::Result<(BTreeSet<String>, bool)> {
    let (mut names, mut from_file) = (BTreeSet::new(), false);
    for text in typed {
        match text.strip_prefix('@') {
            Some(path) => {
                let lines = small_file::read_text(Path::new(path), NAMES_FILE_BYTES_MAX)
                    .with_context(|| format!("{flag} @{path}"))?;
                // Some editors begin a file with a byte order mark.
                let lines = lines.strip_prefix('\u{feff}').unwrap_or(&lines);
                names.extend(lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
                from_file = true;
            }
            None => {
                ensure!(!text.is_empty(), "{flag} has 0 bytes: write 1 or more");
                names.insert(text.clone());
            }
        }
    }
    ensure!(
        typed.is_empty() || !names.is_empty(),
        "{flag} {}: the file is empty. Write one user or id on each line",
        typed.join(" ")
    );
    let bytes: usize = names.iter().map(String::len).sum();
    ensure!(
        names.len() <= REPLAY_NAMED_MAX && bytes <= REPLAY_NAMED_BYTES_MAX,
        "{flag}: the list has {} entries with {bytes} bytes, but one replay accepts at most {} entries with {} bytes. Split \
         the list, and run one replay for each part",
        names.len(),
        REPLAY_NAMED_MAX,
        REPLAY_NAMED_BYTES_MAX
    );
    Ok((names, from_file))
}
