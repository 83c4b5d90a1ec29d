//! Whether the requests of a destination are signed. A replay without the secret would send unsigned requests, which a
//! receiver refuses or, worse, takes: so it has to know.
//!
//! ```text
//!  dispatch starts ── signed, and not written down? ──▶ <topic>.audit ◀── signed, and no secret here? ── replay: refused
//! ```
//!
//! Dispatch writes only what changed: a destination that was never signed leaves nothing behind. The secret, or anything
//! made of it, is not stored.

use super::audit::{AuditEvent, AuditLog};
use crate::limits::SIGNING_NOTED_WITHIN;
use crate::log::{Engine, Log};
use tokio::time::timeout;

/// What the requests of a replay carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// A signature, or the destination is not http and has none.
    Present,
    /// There is no secret.
    Missing,
    /// There is none on purpose: `--unsigned`.
    Waived,
}

/// Writes down whether the requests of this destination are signed, before the first of them is sent. A failure is told
/// and holds up no delivery.
pub async fn note(engine: &dyn Engine, log: &dyn Log, destination: &str, is_signed: bool) {
    let noted = match timeout(SIGNING_NOTED_WITHIN, note_change(engine, log, destination, is_signed)).await {
        Ok(noted) => noted,
        Err(_) => Err(anyhow::anyhow!("no answer within {SIGNING_NOTED_WITHIN:?}")),
    };
    if let Err(error) = noted {
        tracing::warn!(
            destination,
            is_signed,
            "cannot write down whether requests are signed, so a replay without --webhook-secret-file may not be refused: {error:#}"
        );
    }
}

async fn note_change(engine: &dyn Engine, log: &dyn Log, destination: &str, is_signed: bool) -> anyhow::Result<()> {
    let was_signed = was_signed(engine, log.topic(), destination).await?;
    if was_signed == is_signed {
        return Ok(());
    }
    if was_signed {
        tracing::warn!(destination, "requests were signed before and are not now: there is no --webhook-secret-file");
    }
    let audit = AuditLog::open(engine, log).await?;
    audit.write("signing", destination, AuditEvent::DestinationSigned { signed: is_signed }).await
}

/// Whether the last dispatch of this destination that wrote it down signed its requests.
pub(super) async fn was_signed(engine: &dyn Engine, topic: &str, destination: &str) -> anyhow::Result<bool> {
    match AuditLog::open_existing(engine, topic).await? {
        Some(audit) => audit.is_signed(destination).await,
        None => Ok(false),
    }
}
