//! What a dead letter says about its event has to be what happened.

use eventd::core::event::Record;
use eventd::core::verdict::Verdict;
use std::time::Duration;

/// How far times of a dead letter may be from what happened, because they are whole milliseconds.
const ROUNDING_MS: u64 = 2;

/// The failed attempts of one event that an owner saw.
#[derive(Debug)]
pub(super) struct Attempted {
    first: Duration,
    last: Duration,
    verdict: Verdict,
    answer: String,
}

impl Attempted {
    /// Another attempt failed. `before` is what was known.
    pub(super) fn and(before: Option<Self>, verdict: Verdict, answer: &str, now: Duration) -> Self {
        Self { first: before.map_or(now, |before| before.first), last: now, verdict, answer: answer.to_owned() }
    }

    /// When the last attempt failed, and the first one.
    pub(super) fn last_and_first(&self) -> (Duration, Duration) {
        (self.last, self.first)
    }

    /// Why the headers of this dead letter are not true. Its event was appended at `appended`, and may have failed under
    /// earlier owners, too. An event that is redriven has its first attempt long ago.
    pub(super) fn contradicts(&self, dead_letter: &Record, appended: Option<Duration>) -> Option<String> {
        let text = |name| dead_letter.header_text(name).unwrap_or_default();
        let number = |name| text(name).parse::<i64>().unwrap_or_default();
        if text("eventd-answer") != self.answer {
            return Some(format!("with the answer {:?}, and the last one is {:?}", text("eventd-answer"), self.answer));
        }
        if text("eventd-reason") == "refused" && self.verdict != Verdict::Refused {
            return Some(format!("as refused, and the last verdict is {:?}", self.verdict));
        }
        let said = number("eventd-last-attempt") - number("eventd-first-attempt");
        let ms = |from: Duration| self.last.saturating_sub(from).as_millis() as u64;
        let said = u64::try_from(said).ok();
        let is_true = said.is_some_and(|said| {
            said + ROUNDING_MS >= ms(self.first) && appended.is_none_or(|appended| said <= ms(appended) + ROUNDING_MS)
        });
        (!is_true).then(|| format!("with {said:?} ms between its attempts, and there were {}", ms(self.first)))
    }
}
