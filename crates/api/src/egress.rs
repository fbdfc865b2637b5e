//! Rules for traffic out of a machine.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Rules for traffic out of a machine. Of two that fit, the more specific decides: a longer prefix, an exact name
/// before a wildcard. IPv4 only; machines have no IPv6. Whatever they say, a machine reaches neither the host's own
/// services nor other machines nor link-local and metadata addresses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressPolicy {
    /// `allow_all`, `deny_all` or `custom`; without it `custom` if there are lists or a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<EgressMode>,
    /// IPv4 networks or addresses that may be reached, at most 256. With any here or in `allow_domains`, all else may
    /// not. Counts before the same network in `deny_cidrs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_cidrs: Option<Vec<String>>,
    /// IPv4 networks or addresses that may not be reached, at most 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny_cidrs: Option<Vec<String>>,
    /// Host names that may be resolved, at most 256: `example.com`, or `*.example.com` for all below it. Their
    /// addresses may be reached from when they are resolved until ten minutes after the answer is no longer good;
    /// addresses of private networks only if `allow_cidrs` has them. No other names resolve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_domains: Option<Vec<String>>,
    /// Host names that do not exist for the machine, at most 256, as in `allow_domains`; `*` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny_domains: Option<Vec<String>>,
    /// Most traffic out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<EgressRateLimit>,
}

/// See [`EgressPolicy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EgressMode {
    /// Everything but what no machine reaches.
    AllowAll,
    /// Nothing, names neither. Lists and limits beside it change nothing.
    DenyAll,
    /// By the lists.
    Custom,
}

/// Most traffic that leaves a machine in a second; what is over it is dropped, as a slow line does. Exactly one of
/// `kbit_per_sec` and `pps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressRateLimit {
    /// Thousands of bits, 1 to 100,000,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kbit_per_sec: Option<u32>,
    /// Packets, 1 to 100,000,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pps: Option<u32>,
    /// What may leave at once beyond that, 1 to 1,000,000: kilobytes (at least 64 get through) with `kbit_per_sec`,
    /// packets with `pps`. A quarter of a second's worth when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// `PATCH /v1/machines/{id}/egress`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateEgressRequest {
    /// Takes the place of all rules that the machine has.
    pub egress: EgressPolicy,
}

/// Answer to [`UpdateEgressRequest`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UpdateEgressResponse {
    /// The machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// The machine, under `/v1/sandboxes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// The rules that are in force now.
    pub egress: EgressPolicy,
}
