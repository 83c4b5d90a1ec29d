//! Which member gets which partition: what members tell the leader ([`messages`]), which members the leader refuses
//! ([`leader`]), and how it shares the partitions among the others ([`assignor`]).

mod assignor;
mod leader;
mod messages;

pub(super) use self::leader::assign_members;
pub(super) use self::messages::{Assignment, OwnedPartitions, Subscription};
