//! The log of a mode, whichever engine it is in: where its topics are, and how a destination takes its place in it.

use super::beginning::Beginning;
use crate::BoxFuture;
use crate::config::Delivery;
use crate::core::outcome::Failure;
use crate::core::progress::{Move, State};
use crate::destination::spec::Spec;
use crate::group::kafka::Joining;
use crate::group::sqlite::WhenHeld;
use crate::group::{self, Group, JoinError};
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
        let group = match self {
            Self::Sqlite(engine) => {
                group::sqlite::join(engine, &name, log.topic(), &delivery.spec.digest(), when_held).await?
            }
            Self::Kafka(engine) => group::kafka::join(engine, &name, log, delivery.joining.clone()).await?,
        };
        Ok(Place { beginning: Beginning::look(self, log, &name).await, group })
    }

    /// Gives the destination the name under which it has commits: its own, or else the one that eventd derived before
    /// it left password and query out of the checksum. Another name would deliver everything again.
    pub(crate) async fn named(&self, log: &Arc<dyn Log>, spec: &Spec) -> Result<Spec, JoinError> {
        let Some(earlier) = &spec.earlier_name else { return Ok(spec.clone()) };
        let has_commits = async |name| -> Result<bool, JoinError> {
            Ok(self.committed(name, log).await?.iter().any(Option::is_some))
        };
        if has_commits(&spec.name).await? || !has_commits(earlier).await? {
            return Ok(spec.clone());
        }
        spec.clone().with_name(earlier).map_err(|error| JoinError::Configuration(error.to_string()))
    }
}

impl Groups for Store {
    fn committed<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<State>>, JoinError>> {
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
        moves: &'a BTreeMap<u32, Move>,
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
    ) -> BoxFuture<'a, Result<Vec<Option<Move>>, JoinError>> {
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
        moves: &'a BTreeMap<u32, Move>,
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
