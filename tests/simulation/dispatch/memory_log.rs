//! An engine and its topics in memory that keep the contract of `eventd::log`, with faults: appends that are refused or
//! have an unknown outcome (stored, not stored, stored later), fetches that fail, offsets without a record, and topics
//! that cannot be created for a while.

use crate::dispatch::commands::CONTROL;
use crate::dispatch::oracle::{Cursor, Oracle};
use crate::dispatch::world::{Call, Handle, State, World, WriteFault};
use crate::memory_partition::MemoryPartition;
use eventd::BoxFuture;
use eventd::core::event::{Event, Record};
use eventd::core::outcome::{Failure, FailureCode};
use eventd::log::{CreateTopic, Engine, FetchError, Fetched, Log, OpenError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The topic that is delivered.
pub(crate) const TOPIC: &str = "user-events";
/// The topics of its dead letters and of the audit records of its replays.
pub(crate) const DEAD_LETTERS: &str = "user-events.file-1.dead";
const AUDIT: &str = "user-events.audit";

/// How long a fetch waits for a record if timers are far apart.
const FAR_FETCH: Duration = Duration::from_secs(600);

/// How long a look for commands takes then. The next one would follow a second after a quick one.
const FAR_COMMANDS_LOOK: Duration = Duration::from_secs(25);

/// All topics of the engine.
#[derive(Debug)]
pub(crate) struct Topics {
    topics: BTreeMap<String, Vec<MemoryPartition>>,
    /// The percentage of appends that are followed by offsets without a record.
    gaps: u64,
    /// The most records in one answer to a fetch.
    fetch_events_max: usize,
    /// The partitions and offsets of events that cannot be read.
    damaged: BTreeSet<(u32, i64)>,
}

impl Topics {
    pub(crate) fn new(partitions: u32, gaps: u64, fetch_events_max: usize) -> Self {
        let mut topics = Self { topics: BTreeMap::new(), gaps, fetch_events_max, damaged: BTreeSet::new() };
        topics.make(TOPIC, partitions);
        topics
    }

    pub(crate) fn make(&mut self, topic: &str, partitions: u32) {
        let made = || (0..partitions).map(|_| MemoryPartition::default()).collect();
        self.topics.entry(topic.to_owned()).or_insert_with(made);
    }

    /// Makes the event at this offset unreadable, even if it is appended later.
    pub(crate) fn damage(&mut self, partition: u32, offset: i64) {
        self.damaged.insert((partition, offset.max(0)));
    }

    pub(crate) fn is_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }

    pub(crate) fn repair(&mut self) {
        self.damaged.clear();
    }

    pub(crate) fn latest(&self, partition: u32) -> i64 {
        self.topics[TOPIC][partition as usize].latest
    }

    /// The number of partitions of a topic, or 0 if it does not exist.
    pub(crate) fn partitions(&self, topic: &str) -> usize {
        self.topics.get(topic).map_or(0, Vec::len)
    }

    /// The dead letters of one partition.
    pub(crate) fn dead_letters(&self, partition: u32) -> impl Iterator<Item = (i64, &Record)> {
        let part = self.topics.get(DEAD_LETTERS).and_then(|parts| parts.get(partition as usize));
        part.into_iter().flat_map(|part| &part.records).map(|(offset, record)| (*offset, record))
    }

    pub(crate) fn ends(&self, partition: u32) -> (i64, i64) {
        let part = &self.topics[TOPIC][partition as usize];
        (part.earliest, part.latest)
    }

    fn partition(&self, topic: &str, partition: u32) -> Option<&MemoryPartition> {
        self.topics.get(topic)?.get(partition as usize)
    }
}

