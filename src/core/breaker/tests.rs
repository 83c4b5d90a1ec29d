//! Each rule of an outage as a sentence.

use super::*;

const BUSY: Verdict = Verdict::Busy { after: None };

fn ms(ms: u64) -> Moment {
    Duration::from_millis(ms)
}

/// A breaker and its clock, which goes on by 1 ms with every step.
#[derive(Default)]
struct TestBreaker {
    breaker: Breaker,
    now: Moment,
}

impl TestBreaker {
    fn begin(&mut self, user: u64) -> Attempt {
        self.now += ms(1);
        self.breaker.begin(user, self.now)
    }

    fn end(&mut self, attempt: &Attempt, verdict: Verdict) -> TryJudgement {
        self.now += ms(1);
        self.breaker.failed(attempt, verdict, self.now)
    }

    fn fail(&mut self, user: u64, verdict: Verdict) -> TryJudgement {
        let attempt = self.begin(user);
        self.end(&attempt, verdict)
    }

    fn deliver(&mut self, users: impl IntoIterator<Item = u64>) {
        for user in users {
            let attempt = self.begin(user);
            self.breaker.delivered(&attempt, self.now);
        }
    }

    /// Waits until a probe is due and begins it.
    fn probe(&mut self, user: u64) -> Attempt {
        if let Gate::Open { until } = self.breaker.gate(self.now) {
            self.now = until.expect("no probe under way");
        }
        let attempt = self.breaker.begin(user, self.now);
        assert!(attempt.probe, "{:?}", self.breaker.gate(self.now));
        attempt
    }

    /// What is kept of an attempt that was refused just now.
    fn refusal(&self, attempt: &Attempt) -> Refusal {
        Refusal { attempt: *attempt, at: self.now, health_epoch: self.breaker.health_epoch() }
    }

    fn gate(&self) -> Gate {
        self.breaker.gate(self.now)
    }

    fn open(&self) -> Option<OpenCause> {
        self.breaker.snapshot(self.now).open
    }

    fn health(&self) -> Health {
        self.breaker.snapshot(self.now).health
    }

    /// Opened by answers.
    fn with_nobody_delivered() -> Self {
        let mut scene = Self::default();
        for user in 1..=5 {
            scene.fail(user, Verdict::Retry { after: None });
        }
        assert_eq!(scene.breaker.snapshot(scene.now).open, Some(OpenCause::NobodyDelivered));
        scene
    }

    fn unreachable() -> Self {
        let mut scene = Self::default();
        scene.fail(1, Verdict::Unreachable);
        scene
    }
}

#[test]
fn one_unreachable_attempt_opens_whoever_the_user_and_is_no_try() {
    let mut scene = TestBreaker::default();
    scene.fail(1, Verdict::Retry { after: None });
    scene.deliver(2..30);
    assert!(scene.breaker.is_suspect(1));
    let judgement = scene.fail(1, Verdict::Unreachable);
    assert!(!judgement.counts);
    assert_eq!(scene.gate(), Gate::Open { until: Some(scene.now + ms(100)) });
    assert_eq!(scene.breaker.snapshot(scene.now).open, Some(OpenCause::Unreachable));
}

#[test]
fn a_drilled_failure_is_a_try_and_says_nothing_of_the_destination() {
    let mut scene = TestBreaker::default();
    for user in 0..100 {
        assert!(scene.fail(user, Verdict::Drilled).counts);
    }
    scene.deliver([1000]);
    assert_eq!((scene.gate(), scene.health()), (Gate::Closed, Health::Unknown));
    assert!((0..100).all(|user| !scene.breaker.is_suspect(user)));
}

#[test]
fn a_destination_that_asks_for_patience_burns_no_try_and_is_not_well() {
    let mut scene = TestBreaker::default();
    for user in 1..=4 {
        assert!(!scene.fail(user, BUSY).counts);
    }
    assert_eq!(scene.gate(), Gate::Closed);
    scene.fail(5, BUSY);
    assert_eq!(scene.breaker.snapshot(scene.now).open, Some(OpenCause::NobodyDelivered));
}

