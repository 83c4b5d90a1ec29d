//! The record of a command in `<topic>.<dest>.control`: one JSON object.
//!
//! ```text
//! {"format":1, "id":"…", "at_ms":1767350000000, "by":"ann@ops-1", "reason":"account locked",
//!  "topic":"orders", "destination":"crm", "command":"hold", "user":"u-17"}
//! ```
//!
//! The topic is kept, so it is also the audit: who commanded what, when and why. A reader that does not know the format or
//! the command says so and does not pass the record, because the order of commands matters.

use crate::core::control::{ControlCommand, ControlRecord, UserAction};
use crate::core::event::Record;
use crate::core::token_bucket::Rate;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The format that this version writes, and the newest one that it reads.
const FORMAT: u64 = 1;

/// The text for a rate without a limit.
const RATE_OFF: &str = "off";

/// Bytes of the largest record. A reason has at most [`REASON_BYTES_MAX`] of them, and a user is the key of an event.
pub const RECORD_BYTES_MAX: usize = 900 * 1024;

/// Bytes of a reason. It is stored in each commit of a paused destination.
pub const REASON_BYTES_MAX: usize = 500;

/// Why a record of the control topic is not a command for this destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCommand {
    /// A newer eventd wrote it. The text names what is unknown.
    #[error("{0}, which this version of eventd does not know: update the processes that deliver")]
    Newer(String),
    /// It is not a command at all, or one of another topic or destination.
    #[error("{0}")]
    Damaged(String),
}

/// The fields of a record.
#[derive(Debug, Serialize, Deserialize)]
struct StoredCommand {
    format: u64,
    id: Box<str>,
    at_ms: i64,
    by: Box<str>,
    #[serde(default)]
    reason: Box<str>,
    topic: String,
    destination: String,
    command: String,
    /// For commands about one user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// For `rate`: `500/s`, or `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rate: Option<String>,
    /// For `give-up`: the first offset that is not given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    below: Option<i64>,
}

/// The record of a command for the owners of a destination.
///
/// # Errors
/// The user is not UTF-8.
pub fn encode(command: &ControlRecord, topic: &str, destination: &str) -> anyhow::Result<Record> {
    let (mut user, mut rate, mut below) = (None, None, None);
    match &command.command {
        ControlCommand::Rate { per_hour } => {
            rate = Some(per_hour.map_or_else(|| RATE_OFF.to_owned(), |events| Rate::per_hour(events).to_string()));
        }
        ControlCommand::User { user: id, action } => {
            user = Some(String::from_utf8(id.to_vec())?);
            if let UserAction::GiveUp { below: offset } = action {
                below = Some(*offset);
            }
        }
        ControlCommand::Pause | ControlCommand::Resume | ControlCommand::Probe => {}
    }
    let stored = StoredCommand {
        format: FORMAT,
        id: command.id.clone(),
        at_ms: command.at_ms,
        by: command.by.clone(),
        reason: command.reason.clone(),
        topic: topic.to_owned(),
        destination: destination.to_owned(),
        command: name_of(&command.command).to_owned(),
        user,
        rate,
        below,
    };
    Ok(Record::new(Some(command.id.as_bytes()), Some(&serde_json::to_vec(&stored)?), &[], command.at_ms))
}

/// The word for a command, on the command line and in the record.
pub fn name_of(command: &ControlCommand) -> &'static str {
    match command {
        ControlCommand::Pause => "pause",
        ControlCommand::Resume => "resume",
        ControlCommand::Rate { .. } => "rate",
        ControlCommand::Probe => "probe",
        ControlCommand::User { action: UserAction::Retry, .. } => "retry",
        ControlCommand::User { action: UserAction::Hold, .. } => "hold",
        ControlCommand::User { action: UserAction::Release, .. } => "release",
        ControlCommand::User { action: UserAction::GiveUp { .. }, .. } => "give-up",
    }
}

