//! The verbs of the command line, one file each.

pub(crate) mod agent;
pub(crate) mod audit;
pub(crate) mod auth;
pub(crate) mod doctor;
pub(crate) mod key;
pub(crate) mod lifecycle;
pub(crate) mod machine;
pub(crate) mod monitor;
pub(crate) mod quickstart;
#[cfg(target_os = "linux")]
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod ssh;
pub(crate) mod template;
pub(crate) mod tenant;
pub(crate) mod upload;
pub(crate) mod volume;