#[test]
fn five_users_in_a_row_without_a_delivery_open_and_their_tries_are_taken_back() {
    let mut scene = TestBreaker::default();
    scene.deliver(100..120);
    let tries: Vec<TryJudgement> = (1..=4).map(|user| scene.fail(user, Verdict::Retry { after: None })).collect();
    assert!(tries.iter().all(|judgement| judgement.counts && !scene.breaker.is_void(judgement.health_epoch)));
    assert!(!scene.fail(5, Verdict::Retry { after: None }).counts);
    assert!(matches!(scene.gate(), Gate::Open { .. }));
    assert!(tries.iter().all(|judgement| scene.breaker.is_void(judgement.health_epoch)));
    assert!(!scene.breaker.is_void(scene.breaker.health_epoch()));
}

#[test]
fn with_fewer_than_five_users_answers_are_the_events_own() {
    let mut scene = TestBreaker::default();
    for _ in 0..50 {
        for user in 1..=4 {
            let judgement = scene.fail(user, Verdict::Retry { after: None });
            assert!(judgement.counts);
        }
    }
    assert_eq!((scene.gate(), scene.health()), (Gate::Closed, Health::Unknown));
    assert!(!scene.breaker.is_void(0));
}

#[test]
fn health_is_of_the_last_twenty_users() {
    let mut scene = TestBreaker::default();
    let attempts: Vec<Attempt> = (0..40).map(|user| scene.begin(user)).collect();
    let (mut delivered, mut failed) = attempts.split_at(20);
    let mut play = |scene: &mut TestBreaker, words: &str| {
        for word in words.chars() {
            let side = if word == '+' { &mut delivered } else { &mut failed };
            let (attempt, rest) = side.split_first().unwrap();
            *side = rest;
            match word {
                '+' => scene.breaker.delivered(attempt, scene.now),
                _ => drop(scene.end(attempt, Verdict::Retry { after: None })),
            }
        }
        scene.health()
    };
    assert_eq!(play(&mut scene, "++++++++++----+----+--"), Health::Good, "10 of 20");
    assert_eq!(play(&mut scene, "-"), Health::Bad, "9 of 20");
}

#[test]
fn what_is_older_than_a_minute_is_forgotten() {
    let mut scene = TestBreaker::default();
    for user in 1..=4 {
        scene.fail(user, Verdict::Retry { after: None });
    }
    scene.now += Duration::from_secs(60);
    assert!(scene.fail(5, Verdict::Retry { after: None }).counts);
    assert_eq!((scene.gate(), scene.health()), (Gate::Closed, Health::Unknown));
}

#[test]
fn a_user_is_suspect_from_a_later_delivery_of_another_until_its_own() {
    let mut scene = TestBreaker::default();
    let (before, failing, after) = (scene.begin(1), scene.begin(2), scene.begin(3));
    scene.end(&failing, Verdict::Retry { after: None });
    scene.breaker.delivered(&before, scene.now);
    assert!(!scene.breaker.is_suspect(2), "the delivered attempt was begun earlier");
    scene.breaker.delivered(&after, scene.now);
    assert!(scene.breaker.is_suspect(2));
    scene.fail(2, Verdict::Retry { after: None });
    assert!(scene.breaker.is_suspect(2), "failing again makes nobody trusted");
    scene.deliver([2]);
    assert!(!scene.breaker.is_suspect(2));
}

#[test]
fn a_users_own_deliveries_make_it_no_suspect() {
    let mut scene = TestBreaker::default();
    let (first, second) = (scene.begin(1), scene.begin(1));
    scene.end(&first, Verdict::Retry { after: None });
    scene.breaker.delivered(&second, scene.now);
    scene.fail(1, Verdict::Retry { after: None });
    assert!(!scene.breaker.is_suspect(1));
}

