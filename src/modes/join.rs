//! How a destination joins its group: under which of its names, and what an operator is told about it.

use super::OpenLog;
use super::first_start::FirstStart;
use crate::config::Delivery;
use crate::destination::spec::Spec;
use crate::group::{Group, JoinError, JoinOptions, WhenHeld, keeps_earlier_name};
use std::sync::Arc;

/// A destination that has joined its group and can deliver.
#[derive(Debug)]
pub(crate) struct JoinedDestination {
    pub(super) group: Arc<dyn Group>,
    pub(super) first_start: FirstStart,
}

/// Joins the destination's group. If another process holds the destination, `when_held` says what happens; the error
/// names the holder.
pub(crate) async fn join(
    opened: &OpenLog,
    delivery: &Delivery,
    when_held: WhenHeld,
) -> Result<JoinedDestination, JoinError> {
    let name = with_name_in_use(opened, &delivery.spec).await?.name;
    // The commits are read before the join, because a member of a Kafka group is assigned partitions at once, and they
    // would wait for this look.
    let mut first_start = FirstStart::look(opened, &name).await;
    let options = JoinOptions { when_held, ..delivery.join_options.clone() };
    let group = opened.groups.join(&name, &opened.log, &options).await?;
    if when_held == WhenHeld::Standby {
        // A standby may have waited for days, and the process before it has committed meanwhile.
        first_start = FirstStart::look(opened, &name).await;
    }
    Ok(JoinedDestination { group, first_start })
}

/// Gives the destination the name under which it has commits: its own name, or else its earlier name.
pub(crate) async fn with_name_in_use(opened: &OpenLog, spec: &Spec) -> Result<Spec, JoinError> {
    let Some(earlier) = &spec.earlier_name else { return Ok(spec.clone()) };
    if !keeps_earlier_name(&*opened.groups, &opened.log, &spec.name, earlier).await? {
        return Ok(spec.clone());
    }
    spec.clone().with_name(earlier).map_err(|error| JoinError::Configuration(error.to_string()))
}
