//! The requests that eventd sends, each with the versions that it is written for: from Kafka 2.8's to the newest that
//! needs nothing more. A broker's own range is cut with it (`Connection::call`).

use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, CreatePartitionsRequest, CreatePartitionsResponse,
    CreateTopicsRequest, CreateTopicsResponse, DeleteRecordsRequest, DeleteRecordsResponse, DeleteTopicsRequest,
    DeleteTopicsResponse, DescribeConfigsRequest, DescribeConfigsResponse, FetchRequest, FetchResponse,
    FindCoordinatorRequest, FindCoordinatorResponse, HeartbeatRequest, HeartbeatResponse, InitProducerIdRequest,
    InitProducerIdResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, MetadataResponse, OffsetCommitRequest,
    OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, ProduceRequest, ProduceResponse,
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse, SyncGroupRequest,
    SyncGroupResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, VersionRange};

/// A request with its answer. (The crate's own trait wants the broker's half of every message compiled in.)
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
    // Version 0 is what every broker answers, whatever it is asked.
    ApiVersionsRequest => ApiVersionsResponse, ApiVersions 0..=0;
    SaslHandshakeRequest => SaslHandshakeResponse, SaslHandshake 1..=1;
    SaslAuthenticateRequest => SaslAuthenticateResponse, SaslAuthenticate 0..=2;
    // From 4 on a broker is told not to make a topic that is asked about; 10 has topic ids.
    MetadataRequest => MetadataResponse, Metadata 4..=12;
    // 13 names topics by id.
    ProduceRequest => ProduceResponse, Produce 3..=9;
    FetchRequest => FetchResponse, Fetch 4..=12;
    ListOffsetsRequest => ListOffsetsResponse, ListOffsets 2..=6;
    InitProducerIdRequest => InitProducerIdResponse, InitProducerId 0..=4;
    // 4 asks for several coordinators.
    FindCoordinatorRequest => FindCoordinatorResponse, FindCoordinator 1..=3;
    OffsetCommitRequest => OffsetCommitResponse, OffsetCommit 2..=8;
    // 8 asks for several groups; 2 names an error of the whole group.
    OffsetFetchRequest => OffsetFetchResponse, OffsetFetch 2..=7;
    // 5 (of JoinGroup) and 3 have static membership; none of these is older than 2.8.
    JoinGroupRequest => JoinGroupResponse, JoinGroup 5..=7;
    SyncGroupRequest => SyncGroupResponse, SyncGroup 3..=5;
    HeartbeatRequest => HeartbeatResponse, Heartbeat 3..=4;
    LeaveGroupRequest => LeaveGroupResponse, LeaveGroup 3..=4;
    // From 4 on the broker's own defaults may be asked for.
    CreateTopicsRequest => CreateTopicsResponse, CreateTopics 4..=7;
    CreatePartitionsRequest => CreatePartitionsResponse, CreatePartitions 1..=3;
    DescribeConfigsRequest => DescribeConfigsResponse, DescribeConfigs 1..=4;
    DeleteRecordsRequest => DeleteRecordsResponse, DeleteRecords 0..=2;
    // 6 names topics by id.
    DeleteTopicsRequest => DeleteTopicsResponse, DeleteTopics 1..=5;
}