#[test]
fn any_number_of_poisoned_users_leaves_the_others_alone_and_burns_its_tries() {
    let mut scene = TestBreaker::default();
    for round in 0..20 {
        for user in 0..50 {
            let judgement = scene.fail(user, Verdict::Retry { after: None });
            assert!(judgement.counts, "round {round}, user {user}");
            assert_eq!(scene.gate(), Gate::Closed);
            if round == 0 {
                scene.deliver([1000 + user]);
            }
        }
    }
}

#[test]
fn in_bad_health_no_try_is_counted_and_nothing_is_refused_for_good() {
    let mut scene = TestBreaker::default();
    // Six users are attempted at once, and only the first two are delivered: that makes nobody suspect.
    let attempts: Vec<Attempt> = (1..=6).map(|user| scene.begin(user)).collect();
    let tries: Vec<TryJudgement> =
        attempts[2..5].iter().map(|attempt| scene.end(attempt, Verdict::Retry { after: None })).collect();
    assert!(tries.iter().all(|judgement| judgement.counts));
    scene.breaker.delivered_many(&attempts[..2], scene.now);
    assert_eq!(scene.health(), Health::Bad);
    let refused = scene.end(&attempts[5], Verdict::Refused);
    assert!(!refused.counts);
    let first = scene.refusal(&attempts[5]);
    scene.now += Duration::from_secs(11);
    assert!(!scene.breaker.refusal_is_final(&first, scene.now));
    assert!(tries.iter().all(|judgement| scene.breaker.is_void(judgement.health_epoch)));
    // One later delivery makes the others suspect, and health good enough for them to be judged again.
    scene.deliver([1]);
    assert_eq!(scene.health(), Health::Unknown);
    assert!(scene.breaker.refusal_is_final(&first, scene.now));
}

#[test]
fn refused_acts_once_a_later_attempt_of_another_user_was_delivered() {
    let mut scene = TestBreaker::default();
    let (refused, other) = (scene.begin(1), scene.begin(2));
    assert!(scene.end(&refused, Verdict::Refused).counts);
    let first = scene.refusal(&refused);
    assert!(!scene.breaker.refusal_is_final(&first, scene.now));
    scene.breaker.delivered(&other, scene.now);
    assert!(scene.breaker.refusal_is_final(&first, scene.now));
}

#[test]
fn refused_does_not_act_by_the_users_own_deliveries_or_by_earlier_attempts() {
    let mut scene = TestBreaker::default();
    let (earlier, refused, own) = (scene.begin(2), scene.begin(1), scene.begin(1));
    scene.end(&refused, Verdict::Refused);
    let first = scene.refusal(&refused);
    scene.breaker.delivered(&earlier, scene.now);
    scene.breaker.delivered(&own, scene.now);
    assert!(!scene.breaker.refusal_is_final(&first, scene.now));
}

#[test]
fn the_only_users_refused_event_acts_after_ten_seconds() {
    let mut scene = TestBreaker::default();
    let attempt = scene.begin(1);
    scene.end(&attempt, Verdict::Refused);
    let first = scene.refusal(&attempt);
    let acts = |scene: &TestBreaker, after| scene.breaker.refusal_is_final(&first, first.at + after);
    assert!(!acts(&scene, Duration::from_millis(9_999)));
    assert!(acts(&scene, Duration::from_secs(10)));
}

#[test]
fn the_ten_seconds_of_a_refused_event_begin_after_an_outage() {
    let mut scene = TestBreaker::default();
    let refused = scene.begin(1);
    scene.end(&refused, Verdict::Refused);
    let first = scene.refusal(&refused);
    scene.fail(2, Verdict::Unreachable);
    scene.now += Duration::from_secs(60);
    assert!(!scene.breaker.refusal_is_final(&first, scene.now));
    assert!(scene.breaker.is_void(first.health_epoch), "it was the outage's");
    let probe = scene.probe(1);
    scene.breaker.delivered(&probe, scene.now);
    assert_eq!(scene.gate(), Gate::Closed);
    assert!(!scene.breaker.refusal_is_final(&first, scene.now + ms(9_999)));
    assert!(scene.breaker.refusal_is_final(&first, scene.now + ms(10_000)));
}

