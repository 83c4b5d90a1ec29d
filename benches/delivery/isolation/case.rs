//! The cases of isolation: which users are in trouble, which users are measured, and the figures to reach.

use crate::options::Options;
use crate::run::Size;
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
}

pub(crate) const CASES: &[Case] = &[
    Case::Failing(0),
    Case::Failing(1),
    Case::Failing(10),
    Case::Failing(50),
    Case::HotUser,
    Case::SlowUser,
    Case::Away,
];

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing(percent) => write!(f, "{percent}-percent-failing"),
            Self::HotUser => f.write_str("hot-user"),
            Self::SlowUser => f.write_str("slow-user"),
            Self::Away => f.write_str("away"),
        }
    }
}

/// The times of a case, counted from the first event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// How long events are sent.
    pub(crate) load: Duration,
    /// How long the last events may take after that.
    pub(crate) settle: Duration,
    /// When the sink goes away and when it returns.
    pub(crate) away: Option<(Duration, Duration)>,
}

impl Case {
    pub(crate) fn times(self, options: &Options) -> Times {
        let seconds = Duration::from_secs;
        let quick = options.size == Size::Quick;
        if self == Self::Away {
            // `--seconds` is the time of the outage.
            let outage = options.lasting.unwrap_or(if quick { seconds(10) } else { seconds(60) });
            let begins = if quick { seconds(5) } else { seconds(20) };
            let after = if quick { seconds(10) } else { seconds(40) };
            let ends = begins + outage;
            return Times { load: ends + after, settle: seconds(30), away: Some((begins, ends)) };
        }
        let usual = match (options.size, self) {
            (Size::Quick, _) => seconds(20),
            (Size::Full, Self::Failing(1..)) => seconds(600),
            (Size::Full, _) => seconds(120),
        };
        Times { load: options.lasting.unwrap_or(usual), settle: seconds(10), away: None }
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
        }
    }

    /// The user of the event with this number, given a random number in [0, 1).
    pub(crate) fn user(self, event: u64, random: f64) -> u32 {
        if self == Self::HotUser && event.is_multiple_of(2) {
            return 0;
        }
        (random * f64::from(USERS)) as u32
    }

    /// The arguments of the sink: how many users get a 500, how long user 0 waits, and the first healthy user.
    pub(crate) fn sink(self) -> [String; 3] {
        let (failing, user_0_wait_ms) = match self {
            Self::Failing(percent) => (failing_users(percent), ANSWER_MS),
            Self::HotUser => (0, HOT_ANSWER_MS),
            Self::SlowUser => (0, SLOW_ANSWER_MS),
            Self::Away => (0, ANSWER_MS),
        };
        [failing, user_0_wait_ms, self.healthy_from()].map(|number| number.to_string())
    }
}

fn failing_users(percent: u32) -> u32 {
    USERS * percent / 100
}
