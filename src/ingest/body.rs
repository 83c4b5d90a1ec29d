//! Reads a request's body: within its limit, within its time, and within what may be pending at all.

use super::pending::Reservation;
use super::problem::{BODY_INCOMPLETE, BODY_TIMEOUT, BODY_TOO_LARGE, OVERLOADED, Problem};
use crate::limits::REFUSED_BODY_BYTES_MAX;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use std::time::Duration;
use tokio::time::timeout;

/// How much of a body is taken, and for how long it is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) max_bytes: usize,
    pub(super) timeout: Duration,
}

/// Reads the body to its end. Its bytes are held by `reservation` as they come, not as they are announced: a client
/// that announces much and sends nothing takes no room from others.
pub(super) async fn read(
    body: &mut Incoming,
    bounds: Bounds,
    reservation: &mut Reservation,
) -> Result<Bytes, Box<Problem>> {
    if let Some(announced) = body.size_hint().exact()
        && announced > bounds.max_bytes as u64
    {
        return Err(too_large(bounds));
    }
    match timeout(bounds.timeout, collect(body, bounds, reservation)).await {
        Ok(collected) => collected,
        Err(_) => {
            let waited = humantime::format_duration(bounds.timeout);
            Err(Problem::new(BODY_TIMEOUT, format!("the body did not end within {waited} (--body-timeout)")).close())
        }
    }
}

async fn collect(body: &mut Incoming, bounds: Bounds, reservation: &mut Reservation) -> Result<Bytes, Box<Problem>> {
    // What is announced is a bound too: the buffer never grows beyond it.
    let announced = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
    let most = announced.map_or(bounds.max_bytes, |announced| announced.min(bounds.max_bytes));
    // Nearly every body comes in one piece, which is used as it is.
    let Some(first) = data(body).await? else { return Ok(Bytes::new()) };
    within(first.len(), bounds)?;
    hold(first.len(), reservation)?;
    if body.is_end_stream() {
        return Ok(first);
    }
    let mut whole = Vec::new();
    let mut next = Some(first);
    while let Some(piece) = next {
        let needed = whole.len() + piece.len();
        within(needed, bounds)?;
        if needed > whole.capacity() {
            let room = (2 * whole.capacity()).min(most).max(needed);
            hold(room, reservation)?;
            whole.reserve_exact(room - whole.len());
        }
        whole.extend_from_slice(&piece);
        next = data(body).await?;
    }
    Ok(whole.into())
}

/// The next piece of the body; `None` at its end.
async fn data(body: &mut Incoming) -> Result<Option<Bytes>, Box<Problem>> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Problem::new(BODY_INCOMPLETE, format!("the body broke off: {error}; nothing was stored")).close()
        })?;
        // What is no data is trailers, which mean nothing here.
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

fn within(bytes: usize, bounds: Bounds) -> Result<(), Box<Problem>> {
    if bytes > bounds.max_bytes { Err(too_large(bounds)) } else { Ok(()) }
}

fn hold(bytes: usize, reservation: &mut Reservation) -> Result<(), Box<Problem>> {
    if reservation.replace(bytes) { Ok(()) } else { Err(overloaded()) }
}

/// `--max-pending` is reached.
pub(super) fn overloaded() -> Box<Problem> {
    Problem::new(OVERLOADED, "as much as --max-pending allows waits for the log already; nothing of this was stored")
}

fn too_large(bounds: Bounds) -> Box<Problem> {
    let max = bounds.max_bytes;
    Problem::new(BODY_TOO_LARGE, format!("the body has more than {max} bytes (--max-body): send it in parts"))
}

/// Reads the rest of a refused body and throws it away, so that the client, which may still be sending, reads the
/// answer. Gives up where it is too long or too slow: then the connection is closed behind the answer.
pub(super) async fn discard(body: &mut Incoming, wait: Duration) {
    if body.size_hint().lower() > REFUSED_BODY_BYTES_MAX {
        return;
    }
    let rest = async {
        let mut left = REFUSED_BODY_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let len = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(len) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // Either way the answer follows.
    let _ended = timeout(wait, rest).await;
}
