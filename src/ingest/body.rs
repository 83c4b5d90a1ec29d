//! Reads a request's body within four bounds: its size, its time, its rate, and the memory that bodies may use.
//!
//! ```text
//!  first piece ── whole body? ── yes ──────────────────────────────▶ PendingBytes ─▶ parse
//!                     └── no ─▶ BodyReader::collect, holds an Upload ──────▲
//!                                 │ each piece: in time? fast enough? within --max-body?
//!                                 └── room taken for another upload ─▶ 408
//! ```

use super::connections::Activity;
use super::min_rate::{BODY_MIN_RATE, RateDeadline};
use super::pending::PendingBytes;
use super::problem::{BODY_INCOMPLETE, BODY_TIMEOUT, BODY_TOO_LARGE, BODY_TOO_SLOW, OVERLOADED, Problem};
use super::uploads::{BudgetExhausted, UPLOAD_MIN_RATE, Upload, UploadBudget};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// Bytes of a refused request's body that are read and thrown away. A client that sends everything before it reads then
/// finds the answer instead of a broken pipe. If the body is longer, the connection is closed.
const REFUSED_BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long the body of a refused request is read. The answer was sent before, so this only bounds how long a client
/// can hold the connection.
const REFUSED_BODY_WAIT_MAX: Duration = Duration::from_secs(2);

/// The largest body that is accepted, and how long ingest waits for its last byte.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimits {
    pub(super) max_bytes: usize,
    pub(super) timeout: Duration,
}

/// Reads the body to its end. While the body arrives, its buffer counts in `uploads`; afterwards it counts in
/// `pending`.
///
/// Bytes count when they arrive, not when they are announced. So a client that announces a large body and sends nothing
/// takes no room from other clients.
pub(super) async fn read(
    body: &mut Incoming,
    limits: BodyLimits,
    uploads: &Arc<UploadBudget>,
    pending: &mut PendingBytes,
    activity: &Activity,
) -> Result<Bytes, Box<Problem>> {
    let size = body.size_hint();
    if size.lower() > limits.max_bytes as u64 {
        return Err(too_large(limits));
    }
    let begun = Instant::now();
    let deadline = BODY_MIN_RATE.deadline(begun);
    let mut reader = BodyReader { body, limits, end: begun + limits.timeout, deadline, activity };
    let Some(first) = reader.next(None).await? else { return Ok(Bytes::new()) };
    check_len(first.len(), limits)?;
    // Nearly every body arrives in one piece, which needs no buffer.
    if reader.body.is_end_stream() {
        return if pending.resize(first.len()) { Ok(first) } else { Err(overloaded()) };
    }
    // A client that announces a length gets a buffer of no more than that.
    let announced = size.upper().and_then(|bytes| usize::try_from(bytes).ok());
    let len_max = announced.map_or(limits.max_bytes, |announced| announced.min(limits.max_bytes));
    let mut upload = uploads.begin();
    let whole = reader.collect(first, len_max, &mut upload).await?;
    // The upload is dropped after this, so that the bytes count in one of the two budgets at every moment.
    if pending.resize(whole.capacity()) { Ok(whole.into()) } else { Err(overloaded()) }
}

/// One body that is being read.
struct BodyReader<'b> {
    body: &'b mut Incoming,
    limits: BodyLimits,
    /// When the time for the whole body is over.
    end: Instant,
    deadline: RateDeadline,
    activity: &'b Activity,
}

