//! Events that are given up: the lane stands until the dead letter is written, and only its user waits.

use super::{Happening, Worker};
use crate::core::Moment;
use crate::core::lanes::Token;
use crate::core::text;
use crate::dispatch::dead_letter;
use crate::dispatch::notices::{GaveUp, shown_user};
use crate::limits::LOG_USER_BYTES_MAX;
use anyhow::Context as _;
use std::sync::Arc;

impl Worker {
    pub(super) fn write_letter(&mut self, token: Token) -> anyhow::Result<()> {
        let letter = self.giving_up.get(&token).context("a dead letter without its story")?;
        let (event, history) = self.lanes.settling(token);
        let record = dead_letter::record(&self.shared.parts, self.partition, event, history, letter, self.shared.now());
        let (shared, partition) = (Arc::clone(&self.shared), self.partition);
        self.letters_writing += 1;
        self.outside.spawn(async move {
            let result = match shared.dead_letters().await {
                Ok(log) => log.append(partition, vec![record]).await.map(drop).map_err(|failure| failure.to_string()),
                Err(error) => Err(error.to_string()),
            };
            Happening::Letter { token, result }
        });
        Ok(())
    }

    pub(super) fn letter_written(&mut self, token: Token, result: Result<(), String>) -> anyhow::Result<()> {
        self.letters_writing -= 1;
        let now = self.shared.now();
        let letter = self.giving_up.get_mut(&token).context("a dead letter without its story")?;
        let Err(detail) = result else {
            let (event, history) = self.lanes.settling(token);
            let id = event.id(&self.shared.topic, self.partition);
            let gave_up = GaveUp {
                partition: self.partition,
                offset: event.offset,
                user: event.record.key(),
                id: &id,
                reason: letter.reason.as_str(),
                attempts: history.failures,
                answer: &letter.answer,
            };
            self.shared.notices.gave_up(&gave_up, now);
            let (window, progress) = (&mut self.window, &mut self.progress);
            self.lanes.given_up(token, |event| {
                window.remove(event.record.window_bytes());
                progress.settle(event.offset..event.offset + 1);
            });
            self.giving_up.remove(&token);
            self.shared.tally.gave_up();
            self.dirty = true;
            return Ok(());
        };
        // Refused or unknown: it is written again, and readers fold the two. Its user waits, nobody else.
        letter.failures = letter.failures.saturating_add(1);
        let at = now.saturating_add(self.shared.config.backoff.delay(letter.failures, self.shared.random()));
        self.letters_due.insert((at, token));
        if let Some(suppressed) = self.log_limiter.allows("letter") {
            let (partition, waiting) = (self.partition, self.letters_due.len());
            let (event, _) = self.lanes.settling(token);
            let id = event.id(&self.shared.topic, partition);
            let (user, id) = (shown_user(event.record.key()), text::shown(id.as_bytes(), LOG_USER_BYTES_MAX));
            tracing::warn!(
                partition,
                user,
                id,
                waiting,
                suppressed,
                "a dead letter cannot be written, its user waits: {detail}"
            );
        }
        Ok(())
    }

    pub(super) fn next_letter(&self) -> Option<Moment> {
        self.letters_due.first().map(|(at, _)| *at)
    }

    pub(super) fn retry_letters(&mut self, now: Moment) -> anyhow::Result<()> {
        while let Some(&(at, token)) = self.letters_due.first()
            && at <= now
        {
            self.letters_due.pop_first();
            self.write_letter(token)?;
        }
        Ok(())
    }
}
