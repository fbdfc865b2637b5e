//! Ports of machines, seen from outside.
//!
//! Where a type has `machine_id` here, answers under `/v1/sandboxes` say `sandbox_id`: clients of that wire know no
//! other key. Times are RFC 3339.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// `POST /v1/machines/{id}/host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostRequest {
    /// The port in the machine.
    pub port: u16,
}

/// Where a published port is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// Name or address with the port, if it is not that of the scheme.
    pub host: String,
    /// The same as a URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The same for WebSockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub websocket_url: Option<String>,
}

/// `POST /v1/machines/{id}/ports/{port}/signed-preview-url`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedPreviewRequest {
    /// How long the URL works: an hour when absent; brought into the range from 60 to 86,400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
}

/// `POST /v1/machines/{id}/ports/{port}/preview-proxy-target`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyTargetRequest {
    /// As in [`SignedPreviewRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
    /// What may pass; both when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transports: Option<Vec<Transport>>,
    /// How the token comes; `header` is the only way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_transport: Option<ProxyTokenTransport>,
    /// Whether the answer names the header for private traffic; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_traffic_token_hint: Option<bool>,
}

/// See [`ProxyTargetRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProxyTokenTransport {
    /// In a header of each request.
    Header,
}

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Requests and answers.
    Http,
    /// WebSockets.
    Websocket,
}

/// What a token of a grant is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Requests and answers.
    HttpPort,
    /// WebSockets.
    WebsocketPort,
}

/// Who sends the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthMode {
    /// Whoever looks.
    Direct,
    /// A proxy in front.
    Proxy,
}

/// How the token comes in the first place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenTransport {
    /// In the URL.
    Query,
    /// In a header.
    Header,
}

/// How a grant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrantStatus {
    /// Its tokens work.
    Active,
    /// It was taken back.
    Revoked,
    /// Its time is over.
    Expired,
    /// Its machine has ended.
    Disabled,
}

/// Somebody may see a port for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Grant {
    /// Its id. The tokens are shown once, when it is made.
    pub id: String,
    /// The machine; `sandbox_id` under `/v1/sandboxes`.
    #[serde(alias = "sandbox_id")]
    pub machine_id: String,
    /// The port in it.
    pub port: u16,
    /// Who sends the token.
    pub auth_mode: AuthMode,
    /// How the token comes.
    pub bootstrap_transport: TokenTransport,
    /// How it stands now.
    pub status: GrantStatus,
    /// What its tokens are for.
    pub token_kinds: Vec<TokenKind>,
    /// `user`.
    pub principal_kind: String,
    /// The id of the key that asked.
    pub principal_id: Option<String>,
    /// When it was made.
    pub issued_at: String,
    /// When it is over.
    pub expires_at: String,
    /// When it was taken back.
    pub revoked_at: Option<String>,
    /// When it was used first.
    pub first_used_at: Option<String>,
    /// When it was used last.
    pub last_used_at: Option<String>,
    /// Requests and WebSockets that it let in.
    pub use_count: u64,
    /// Requests.
    pub http_request_count: u64,
    /// WebSockets.
    pub websocket_connection_count: u64,
    /// Bytes of bodies and WebSockets to the machine.
    pub bytes_in_count: u64,
    /// Bytes of bodies and WebSockets from the machine.
    pub bytes_out_count: u64,
    /// The code of the last request with it that was refused or not answered.
    pub last_error_code: Option<String>,
    /// When that was.
    pub last_error_at: Option<String>,
    /// When its machine ended.
    pub disabled_at: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// When it last changed.
    pub updated_at: String,
}

/// A port as somebody may open it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PreviewUrl {
    /// Who may.
    pub grant: Grant,
    /// For a browser or any other client; it has the token.
    pub url: String,
    /// For WebSockets; it has another token.
    pub websocket_url: String,
    /// When both are over.
    pub access_token_expires_at: String,
    /// Where the tokens are.
    pub access_token_transport: TokenTransport,
}

/// A port as a proxy of the caller's own reaches it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProxyTarget {
    /// Who may.
    pub grant: Grant,
    /// The machine; `sandbox_id` under `/v1/sandboxes`.
    #[serde(alias = "sandbox_id")]
    pub machine_id: String,
    /// The port in it.
    pub port: u16,
    /// The header that carries the token.
    pub token_header_name: String,
    /// When the tokens are over.
    pub expires_at: String,
    /// Where the tokens are.
    pub token_transport: TokenTransport,
    /// Where to send requests, if that was asked for.
    pub http_url: Option<String>,
    /// Where to open WebSockets, if that was asked for.
    pub websocket_url: Option<String>,
    /// For requests.
    pub http_token: Option<String>,
    /// For WebSockets.
    pub websocket_token: Option<String>,
    /// What the proxy should set, so that the program in the machine knows who asked.
    pub required_forwarded_headers: Vec<String>,
    /// Whether the machine's own token is needed, too.
    pub traffic_access_required: Option<bool>,
    /// The header for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_access_header_name: Option<String>,
    /// What the caller should know.
    pub warnings: Vec<String>,
}

/// How a port is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadinessKind {
    /// It takes a connection.
    #[default]
    Tcp,
    /// It answers a request with a status below 500.
    Http,
}

/// `POST /v1/machines/{id}/ports/{port}/readiness`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadinessRequest {
    /// `tcp` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ReadinessKind>,
    /// What is asked for with `http`; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How long to wait: 30 when absent, never more than 28, so that the answer comes before clients give up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
    /// Pause between checks, in milliseconds: 500 when absent, at least 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
}

/// Whether a port answers. One that does not is no error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// Both of the next two.
    pub ready: bool,
    /// The machine can be reached.
    pub route_ready: bool,
    /// The port answers.
    pub service_ready: bool,
    /// The machine; `sandbox_id` under `/v1/sandboxes`.
    #[serde(alias = "sandbox_id")]
    pub machine_id: String,
    /// The port in it.
    pub port: u16,
    /// How it was checked.
    pub kind: ReadinessKind,
    /// When it was checked last.
    pub checked_at: String,
    /// How long that took in all.
    pub elapsed_ms: u64,
    /// How often it was checked.
    pub attempts: u32,
    /// With `http`.
    pub path: Option<String>,
    /// `preview_service_not_ready`, if it does not.
    pub code: Option<String>,
    /// What the last check said.
    pub error: Option<String>,
    /// What to do about it.
    pub suggested_action: Option<String>,
}

/// Query of `GET /v1/machines/{id}/preview-urls`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListGrantsQuery {
    /// Only grants for this port.
    pub port: Option<String>,
}

/// Grants of a machine, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Grants {
    /// All that are remembered.
    pub items: Vec<Grant>,
}

/// Answer to `DELETE /v1/machines/{id}/preview-urls/{grant_id}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RevokedGrant {
    /// True.
    pub success: bool,
    /// The grant as it is now.
    pub grant: Grant,
}