#[test]
fn an_expired_token_refuses_everybody_and_nothing_is_given_up() {
    let mut scene = TestBreaker::default();
    scene.deliver(1..=20);
    for user in 1..=20 {
        let attempt = scene.begin(user);
        scene.end(&attempt, Verdict::Refused);
        let first = scene.refusal(&attempt);
        assert!(!scene.breaker.refusal_is_final(&first, scene.now), "user {user}");
    }
    assert_eq!(scene.breaker.snapshot(scene.now).open, Some(OpenCause::NobodyDelivered));
}

#[test]
fn probes_go_one_at_a_time_and_ever_more_rarely() {
    let mut scene = TestBreaker::with_nobody_delivered();
    let mut delays = Vec::new();
    for user in 10..18 {
        let Gate::Open { until: Some(until) } = scene.gate() else { panic!("{:?}", scene.gate()) };
        delays.push((until - scene.now).as_millis());
        let probe = scene.probe(user);
        assert_eq!(scene.gate(), Gate::Open { until: None });
        assert!(!scene.begin(99).probe, "a second one is no probe");
        assert!(!scene.end(&probe, Verdict::Retry { after: None }).counts);
    }
    assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
}

#[test]
fn one_delivered_probe_closes_and_health_begins_anew() {
    let mut scene = TestBreaker::with_nobody_delivered();
    let probe = scene.probe(6);
    scene.breaker.delivered(&probe, scene.now);
    assert_eq!((scene.gate(), scene.health()), (Gate::Closed, Health::Unknown));
    for user in 1..=3 {
        assert!(scene.fail(user, Verdict::Retry { after: None }).counts, "user {user}");
        assert_eq!(scene.gate(), Gate::Closed, "old verdicts open nothing");
    }
}

#[test]
fn an_attempt_still_in_flight_closes_too_and_the_probe_under_way_is_judged_like_any_other() {
    let mut scene = TestBreaker::default();
    let in_flight = scene.begin(9);
    scene.fail(1, Verdict::Unreachable);
    let probe = scene.probe(2);
    scene.breaker.delivered(&in_flight, scene.now);
    assert_eq!(scene.gate(), Gate::Closed);
    assert!(scene.end(&probe, Verdict::Retry { after: None }).counts);
    assert_eq!(scene.gate(), Gate::Closed);
}

#[test]
fn the_probe_of_an_earlier_outage_does_not_end_the_probe_of_this_one() {
    let mut scene = TestBreaker::default();
    let in_flight = scene.begin(9);
    scene.fail(1, Verdict::Unreachable);
    let old = scene.probe(2);
    scene.breaker.delivered(&in_flight, scene.now);
    scene.fail(1, Verdict::Unreachable);
    scene.probe(3);
    scene.end(&old, Verdict::Unreachable);
    scene.breaker.abandoned(&old);
    assert_eq!(scene.gate(), Gate::Open { until: None });
}

#[test]
fn attempts_in_flight_are_judged_by_the_state_at_their_end() {
    let mut scene = TestBreaker::default();
    let attempts: Vec<Attempt> = (10..20).map(|user| scene.begin(user)).collect();
    scene.fail(1, Verdict::Unreachable);
    for attempt in &attempts {
        let judgement = scene.end(attempt, Verdict::Refused);
        assert!(!judgement.counts);
    }
}

