//! The users of this process that are held, and the log line about them. Without it, a held user would be silent until its
//! own customer complains.
//!
//! ```text
//!  workers ── at their beginning, and with each commit ──▶ HeldUsers ──▶ one line after a start, and one each minute
//!                                                             ▲
//!                       the topic of commands: since when, by whom and why
//! ```
//!
//! A `hold` lists its user in every partition, also where the user has no event. So users are counted by their name.

use super::SharedControl;
use super::pauses::shown_since;
use crate::core::control::Hold;
use crate::core::progress::{ListedUsers, UserKey, UserState};
use crate::dispatch::Parts;
use crate::dispatch::notices::{control_command, shown_user};
use crate::limits::LOG_REMINDER_INTERVAL;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How long the line after a start waits for further partitions, which begin within about a second, too.
const START_LINE_DELAY: Duration = Duration::from_secs(1);

/// How long the topic of commands is read to find who holds a user. Without an answer the line does not say it.
const HOLD_LOOK_MAX: Duration = Duration::from_secs(5);

/// The users that are held, by partition, each in the order of their names.
#[derive(Debug, Default)]
pub(in crate::dispatch) struct HeldUsers {
    partitions: Mutex<BTreeMap<u32, Arc<[UserKey]>>>,
    /// Notified when a partition begins with held users.
    has_begun: Notify,
}

impl HeldUsers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<[UserKey]>>> {
        // It holds plain values, so a panic elsewhere leaves nothing half done in it.
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The partition begins with these users.
    pub(in crate::dispatch) fn begin(&self, partition: u32, users: &ListedUsers) {
        if self.set(partition, users) > 0 {
            self.has_begun.notify_one();
        }
    }

    /// Waits until a partition has begun with held users, and for those that begin soon after it.
    async fn begun(&self) {
        self.has_begun.notified().await;
        sleep(START_LINE_DELAY).await;
        // Forgets that others have begun meanwhile: the same line shows their users.
        tokio::select! {
            biased;
            () = self.has_begun.notified() => {}
            () = ready(()) => {}
        }
    }

    /// The partition commits these users. Returns how many of them are held. Most commits hold and release no user, so they
    /// make no list.
    pub(in crate::dispatch) fn set(&self, partition: u32, users: &ListedUsers) -> usize {
        let held = || {
            let is_held = |user: &UserState| user.parked.is_some_and(|parked| parked.held);
            users.iter().filter(move |(_, user)| is_held(user)).map(|(key, _)| key)
        };
        // The comparison is made without the lock, because a list may be long.
        let stored = self.lock().get(&partition).cloned();
        if let Some(stored) = stored.filter(|stored| stored.iter().eq(held())) {
            return stored.len();
        }
        let held: Arc<[UserKey]> = held().cloned().collect();
        let count = held.len();
        self.lock().insert(partition, held);
        count
    }

    /// The partition is not owned any more.
    pub(in crate::dispatch) fn remove(&self, partition: u32) {
        self.lock().remove(&partition);
    }

    /// How many users are held, and the first one that a command can name.
    fn summary(&self) -> (usize, UserKey) {
        // Only the pointers are copied under the lock, which each commit takes.
        let partitions: Vec<Arc<[UserKey]>> = self.lock().values().cloned().collect();
        let names: BTreeSet<&UserKey> = partitions.iter().flat_map(|held| held.iter()).collect();
        (names.len(), names.into_iter().flatten().next().cloned())
    }
}

/// The task that writes the lines about held users.
///
/// It locks the topic of commands while it opens it. As a branch of a loop, it would keep this lock while the loop is busy
/// with something else, and the workers would wait for it.
pub(in crate::dispatch) struct HeldUsersReminder<F> {
    destination: String,
    remind: F,
    /// At most one.
    tasks: JoinSet<Infallible>,
}

impl<F: Fn() -> R, R: Future<Output = Infallible> + Send + 'static> HeldUsersReminder<F> {
    pub(in crate::dispatch) fn start(destination: &str, remind: F) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(remind());
        Self { destination: destination.to_owned(), remind, tasks }
    }

    /// Starts the task again a minute after it has panicked. Never ends.
    pub(in crate::dispatch) async fn keep_running(&mut self) -> Infallible {
        loop {
            if let Some(Err(error)) = self.tasks.join_next().await {
                let destination = self.destination.as_str();
                tracing::error!(
                    destination,
                    "the task that reminds of held users is started again in a minute: {error}"
                );
            }
            // It may panic again at once.
            sleep(LOG_REMINDER_INTERVAL).await;
            self.tasks.spawn((self.remind)());
        }
    }

    /// Ends the task, and waits until it is gone.
    pub(in crate::dispatch) async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Writes a line about held users after a start, and each minute. Never ends.
pub(in crate::dispatch) async fn remind_of_held_users(parts: &Parts, shared: &SharedControl) -> Infallible {
    let (held, destination) = (&shared.held, parts.group.name());
    loop {
        let remind_at = Instant::now() + LOG_REMINDER_INTERVAL;
        tokio::select! {
            biased;
            () = held.begun() => {}
            () = sleep_until(remind_at) => {}
        }
        let (users, example) = held.summary();
        if users == 0 {
            continue;
        }
        let example = match example {
            Some(user) => {
                let hold = timeout(HOLD_LOOK_MAX, hold_of(parts, shared, &user))
                    .await
                    .unwrap_or_else(|_| Err("no answer in time".into()));
                shown_example(destination, &user, &hold)
            }
            None => "events without a user, which no command can release".to_owned(),
        };
        match users {
            1 => tracing::warn!(destination, "1 user is held: {example}"),
            _ => tracing::warn!(destination, "{users} users are held, for example {example}"),
        }
    }
}

