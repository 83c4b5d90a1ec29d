//! Log lines about the same thing at a bounded rate: the first one, then one each
//! [`LOG_REPEAT_INTERVAL`](crate::limits::LOG_REPEAT_INTERVAL) with the number of those left out.

use crate::core::Moment;
use crate::limits;
use std::collections::HashMap;

#[derive(Debug, Default)]
pub(super) struct Quiet {
    /// What a line is about → when one was written, and how many were left out since.
    said: HashMap<&'static str, (Moment, u64)>,
}

impl Quiet {
    /// `Some(left out)`: write the line. `None`: it was written a moment ago.
    pub(super) fn allows(&mut self, about: &'static str, now: Moment) -> Option<u64> {
        match self.said.get_mut(about) {
            Some((at, left_out)) if now.saturating_sub(*at) < limits::LOG_REPEAT_INTERVAL => {
                *left_out += 1;
                None
            }
            Some((at, left_out)) => {
                *at = now;
                Some(std::mem::take(left_out))
            }
            None => {
                self.said.insert(about, (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_line_that_repeats_is_written_once_an_interval_and_counts_the_others() {
        let mut quiet = Quiet::default();
        let at = |seconds| Duration::from_secs(seconds);
        let said: Vec<Option<u64>> = [0, 1, 2, 10, 11].map(|second| quiet.allows("fetch", at(second))).into();
        assert_eq!(said, [Some(0), None, None, Some(2), None]);
        assert_eq!(quiet.allows("commit", at(11)), Some(0), "another thing is another line");
    }
}