#[test]
fn an_answer_to_a_probe_ends_unreachable_and_closes_nothing() {
    for verdict in [Verdict::Retry { after: None }, Verdict::Refused, BUSY] {
        let mut scene = TestBreaker::unreachable();
        let probe = scene.probe(1);
        assert_eq!(scene.end(&probe, verdict).counts, verdict != BUSY, "nobody can tell whose fault {verdict:?} is");
        assert_eq!(scene.open(), Some(OpenCause::Undecided), "{verdict:?}");
        assert_eq!(scene.gate(), Gate::Open { until: Some(scene.now + ms(100)) }, "others are heard soon");
    }
    let mut scene = TestBreaker::default();
    let in_flight = scene.begin(2);
    scene.fail(1, Verdict::Unreachable);
    scene.end(&in_flight, Verdict::Retry { after: None });
    assert_eq!(
        scene.open(),
        Some(OpenCause::Unreachable),
        "an answer to what was sent before the outage proves nothing"
    );
}

#[test]
fn five_users_that_fail_after_an_unreachable_destination_answers_are_the_same_outage() {
    let mut scene = TestBreaker::unreachable();
    let out_since = scene.breaker.snapshot(scene.now).out_since;
    let mut marks = Vec::new();
    for user in 1..=5 {
        assert_ne!(scene.open(), Some(OpenCause::NobodyDelivered));
        let probe = scene.probe(user);
        let judgement = scene.end(&probe, Verdict::Retry { after: None });
        assert_eq!(judgement.counts, user < 5);
        marks.push(judgement.health_epoch);
    }
    assert_eq!(scene.open(), Some(OpenCause::NobodyDelivered));
    assert!(marks[..4].iter().all(|mark| scene.breaker.is_void(*mark)), "the outage's tries are taken back");
    assert_eq!(scene.breaker.snapshot(scene.now).out_since, out_since);
}

#[test]
fn a_single_user_does_not_stay_in_an_outage_for_ever() {
    let mut scene = TestBreaker::unreachable();
    let probe = scene.probe(1);
    scene.end(&probe, Verdict::Retry { after: None });
    scene.now += ms(100);
    for _ in 0..10 {
        assert!(scene.fail(1, Verdict::Retry { after: None }).counts);
        assert_eq!(scene.gate(), Gate::Closed);
    }
    assert!(scene.breaker.snapshot(scene.now).out_since.is_some(), "nobody can tell, and nothing has recovered");
    scene.deliver([1]);
    assert_eq!(scene.breaker.snapshot(scene.now).out_since, None);
}

#[test]
fn users_that_are_known_to_fail_do_not_keep_others_in_an_outage() {
    let mut scene = TestBreaker::default();
    for user in 1..=50 {
        scene.fail(user, Verdict::Retry { after: None });
        scene.deliver([99]);
    }
    scene.fail(99, Verdict::Unreachable);
    let probe = scene.probe(99);
    scene.end(&probe, Verdict::Retry { after: None });
    scene.now += ms(100);
    assert!(scene.fail(1, Verdict::Retry { after: None }).counts, "nobody trusted is left to try");
    assert_eq!(scene.gate(), Gate::Closed);
}

#[test]
fn an_outage_of_answers_ends_once_fewer_than_five_users_are_left_to_try() {
    let mut scene = TestBreaker::with_nobody_delivered();
    let opened_at = scene.now;
    while scene.now - opened_at < Duration::from_secs(70) && scene.gate() != Gate::Closed {
        for user in 1..=4 {
            if let Gate::Open { until } = scene.gate() {
                scene.now = until.unwrap();
            }
            let attempt = scene.begin(user);
            let counts = scene.end(&attempt, Verdict::Retry { after: None }).counts;
            assert_eq!(counts, scene.gate() == Gate::Closed);
            assert!(!counts || scene.now - opened_at >= Duration::from_secs(60), "five were tried within a minute");
        }
    }
    assert_eq!(scene.gate(), Gate::Closed, "four users are left, and nobody can tell");
}

/// Only user 7 is ready: the others back off for minutes.
fn probe_user_7_for_minutes(scene: &mut TestBreaker) -> bool {
    (0..60).any(|_| {
        let Gate::Open { until } = scene.gate() else { return true };
        scene.now = until.unwrap();
        let attempt = scene.begin(7);
        scene.end(&attempt, Verdict::Retry { after: None }).counts
    })
}

