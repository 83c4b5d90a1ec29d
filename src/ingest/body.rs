//! Reads a request's body: within its limit, within its time, at a pace, and within the memory that bodies may use.

use super::connections::Activity;
use super::pace::{BODY_PACE_MIN, Schedule};
use super::pending::Reservation;
use super::problem::{BODY_INCOMPLETE, BODY_TIMEOUT, BODY_TOO_LARGE, BODY_TOO_SLOW, OVERLOADED, Problem};
use super::uploads::{NoRoom, UPLOAD_KEEPS_ROOM, Upload, Uploads};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// Bytes of a refused request's body that are read and thrown away, so that a client that first sends everything reads
/// the answer and not a broken pipe. A longer body costs the connection.
const REFUSED_BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long they are read for. The answer is sent before, so this only bounds how long a client holds the connection.
const REFUSED_BODY_WAIT_MAX: Duration = Duration::from_secs(2);

/// How much of a body is taken, and for how long it is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) max_bytes: usize,
    pub(super) timeout: Duration,
}

/// Reads the body to its end. Its bytes are held by `uploads` while it arrives and by `reservation` once it is complete.
/// They count as they come, not as they are announced: a client that announces much and sends nothing takes no room from
/// others.
pub(super) async fn read(
    body: &mut Incoming,
    bounds: Bounds,
    uploads: &Arc<Uploads>,
    reservation: &mut Reservation,
    activity: &Activity,
) -> Result<Bytes, Box<Problem>> {
    // What is announced is a bound too: the buffer never grows beyond it.
    let announced = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
    if body.size_hint().lower() > bounds.max_bytes as u64 {
        return Err(too_large(bounds));
    }
    let most = announced.map_or(bounds.max_bytes, |announced| announced.min(bounds.max_bytes));
    let begun = Instant::now();
    let schedule = BODY_PACE_MIN.begin(begun);
    let mut arriving = Arriving { body, bounds, end: begun + bounds.timeout, schedule, activity };
    // Nearly every body comes in one piece, which is used as it is.
    let Some(first) = arriving.piece(None).await? else { return Ok(Bytes::new()) };
    within(first.len(), bounds)?;
    let whole = match arriving.body.is_end_stream() {
        true => first,
        false => {
            let mut upload = uploads.begin();
            let whole = arriving.collect(first, most, &mut upload).await?;
            // Given back only now, so that its bytes never count nowhere.
            return if reservation.replace(whole.capacity()) { Ok(whole.into()) } else { Err(overloaded()) };
        }
    };
    if reservation.replace(whole.len()) { Ok(whole) } else { Err(overloaded()) }
}

/// A body that is being read.
struct Arriving<'b> {
    body: &'b mut Incoming,
    bounds: Bounds,
    /// When the time for all of it is over.
    end: Instant,
    schedule: Schedule,
    activity: &'b Activity,
}

impl Arriving<'_> {
    /// The whole body, of which `first` has come and which has `most` bytes at most.
    async fn collect(&mut self, first: Bytes, most: usize, upload: &mut Upload) -> Result<Vec<u8>, Box<Problem>> {
        let mut whole = Vec::new();
        let mut next = Some(first);
        while let Some(piece) = next {
            let needed = whole.len() + piece.len();
            within(needed, self.bounds)?;
            if needed > whole.capacity() {
                let room = (2 * whole.capacity()).min(most).max(needed);
                upload.hold(room).await.map_err(|NoRoom| no_room())?;
                // Nothing was read while there was no room, which is not the client's fault.
                self.schedule = BODY_PACE_MIN.begin(Instant::now());
                whole.reserve_exact(room - whole.len());
            }
            whole.extend_from_slice(&piece);
            next = self.piece(Some(upload)).await?;
        }
        Ok(whole)
    }

    /// The next piece; `None` at the end of the body.
    async fn piece(&mut self, upload: Option<&Upload>) -> Result<Option<Bytes>, Box<Problem>> {
        self.activity.receiving();
        let cut = async {
            match upload {
                Some(upload) => upload.cut().await,
                None => std::future::pending().await,
            }
        };
        let piece = tokio::select! {
            // What has come is taken first: a client is not slow because eventd is.
            biased;
            piece = data(self.body) => piece?,
            () = cut => return Err(lost_room()),
            () = sleep_until(self.end.min(self.schedule.due())) => return Err(self.late()),
        };
        self.activity.busy();
        let now = Instant::now();
        if now >= self.end && piece.is_some() {
            return Err(self.late());
        }
        if let Some(piece) = &piece {
            self.schedule.came(piece.len(), now);
            if let Some(upload) = upload {
                upload.came(piece.len(), now);
            }
        }
        Ok(piece)
    }

    fn late(&self) -> Box<Problem> {
        if Instant::now() >= self.end {
            let waited = humantime::format_duration(self.bounds.timeout);
            return Problem::new(BODY_TIMEOUT, format!("the body did not end within {waited} (--body-timeout)"))
                .close();
        }
        let (rate, slack) = (BODY_PACE_MIN.bytes_per_second, humantime::format_duration(BODY_PACE_MIN.slack));
        let detail = format!("the body came more slowly than {rate} bytes a second for {slack}; nothing was stored");
        Problem::new(BODY_TOO_SLOW, detail).close()
    }
}

/// The next data of the body; `None` at its end.
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

/// `--max-pending` is reached.
pub(super) fn overloaded() -> Box<Problem> {
    Problem::new(OVERLOADED, "as much as --max-pending allows waits for the log already; nothing of this was stored")
}

/// Bodies that are still arriving use as much as `--max-pending` allows, and all of them arrive fast enough.
fn no_room() -> Box<Problem> {
    let detail = "bodies that are still arriving use as much as --max-pending allows; nothing of this was stored";
    Problem::new(OVERLOADED, detail)
}

/// This body was too slow to keep its room.
fn lost_room() -> Box<Problem> {
    let rate = UPLOAD_KEEPS_ROOM.bytes_per_second;
    let detail = format!(
        "bodies that are still arriving use as much as --max-pending allows, and this one came more slowly than {rate} \
         bytes a second; nothing was stored"
    );
    Problem::new(BODY_TOO_SLOW, detail).close()
}

fn too_large(bounds: Bounds) -> Box<Problem> {
    let max = bounds.max_bytes;
    Problem::new(BODY_TOO_LARGE, format!("the body has more than {max} bytes (--max-body): send it in parts"))
}

/// Reads the rest of a refused body in the background and throws it away. The answer does not wait for it: a client that
/// reads while it sends can stop early, and one that first sends everything finds the answer behind it. If the rest is
/// too long or too slow, the connection is closed.
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
    // It ends with the connection too, and nobody needs to know how.
    tokio::spawn(async { timeout(REFUSED_BODY_WAIT_MAX, rest).await });
}