impl World {
    /// Stores records at once, and tells the oracle.
    pub(crate) fn append(&self, topic: &str, partition: u32, records: &[Record]) -> i64 {
        let now = self.now();
        let mut guard = self.lock();
        let state = &mut *guard;
        let gap = if state.random.chance(state.topics.gaps) { state.random.between(1, 3) as i64 } else { 0 };
        let part = &mut state.topics.topics.get_mut(topic).expect("the topic is open")[partition as usize];
        let first = part.append(records.iter().cloned());
        for (offset, record) in (first..).zip(records) {
            if topic == TOPIC {
                state.oracle.appended(partition, offset, record, now);
            } else if topic == CONTROL {
                // The driver tells the oracle of commands about them.
            } else if topic == AUDIT {
                state.replays.audited(record);
            } else {
                let replayed = state.replays.oracle_of_dead_letter(record);
                replayed.unwrap_or(&mut state.oracle).dead_letter_stored(partition, record, now);
            }
        }
        part.latest += gap;
        if topic == TOPIC {
            state.oracle.passed(partition, part.latest);
        }
        drop(guard);
        self.log_grew.notify_waiters();
        first
    }

    /// Removes everything below an offset, as retention does.
    pub(crate) fn trim(&self, partition: u32, earliest: i64) {
        let now = self.now();
        let mut state = self.lock();
        let part = &mut state.topics.topics.get_mut(TOPIC).expect("the topic is there")[partition as usize];
        let earliest = earliest.clamp(part.earliest, part.latest);
        part.earliest = earliest;
        part.records = part.records.split_off(&earliest);
        state.oracle.trimmed(partition, earliest, now);
        state.replays.trimmed(partition, earliest, now);
    }
}

/// The engine as one life of dispatch sees it.
#[derive(Debug)]
pub(crate) struct MemoryEngine(pub(crate) Handle);

impl Engine for MemoryEngine {
    fn open<'a>(
        &'a self,
        topic: &'a str,
        create: Option<CreateTopic>,
    ) -> BoxFuture<'a, Result<Arc<dyn Log>, OpenError>> {
        Box::pin(async move {
            let handle = &self.0;
            if !handle.is_answered(Call::Open).await {
                return Err(OpenError::Unavailable("no answer from the engine".into()));
            }
            let there = handle.world.lock().topics.topics.contains_key(topic);
            match create {
                None if !there => return Err(OpenError::Missing { topic: topic.to_owned() }),
                Some(create) => handle.world.lock().topics.make(topic, create.partitions),
                None => {}
            }
            handle.end().await;
            Ok(Arc::new(MemoryLog { handle: handle.clone(), topic: topic.to_owned() }) as Arc<dyn Log>)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn topics(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        unreachable!("only the start of a command lists topics")
    }

    fn lost(&self) -> BoxFuture<'_, String> {
        Box::pin(std::future::pending())
    }
}

/// One topic as one life of dispatch sees it.
#[derive(Debug)]
pub(crate) struct MemoryLog {
    pub(crate) handle: Handle,
    pub(crate) topic: String,
}

impl MemoryLog {
    async fn read<T>(&self, call: Call, answer: impl Fn(&[MemoryPartition]) -> Option<T>) -> Result<T, Failure> {
        if !self.handle.is_answered(call).await {
            return Err(Failure::refused(FailureCode::LogUnavailable, "no answer from the log"));
        }
        let found = answer(&self.handle.world.lock().topics.topics[&self.topic]);
        self.handle.end().await;
        found.ok_or_else(|| Failure::refused(FailureCode::PartitionMissing, "there is no such partition"))
    }

    /// Tells the oracle that these dead letters are not stored, as far as their writer knows.
    fn dead_letters_failed(&self, partition: u32, records: &[Record]) {
        let now = self.handle.world.now();
        let mut state = self.handle.world.lock();
        if self.topic == DEAD_LETTERS
            && let Some(oracle) = state.oracle_of(self.handle.life)
        {
            records.iter().for_each(|record| oracle.dead_letter_failed(self.handle.life, partition, record, now));
        }
    }