#[test]
fn an_outage_lasts_while_five_users_have_events_though_they_back_off_for_minutes() {
    for waiting in [vec![(0, 1..8)], vec![(0, 1..4), (1, 5..8)]] {
        let mut scene = TestBreaker::with_nobody_delivered();
        for (partition, users) in waiting {
            scene.breaker.users_wait(partition, users);
        }
        assert!(!probe_user_7_for_minutes(&mut scene), "those who back off were not asked");
        assert_eq!(scene.open(), Some(OpenCause::NobodyDelivered));
        scene.breaker.released(0);
        scene.breaker.users_wait(1, 5..8);
        assert!(probe_user_7_for_minutes(&mut scene), "three users are left, and nobody can tell");
    }
}

#[test]
fn no_answer_of_an_undecided_destination_counts_while_five_users_have_events() {
    let mut scene = TestBreaker::unreachable();
    scene.breaker.users_wait(0, [1, 2, 3, 4, 7]);
    assert!(!probe_user_7_for_minutes(&mut scene));
    assert_eq!(scene.open(), Some(OpenCause::Undecided), "one user was answered");
    scene.breaker.users_wait(0, [1, 7]);
    assert!(probe_user_7_for_minutes(&mut scene));
}

#[test]
fn users_that_are_known_to_fail_are_not_waited_for() {
    let mut scene = TestBreaker::default();
    for user in 10..=50 {
        scene.fail(user, Verdict::Retry { after: None });
        scene.deliver([99]);
    }
    scene.fail(99, Verdict::Unreachable);
    scene.breaker.users_wait(0, (10..=50).chain([7]));
    assert!(probe_user_7_for_minutes(&mut scene), "one trusted user is left");
}

#[test]
fn five_users_that_fail_on_stay_in_their_outage_however_slowly_they_are_tried() {
    let mut scene = TestBreaker::with_nobody_delivered();
    for _ in 0..10 {
        for user in 1..=5 {
            let probe = scene.probe(user);
            scene.now += Duration::from_secs(30);
            assert!(!scene.end(&probe, Verdict::Retry { after: None }).counts);
        }
    }
}

#[test]
fn an_outage_of_answers_ends_with_a_delivery_only() {
    for verdict in [Verdict::Retry { after: None }, Verdict::Refused, BUSY, Verdict::Unreachable] {
        let mut scene = TestBreaker::with_nobody_delivered();
        let probe = scene.probe(7);
        assert!(!scene.end(&probe, verdict).counts);
        assert!(matches!(scene.gate(), Gate::Open { .. }), "{verdict:?}");
    }
}

#[test]
fn a_probe_that_was_dropped_or_drilled_gives_its_place_to_the_next_at_once() {
    let mut scene = TestBreaker::with_nobody_delivered();
    let probe = scene.probe(7);
    scene.breaker.abandoned(&probe);
    assert_eq!(scene.gate(), Gate::HalfOpen);
    let probe = scene.probe(8);
    assert!(scene.end(&probe, Verdict::Drilled).counts);
    assert_eq!(scene.gate(), Gate::HalfOpen);
}

#[test]
fn probes_prefer_new_users_then_suspects_then_begin_again() {
    let mut scene = TestBreaker::default();
    scene.fail(1, Verdict::Retry { after: None });
    scene.deliver([2, 3]);
    scene.fail(9, Verdict::Unreachable);
    let preferred =
        |scene: &TestBreaker| (1..=3).filter(|user| scene.breaker.prefers_as_probe(*user)).collect::<Vec<_>>();
    assert_eq!(preferred(&scene), [2, 3]);
    for (probed, left) in [(2, vec![3]), (3, vec![]), (1, vec![]), (1, vec![2, 3])] {
        let probe = scene.probe(probed);
        scene.end(&probe, Verdict::Unreachable);
        assert_eq!(preferred(&scene), left, "after {probed}");
    }
}

