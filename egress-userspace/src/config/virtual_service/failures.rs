//! What is done about failures, and failures that are made on purpose.

use std::time::Duration;

use http::StatusCode;

use super::PercentValue;
use crate::config::{
    Located, Message,
    decode::{Text, choose, shape},
    traffic_policy::AtLeastOneMilli,
};

shape! {
    /// `retries`.
    pub struct Retries {
        /// How often.
        "attempts" => attempts: Option<u32>,
        /// For each try.
        "perTryTimeout" => per_try_timeout: Option<Duration>,
        /// When.
        "retryOn" => retry_on: Option<RetryOn>,
        /// Between tries.
        "backoff" => backoff: Option<AtLeastOneMilli>,
        /// Whether a try goes to another address than the one before, which it does wherever there is one.
        "retryIgnorePreviousHosts" => retry_ignore_previous_hosts: Option<bool>,
    }
    refused ["retryRemoteLocalities"]
}

/// `retryOn`: names of Envoy's, and statuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOn(pub Vec<RetryReason>);

/// One of `retryOn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// `5xx`
    ServerError,
    /// `gateway-error`
    GatewayError,
    /// `reset`
    Reset,
    /// `reset-before-request`
    ResetBeforeRequest,
    /// `connect-failure`
    ConnectFailure,
    /// `refused-stream`
    RefusedStream,
    /// `retriable-4xx`
    Conflict,
    /// `retriable-status-codes`
    RetriableStatus,
    /// A status.
    Status(StatusCode),
    /// A name of gRPC's, and the value of `grpc-status` that it stands for.
    Grpc(u8),
    /// What never happens, and why.
    Never(&'static str),
}

const RETRY_REASONS: [(&str, RetryReason); 16] = [
    ("5xx", RetryReason::ServerError),
    ("gateway-error", RetryReason::GatewayError),
    ("reset", RetryReason::Reset),
    ("reset-before-request", RetryReason::ResetBeforeRequest),
    ("connect-failure", RetryReason::ConnectFailure),
    ("refused-stream", RetryReason::RefusedStream),
    ("retriable-4xx", RetryReason::Conflict),
    ("retriable-status-codes", RetryReason::RetriableStatus),
    ("cancelled", RetryReason::Grpc(1)),
    ("deadline-exceeded", RetryReason::Grpc(4)),
    ("resource-exhausted", RetryReason::Grpc(8)),
    ("internal", RetryReason::Grpc(13)),
    ("unavailable", RetryReason::Grpc(14)),
    ("envoy-ratelimited", RetryReason::Never("envoy-ratelimited changes nothing, as there is no rate limit")),
    (
        "http3-post-connect-failure",
        RetryReason::Never("http3-post-connect-failure changes nothing, as there is no HTTP/3"),
    ),
    (
        "retriable-headers",
        RetryReason::Never("retriable-headers changes nothing, as Istio has no way to say which they are"),
    ),
];

impl Text for RetryOn {
    fn parse(text: &str) -> Result<Self, Message> {
        let reason = |text: &str| match text.parse::<u16>() {
            Ok(number @ 200..600) => StatusCode::from_u16(number)
                .map(RetryReason::Status)
                .map_err(|_| format!("{number} is not a status").into()),
            Ok(number) => Err(format!("{number} is not a final status; use 200 to 599").into()),
            Err(_) => choose(text, &RETRY_REASONS, &[]),
        };
        text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(reason).collect::<Result<_, _>>().map(Self)
    }
}

shape! {
    /// `fault`.
    pub struct Fault {
        /// Some requests wait.
        "delay" => delay: Option<Located<Delay>>,
        /// Some requests are answered.
        "abort" => abort: Option<Located<Abort>>,
    }
    refused []
}

shape! {
    /// `fault.delay`.
    pub struct Delay {
        /// For how long.
        "fixedDelay" => fixed_delay: Option<AtLeastOneMilli>,
        /// Of how many.
        "percentage" => percentage: Option<PercentValue>,
    }
    refused ["exponentialDelay", "percent"]
}

shape! {
    /// `fault.abort`.
    pub struct Abort {
        /// With which status.
        "httpStatus" => http_status: Option<StatusCode>,
        /// With which status of gRPC.
        "grpcStatus" => grpc_status: Option<GrpcStatus>,
        /// Of how many.
        "percentage" => percentage: Option<PercentValue>,
    }
    refused ["http2Error", "percent"]
}

/// A status of gRPC by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcStatus(pub u8);

impl Text for GrpcStatus {
    fn parse(text: &str) -> Result<Self, Message> {
        const NAMES: [&str; 17] = [
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        ];
        let known: Vec<_> = NAMES.into_iter().zip((0..).map(Self)).collect();
        choose(text, &known, &[])
    }
}