    /// The oracle that judges how this topic is fetched. `None` if this is not the delivered topic.
    fn watcher<'s>(&self, state: &'s mut State) -> Option<&'s mut Oracle> {
        let life = self.handle.life;
        let oracle = state.oracle_of(life)?;
        let delivered = if oracle.is_of_dead_letters() { DEAD_LETTERS } else { TOPIC };
        (self.topic == delivered).then_some(oracle)
    }

    /// How much longer a look for commands takes if timers are far apart. A process looks for them before it reads a
    /// partition, too, and that look is quick.
    fn commands_look_delay(&self, state: &State) -> Duration {
        let begins = state.beginning.iter().any(|(life, _)| *life == self.handle.life);
        let is_far = state.rates.far_timers && self.topic == CONTROL && !begins;
        if is_far { FAR_COMMANDS_LOOK } else { Duration::ZERO }
    }

    /// What a fetch returns now. `None` if there is no record at or after `from` yet.
    fn look(&self, partition: u32, from: i64, max_bytes: usize) -> Option<Result<Fetched, FetchError>> {
        let state = self.handle.world.lock();
        let Some(part) = state.topics.partition(&self.topic, partition) else {
            return Some(Err(FetchError::Unavailable("there is no such partition".into())));
        };
        if from == part.latest {
            return None;
        }
        let is_damaged = |offset| self.topic == TOPIC && state.topics.damaged.contains(&(partition, offset));
        Some(part.fetch(from, max_bytes, state.topics.fetch_events_max, is_damaged))
    }
}

/// An append in flight. If its caller drops it, it may be stored all the same; this was decided before.
struct PendingWrite<'a> {
    log: &'a MemoryLog,
    partition: u32,
    records: Vec<Record>,
    stored_if_dropped: bool,
}

impl Drop for PendingWrite<'_> {
    fn drop(&mut self) {
        if self.stored_if_dropped {
            self.log.handle.world.append(&self.log.topic, self.partition, &self.records);
        }
    }
}

impl Log for MemoryLog {
    fn topic(&self) -> &str {
        &self.topic
    }

