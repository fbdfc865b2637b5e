//! Exit codes: what kind of trouble it was, for scripts.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | anything else, and a followed run that did not succeed |
//! | 2 | the command line or the request makes no sense |
//! | 3 | no such thing |
//! | 4 | no key, or a wrong one |
//! | 5 | not allowed |
//! | 6 | a limit is reached |
//! | 7 | in the way of something else, or not in a state for it |
//! | 8 | a command in a machine could not be run, or took too long |
//! | 130 | interrupted |
//!
//! `machine exec`, `agent shell` and `ssh` exit with the code of the command they ran.

/// Anything that has no code of its own.
pub const GENERAL: u8 = 1;
/// The command line or the request makes no sense.
pub const USAGE: u8 = 2;
/// No key, or a wrong one.
pub const UNAUTHENTICATED: u8 = 4;
/// What a shell says when there is no such command.
pub const NO_SUCH_COMMAND: i32 = 127;
/// Interrupted by the user.
pub const INTERRUPTED: u8 = 130;

/// The exit code for an error code of the API.
#[must_use]
pub fn of_code(code: &str) -> u8 {
    let code = code.to_ascii_lowercase();
    let after = |prefix: &str, ends: &[&str]| {
        code.strip_prefix(prefix)
            .is_some_and(|end| ends.contains(&end))
    };
    let token = ["missing", "expired", "invalid", "revoked", "scope_mismatch"];
    match code.as_str() {
        "unauthorized" | "unauthenticated" | "missing_api_key" => UNAUTHENTICATED,
        _ if after(
            "edge_token_",
            &["missing", "expired", "invalid", "scope_mismatch"],
        ) || after("preview_grant_", &["invalid", "revoked"])
            || after("preview_proxy_token_", &token) =>
        {
            UNAUTHENTICATED
        }
        "forbidden" | "permission_denied" | "volume_read_only" => 5,
        _ if code.ends_with("_permission_denied") => 5,
        "capacity_exceeded" | "volume_limit_exceeded" | "file_upload_limit_exceeded" => 6,
        _ if code.contains("quota") || code.contains("rate_limit") => 6,
        "conflict"
        | "sandbox_not_ready"
        | "machine_not_ready"
        | "snapshot_in_use"
        | "rebuild_required"
        | "incompatible_snapshot"
        | "volume_busy" => 7,
        _ if code.ends_with("_conflict") => 7,
        "not_found" => 3,
        _ if code.ends_with("_not_found") => 3,
        "exec_timeout" | "exec_failed" | "timeout" => 8,
        "invalid_request" | "invalid_fields" | "invalid_response" => USAGE,
        _ => GENERAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_exit_codes_of_the_wire() {
        for (exit, codes) in [
            (
                1,
                "transport_error internal_error invalid_state transition_in_progress warm_pool_unavailable \
                 not_implemented build_error file_upload_error file_error unknown template_not_ready",
            ),
            (2, "invalid_request invalid_fields invalid_response"),
            (
                3,
                "not_found sandbox_not_found machine_not_found snapshot_not_found agent_run_not_found NOT_FOUND",
            ),
            (
                4,
                "unauthorized unauthenticated missing_api_key edge_token_missing edge_token_scope_mismatch \
                 preview_grant_revoked preview_proxy_token_revoked",
            ),
            (
                5,
                "forbidden permission_denied volume_permission_denied volume_read_only",
            ),
            (
                6,
                "QUOTA_EXCEEDED quota_exceeded machine_quota capacity_exceeded rate_limit_exceeded \
                 volume_limit_exceeded file_upload_limit_exceeded",
            ),
            (
                7,
                "conflict sandbox_not_ready machine_not_ready snapshot_in_use rebuild_required incompatible_snapshot \
                 volume_busy agent_mode_conflict idempotency_conflict",
            ),
            (8, "exec_timeout exec_failed timeout"),
        ] {
            for code in codes.split_whitespace() {
                assert_eq!(of_code(code), exit, "{code}");
            }
        }
        assert_eq!(of_code("edge_token_revoked"), 1);
        assert_eq!(of_code("preview_grant_expired"), 1);
    }
}
