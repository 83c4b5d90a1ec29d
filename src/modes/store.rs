//! The log of a mode, whichever engine it is in: where its topics are, and how a destination takes its place in it.

use super::beginning::Beginning;
use crate::BoxFuture;
use crate::config::Delivery;
use crate::core::outcome::Failure;
use crate::core::progress::{OffsetReset, PartitionState};
use crate::destination::spec::Spec;
use crate::group::kafka::Joining;
use crate::group::sqlite::WhenHeld;
use crate::group::{self, Group, JoinError, Past};
use crate::log::kafka::Kafka;
use crate::log::sqlite::Sqlite;
use crate::log::{Engine, Log};
use crate::replay::Groups;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A destination's place in the log.
#[derive(Debug)]
pub(crate) struct Place {
    pub(super) group: Arc<dyn Group>,
    pub(super) beginning: Beginning,
}

/// An engine that was opened.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    Sqlite(Arc<Sqlite>),
    Kafka(Arc<Kafka>),
}

impl Store {
    pub(crate) fn engine(&self) -> Arc<dyn Engine> {
        match self {
            Self::Sqlite(engine) => Arc::clone(engine) as Arc<dyn Engine>,
            Self::Kafka(engine) => Arc::clone(engine) as Arc<dyn Engine>,
        }
    }

    /// The end of a mode. A database is whole in its one file afterwards, if no other process has it open.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(engine) => engine.close().await,
            Self::Kafka(_) => {}
        }
    }

    /// Takes the destination's place in the log. A place that is held is an error that names the holder.
    pub(crate) async fn join(
        &self,
        log: &Arc<dyn Log>,
        delivery: &Delivery,
        when_held: WhenHeld,
    ) -> Result<Place, JoinError> {
        let name = self.named(log, &delivery.spec).await?.name;
        match self {
            Self::Sqlite(engine) => {
                let digest = delivery.spec.digest();
                let group = group::sqlite::join(engine, &name, log.topic(), &digest, when_held).await?;
                // After the join: a standby may have waited for days.
                Ok(Place { group, beginning: Beginning::look(self, log, &name).await })
            }
            Self::Kafka(engine) => {
                // Before the join: a member gets partitions at once, which would wait for the look.
                let beginning = Beginning::look(self, log, &name).await;
                let group = group::kafka::join(engine, &name, log, delivery.joining.clone()).await?;
                Ok(Place { group, beginning })
            }
        }
    }

    /// Gives the destination the name under which it has commits: its own, or else the one that eventd derived before
    /// it left password and query out of the checksum. Another name would deliver everything again.
    ///
    /// A name that this process has no right to counts as one without commits. It is used only if it has no right to
    /// the other one either: the join then says what is missing.
    pub(crate) async fn named(&self, log: &Arc<dyn Log>, spec: &Spec) -> Result<Spec, JoinError> {
        let Some(earlier) = &spec.earlier_name else { return Ok(spec.clone()) };
        let own = self.past(&spec.name, log).await?;
        if own == Past::Commits {
            return Ok(spec.clone());
        }
        let before = self.past(earlier, log).await?;
        tracing::debug!(destination = %spec.name, %earlier, "looked for commits: {own}; under the earlier name: {before}");
        if !is_earlier_used(&own, &before) {
            return Ok(spec.clone());
        }
        spec.clone().with_name(earlier).map_err(|error| JoinError::Configuration(error.to_string()))
    }

    async fn past(&self, name: &str, log: &Arc<dyn Log>) -> Result<Past, JoinError> {
        match self {
            Self::Sqlite(engine) => {
                let has_commits =
                    group::sqlite::committed(engine, name, log.topic()).await?.iter().any(Option::is_some);
                Ok(if has_commits { Past::Commits } else { Past::Nothing })
            }
            Self::Kafka(engine) => group::kafka::past(engine, name, log).await,
        }
    }
}

/// Whether a destination keeps its earlier name, given what is committed under its own name and under the earlier one.
fn is_earlier_used(own: &Past, earlier: &Past) -> bool {
    match (own, earlier) {
        (Past::Commits, _) | (_, Past::NotAllowed(_)) => false,
        (_, Past::Commits) | (Past::NotAllowed(_), Past::Nothing) => true,
        (Past::Nothing, Past::Nothing) => false,
    }
}

impl Groups for Store {
    fn committed<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<PartitionState>>, JoinError>> {
        Box::pin(async move {
            match self {
                Self::Sqlite(engine) => group::sqlite::committed(engine, name, log.topic()).await,
                Self::Kafka(engine) => group::kafka::committed(engine, name, log).await,
            }
        })
    }

    fn join<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>> {
        Box::pin(async move {
            match self {
                Self::Sqlite(engine) => group::sqlite::join(engine, name, log.topic(), digest, WhenHeld::Fail).await,
                Self::Kafka(engine) => group::kafka::hold(engine, name, log, Joining::of(digest)).await,
            }
        })
    }

    fn request<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        moves: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<(), JoinError>> {
        Box::pin(async move {
            match self {
                Self::Sqlite(engine) => group::sqlite::request(engine, name, log.topic(), moves).await,
                Self::Kafka(engine) => group::kafka::request(engine, name, log, moves).await,
            }
        })
    }

    fn requested<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<OffsetReset>>, JoinError>> {
        Box::pin(async move {
            match self {
                Self::Sqlite(engine) => group::sqlite::requested(engine, name, log.topic()).await,
                Self::Kafka(engine) => group::kafka::requested(engine, name, log).await,
            }
        })
    }

    fn apply_unowned<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        digest: &'a str,
        moves: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<bool, JoinError>> {
        Box::pin(async move {
            match self {
                Self::Sqlite(engine) => group::sqlite::apply_unowned(engine, name, log.topic(), digest, moves).await,
                Self::Kafka(engine) => group::kafka::apply_unowned(engine, name, log, moves).await,
            }
        })
    }

    fn forget<'a>(&'a self, name: &'a str, log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            match self {
                Self::Sqlite(engine) => group::sqlite::forget(engine, name, log.topic()).await,
                Self::Kafka(engine) => group::kafka::forget(engine, name, log.topic()).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_rights_counts_as_one_without_commits_unless_both_are() {
        let not_allowed = || Past::NotAllowed("why".into());
        for (own, earlier, keeps_earlier) in [
            (Past::Commits, Past::Commits, false),
            (Past::Commits, not_allowed(), false),
            (Past::Nothing, Past::Nothing, false),
            (Past::Nothing, Past::Commits, true),
            (Past::Nothing, not_allowed(), false),
            (not_allowed(), Past::Commits, true),
            (not_allowed(), Past::Nothing, true),
            (not_allowed(), not_allowed(), false),
        ] {
            assert_eq!(is_earlier_used(&own, &earlier), keeps_earlier, "{own}; {earlier}");
        }
    }
}
