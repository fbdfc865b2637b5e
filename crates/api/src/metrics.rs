//! What a machine uses.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a machine uses at one moment. Published clients refuse any other field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineMetrics {
    /// When, RFC 3339.
    pub timestamp: String,
    /// Processor time since the reading before, 0.2 to 10 s earlier, or as long as a monitor's interval; 100 is one
    /// whole core.
    pub cpu_percent: f64,
    /// The cores it may use.
    pub cpu_count: u32,
    /// Bytes of memory that are used, without files that the kernel only keeps at hand.
    pub mem_used_bytes: u64,
    /// The most memory it may have.
    pub mem_total_bytes: u64,
    /// Bytes on disk of what was written in it; counted behind the scenes and some seconds old.
    pub disk_used_bytes: u64,
    /// That and what is free on the host's disk.
    pub disk_total_bytes: u64,
    /// Bytes that came to it over its network link since it was made.
    pub network_rx_bytes: u64,
    /// Bytes that went out.
    pub network_tx_bytes: u64,
}
