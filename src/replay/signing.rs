//! Whether the requests of a destination are signed. Dispatch writes it into the audit topic, and replay reads it.
//!
//! A replay without the secret would send unsigned requests. A receiver refuses them or, worse, accepts them. So a replay
//! must know whether dispatch signs:
//!
//! ```text
//!  dispatch starts ── this changed since the last record? ──▶ <topic>.audit ◀── is it signed, and no secret? ── replay: refused
//! ```
//!
//! Dispatch writes only changes, so a destination that was never signed leaves no record. Neither the secret nor
//! anything derived from it is stored.

use super::audit::{AuditEvent, AuditLog};
use crate::log::{Engine, Log};
use std::time::Duration;
use tokio::time::timeout;

/// How long the start of dispatch waits until the record is stored. After that it delivers all the same.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a replay signs its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// The replay has the secret, or the destination is not HTTP and needs none.
    Present,
    /// The replay has no secret.
    Missing,
    /// The operator gave `--unsigned`.
    Waived,
}

/// Records whether the requests of this destination are signed, before the first of them is sent. A failure is logged
/// and does not delay delivery any further.
pub async fn record(engine: &dyn Engine, log: &dyn Log, destination: &str, is_signed: bool) {
    let recorded = match timeout(RECORD_TIMEOUT, record_change(engine, log, destination, is_signed)).await {
        Ok(recorded) => recorded,
        Err(_) => Err(anyhow::anyhow!("no answer within {} s", RECORD_TIMEOUT.as_secs())),
    };
    if let Err(error) = recorded {
        tracing::warn!(
            destination,
            is_signed,
            "cannot record whether requests are signed, so a replay without --webhook-secret-file may not be refused: \
             {error:#}"
        );
    }
}

async fn record_change(engine: &dyn Engine, log: &dyn Log, destination: &str, is_signed: bool) -> anyhow::Result<()> {
    let was_signed = was_signed(engine, log.topic(), destination).await?;
    if was_signed == is_signed {
        return Ok(());
    }
    if was_signed {
        tracing::warn!(
            destination,
            "requests were signed before and are not signed now: there is no --webhook-secret-file"
        );
    }
    let audit = AuditLog::open(engine, log).await?;
    audit.write("signing", destination, AuditEvent::DestinationSigned { signed: is_signed }).await
}

/// Whether dispatch signed the requests of this destination when it last recorded it.
pub(super) async fn was_signed(engine: &dyn Engine, topic: &str, destination: &str) -> anyhow::Result<bool> {
    match AuditLog::open_existing(engine, topic).await? {
        Some(audit) => audit.is_signed(destination).await,
        None => Ok(false),
    }
}
