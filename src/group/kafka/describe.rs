//! Whether a group has members, asked from outside the group.

use super::errors::unavailable;
use crate::core::outcome::{Failure, FailureCode};
use crate::kafka::{Cluster, Recipient, describe, response_error};
use crate::limits::{BROKER_CALL_MAX, METADATA_INTERVAL_MIN};
use kafka_protocol::messages::{DescribeGroupsRequest, GroupId};
use kafka_protocol::protocol::StrBytes;
use tokio::time::{Instant, sleep};

/// The states of a group without members. A group that never had one is dead.
const WITHOUT_MEMBERS: [&str; 2] = ["Empty", "Dead"];

/// Whether the group has members now.
pub(super) async fn has_members(cluster: &Cluster, group: &str) -> Result<bool, Failure> {
    let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(StrBytes::from_string(group.to_owned()))]);
    let deadline = Instant::now() + BROKER_CALL_MAX;
    loop {
        let answer = cluster.call(Recipient::Coordinator(group), &request, deadline).await.map_err(unavailable)?;
        let Some(described) = answer.groups.into_iter().next() else {
            return Err(Failure::refused(FailureCode::GroupUnavailable, "the answer leaves the group out"));
        };
        match response_error(described.error_code) {
            None => return Ok(!WITHOUT_MEMBERS.contains(&described.group_state.as_str())),
            Some(error) if error.is_retriable() && Instant::now() + METADATA_INTERVAL_MIN < deadline => {
                cluster.forget_coordinator(group);
                sleep(METADATA_INTERVAL_MIN).await;
            }
            // Since version 6 of the request, a group that does not exist is an error.
            Some(kafka_protocol::ResponseError::GroupIdNotFound) => return Ok(false),
            Some(error) => {
                let detail = format!("cannot see the members of group {group:?}: {}", describe(error));
                return Err(Failure::refused(FailureCode::GroupUnavailable, detail));
            }
        }
    }
}
