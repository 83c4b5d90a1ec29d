//! The requests that eventd sends, each with its range of versions: from the version of Kafka 2.8 to the newest one whose
//! new fields eventd does not need. A connection uses the highest version that the broker supports as well.
//!
//! Deleting records is not here: `rskafka` sends it (`admin.rs`).

use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, CreatePartitionsRequest, CreatePartitionsResponse,
    CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse, DescribeConfigsRequest,
    DescribeConfigsResponse, DescribeGroupsRequest, DescribeGroupsResponse, FetchRequest, FetchResponse,
    FindCoordinatorRequest, FindCoordinatorResponse, HeartbeatRequest, HeartbeatResponse, InitProducerIdRequest,
    InitProducerIdResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, MetadataResponse, OffsetCommitRequest,
    OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, ProduceRequest, ProduceResponse,
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse, SyncGroupRequest,
    SyncGroupResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, VersionRange};

/// A request, its supported versions and its answer. (`kafka-protocol` has such a trait, but it requires the broker's
/// half of every message to be compiled in.)
pub trait Request: Encodable + HeaderVersion + Sync {
    const KEY: ApiKey;
    const VERSIONS: VersionRange;
    type Response: Decodable + HeaderVersion + Send;
}

macro_rules! requests {
    ($($request:ident => $response:ident, $key:ident $min:literal..=$max:literal;)+) => {$(
        impl Request for $request {
            const KEY: ApiKey = ApiKey::$key;
            const VERSIONS: VersionRange = VersionRange { min: $min, max: $max };
            type Response = $response;
        }
    )+};
}

requests! {
    // Version 0, because every broker can answer it, whatever versions it supports.
    ApiVersionsRequest => ApiVersionsResponse, ApiVersions 0..=0;
    SaslHandshakeRequest => SaslHandshakeResponse, SaslHandshake 1..=1;
    SaslAuthenticateRequest => SaslAuthenticateResponse, SaslAuthenticate 0..=2;
    // Since version 4 the request can say that the topic must not be created. Since version 10 topics have ids.
    MetadataRequest => MetadataResponse, Metadata 4..=12;
    // Version 13 of both names topics by id, which eventd does not need.
    ProduceRequest => ProduceResponse, Produce 3..=9;
    FetchRequest => FetchResponse, Fetch 4..=12;
    ListOffsetsRequest => ListOffsetsResponse, ListOffsets 2..=6;
    InitProducerIdRequest => InitProducerIdResponse, InitProducerId 0..=4;
    // Version 4 asks for several coordinators at once.
    FindCoordinatorRequest => FindCoordinatorResponse, FindCoordinator 1..=3;
    OffsetCommitRequest => OffsetCommitResponse, OffsetCommit 2..=8;
    // Since version 2 an error of the whole group is reported. Version 8 asks for several groups at once.
    OffsetFetchRequest => OffsetFetchResponse, OffsetFetch 2..=7;
    // JoinGroup 5 and version 3 of the others have static membership. Kafka 2.8 supports all of these ranges.
    JoinGroupRequest => JoinGroupResponse, JoinGroup 5..=7;
    SyncGroupRequest => SyncGroupResponse, SyncGroup 3..=5;
    HeartbeatRequest => HeartbeatResponse, Heartbeat 3..=4;
    LeaveGroupRequest => LeaveGroupResponse, LeaveGroup 3..=4;
    DescribeGroupsRequest => DescribeGroupsResponse, DescribeGroups 0..=5;
    // Since version 4 the request can ask for the broker's default replication.
    CreateTopicsRequest => CreateTopicsResponse, CreateTopics 4..=7;
    CreatePartitionsRequest => CreatePartitionsResponse, CreatePartitions 1..=3;
    // Version 6 can name topics by id, which eventd does not need.
    DeleteTopicsRequest => DeleteTopicsResponse, DeleteTopics 1..=5;
    DescribeConfigsRequest => DescribeConfigsResponse, DescribeConfigs 1..=4;
}
