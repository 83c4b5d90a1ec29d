//! Heartbeats: they tell the coordinator that this member is alive, and tell this member about rebalances. Each
//! acknowledged heartbeat extends the lease.

use super::{HEARTBEAT_INTERVAL_MAX, SharedMembership};
use crate::group::kafka::member::HeartbeatEffect;
use crate::kafka::response_error;
use crate::limits::BROKER_CALL_MAX;
use kafka_protocol::messages::HeartbeatRequest;
use kafka_protocol::protocol::StrBytes;
use tokio::time::{Instant, sleep};

impl SharedMembership {
    pub(super) async fn send_heartbeats(&self) -> std::convert::Infallible {
        loop {
            // At least ten in a session, so that a few may be lost. A rebalance is noticed within
            // `HEARTBEAT_INTERVAL_MAX`.
            sleep((self.config.session_timeout / 10).min(HEARTBEAT_INTERVAL_MAX)).await;
            self.heartbeat().await;
        }
    }

    /// Sends one heartbeat. `false` if the coordinator did not answer, or the broker that answered is not the coordinator.
    pub(super) async fn heartbeat(&self) -> bool {
        let Some(identity) = self.member().heartbeat_identity() else { return false };
        // A third of the session: after an answer that does not come, there is time for two more heartbeats.
        let answer_max = (self.config.session_timeout / 3).min(BROKER_CALL_MAX);
        let request = HeartbeatRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id(identity.generation)
            .with_member_id(StrBytes::from_string(identity.member_id.clone()))
            .with_group_instance_id(self.instance_id());
        // The lease counts from the sending. The answer may arrive much later than the coordinator restarted the session.
        let (sent, deadline) = ((self.clock)(), Instant::now() + answer_max);
        let Ok(response) = self.coordinator.heartbeat(request, deadline).await else { return false };
        let effect = self.member().heartbeat_answered(&identity, sent, response_error(response.error_code));
        match effect {
            HeartbeatEffect::None => {}
            HeartbeatEffect::Rejoin => self.check_rejoin.notify_one(),
            HeartbeatEffect::FindCoordinator => self.coordinator.forget_coordinator(&self.config.group),
        }
        effect != HeartbeatEffect::FindCoordinator
    }
}
