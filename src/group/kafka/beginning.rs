//! A new group begins whole: before anybody's first commit stands one that says of every partition that it has not begun.
//!
//! ```text
//!  owner of partition 0    no commit at all ─▶ one OffsetCommit: a marker for each partition ─▶ begins its own
//!  owners of the others    no commit at all ─▶ look again ······· until it is there ─────────▶ begin their own
//! ```
//!
//! So a partition that has no commit in a group that has some was added since, or the brokers forgot its commit. Without
//! the markers it could as well be one whose owner died before its first commit, while another's was stored already. A
//! broker keeps all markers of a request or none: they are one batch of its topic of commits.
//!
//! No marker ever takes the place of a commit. Partition 0 has one owner, which asks as a member of one generation: then
//! it looks whether there is nothing yet, and then it asks. A request that comes late is refused once there is a later
//! generation; and where nobody knows what became of one, there is a later one before the next is sent.

use super::membership::{Identity, Membership};
use super::metadata::Metadata;
use super::offsets::{Offset, Offsets};
use crate::core::outcome::Failure;
use crate::kafka::describe;
use crate::limits::{GROUP_BEGIN_MAX, GROUP_BEGIN_POLL};
use crate::log::kafka::Kafka;
use kafka_protocol::ResponseError;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

#[derive(Debug)]
pub(super) struct Beginning {
    engine: Arc<Kafka>,
    topic_id: Uuid,
    /// As many as there were when the group was joined: one that is added later begins with its first event.
    partitions: u32,
    /// As whom markers were asked for, where it is not known what became of that. One worker of a process sees to the
    /// beginning, and has the lock meanwhile.
    asked: Mutex<Option<Identity>>,
}

/// Whether nothing at all is committed.
pub(super) fn is_new(commits: &HashMap<u32, (i64, String)>) -> bool {
    commits.values().all(|(offset, _)| *offset < 0)
}

impl Beginning {
    pub(super) fn new(engine: &Arc<Kafka>, topic_id: Uuid, partitions: u32) -> Self {
        Self { engine: Arc::clone(engine), topic_id, partitions, asked: Mutex::default() }
    }

    /// The commits of so many partitions of a group that had none: once it has begun.
    pub(super) async fn commits(
        &self,
        offsets: &Offsets,
        member: &Membership,
        partitions: u32,
    ) -> Result<HashMap<u32, (i64, String)>, Failure> {
        let deadline = Instant::now() + GROUP_BEGIN_MAX;
        loop {
            match self.asked.try_lock() {
                Ok(mut asked) => self.begin(offsets, member, partitions, &mut asked, deadline).await?,
                // Another worker of this process sees to it.
                Err(_) => drop(timeout_at(deadline, self.asked.lock()).await.map_err(|_| not_begun(offsets))?),
            }
            let commits = offsets.fetch(partitions).await?;
            if !is_new(&commits) {
                return Ok(commits);
            }
        }
    }

    /// Until there are commits: ours, where partition 0 is ours.
    async fn begin(
        &self,
        offsets: &Offsets,
        member: &Membership,
        partitions: u32,
        asked: &mut Option<Identity>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        loop {
            // Before the look: whatever came since is of a later generation, and then this one is refused.
            let identity = member.identity_for(0);
            if !is_new(&offsets.fetch(partitions).await?) {
                return Ok(());
            }
            match identity {
                Some(identity) if asked.as_ref() == Some(&identity) => member.join_again(),
                Some(identity) => {
                    let markers = self.markers(&offsets.topic).await;
                    *asked = Some(identity.clone());
                    let answer = offsets.commit(&identity, markers).await?;
                    *asked = None;
                    match answer {
                        Ok(()) => return Ok(()),
                        // Somebody joins or leaves: as whom we are then, if partition 0 still is ours.
                        Err(
                            ResponseError::RebalanceInProgress
                            | ResponseError::IllegalGeneration
                            | ResponseError::UnknownMemberId,
                        ) => {}
                        Err(error) => {
                            let detail = format!("group {:?} cannot begin: {}", offsets.group, describe(error));
                            return Err(Failure::refused("group-unavailable", detail));
                        }
                    }
                }
                None => {}
            }
            if Instant::now() >= deadline {
                return Err(not_begun(offsets));
            }
            sleep(GROUP_BEGIN_POLL).await;
        }
    }

    /// One for each partition, at its first event: Kafka's tools count the lag from there.
    async fn markers(&self, topic: &str) -> Vec<Offset> {
        let earliest = self.engine.earliest(topic).await;
        let metadata = Metadata::of_not_begun(self.topic_id);
        let marker = |partition| {
            // Nobody begins there: a partition that no broker leads now holds up none of the others.
            let offset = earliest.get(&partition).copied().unwrap_or(0);
            Offset { partition, offset, metadata: metadata.clone() }
        };
        (0..self.partitions).map(marker).collect()
    }
}

fn not_begun(offsets: &Offsets) -> Failure {
    let detail = format!("group {:?} has not begun: the owner of its partition 0 is waited for", offsets.group);
    Failure::refused("group-unavailable", detail)
}
