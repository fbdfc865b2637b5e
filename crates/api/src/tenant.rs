//! Tenants: who shares nothing with others, and what each may have.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// The most that a tenant may have. What is absent has no limit of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantLimits {
    /// Machines that have not ended: those that sleep and those that wait in warm pools too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_machines: Option<u64>,
    /// Whole CPUs of machines that run or wait in warm pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vcpus: Option<u64>,
    /// MiB of memory of machines that run or wait in warm pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_mb: Option<u64>,
    /// MiB of disk: what machines that have not ended may write, volumes (what one may have, or without a limit what it has), and
    /// states that are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_disk_mb: Option<u64>,
    /// Requests a second, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    /// Requests at once after a pause, at least 1; as many as a second has when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_burst: Option<u32>,
}

/// Makes a tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateTenantRequest {
    /// Also the namespace of its templates: words of `a-z` and `0-9` with `-` between, at most 63 characters.
    pub name: String,
    /// The most it may have.
    #[serde(default)]
    pub limits: TenantLimits,
}

/// Changes the limits of a tenant: what is absent stays, `null` takes a limit away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateTenantLimits {
    /// As in [`TenantLimits`].
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u64>)]
    pub max_machines: Option<Option<u64>>,
    /// As in [`TenantLimits`].
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u64>)]
    pub max_vcpus: Option<Option<u64>>,
    /// As in [`TenantLimits`].
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u64>)]
    pub max_memory_mb: Option<Option<u64>>,
    /// As in [`TenantLimits`].
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u64>)]
    pub max_disk_mb: Option<Option<u64>>,
    /// As in [`TenantLimits`].
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u32>)]
    pub requests_per_second: Option<Option<u32>>,
    /// As in [`TenantLimits`].
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u32>)]
    pub request_burst: Option<Option<u32>>,
}

/// `null` is a word too.
fn said<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Changes a tenant: what is absent stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateTenantRequest {
    /// Whether its keys are refused. What runs goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<bool>,
    /// The most it may have. What it has beyond a new limit stays.
    #[serde(default)]
    pub limits: UpdateTenantLimits,
}

/// What a tenant has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantUsage {
    /// As counted for `max_machines`.
    pub machines: u64,
    /// As counted for `max_vcpus`.
    pub vcpus: u64,
    /// As counted for `max_memory_mb`.
    pub memory_mb: u64,
    /// As counted for `max_disk_mb`.
    pub disk_mb: u64,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantInfo {
    /// Names it.
    pub id: String,
    /// Also the namespace of its templates.
    pub name: String,
    /// Whether its keys are refused.
    pub suspended: bool,
    /// The most it may have.
    pub limits: TenantLimits,
    /// What it has.
    pub usage: TenantUsage,
    /// RFC 3339.
    pub created_at: String,
}

/// A list of tenants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantList {
    /// Oldest first.
    pub items: Vec<TenantInfo>,
}