#[test]
fn a_probe_waits_a_moment_for_a_preferred_user_and_no_longer() {
    let mut scene = TestBreaker::with_nobody_delivered();
    assert_eq!(scene.breaker.any_user_probes_at(), Some(scene.now + ms(200)));
    let probe = scene.probe(1);
    assert_eq!(scene.breaker.any_user_probes_at(), None);
    scene.breaker.delivered(&probe, scene.now);
    assert_eq!(scene.breaker.any_user_probes_at(), None);
}

#[test]
fn suspects_alone_can_end_an_outage_and_be_trusted_again() {
    let mut scene = TestBreaker::default();
    for user in 1..=8 {
        scene.fail(user, Verdict::Retry { after: None });
        scene.deliver([9]);
    }
    scene.fail(9, Verdict::Unreachable);
    let probe = scene.probe(1);
    scene.breaker.delivered(&probe, scene.now);
    assert_eq!(scene.gate(), Gate::Closed);
    scene.deliver(2..=8);
    assert_eq!(scene.health(), Health::Good);
    assert!((1..=8).all(|user| !scene.breaker.is_suspect(user)));
}

#[test]
fn a_lucky_delivery_in_an_outage_leaves_enough_users_to_believe() {
    let mut scene = TestBreaker::with_nobody_delivered();
    let probe = scene.probe(6);
    scene.breaker.delivered(&probe, scene.now);
    let tries: Vec<TryJudgement> = (1..=5).map(|user| scene.fail(user, Verdict::Retry { after: None })).collect();
    assert!(matches!(scene.gate(), Gate::Open { .. }));
    assert!(tries.iter().all(|judgement| !judgement.counts || scene.breaker.is_void(judgement.health_epoch)));
}

#[test]
fn poisoned_users_can_open_it_twice_and_then_no_more() {
    let mut scene = TestBreaker::default();
    let mut opened = 0;
    for good in 100..110 {
        for poisoned in (1..=6).cycle().take(12) {
            if scene.gate() == Gate::Closed {
                scene.fail(poisoned, Verdict::Retry { after: None });
            }
        }
        if scene.gate() == Gate::Closed {
            scene.deliver([good]);
        } else {
            opened += 1;
            let probe = scene.probe(good);
            scene.breaker.delivered(&probe, scene.now);
        }
    }
    assert_eq!(opened, 2);
}

#[test]
fn poisoned_users_that_fail_faster_than_the_others_are_delivered_are_found_out_all_the_same() {
    let mut scene = TestBreaker::default();
    let attempts: Vec<Attempt> = (0..40).map(|user| scene.begin(user)).collect();
    let (poisoned, good): (Vec<Attempt>, Vec<Attempt>) = attempts.iter().partition(|attempt| attempt.user < 20);
    for attempt in &poisoned {
        scene.end(attempt, Verdict::Retry { after: None });
    }
    assert!(matches!(scene.gate(), Gate::Open { .. }));
    for attempt in &good {
        scene.breaker.delivered(attempt, scene.now);
    }
    for _ in 0..10 {
        for attempt in &poisoned {
            assert!(scene.fail(attempt.user, Verdict::Retry { after: None }).counts);
        }
    }
}

#[test]
fn void_marks_are_bounded_and_the_oldest_tries_stay_counted() {
    let mut scene = TestBreaker::default();
    let mut marks = Vec::new();
    for _ in 0..VOID_EPOCHS_MAX + 1 {
        marks.push(scene.fail(1, Verdict::Retry { after: None }).health_epoch);
        scene.fail(1, Verdict::Unreachable);
        scene.deliver([1]);
    }
    assert_eq!(scene.breaker.void_marks.len(), VOID_EPOCHS_MAX);
    assert!(!scene.breaker.is_void(marks[0]));
    assert!(marks[1..].iter().all(|mark| scene.breaker.is_void(*mark)));
}