/// A held user, who holds it, and how to release it.
fn shown_example(destination: &str, user: &[u8], hold: &Result<Option<Hold>, String>) -> String {
    let by = match hold {
        Ok(Some(Hold { since_ms, by, reason })) => format!(" {}", shown_since(*since_ms, by, reason)),
        Ok(None) => " by --on-exhausted hold".to_owned(),
        // The topic of commands could not be read. Looks for commands say why.
        Err(_) => String::new(),
    };
    format!("{:?}{by}: {}", shown_user(Some(user)), control_command("release", destination, user))
}

/// Who holds this user. Every command about a user is in every partition, so that of partition 0 are enough.
async fn hold_of(parts: &Parts, shared: &SharedControl, user: &[u8]) -> Result<Option<Hold>, String> {
    let (mut hold, mut next) = (None, 0);
    loop {
        let found = shared.topic.look(parts, 0, next).await?;
        for record in found.commands.iter().filter_map(|(_, command)| command.as_ref().ok()) {
            hold = Hold::after(hold, user, record);
        }
        match found.next_look(next)? {
            Some(from) => next = from,
            None => return Ok(hold),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::progress::ParkedUser;
    use std::future::pending;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::sync::Semaphore;

    fn listed(users: &[(Option<&str>, bool)]) -> ListedUsers {
        let state = |held| UserState { parked: Some(ParkedUser { held, ..ParkedUser::default() }), failed: None };
        users.iter().map(|(user, held)| (user.map(|user| user.as_bytes().into()), state(*held))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn partitions_that_begin_at_about_one_time_are_waited_for_once() {
        let (held, users) = (HeldUsers::default(), listed(&[(Some("bob"), true)]));
        held.begin(0, &users);
        let soon = async {
            sleep(START_LINE_DELAY / 2).await;
            held.begin(1, &users);
        };
        tokio::join!(held.begun(), soon);
        assert!(timeout(LOG_REMINDER_INTERVAL, held.begun()).await.is_err(), "there would be a second line");
        held.begin(2, &users);
        held.begun().await;
    }

    #[test]
    fn a_user_that_is_held_in_several_partitions_counts_once() {
        let held = HeldUsers::default();
        held.set(0, &listed(&[(None, true), (Some("ann"), false), (Some("bob"), true)]));
        held.set(1, &listed(&[(Some("bob"), true), (Some("eve"), true)]));
        assert_eq!(held.summary(), (3, Some(b"bob".as_slice().into())));
        held.remove(1);
        assert_eq!(held.summary().0, 2);
        held.set(0, &listed(&[(Some("ann"), false)]));
        assert_eq!(held.summary(), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn the_reminder_is_started_again_after_a_panic_and_is_gone_after_the_shutdown() {
        let starts = Arc::new(Semaphore::new(0));
        let first = Arc::new(AtomicBool::new(true));
        let remind = {
            let starts = Arc::clone(&starts);
            move || {
                let (starts, first) = (Arc::clone(&starts), Arc::clone(&first));
                async move {
                    starts.add_permits(1);
                    assert!(!first.swap(false, Ordering::Relaxed), "only the first one panics");
                    pending::<Infallible>().await
                }
            }
        };
        let mut reminder = HeldUsersReminder::start("hook", remind);
        let began = Instant::now();
        tokio::select! {
            never = reminder.keep_running() => match never {},
            started_twice = starts.acquire_many(2) => started_twice.unwrap().forget(),
        }
        assert!(began.elapsed() >= LOG_REMINDER_INTERVAL, "it may panic again at once");
        assert_eq!(Arc::strong_count(&starts), 3, "the test, the closure and the second task have it");
        reminder.shutdown().await;
        assert_eq!(Arc::strong_count(&starts), 1);
    }

    #[test]
    fn a_commit_that_holds_and_releases_no_user_makes_no_list() {
        let held = HeldUsers::default();
        let list = |held: &HeldUsers| Arc::clone(&held.lock()[&0]);
        assert_eq!(held.set(0, &listed(&[(Some("ann"), false), (Some("bob"), true)])), 1);
        let first = list(&held);
        assert_eq!(held.set(0, &listed(&[(Some("bob"), true), (Some("eve"), false)])), 1);
        assert!(Arc::ptr_eq(&first, &list(&held)), "only a user that is not held has come");
        assert_eq!(held.set(0, &listed(&[(Some("bob"), false), (Some("eve"), true)])), 1);
        assert_eq!(held.summary(), (1, Some(b"eve".as_slice().into())), "as many, and another one");
        assert_eq!(held.set(0, &listed(&[(Some("bob"), true), (Some("eve"), true)])), 2);
        assert_eq!(held.set(0, &listed(&[])), 0);
        assert_eq!(held.summary(), (0, None));
    }

    #[test]
    fn a_held_user_is_shown_with_its_operator_and_the_command_that_releases_it() {
        let hold = Hold { since_ms: 1_767_350_000_000, by: "ann@ops".into(), reason: "account locked".into() };
        assert_eq!(
            shown_example("hook", b"bob", &Ok(Some(hold))),
            "\"bob\" since 2026-01-02T10:33:20.000Z by ann@ops (account locked): eventd control release --dest hook --user bob"
        );
        assert!(shown_example("hook", b"bob", &Ok(None)).starts_with("\"bob\" by --on-exhausted hold: "));
    }
}
