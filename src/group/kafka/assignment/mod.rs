//! Recipient gets which partition: what members tell the leader ([`messages`]), whom the leader refuses ([`leader`]), and how
//! it shares the partitions among the rest ([`assignor`]).

mod assignor;
mod leader;
mod messages;

pub(super) use self::leader::assign_members;
pub(super) use self::messages::{Assignment, OwnedPartitions, Subscription};
