//! The order in which brokers are asked a question that every broker can answer. Pure.

use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a broker that gave no answer is asked after all others. Long enough that not every round waits for a broker
/// that hangs, and short enough that a restarted broker is soon asked again.
pub(super) const SILENT_BROKER_WAIT: Duration = Duration::from_secs(10);

/// Remembers which brokers were asked last and which gave no answer.
#[derive(Debug, Default)]
pub(super) struct BrokerOrder {
    /// The number of the last turn of each broker, by address.
    turns: HashMap<String, u64>,
    last_turn: u64,
    /// When each broker last gave no answer, by address.
    silent_since: HashMap<String, Instant>,
}

impl BrokerOrder {
    /// Returns the addresses in the order in which they are to be asked, each once. The brokers of the cluster come
    /// first. The bootstrap addresses that the user gave come after them, since they may be other names of the same
    /// brokers. Brokers that gave no answer lately come last.
    pub(super) fn order<'a>(
        &self,
        brokers: impl Iterator<Item = &'a String>,
        bootstrap: &'a [String],
        now: Instant,
    ) -> Vec<String> {
        let mut addresses: Vec<(usize, &String)> = brokers.map(|address| (0, address)).collect();
        for (place, address) in bootstrap.iter().enumerate() {
            if !addresses.iter().any(|(_, known)| *known == address) {
                addresses.push((place + 1, address));
            }
        }
        let silent =
            |address: &String| self.silent_since.get(address).filter(|_| self.is_silent(address, now)).copied();
        let turn = |address: &String| self.turns.get(address).copied().unwrap_or(0);
        addresses.sort_by_cached_key(|(place, address)| {
            (silent(address), *place > 0, turn(address), *place, (*address).clone())
        });
        addresses.into_iter().map(|(_, address)| address.clone()).collect()
    }

    /// Puts the broker after the others: it is being asked now, or its answers turned out to be outdated.
    pub(super) fn move_to_end(&mut self, address: &str) {
        self.last_turn += 1;
        self.turns.insert(address.to_owned(), self.last_turn);
    }

    pub(super) fn record_no_answer(&mut self, address: &str, now: Instant) {
        self.silent_since.insert(address.to_owned(), now);
    }

    /// Whether the broker gave no answer within the last [`SILENT_BROKER_WAIT`].
    pub(super) fn is_silent(&self, address: &str, now: Instant) -> bool {
        self.silent_since.get(address).is_some_and(|at| now.saturating_duration_since(*at) < SILENT_BROKER_WAIT)
    }

    /// Forgets the addresses that no broker has any more, so that the maps do not grow.
    pub(super) fn retain(&mut self, is_used: impl Fn(&String) -> bool) {
        self.turns.retain(|address, _| is_used(address));
        self.silent_since.retain(|address, _| is_used(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const BROKERS: usize = 3;

    fn address(broker: usize) -> String {
        format!("broker-{broker}:9092")
    }

    proptest! {
        #[test]
        fn every_broker_is_asked_in_its_turn_and_a_silent_one_last(silent in 0..BROKERS, calls in 0..10_usize) {
            let now = Instant::now();
            let addresses: Vec<String> = (0..BROKERS).map(address).collect();
            let mut brokers = BrokerOrder::default();
            let next = |brokers: &mut BrokerOrder, now| {
                let asked = brokers.order(addresses.iter(), &[], now).remove(0);
                brokers.move_to_end(&asked);
                asked
            };
            for _ in 0..calls {
                next(&mut brokers, now);
            }
            let asked: BTreeSet<String> = (0..BROKERS).map(|_| next(&mut brokers, now)).collect();
            prop_assert_eq!(asked.len(), BROKERS);
            brokers.record_no_answer(&address(silent), now);
            let order = brokers.order(addresses.iter(), &[], now);
            prop_assert_eq!(order.last(), Some(&address(silent)));
            let asked: BTreeSet<String> = (0..BROKERS * 2).map(|_| next(&mut brokers, now)).collect();
            prop_assert!(!asked.contains(&address(silent)));
            let later = now + SILENT_BROKER_WAIT;
            let asked: BTreeSet<String> = (0..BROKERS).map(|_| next(&mut brokers, later)).collect();
            prop_assert!(asked.contains(&address(silent)));
        }
    }

    #[test]
    fn bootstrap_addresses_are_asked_until_brokers_are_known_and_if_no_broker_answers() {
        let now = Instant::now();
        let mut brokers = BrokerOrder::default();
        let bootstrap = [address(0), "alias:9092".to_owned()];
        assert_eq!(brokers.order([].iter(), &bootstrap, now), bootstrap);
        let known = [address(0), address(1)];
        brokers.move_to_end(&known[0]);
        assert_eq!(
            brokers.order(known.iter(), &bootstrap, now),
            [&known[1], &known[0], &bootstrap[1]].map(String::clone)
        );
        known.iter().for_each(|address| brokers.record_no_answer(address, now));
        assert_eq!(brokers.order(known.iter(), &bootstrap, now)[0], bootstrap[1]);
    }
}
