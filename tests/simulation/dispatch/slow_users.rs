//! Users that hang must not delay the others, even if there are more of them than slots.

use crate::dispatch::driver::simulate;
use crate::dispatch::end_of;
use crate::dispatch::scenario::hanging::hanging;
use crate::harness::Random;

#[test]
fn more_hanging_users_than_slots_delay_no_user_that_was_served_before() {
    let mut hung = 0;
    for seed in 0..30 {
        let scenario = hanging(seed, &mut Random::new(seed));
        let concurrency = scenario.config.concurrency as u64;
        let outcome = simulate(&scenario);
        assert_eq!(outcome.violation, None, "seed {seed}, {:?}: {}", scenario.config, end_of(&outcome));
        assert!(outcome.counts.failed > concurrency, "seed {seed}: {} attempts hung", outcome.counts.failed);
        hung += outcome.counts.failed;
    }
    println!("# {hung} attempts hung");
}
