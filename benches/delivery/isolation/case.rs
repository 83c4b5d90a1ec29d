//! The cases of isolation: which users are in trouble, and which users are measured.

use crate::options::Options;
use crate::run::Size;
use crate::store::Content;
use crate::users::{PAYLOAD_BYTES, Users};
use std::fmt;
use std::time::Duration;

/// The number of users. Each has the same share of the events, except a hot one.
pub(crate) const USERS: u32 = 1_000;

/// How long the sink takes for an answer.
pub(crate) const ANSWER_MS: u32 = 5;

/// How long the sink takes for an answer to the hot user.
const HOT_ANSWER_MS: u32 = 50;

/// How long the sink takes for an answer to the slow user.
const SLOW_ANSWER_MS: u32 = 5_000;

/// What is wrong while events are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// These many percent of the users always get the status 500. With 0, nothing is wrong.
    Failing(u32),
    /// Half of all events are of user 0, and each of these takes 50 ms.
    HotUser,
    /// Each event of user 0 takes 5 s.
    SlowUser,
    /// The sink refuses connections for a minute.
    Away,
    /// 10 % of the users fail, and the process that delivers is killed (SIGKILL) and started again.
    Killed,
    /// The log is full of events of 100 users that always get the status 500. Then the process is stopped and started
    /// again.
    Backlog(Backlog),
}

/// The events that are in the log from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backlog {
    /// 1,000,000 events with the usual payload.
    Small,
    /// 140,000 events of 18 KB.
    Large,
}

impl Backlog {
    pub(crate) fn content(self, size: Size) -> Content {
        let (events, payload_bytes) = match self {
            Self::Small => (1_000_000, PAYLOAD_BYTES),
            Self::Large => (140_000, 18_000),
        };
        let events = if size == Size::Quick { events / 10 } else { events };
        Content { payload_bytes, ..Content::of(Users::Uniform(BACKLOG_USERS), events) }
    }
}

/// The number of users whose events are in the log from the beginning.
const BACKLOG_USERS: u32 = 100;

/// How many percent of the users fail when the process is killed.
const KILLED_FAILING_PERCENT: u32 = 10;

pub(crate) const CASES: &[Case] = &[
    Case::Failing(0),
    Case::Failing(1),
    Case::Failing(10),
    Case::Failing(50),
    Case::HotUser,
    Case::SlowUser,
    Case::Away,
    Case::Killed,
    Case::Backlog(Backlog::Small),
    Case::Backlog(Backlog::Large),
];

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing(percent) => write!(f, "{percent}-percent-failing"),
            Self::HotUser => f.write_str("hot-user"),
            Self::SlowUser => f.write_str("slow-user"),
            Self::Away => f.write_str("away"),
            Self::Killed => f.write_str("killed"),
            Self::Backlog(Backlog::Small) => f.write_str("backlog"),
            Self::Backlog(Backlog::Large) => f.write_str("backlog-18kb"),
        }
    }
}

/// What happens once in the middle of a case, and when, counted from the first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Incident {
    /// The sink is away from the first time until the second.
    Away(Duration, Duration),
    /// The process that delivers is killed, and started again at once.
    Kill(Duration),
    /// The process that delivers is told to stop, and started again when it has ended.
    Restart(Duration),
}

/// The times of a case, counted from the first event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// How long events are sent.
    pub(crate) load: Duration,
    /// How long the last events may take after that.
    pub(crate) settle: Duration,
    pub(crate) incident: Option<Incident>,
}

impl Case {
    /// `--seconds` is the time of the load. For an outage, it is the time of the outage.
    pub(crate) fn times(self, options: &Options) -> Times {
        let seconds = Duration::from_secs;
        let is_quick = options.size == Size::Quick;
        let usual = match self {
            Self::Away => seconds(if is_quick { 10 } else { 60 }),
            _ if is_quick => seconds(20),
            Self::Failing(1..) => seconds(600),
            _ => seconds(120),
        };
        let lasting = options.lasting.unwrap_or(usual);
        let (load, settle, incident) = match self {
            Self::Away => {
                let begins = seconds(if is_quick { 5 } else { 20 });
                let ends = begins + lasting;
                (ends + begins * 2, seconds(30), Some(Incident::Away(begins, ends)))
            }
            // Longer than the session of a peer, which a broker keeps for 45 s.
            Self::Killed => (lasting, seconds(60), Some(Incident::Kill(lasting / 2))),
            Self::Backlog(_) => (lasting, seconds(30), Some(Incident::Restart(lasting / 2))),
            _ => (lasting, seconds(10), None),
        };
        Times { load, settle, incident }
    }

    /// What is in the log before the case begins.
    pub(crate) fn backlog(self, size: Size) -> Option<Content> {
        match self {
            Self::Backlog(backlog) => Some(backlog.content(size)),
            _ => None,
        }
    }

    /// Whether the users' waiting time is measured. The others are in trouble themselves.
    pub(crate) fn is_healthy(self, user: u32) -> bool {
        user >= self.healthy_from()
    }

    fn healthy_from(self) -> u32 {
        match self {
            Self::Failing(percent) => failing_users(percent),
            Self::HotUser | Self::SlowUser => 1,
            Self::Away => 0,
            Self::Killed => failing_users(KILLED_FAILING_PERCENT),
            Self::Backlog(_) => BACKLOG_USERS,
        }
    }

    /// The user of the event with this number, given a random number in [0, 1).
    pub(crate) fn user(self, event: u64, random: f64) -> u32 {
        if self == Self::HotUser && event.is_multiple_of(2) {
            return 0;
        }
        let user = (random * f64::from(USERS)) as u32;
        // The users of the backlog send nothing more.
        if matches!(self, Self::Backlog(_)) { BACKLOG_USERS + user } else { user }
    }

    /// The arguments of the sink: how many users get a 500, how long user 0 waits, and the first healthy user.
    pub(crate) fn sink(self) -> [String; 3] {
        let (failing, user_0_wait_ms) = match self {
            Self::Failing(percent) => (failing_users(percent), ANSWER_MS),
            Self::HotUser => (0, HOT_ANSWER_MS),
            Self::SlowUser => (0, SLOW_ANSWER_MS),
            Self::Away => (0, ANSWER_MS),
            Self::Killed | Self::Backlog(_) => (self.healthy_from(), ANSWER_MS),
        };
        [failing, user_0_wait_ms, self.healthy_from()].map(|number| number.to_string())
    }
}

fn failing_users(percent: u32) -> u32 {
    USERS * percent / 100
}