    fn partitions(&self) -> BoxFuture<'_, Result<u32, Failure>> {
        Box::pin(self.read(Call::Partitions, |partitions| Some(partitions.len() as u32)))
    }

    fn append(&self, partition: u32, records: Vec<Record>) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(async move {
            let (handle, world) = (&self.handle, &self.handle.world);
            let way = handle.begin(Call::Append).await;
            let now = world.now();
            let (before, after, fault, stored_if_dropped) = {
                let mut state = world.lock();
                for record in records.iter().filter(|_| self.topic == DEAD_LETTERS) {
                    if let Some(oracle) = state.oracle_of(handle.life) {
                        oracle.gives_up(handle.life, partition, record, now);
                    }
                    let source = record.header_text("eventd-source");
                    state.note(now, handle.life, format_args!("gives up in {partition}: {source:?}"));
                }
                let percent = state.rates.append_fails;
                let fault = state.write_fault(way, percent, true);
                (state.delay(), state.delay(), fault, state.random.chance(50))
            };
            if records.is_empty() {
                return Err(Failure::refused(FailureCode::AppendEmpty, "nothing to append"));
            }
            let mut on_its_way = PendingWrite { log: self, partition, records, stored_if_dropped };
            handle.sleep(before).await;
            on_its_way.stored_if_dropped = false;
            let records = std::mem::take(&mut on_its_way.records);
            let offset = match fault {
                Some(WriteFault::Refused) => {
                    self.dead_letters_failed(partition, &records);
                    return Err(Failure::refused(FailureCode::LogUnavailable, "the log accepts no records now"));
                }
                Some(WriteFault::UnknownLost) => {
                    self.dead_letters_failed(partition, &records);
                    None
                }
                Some(WriteFault::UnknownLate) => {
                    self.dead_letters_failed(partition, &records);
                    let (world, topic) = (world.clone(), self.topic.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(after * 4).await;
                        world.append(&topic, partition, &records);
                    });
                    None
                }
                Some(WriteFault::UnknownStored) => {
                    self.dead_letters_failed(partition, &records);
                    world.append(&self.topic, partition, &records);
                    None
                }
                None => {
                    let offset = world.append(&self.topic, partition, &records);
                    handle.sleep(after).await;
                    handle.end().await;
                    let now = world.now();
                    let mut state = world.lock();
                    if self.topic == DEAD_LETTERS
                        && let Some(oracle) = state.oracle_of(handle.life)
                    {
                        for record in &records {
                            oracle.dead_letter_acknowledged(handle.life, partition, record, now);
                        }
                    }
                    Some(offset)
                }
            };
            offset.ok_or_else(|| Failure::unknown(FailureCode::LogUnavailable, "no answer from the log"))
        })
    }

    fn fetch(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let (handle, world) = (&self.handle, &self.handle.world);
            let way = handle.begin(Call::Fetch).await;
            let cursor = Cursor::of_wait(wait);
            let now = world.now();
            let (delay, fails, wait) = {
                let mut state = world.lock();
                if let Some(oracle) = self.watcher(&mut state) {
                    oracle.fetch(handle.life, partition, cursor, (from, max_bytes), now);
                }
                if self.topic == TOPIC && cursor == Cursor::Reader {
                    state.beginning.remove(&(handle.life, partition));
                }
                let is_far = state.rates.far_timers && cursor == Cursor::Reader;
                let delay = state.delay() + self.commands_look_delay(&state);
                (delay, state.read_fails(way), if is_far { FAR_FETCH } else { wait })
            };
            let until = Instant::now() + wait;
            handle.sleep(delay).await;
            if fails {
                if let Some(oracle) = self.watcher(&mut world.lock()) {
                    oracle.fetch_failed(handle.life, partition, cursor, false, world.now());
                }
                return Err(FetchError::Unavailable("no answer from the log".into()));
            }
            let found = loop {
                let grew = world.log_grew.notified();
                if let Some(found) = self.look(partition, from, max_bytes) {
                    break found;
                }
                if tokio::time::timeout_at(until, grew).await.is_err() {
                    break Ok(Fetched { events: Vec::new(), next: from, latest: from });
                }
                handle.end().await;
            };
            handle.end().await;
            // Records of their own, so that the oracle sees from the number of copies what is in memory.
            let own = |event: Event| {
                let Event { offset, record } = event;
                let (key, value, headers) = (record.key(), record.value(), record.headers_encoded());
                Event { offset, record: Record::from_parts(key, value, headers, record.timestamp_ms) }
            };
            let found = found.map(|found| Fetched { events: found.events.into_iter().map(own).collect(), ..found });
            let mut state = world.lock();
            let now = world.now();
            if let Some(oracle) = self.watcher(&mut state) {
                match &found {
                    Ok(found) => {
                        oracle.fetched(handle.life, partition, cursor, &found.events, now);
                        let (many, next) = (found.events.len(), found.next);
                        state.note(
                            now,
                            handle.life,
                            format_args!("fetches {many} in {partition} from {from} to {next}"),
                        );
                    }
                    Err(_) => oracle.fetch_failed(handle.life, partition, cursor, true, now),
                }
            }
            found
        })
    }

    fn earliest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(self.read(Call::Earliest, move |parts| parts.get(partition as usize).map(|part| part.earliest)))
    }

    fn latest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(async move {
            let latest = self.read(Call::Latest, move |parts| parts.get(partition as usize).map(|part| part.latest));
            let latest = latest.await?;
            self.handle.world.lock().replays.saw_end(self.handle.life, &self.topic, partition, latest);
            Ok(latest)
        })
    }

    fn offset_at(&self, partition: u32, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<i64>, Failure>> {
        Box::pin(self.read(Call::Latest, move |parts| Some(parts.get(partition as usize)?.offset_at(timestamp_ms))))
    }
}
