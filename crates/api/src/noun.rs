//! How a client spells a machine.

/// The noun of a route: the same machine is a `sandbox` on one published wire and a `machine` on the
/// other. Only the HTTP edge looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Noun {
    /// `/v1/sandboxes`, `sandbox_id`, `sandbox_not_found`.
    Sandbox,
    /// `/v1/machines`, `machine_id`, `machine_not_found`.
    #[default]
    Machine,
}

impl Noun {
    /// The noun that a request path speaks: every path but those under `/v1/sandboxes` and
    /// `/v1/agent-deployments` says `machine`.
    #[must_use]
    pub fn of_path(path: &str) -> Self {
        let under = |prefix: &str| {
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if under("/v1/sandboxes") || under("/v1/agent-deployments") {
            Self::Sandbox
        } else {
            Self::Machine
        }
    }

    /// The noun that a path is about, when it is about machines.
    #[must_use]
    pub fn said_in(path: &str) -> Option<Self> {
        let said = Self::of_path(path);
        (said == Self::Sandbox || path.starts_with("/v1/machines")).then_some(said)
    }

    /// Reads [`Noun::word`].
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word {
            "sandbox" => Self::Sandbox,
            _ => Self::Machine,
        }
    }

    /// `sandbox` or `machine`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Machine => "machine",
        }
    }

    /// Spells an error code: `machine_not_found` becomes `sandbox_not_found`.
    #[must_use]
    pub fn code(self, code: &'static str) -> &'static str {
        use crate::error::code;
        match (self, code) {
            (Self::Sandbox, code::MACHINE_NOT_FOUND) => "sandbox_not_found",
            (Self::Sandbox, code::MACHINE_NOT_READY) => "sandbox_not_ready",
            (_, other) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_decides() {
        assert_eq!(Noun::of_path("/v1/sandboxes"), Noun::Sandbox);
        assert_eq!(Noun::of_path("/v1/sandboxes/mch_1/exec"), Noun::Sandbox);
        assert_eq!(Noun::of_path("/v1/sandboxesque"), Noun::Machine);
        assert_eq!(Noun::of_path("/v1/machines/mch_1"), Noun::Machine);
        assert_eq!(Noun::Sandbox.code("machine_not_found"), "sandbox_not_found");
        assert_eq!(Noun::Sandbox.code("invalid_request"), "invalid_request");
    }
}
