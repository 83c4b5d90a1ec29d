//! Micro-benchmarks of `core`: what an event costs there, and that this does not depend on the number of users. Prints
//! medians of a few rounds, in nanoseconds per event: `cargo bench --bench core`. For a commit of parked users it prints
//! milliseconds.

use eventd::core::BothClocks;
use eventd::core::event::{Event, Record};
use eventd::core::lanes::Lanes;
use eventd::core::parking::{ParkedUsers, ParkingLimits};
use eventd::core::progress::{FailedHead, ParkedUser, PartitionState, Progress, UserState};
use eventd::core::tries::FailureHistory;
use eventd::core::window::Window;
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: usize = 7;

/// Events in a round. The default window holds as many.
const EVENTS: u32 = 100_000;

fn main() {
    println!("| work | ns an event |\n|---|---:|");
    let thousand = row("lanes: admit, next, settle; 1,000 users, runs of 1", || lanes(1_000, 1));
    let many = row("lanes: the same; a user an event", || lanes(EVENTS, 1));
    row("lanes: one user, runs of 1,000", || lanes(1, 1_000));
    row("progress: settled in order", || progress(|n| n));
    // 7,919 is prime, so every offset occurs once.
    row("progress: settled far out of order", || progress(|n| n * 7_919 % i64::from(EVENTS)));
    row("window: add and remove", window);
    parked_users();
    println!("\na user an event against 1,000 users: {:.2} times", many / thousand);
}

/// Prints the median of a few rounds and returns it, in nanoseconds per event.
fn row(name: &str, mut round: impl FnMut() -> f64) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
    rounds.sort_unstable_by(f64::total_cmp);
    println!("| {name} | {:.0} |", rounds[ROUNDS / 2]);
    rounds[ROUNDS / 2]
}

fn nanoseconds_an_event(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_nanos() as f64 / f64::from(EVENTS)
}

fn lanes(users: u32, run_events_max: usize) -> f64 {
    let record = |n: u32| Record::new(Some(format!("user-{}", n % users).as_bytes()), Some(&[b'x'; 200]), &[], 0);
    let events: Vec<Event> = (0..EVENTS).map(|n| Event { offset: n.into(), record: record(n) }).collect();
    let (mut lanes, mut out) = (Lanes::new(0, 0), Vec::with_capacity(run_events_max));
    nanoseconds_an_event(|| {
        for event in events {
            lanes.admit(event);
        }
        while let Some(started) = lanes.next(run_events_max, usize::MAX, &mut out) {
            let judge = |_: &Event, _: &mut _| unreachable!("everything was delivered");
            lanes.settle(started.token, started.events.len(), |event| _ = black_box(event.offset), judge);
            out.clear();
        }
        assert_eq!(lanes.events(), 0);
    })
}

fn progress(offset: impl Fn(i64) -> i64) -> f64 {
    let mut progress = Progress::new(&PartitionState::at(0));
    nanoseconds_an_event(|| {
        for n in 0..i64::from(EVENTS) {
            progress.settle(offset(n)..offset(n) + 1);
        }
        assert_eq!(progress.watermark(), i64::from(EVENTS));
    })
}

fn window() -> f64 {
    let mut window = Window::new(EVENTS as usize, usize::MAX);
    nanoseconds_an_event(|| {
        for _ in 0..EVENTS {
            assert!(black_box(&mut window).admits(400));
            window.add(400);
        }
        for _ in 0..EVENTS {
            black_box(&mut window).remove(400);
        }
    })
}

/// What a commit costs if so many users are parked, and the next event of each has failed. The first and the second column
/// keep the owner of the partition busy, the others a thread that may be another one.
fn parked_users() {
    println!("\n| parked users | list ms | replace ms | encode ms | bytes |\n|---:|---:|---:|---:|---:|");
    let now = BothClocks { moment: Duration::from_secs(10_000), wall_ms: 1_767_360_000_000 };
    for users in [1_000, 10_000, 100_000] {
        let state = with_parked_users(users);
        let limits = ParkingLimits { user_backlog: 100, users_max: 1_000_000, may_park: true };
        let restore = |stored: &FailedHead| {
            let history = FailureHistory::restored(stored, Duration::ZERO, Duration::from_secs(300), now);
            (history, now.moment + Duration::from_secs(300))
        };
        let parked = ParkedUsers::new(limits, 1, &state, restore, now.moment);
        let (lanes, mut stored, mut bytes) = (Lanes::new(0, 0), state.clone(), 0);
        let mut rounds = [(); 3].map(|()| Vec::new());
        for _ in 0..ROUNDS {
            let mut took = [0.0; 3];
            let (ms, users) = milliseconds(|| parked.listed(black_box(&lanes), |_| false, now));
            took[0] = ms;
            let listed = PartitionState { users, ..PartitionState::at(10) };
            let (ms, text) = milliseconds(|| black_box(&listed).encode());
            (took[2], bytes) = (ms, text.len());
            (took[1], ()) = milliseconds(|| stored = listed);
            for (rounds, took) in rounds.iter_mut().zip(took) {
                rounds.push(took);
            }
        }
        assert_eq!(stored.users.len(), users as usize);
        let [list, replace, encode] = rounds.map(|mut rounds| {
            rounds.sort_unstable_by(f64::total_cmp);
            rounds[ROUNDS / 2]
        });
        println!("| {users} | {list:.2} | {replace:.2} | {encode:.2} | {bytes} |");
    }
}

fn milliseconds<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let started = Instant::now();
    let result = work();
    (started.elapsed().as_secs_f64() * 1_000.0, result)
}

fn with_parked_users(users: u32) -> PartitionState {
    let user = |n: u32| {
        let failed = FailedHead {
            offset: n.into(),
            failures: 40,
            tries: 38,
            first_failure_ms: 1_767_350_000_000 + i64::from(n),
            last_failure_ms: 1_767_359_000_000 + i64::from(n),
            counted_ms: 9_000_000,
            next_try_ms: 1_767_360_300_000 + i64::from(n),
            answer: "500 Internal Server Error: the account is locked".into(),
        };
        let parked = Some(ParkedUser { first: n.into(), ..ParkedUser::default() });
        (Some(format!("user-{n:012}").as_bytes().into()), UserState { parked, failed: Some(failed) })
    };
    PartitionState { users: (0..users).map(user).collect(), ..PartitionState::at(i64::from(users)) }
}
