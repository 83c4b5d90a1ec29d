//! The oracle's rules for attempts and dead letters: order, one attempt per user at a time, no needless repetition, and
//! no event given up without cause.

use super::give_ups::{OPERATOR, contradicts_stored};
use super::timing::{AttemptOf, RunEnd};
use super::{Attempt, Attempted, Life, Oracle, Ownership, User};
use crate::dispatch::outage_rules::Failures;
use eventd::core::event::{Event, Record};
use eventd::core::progress::FailedHead;
use eventd::core::tries::OnExhausted;
use eventd::core::verdict::{Report, Verdict};
use std::time::Duration;

/// A run as the destination got it.
#[derive(Debug, Clone)]
pub(crate) struct DeliveredRun {
    pub(crate) events: Vec<Event>,
    pub(crate) attempt: u32,
    pub(crate) gap: bool,
}

impl Attempt {
    /// The attempt with this number, for the rules about time.
    fn of(&self, id: u64) -> AttemptOf {
        let Self { life, partition, ownership, began, .. } = *self;
        let events = self.runs.iter().map(Vec::len).sum();
        AttemptOf { id, life, partition, ownership, began, events }
    }
}

impl Oracle {
    /// An attempt begins. Dispatch waits for it until `until`. Returns its number.
    pub(crate) fn started(
        &mut self,
        life: Life,
        partition: u32,
        runs: &[DeliveredRun],
        until: Duration,
        now: Duration,
    ) -> u64 {
        let id = self.next_attempt;
        self.next_attempt += 1;
        self.counts.attempts += 1;
        runs.iter().for_each(|run| self.may_begin_anew(life, partition, run));
        for first in runs.iter().filter_map(|run| run.events.first()) {
            self.has_passed(life, partition, &first.record.key().map(<[u8]>::to_vec), first.offset, now);
        }
        let wrong = self
            .wrong_batch(life, partition, runs, now)
            .or_else(|| runs.iter().find_map(|run| self.wrong_run(life, partition, run, now)));
        if let Some(wrong) = wrong {
            self.fail(format!("attempt {id} of life {life} in partition {partition}: {wrong}"));
        }
        let part = &self.partitions[partition as usize];
        for event in runs.iter().filter_map(|run| run.events.first()) {
            self.counts.redelivered += u64::from(part.entries.get(&event.offset).is_some_and(|e| e.delivered));
        }
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            for run in runs {
                if let Some(last) = run.events.last() {
                    owned.last_started.insert(last.record.key().map(<[u8]>::to_vec), run.events[0].offset);
                }
            }
        }
        let heads: Vec<(User, i64)> = runs
            .iter()
            .filter_map(|run| run.events.first())
            .map(|event| (event.record.key().map(<[u8]>::to_vec), event.offset))
            .collect();
        let runs = runs.iter().map(|run| run.events.iter().map(|event| event.offset).collect()).collect();
        let ownership = self.owned.get(&(life, partition)).map_or(0, |owned| owned.number);
        let phase = self.health.phase();
        let attempt = Attempt { life, partition, ownership, began: now, phase, until, runs };
        let of = attempt.of(id);
        self.look_at_memory(now);
        if let Some(wrong) = self.timing.as_mut().and_then(|timing| timing.started(of, &heads, now)) {
            self.fail(format!("attempt {id} of life {life} in partition {partition}: {wrong}"));
        }
        self.attempts.insert(id, attempt);
        id
    }

    /// If an operator has released the user, this may be the first attempt anew. The owner forgets what was before.
    fn may_begin_anew(&mut self, life: Life, partition: u32, run: &DeliveredRun) {
        let Some(first) = run.events.first() else { return };
        let user = (partition, first.record.key().map(<[u8]>::to_vec));
        if run.attempt != 1 || !self.released.contains(&user) {
            return;
        }
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.begun_anew.insert(first.offset);
            owned.may_have_ended.remove(&first.offset);
            owned.failures.remove(&first.offset);
            owned.attempted.remove(&first.offset);
        }
        if let Some(timing) = &mut self.timing {
            timing.begins_anew(life, partition, &user.1);
        }
    }

    fn wrong_batch(&self, life: Life, partition: u32, runs: &[DeliveredRun], now: Duration) -> Option<String> {
        let limits = self.rules.limits;
        let Some(owned) = self.owned.get(&(life, partition)) else {
            return Some("the partition is not owned".into());
        };
        let in_flight = self.attempts.values().filter(|attempt| attempt.life == life).count();
        // A destination that takes one user at a time has a second pool of slots, for slow and failing users.
        let pools = if limits.runs_max == 1 { 2 } else { 1 };
        if owned.released || owned.lost.is_some_and(|lost| lost < now) {
            Some("the partition was released or lost".into())
        } else if self.partitions[partition as usize].committed.is_none() {
            Some("nothing was ever committed, so a restart would take the group for a new one".into())
        } else if in_flight >= pools * self.rules.concurrency {
            Some(format!("{in_flight} attempts are in flight already"))
        } else if runs.is_empty() || runs.len() > limits.runs_max {
            Some(format!("{} runs, the destination takes {}", runs.len(), limits.runs_max))
        } else {
            None
        }
    }

    fn wrong_run(&self, life: Life, partition: u32, run: &DeliveredRun, now: Duration) -> Option<String> {
        let part = &self.partitions[partition as usize];
        let owned = &self.owned[&(life, partition)];
        let limits = self.rules.limits;
        let Some(first) = run.events.first() else { return Some("an empty run".into()) };
        let bytes: usize = run.events.iter().map(|event| event.record.size_bytes()).sum();
        if run.events.len() > limits.run_events_max || (run.events.len() > 1 && bytes > limits.run_bytes_max) {
            return Some(format!("a run of {} events and {bytes} bytes", run.events.len()));
        }
        let user = first.record.key().map(<[u8]>::to_vec);
        let busy = |attempt: &&Attempt| {
            attempt.partition == partition
                && attempt.runs.iter().any(|run| run.first().is_some_and(|o| part.entries[o].user == user))
        };
        if let Some(other) = self.attempts.values().find(busy) {
            return Some(format!("{} is tried while {other:?} is in flight for its user", first.offset));
        }
        let offsets: Vec<i64> = run.events.iter().map(|event| event.offset).collect();
        if let Some(wrong) = owned.failed_batches.forbid(&user, &offsets, &self.rules) {
            return Some(wrong);
        }
        if owned.last_started.get(&user).is_some_and(|last| first.offset < *last) {
            return Some(format!("{} steps back before {}", first.offset, owned.last_started[&user]));
        }
        let mut before: Option<usize> = None;
        for event in &run.events {
            let o = event.offset;
            let Some(entry) = part.entries.get(&o) else { return Some(format!("{o} is not in the log")) };
            if !self.is_faithful(&entry.record, &event.record) {
                return Some(format!("{o} is not what was appended: {:?}", event.record));
            }
            if owned.done.contains_key(&o) {
                return Some(format!("{o} is tried again, although this owner knows it settled"));
            }
            if owned.began_with.as_ref().is_some_and(|state| part.claims(state, o)) {
                return Some(format!("{o} is tried again, although the commit holds it as settled"));
            }
            if self.is_given_up(partition, &user, o) {
                return Some(format!("{o} is tried, although a commit covers the command that gives it up"));
            }
            // Earlier events of this run count as settled here. `reported` checks them again.
            let settled = part.users[&entry.user].1;
            let expected = before.map_or(settled, |index| index + 1);
            if entry.user != user || entry.index > expected.max(settled) || before.is_some_and(|b| entry.index <= b) {
                let earlier = part.users[&entry.user].0.get(expected);
                return Some(format!("{o} is tried before {earlier:?} of its user is settled"));
            }
            before = Some(entry.index);
        }
        self.wrong_count(owned, part.users[&user].0.as_slice(), partition, run, now)
    }

    /// Checks the number of the attempt, the gap mark, and the time that the destination asked for.
    fn wrong_count(
        &self,
        owned: &Ownership,
        offsets: &[i64],
        partition: u32,
        run: &DeliveredRun,
        now: Duration,
    ) -> Option<String> {
        let part = &self.partitions[partition as usize];
        let head = run.events[0].offset;
        let failures = owned.failures.get(&head);
        let stored =
            owned.stored_failure(part.entries[&head].user.as_deref(), head).map_or(0, |failed| failed.failures);
        let seen = stored + failures.map_or(0, |failures| failures.seen());
        if run.attempt != seen + 1 {
            return Some(format!("{head} is called attempt {} after {seen} that failed", run.attempt));
        }
        let is_released = self.released.contains(&(partition, part.entries[&head].user.clone()));
        if !is_released && owned.not_before.get(&head).is_some_and(|at| now < *at) {
            return Some(format!(
                "{head} is tried at {now:?}, the destination asked for {:?}",
                owned.not_before[&head]
            ));
        }
        if owned.gave_up.contains(&head) {
            return Some(format!("{head} is tried while its dead letter is written"));
        }
        if !is_released && owned.refused_for_good.contains(&head) {
            return Some(format!("{head} is tried again, although it was refused while others were served"));
        }
        let before = &offsets[..part.entries[&head].index];
        // Events that retention removed are skipped silently.
        let previous = before.iter().rev().copied().find(|o| {
            let entry = &part.entries[o];
            entry.dead || entry.delivered || !entry.trimmed
        });
        let gap = previous.is_some_and(|offset| part.entries[&offset].dead);
        if run.gap && !gap {
            return Some(format!("{head} is marked as after a gap, but {previous:?} was not given up"));
        }
        let known = previous.is_some_and(|offset| owned.gave_up.contains(&offset) && owned.done.contains_key(&offset));
        if known && !run.gap && failures.is_none() {
            return Some(format!("{head} is not marked as after a gap, but {previous:?} was given up"));
        }
        None
    }

    /// The destination answered with one report for each run, in order.
    pub(crate) fn reported(&mut self, id: u64, reports: &[Report], now: Duration) {
        self.look_at_memory(now);
        let attempt = self.attempts.remove(&id).expect("an attempt is answered once");
        let (life, partition) = (attempt.life, attempt.partition);
        let ends = reports.iter().map(|report| (report.delivered, report.failed.as_ref().map(|failed| failed.verdict)));
        self.timing_ends(id, &attempt, ends, true, now);
        for (run, report) in attempt.runs.iter().zip(reports) {
            for offset in &run[..report.delivered] {
                let entry = &self.partitions[partition as usize].entries[offset];
                let (index, settled) = (entry.index, self.partitions[partition as usize].users[&entry.user].1);
                if index > settled {
                    self.fail(format!("{offset} was delivered before an earlier event of its user"));
                }
                self.settle(partition, *offset, now);
                let entry = self.partitions[partition as usize].entries.get_mut(offset).expect("it is in the log");
                self.counts.delivered += u64::from(!entry.delivered);
                entry.delivered = true;
                let user = entry.user.clone();
                if let Some(owned) = self.ownership_of(&attempt) {
                    owned.done.insert(*offset, now);
                }
                self.health.saw(life, partition, &user, None, (attempt.began, attempt.phase), now);
                self.refusals.delivered(life, (partition, user), id, now);
            }
            if report.failed.as_ref().is_some_and(|failed| failed.verdict == Verdict::BatchFailed) {
                self.counts.failed_batches += 1;
                let user = self.partitions[partition as usize].entries[&run[0]].user.clone();
                if let Some(owned) = self.ownership_of(&attempt) {
                    owned.failed_batches.failed(user, run);
                }
                continue;
            }
            if let (Some(failed), Some(offset)) = (&report.failed, run.get(report.delivered)) {
                self.failed(&attempt, *offset, failed.verdict, &failed.answer, now);
                self.refused(id, &attempt, *offset, failed.verdict, now);
            }
        }
    }

    fn refused(&mut self, id: u64, attempt: &Attempt, offset: i64, verdict: Verdict, now: Duration) {
        let user = self.partitions[attempt.partition as usize].entries[&offset].user.clone();
        let (who, what) = ((attempt.partition, user), (attempt.ownership, offset, id));
        if self.refusals.failed(attempt.life, &who, what, verdict, now)
            && let Some(owned) = self.ownership_of(attempt)
        {
            owned.refused_for_good.insert(offset);
        }
    }

    /// The attempt was dropped before it was answered. If dispatch had waited long enough, this is a time-out, which
    /// counts as a failure. Otherwise the owner ended, was cut off at its lease or lost the partition, and there is no
    /// verdict.
    pub(crate) fn dropped(&mut self, id: u64, is_cut_off: bool, now: Duration) {
        let attempt = self.attempts.remove(&id).expect("an attempt ends once");
        self.refusals.doubt(attempt.life);
        let timed_out = !is_cut_off && now >= attempt.until;
        let failed = timed_out.then_some(Verdict::Retry { after: None });
        self.timing_ends(id, &attempt, attempt.runs.iter().map(|_| (0, failed)), timed_out, now);
        if is_cut_off || now < attempt.until || self.ownership_of(&attempt).is_none_or(|owned| owned.lost.is_some()) {
            return;
        }
        for run in &attempt.runs {
            if let Some(offset) = run.first() {
                self.failed(
                    &attempt,
                    *offset,
                    Verdict::Retry { after: None },
                    "no answer within --attempt-timeout",
                    now,
                );
            }
        }
    }

    /// Tells the rules about time how each run of an attempt ended.
    fn timing_ends(
        &mut self,
        id: u64,
        attempt: &Attempt,
        ends: impl Iterator<Item = (usize, Option<Verdict>)>,
        answered: bool,
        now: Duration,
    ) {
        let Some(timing) = &mut self.timing else { return };
        let entries = &self.partitions[attempt.partition as usize].entries;
        let runs = attempt.runs.iter().zip(ends).filter_map(|(run, (delivered, failed))| {
            let first = *run.first()?;
            Some(RunEnd { user: entries.get(&first)?.user.clone(), first, delivered, failed })
        });
        timing.attempt_ended(attempt.of(id), runs.collect(), answered, now);
    }

    fn failed(&mut self, attempt: &Attempt, offset: i64, verdict: Verdict, answer: &str, now: Duration) {
        self.counts.failed += 1;
        let user = self.partitions[attempt.partition as usize].entries[&offset].user.clone();
        let evident =
            self.health.saw(attempt.life, attempt.partition, &user, Some(verdict), (attempt.began, attempt.phase), now);
        self.counts.outages_evident += u64::from(evident);
        let window = self.health.window(attempt.life, attempt.phase);
        let evident = window.is_some_and(|window| self.health.was_evident(attempt.life, window, now));
        let retry_after_max = self.rules.retry_after_max;
        if let Some(owned) = self.ownership_of(attempt) {
            owned.failures.entry(offset).or_default().add(verdict, window, evident);
            let before = owned.attempted.remove(&offset);
            owned.attempted.insert(offset, Attempted::and(before, verdict, answer, now));
            if let Verdict::Busy { after: Some(after) } | Verdict::Retry { after: Some(after) } = verdict {
                owned.not_before.insert(offset, now + after.min(retry_after_max));
            }
        }
        let entries = &mut self.partitions[attempt.partition as usize].entries;
        entries.get_mut(&offset).expect("it was attempted").first_failed.get_or_insert(now);
        self.look_at_tries(attempt, offset, now);
    }

    /// The ownership under which the attempt began, if it still exists.
    fn ownership_of(&mut self, attempt: &Attempt) -> Option<&mut Ownership> {
        let owned = self.owned.get_mut(&(attempt.life, attempt.partition));
        owned.filter(|owned| owned.number == attempt.ownership)
    }

    pub(super) fn in_flight(&self, which: impl Fn(&Attempt) -> bool) -> Option<u64> {
        self.attempts.iter().find(|(_, attempt)| which(attempt)).map(|(id, _)| *id)
    }

    /// A dead letter is about to be appended. Checks that its content is right and that there was cause.
    pub(crate) fn gives_up(&mut self, life: Life, partition: u32, record: &Record, now: Duration) {
        if let Ok((_, offset)) = source(record) {
            let offset = self.place(life, partition, offset, &[]);
            self.has_passed(life, partition, &record.key().map(<[u8]>::to_vec), offset, now);
        }
        if let Err(wrong) = self.judge_dead_letter(life, partition, record) {
            self.fail(format!("life {life} writes a dead letter to partition {partition}: {wrong}"));
        }
    }

    fn judge_dead_letter(&mut self, life: Life, partition: u32, record: &Record) -> Result<(), String> {
        let (source, offset) = source(record)?;
        if source != partition {
            return Err(format!("it is of partition {source}"));
        }
        let offset = self.place(life, partition, offset, &[]);
        let part = &self.partitions[partition as usize];
        let entry = part.entries.get(&offset).ok_or(format!("{offset} is not in the log"))?;
        if (record.key(), record.value()) != (entry.record.key(), entry.record.value()) {
            return Err(format!("key or payload of {offset} differ: {record:?}"));
        }
        if let Some(missing) = self.headers_kept(&entry.record).find(|header| record.headers().all(|h| h != *header)) {
            return Err(format!("the header {missing:?} of {offset} is missing"));
        }
        let text = |name| record.header_text(name).ok_or(format!("no header {name}"));
        let is_by_operator = text("eventd-reason")? == OPERATOR;
        if is_by_operator && !self.give_ups.may_be_given_up(partition, &entry.user, offset) {
            return Err(format!("{offset} is given up by an operator, and no command says so"));
        }
        let policy = self.rules.on_exhausted;
        if !is_by_operator && policy != OnExhausted::DeadLetter {
            return Err(format!("{offset} is given up, although the policy is {policy}"));
        }
        let is_released = self.released.contains(&(partition, entry.user.clone()));
        let before = self.tries_before(&entry.record);
        if let Some(attempt) = self
            .in_flight(|a| a.life == life && a.partition == partition && a.runs.iter().any(|run| run.contains(&offset)))
        {
            return Err(format!("{offset} is in flight with attempt {attempt}"));
        }
        if let Some(timing) = &mut self.timing {
            timing.gives_up(life, partition, &entry.user);
        }
        let Some(owned) = self.owned.get_mut(&(life, partition)) else {
            return Err("the partition is not owned".into());
        };
        if !owned.gave_up.insert(offset) {
            return Ok(());
        }
        self.counts.given_up_by_operators += u64::from(is_by_operator);
        let tries: u32 = text("eventd-attempts")?.parse().map_err(|_| "eventd-attempts is not a number".to_owned())?;
        for name in ["eventd-answer", "eventd-time", "eventd-topic"] {
            text(name)?;
        }
        let untried = Failures::default();
        let failures = owned.failures.get(&offset).or(is_by_operator.then_some(&untried));
        let failures = failures.ok_or(format!("{offset} was never tried by this owner"))?;
        let stored = owned.stored_failure(entry.user.as_deref(), offset).cloned().unwrap_or_default();
        // A release begins the tries anew, also if no attempt follows.
        if is_by_operator && is_released && tries == 0 {
            let untrue = contradicts_stored(record, &FailedHead::default());
            return untrue.map_or(Ok(()), |untrue| Err(format!("{offset} is given up {untrue}")));
        }
        let before = before + stored.failures;
        if tries != before + failures.seen() {
            return Err(format!("{tries} attempts of {offset}, and {before} + {} were seen to fail", failures.seen()));
        }
        let appended = (before == 0).then_some(entry.appended);
        let untrue = match owned.attempted.get(&offset) {
            Some(attempted) => attempted.contradicts(record, appended),
            None => contradicts_stored(record, &stored),
        };
        if is_by_operator {
            return untrue.map_or(Ok(()), |untrue| Err(format!("{offset} is given up {untrue}")));
        }
        let limits = owned.try_limits(entry, offset, &self.rules);
        match failures.forbid(life, text("eventd-reason")?, limits, &self.health) {
            Some(wrong) => Err(format!("{offset} is given up {wrong}")),
            None => untrue.map_or(Ok(()), |untrue| Err(format!("{offset} is given up {untrue}"))),
        }
    }

    /// A dead letter is stored, so its event is settled.
    pub(crate) fn dead_letter_stored(&mut self, partition: u32, record: &Record, now: Duration) {
        let Some(offset) = source(record).ok().and_then(|(_, offset)| self.given_up_at(partition, offset)) else {
            return;
        };
        let is_given_up = self.owned.iter().any(|((_, of), owned)| *of == partition && owned.gave_up.contains(&offset));
        let part = &mut self.partitions[partition as usize];
        let Some(entry) = part.entries.get_mut(&offset) else { return };
        self.counts.dead_letters += u64::from(!entry.dead);
        entry.dead = true;
        if entry.again && !is_given_up {
            return;
        }
        if entry.index > part.users[&entry.user].1 {
            self.fail(format!("{offset} is given up before an earlier event of its user is settled"));
        }
        self.settle(partition, offset, now);
    }

    /// The owner learned that the dead letter is stored.
    pub(crate) fn dead_letter_acknowledged(&mut self, life: Life, partition: u32, record: &Record, now: Duration) {
        let Ok((_, offset)) = source(record) else { return };
        let offset = self.place(life, partition, offset, &[]);
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.done.insert(offset, now);
        }
        let user = record.key().map(<[u8]>::to_vec);
        if let Some(timing) = &mut self.timing {
            timing.given_up(life, partition, &user, offset, now);
        }
    }

    /// The owner learned that the dead letter is not stored, or that this is unknown.
    pub(crate) fn dead_letter_failed(&mut self, life: Life, partition: u32, record: &Record, now: Duration) {
        let user = record.key().map(<[u8]>::to_vec);
        if let Some(timing) = &mut self.timing {
            timing.dead_letter_failed(life, partition, &user, now);
        }
    }

    pub(crate) fn phase_begins(&mut self) {
        self.health.phase_begins();
    }

    pub(crate) fn phase_ends(&mut self) {
        self.health.phase_ends();
    }

    /// The first event that is not settled or not committed, with the reason.
    pub(crate) fn unfinished(&self) -> Option<(u32, i64, &'static str)> {
        self.partitions.iter().zip(0u32..).find_map(|(part, partition)| {
            if let Some(wanted) =
                part.resets.last().filter(|wanted| part.committed.as_ref().is_some_and(|s| s.lacks(wanted)))
            {
                return Some((partition, wanted.offset(), "not reset as requested"));
            }
            let claimed = |offset: i64| part.committed.as_ref().is_some_and(|state| part.claims(state, offset));
            part.entries.iter().find_map(|(offset, entry)| match entry.settled {
                None => Some((partition, *offset, "not settled")),
                // An event that retention removed during its backoff is skipped at the next start.
                Some(_) if !entry.trimmed && !claimed(*offset) => Some((partition, *offset, "not committed")),
                Some(_) => None,
            })
        })
    }

    /// Checks that nothing is left after a stop with a drain at the end.
    pub(crate) fn finished(&mut self) {
        if let Some((partition, offset, wrong)) = self.unfinished() {
            self.fail(format!("event {offset} of partition {partition} is {wrong}, at the end"));
        }
    }

    /// The longest time from append to settlement for the users that `which` selects.
    pub(crate) fn longest_wait(&self, which: impl Fn(&[u8]) -> bool) -> Duration {
        let entries = self.partitions.iter().flat_map(|part| part.entries.values());
        let waits = entries
            .filter(|entry| entry.user.as_deref().is_some_and(&which))
            .filter_map(|entry| Some(entry.settled?.saturating_sub(entry.appended)));
        waits.max().unwrap_or_default()
    }
}

/// The place of a dead letter's event, from its header `eventd-source` (`partition:offset`).
pub(super) fn source(record: &Record) -> Result<(u32, i64), String> {
    let text = record.header_text("eventd-source").ok_or("no header eventd-source")?;
    let parsed = text.split_once(':').and_then(|(p, o)| Some((p.parse().ok()?, o.parse().ok()?)));
    parsed.ok_or(format!("eventd-source {text:?} is not partition:offset"))
}
