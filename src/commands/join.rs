//! Joins the group of a destination, under the name with which it has commits.

use super::first_start::FirstStart;
use super::open::OpenLog;
use crate::config::DeliveryConfig;
use crate::destination::spec::Spec;
use crate::group::{Group, JoinError, JoinOptions, WhenHeld, keeps_earlier_name};
use std::sync::Arc;

/// A destination that has joined its group and can deliver.
#[derive(Debug)]
pub(super) struct JoinedDestination {
    pub(super) group: Arc<dyn Group>,
    pub(super) first_start: FirstStart,
}

/// Joins the destination's group. If another process holds the destination, `when_held` says what happens; the error
/// names the holder.
pub(super) async fn join(
    opened: &OpenLog,
    delivery: &DeliveryConfig,
    when_held: WhenHeld,
) -> Result<JoinedDestination, JoinError> {
    let name = with_name_in_use(opened, &delivery.spec).await?.name;
    let options = JoinOptions { when_held, ..delivery.join_options.clone() };
    let join = opened.groups.join(&name, &opened.log, &options);
    let (group, first_start) = if opened.groups.assigns_at_join() {
        // Partitions that are assigned to this member would wait while it reads the commits.
        let first_start = FirstStart::read(opened, &name).await;
        (join.await?, first_start)
    } else {
        // The join may wait for another process, which commits until it ends.
        let group = join.await?;
        let first_start = FirstStart::read(opened, &name).await;
        (group, first_start)
    };
    Ok(JoinedDestination { group, first_start })
}

/// Gives the destination the name under which it has commits: its own name, or else its earlier name.
pub(super) async fn with_name_in_use(opened: &OpenLog, spec: &Spec) -> Result<Spec, JoinError> {
    let Some(earlier) = &spec.earlier_name else { return Ok(spec.clone()) };
    if !keeps_earlier_name(&*opened.groups, &opened.log, &spec.name, earlier).await? {
        return Ok(spec.clone());
    }
    spec.clone().with_name(earlier).map_err(|error| JoinError::Configuration(error.to_string()))
}
