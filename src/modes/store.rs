//! The log of a mode, whichever engine it is in: where its topics are, and how a destination takes its place in it.

use crate::BoxFuture;
use crate::config::Delivery;
use crate::core::outcome::Failure;
use crate::core::progress::{Move, State};
use crate::group::kafka::Joining;
use crate::group::sqlite::WhenHeld;
use crate::group::{self, Group, JoinError};
use crate::log::kafka::Kafka;
use crate::log::sqlite::Sqlite;
use crate::log::{Engine, Log};
use crate::replay::Groups;
use std::collections::BTreeMap;
use std::sync::Arc;

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

    /// Takes the destination's place in the log. A place that is held is an error that names the holder.
    pub(crate) async fn join(
        &self,
        log: &Arc<dyn Log>,
        delivery: &Delivery,
        when_held: WhenHeld,
    ) -> Result<Arc<dyn Group>, JoinError> {
        let name = &delivery.spec.name;
        match self {
            Self::Sqlite(engine) => {
                group::sqlite::join(engine, name, log.topic(), &delivery.spec.digest(), when_held).await
            }
            Self::Kafka(engine) => group::kafka::join(engine, name, log, delivery.joining.clone()).await,
        }
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