/// Reads the record of a command for this destination.
///
/// # Errors
/// It is not one, or a newer eventd wrote it.
pub fn decode(record: &Record, topic: &str, destination: &str) -> Result<ControlRecord, InvalidCommand> {
    let damaged = |why: String| InvalidCommand::Damaged(why);
    let value: Value = serde_json::from_slice(record.value().unwrap_or_default())
        .map_err(|error| damaged(format!("it is not JSON: {error}")))?;
    match value.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => {}
        Some(newer) if newer > FORMAT => return Err(InvalidCommand::Newer(format!("it has format {newer}"))),
        _ => return Err(damaged("it has no format".to_owned())),
    }
    let stored: StoredCommand =
        serde_json::from_value(value).map_err(|error| damaged(format!("it is not a command: {error}")))?;
    // Topic `orders` with destination `eu.crm` and topic `orders.eu` with destination `crm` have the same control topic.
    if (stored.topic.as_str(), stored.destination.as_str()) != (topic, destination) {
        return Err(damaged(format!("it is for topic {:?} and destination {:?}", stored.topic, stored.destination)));
    }
    let missing = |what: &str| damaged(format!("the command {:?} has no {what}", stored.command));
    let user = |action| {
        let user = stored.user.as_deref().ok_or_else(|| missing("user"))?;
        Ok(ControlCommand::User { user: user.as_bytes().into(), action })
    };
    let command = match stored.command.as_str() {
        "pause" => ControlCommand::Pause,
        "resume" => ControlCommand::Resume,
        "probe" => ControlCommand::Probe,
        "rate" => match stored.rate.as_deref().ok_or_else(|| missing("rate"))? {
            RATE_OFF => ControlCommand::Rate { per_hour: None },
            rate => {
                let rate: Rate = rate.parse().map_err(|why| damaged(format!("its rate {rate:?} is wrong: {why}")))?;
                ControlCommand::Rate { per_hour: Some(rate.events_per_hour()) }
            }
        },
        "retry" => user(UserAction::Retry)?,
        "hold" => user(UserAction::Hold)?,
        "release" => user(UserAction::Release)?,
        "give-up" => user(UserAction::GiveUp { below: stored.below.ok_or_else(|| missing("offset"))? })?,
        other => return Err(InvalidCommand::Newer(format!("it has the command {other:?}"))),
    };
    let StoredCommand { id, at_ms, by, reason, .. } = stored;
    Ok(ControlRecord { id, at_ms, by, reason, command })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(action: UserAction) -> ControlCommand {
        ControlCommand::User { user: "u-17".as_bytes().into(), action }
    }

    fn of_text(text: &str) -> Result<ControlRecord, InvalidCommand> {
        decode(&Record::new(None, Some(text.as_bytes()), &[], 0), "orders", "crm")
    }

    #[test]
    fn every_command_reads_back_as_itself() {
        for command in [
            ControlCommand::Pause,
            ControlCommand::Resume,
            ControlCommand::Probe,
            ControlCommand::Rate { per_hour: None },
            ControlCommand::Rate { per_hour: Some(500 * 3600) },
            ControlCommand::Rate { per_hour: Some(1) },
            user(UserAction::Retry),
            user(UserAction::Hold),
            user(UserAction::Release),
            user(UserAction::GiveUp { below: 42 }),
        ] {
            let record =
                ControlRecord { id: "id".into(), at_ms: 7, by: "ann@ops".into(), reason: "\"why\"".into(), command };
            let stored = encode(&record, "orders", "crm").unwrap();
            assert_eq!(decode(&stored, "orders", "crm").unwrap(), record);
            let other = decode(&stored, "orders.eu", "crm").unwrap_err();
            assert!(matches!(&other, InvalidCommand::Damaged(why) if why.contains("orders")), "{other}");
        }
    }

    #[test]
    fn the_stored_text_is_that_of_earlier_versions() {
        let text = r#"{"format":1,"id":"a","at_ms":1,"by":"ann@ops","topic":"orders","destination":"crm","command":"give-up","user":"u-17","below":5,"later":true}"#;
        assert_eq!(of_text(text).unwrap().command, user(UserAction::GiveUp { below: 5 }));
    }

    #[test]
    fn a_newer_record_is_named_and_a_damaged_one_is_not_a_command() {
        let record = |rest: &str| {
            format!(r#"{{"format":1,"id":"a","at_ms":1,"by":"b","topic":"orders","destination":"crm",{rest}}}"#)
        };
        for (text, says) in [
            (r#"{"format":2,"what":"ever"}"#.to_owned(), "format 2"),
            (record(r#""command":"explode""#), "command \"explode\""),
        ] {
            let error = of_text(&text).unwrap_err();
            assert!(matches!(&error, InvalidCommand::Newer(why) if why.contains(says)), "{text}: {error}");
        }
        for text in [
            "",
            "null",
            "{",
            "{}",
            r#"{"format":0}"#,
            r#"{"format":1}"#,
            &record(r#""command":"hold""#),
            &record(r#""command":"rate""#),
            &record(r#""command":"rate","rate":"fast""#),
            &record(r#""command":"give-up","user":"u""#),
            &record(r#""command":7"#),
        ] {
            let error = of_text(text).unwrap_err();
            assert!(matches!(error, InvalidCommand::Damaged(_)), "{text}: {error}");
        }
        let tombstone = decode(&Record::new(None, None, &[], 0), "orders", "crm");
        assert!(matches!(tombstone, Err(InvalidCommand::Damaged(_))));
    }
}
