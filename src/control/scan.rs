//! Reads a part of a partition for a command.

use crate::core::event::Event;
use crate::limits::FETCH_BYTES_MAX;
use crate::log::{FetchError, Log};
use anyhow::{Context as _, bail};
use std::ops::{ControlFlow, Range};
use std::time::Duration;
use tokio::time::sleep;

/// Records that one scan of events or commands reads.
pub(super) const RECORDS_READ_MAX: u64 = 500_000;

const RETRIES_MAX: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Shows each record of these offsets to `see`, until that breaks. `false`: there are more than `records_max`, and the others
/// were not read.
///
/// # Errors
/// The log is not available.
pub(super) async fn scan(
    log: &dyn Log,
    partition: u32,
    offsets: Range<i64>,
    records_max: u64,
    mut see: impl FnMut(&Event) -> ControlFlow<()>,
) -> anyhow::Result<bool> {
    let mut at = offsets.start.max(log.earliest(partition).await?);
    let (mut read, mut failures) = (0, 0);
    while at < offsets.end {
        match log.fetch(partition, at, FETCH_BYTES_MAX, Duration::ZERO).await {
            Ok(fetched) if fetched.next > at => {
                for event in fetched.events.iter().filter(|event| event.offset < offsets.end) {
                    if read == records_max {
                        return Ok(false);
                    }
                    read += 1;
                    if see(event).is_break() {
                        return Ok(true);
                    }
                }
                at = fetched.next;
            }
            Ok(_) | Err(FetchError::Unavailable(_)) if failures < RETRIES_MAX => {
                failures += 1;
                sleep(RETRY_DELAY).await;
            }
            Ok(_) => bail!("{:?} returns no records at offset {at} of partition {partition}", log.topic()),
            // Retention removed these records meanwhile, or they cannot be read: they are not delivered any more.
            Err(FetchError::OutOfRange { earliest, .. }) if earliest > at => at = earliest,
            Err(FetchError::Corrupt { offset, .. }) => at = offset + 1,
            Err(error) => return Err(error).context(format!("cannot read partition {partition} of {:?}", log.topic())),
        }
    }
    Ok(true)
}
