//! Micro-benchmarks of `core`: what an event costs there, and that this does not depend on the number of users. Prints
//! medians of a few rounds, in nanoseconds per event: `cargo bench --bench core`.

use eventd::core::event::{Event, Record};
use eventd::core::lanes::Lanes;
use eventd::core::progress::{PartitionState, Progress};
use eventd::core::window::Window;
use std::hint::black_box;
use std::time::Instant;

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