impl BodyReader<'_> {
    /// Reads the rest of a body that began with `first` and has at most `len_max` bytes.
    async fn collect(&mut self, first: Bytes, len_max: usize, upload: &mut Upload) -> Result<Vec<u8>, Box<Problem>> {
        let mut whole = Vec::new();
        let mut next = Some(first);
        while let Some(piece) = next {
            let needed = whole.len() + piece.len();
            check_len(needed, self.limits)?;
            if needed > whole.capacity() {
                // Doubling copies each byte about once, and `len_max` saves the room that no byte will fill.
                let capacity = (2 * whole.capacity()).min(len_max).max(needed);
                let asked = Instant::now();
                upload.hold(capacity).await.map_err(|BudgetExhausted| no_room_for_upload())?;
                // Nothing was read while there was no room, and that was not the client's fault.
                self.deadline.postpone(asked.elapsed());
                whole.reserve_exact(capacity - whole.len());
            }
            whole.extend_from_slice(&piece);
            next = self.next(Some(upload)).await?;
        }
        Ok(whole)
    }

    /// Waits for the next piece. Returns `None` at the end of the body.
    async fn next(&mut self, upload: Option<&Upload>) -> Result<Option<Bytes>, Box<Problem>> {
        self.activity.receiving();
        let cut = async {
            match upload {
                Some(upload) => upload.cut().await,
                None => std::future::pending().await,
            }
        };
        let piece = tokio::select! {
            // Data that has arrived is taken before the clock is read: a client is not slow because eventd is busy.
            biased;
            piece = next_data(self.body) => piece?,
            () = cut => return Err(lost_its_room()),
            () = sleep_until(self.end.min(self.deadline.due())) => return Err(self.late()),
        };
        self.activity.busy();
        // At the end of the body the clock does not matter any more.
        let Some(piece) = piece else { return Ok(None) };
        let now = Instant::now();
        if now >= self.end {
            return Err(self.late());
        }
        self.deadline.arrived(piece.len(), now);
        if let Some(upload) = upload {
            upload.arrived(piece.len(), now);
        }
        Ok(Some(piece))
    }

    fn late(&self) -> Box<Problem> {
        if Instant::now() >= self.end {
            let limit = humantime::format_duration(self.limits.timeout);
            let detail = format!(
                "the body did not end within {limit} (--body-timeout) and nothing was stored: send fewer events in one \
                 request"
            );
            return Problem::new(BODY_TIMEOUT, detail).close();
        }
        let (rate, slack) = (BODY_MIN_RATE.bytes_per_second, humantime::format_duration(BODY_MIN_RATE.slack));
        let detail = format!(
            "the body came more slowly than {rate} bytes per second for {slack} and nothing was stored: send the whole \
             body without pauses"
        );
        Problem::new(BODY_TOO_SLOW, detail).close()
    }
}

/// The next data of the body, or `None` at its end. Trailers have no meaning here and are skipped.
async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, Box<Problem>> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let detail = format!("the body broke off ({error}) and nothing was stored: send the whole request again");
            Problem::new(BODY_INCOMPLETE, detail).close()
        })?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

fn check_len(bytes: usize, limits: BodyLimits) -> Result<(), Box<Problem>> {
    if bytes > limits.max_bytes { Err(too_large(limits)) } else { Ok(()) }
}

/// The answer if `--max-pending` bytes are accepted and not yet appended.
pub(super) fn overloaded() -> Box<Problem> {
    let detail = "as many bytes as --max-pending allows already wait for the log, and nothing of this request was \
                  stored: send it again later";
    Problem::new(OVERLOADED, detail)
}

/// The answer if arriving bodies use up their budget and each of them is fast enough.
fn no_room_for_upload() -> Box<Problem> {
    let detail = "bodies that are still arriving use as many bytes as --max-pending allows, and nothing of this \
                  request was stored: send it again later";
    Problem::new(OVERLOADED, detail)
}

/// The answer to an upload that was too slow to keep its room.
fn lost_its_room() -> Box<Problem> {
    let rate = UPLOAD_MIN_RATE.bytes_per_second;
    let detail = format!(
        "bodies that are still arriving use as many bytes as --max-pending allows, and this one came more slowly than \
         {rate} bytes per second; nothing of it was stored: send it again without pauses"
    );
    Problem::new(BODY_TOO_SLOW, detail).close()
}

fn too_large(limits: BodyLimits) -> Box<Problem> {
    let max = limits.max_bytes;
    Problem::new(BODY_TOO_LARGE, format!("the body has more than {max} bytes (--max-body): send it in parts"))
}

/// Reads the rest of a refused request's body in the background and throws it away. The answer does not wait for it, so
/// a client that reads while it sends can stop early. If the rest is too long or takes too long, hyper closes the
/// connection.
pub(super) fn discard(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let rest = async move {
        let mut left = REFUSED_BODY_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let len = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(len) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // The task also ends with the connection. Its result does not matter: the answer is sent already.
    tokio::spawn(async { timeout(REFUSED_BODY_WAIT_MAX, rest).await });
}
