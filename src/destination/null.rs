//! Takes everything and keeps nothing: for measuring what stands before it.

use super::{BatchLimits, DeliveryBatch, Destination, MANY};
use crate::BoxFuture;
use crate::core::verdict::Report;

#[derive(Debug)]
pub(super) struct Null;

impl Destination for Null {
    fn limits(&self) -> BatchLimits {
        MANY
    }

    fn deliver(&self, hand_over: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        let reports = hand_over.runs.iter().map(|run| Report { delivered: run.events.len(), failed: None }).collect();
        Box::pin(std::future::ready(reports))
    }
}
