//! The life of a service.
//!
//! ```text
//!            Ready              CheckFailed
//!  starting ─────────▶ ready ◀──────────────▶ unhealthy
//!   ▲  ▲ │               │        Ready           │
//!   │  │ └── Crashed ────┴────────────────────────┤
//!   │  └──────────────────────────────────────────┘
//!   │      Stop (any of them) ──▶ stopping ──Gone──▶ stopped ──┐
//!   │      Broke (any of them) ─────────────────────▶ failed ──┤
//!   └───────────────────────── Restart ────────────────────────┘
//! ```
//! The happy path: a request records `starting`; the supervisor makes a backing (a run with a machine, see
//! [`crate::run`]), checks it until it is ready, and goes on checking. A restart while a backing takes traffic leaves
//! that in place: if the new one fails the service falls back ([`Input::FellBack`]) to where it was.

use crate::run::{Event, Phase};

/// Where a service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// A backing is on its way.
    Starting,
    /// It answers.
    Ready,
    /// It answered, and does not any more.
    Unhealthy,
    /// Its processes are being ended.
    Stopping,
    /// Somebody ended it.
    Stopped,
    /// It could not go on; the failure says why.
    Failed,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Starting,
        Self::Ready,
        Self::Unhealthy,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
    ];

    /// Whether nothing more happens to the service unless it is restarted.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }

    /// The word in the record and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unhealthy => "unhealthy",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }
}

/// What is asked of a service, or became known about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Its check passed.
    Ready,
    /// Its check failed often enough to count.
    CheckFailed,
    /// Its entry point ended by itself, or its machine was lost, and another try is made.
    Crashed,
    /// Somebody wants it to begin again.
    Restart,
    /// The backing of a restart failed; the one before it goes on and stands as given.
    FellBack {
        /// Whether the one before answers.
        healthy: bool,
    },
    /// It cannot go on; where that was.
    Broke(Phase),
    /// Somebody wants it ended.
    Stop,
    /// Nothing of it runs any more.
    Gone,
}

/// A step that is right to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The state to record.
    pub state: State,
    /// To record in the same transaction.
    pub event: Event,
}

/// The input makes no sense in that state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where the service stands.
    pub state: State,
}

/// The event of a service that was just recorded as `starting`.
pub const STARTING: Event = news("service_starting");

const fn news(event_type: &'static str) -> Event {
    Event {
        event_type,
        is_error: false,
        failure_phase: None,
    }
}

/// Bad news that is not the end: clients take a `failure_phase` for the service's own.
const fn trouble(event_type: &'static str) -> Event {
    Event {
        event_type,
        is_error: true,
        failure_phase: None,
    }
}

const fn failure(event_type: &'static str, phase: Phase) -> Event {
    Event {
        event_type,
        is_error: true,
        failure_phase: Some(phase),
    }
}

/// Decides. Calls with the same arguments give the same answer.
///
/// # Errors
/// [`Refused`] when the input makes no sense in that state; nothing changes then.
pub fn step(state: State, input: Input) -> Result<Step, Refused> {
    use State::{Failed, Ready, Starting, Stopped, Stopping, Unhealthy};
    let to = |state, event| Ok(Step { state, event });
    match (state, input) {
        (Starting | Unhealthy, Input::Ready) => to(Ready, news("service_ready")),
        (Ready, Input::CheckFailed) => to(Unhealthy, trouble("service_unhealthy")),
        (Starting | Ready | Unhealthy, Input::Crashed) => to(Starting, trouble("service_crashed")),
        (Starting | Ready | Unhealthy | Stopped | Failed, Input::Restart) => {
            to(Starting, news("service_restarting"))
        }
        (Starting, Input::FellBack { healthy }) => to(
            if healthy { Ready } else { Unhealthy },
            trouble("service_restart_failed"),
        ),
        (Starting, Input::Broke(phase)) => to(Failed, failure("service_start_failed", phase)),
        (Ready | Unhealthy | Stopping, Input::Broke(phase)) => {
            to(Failed, failure("service_failed", phase))
        }
        (Starting | Ready | Unhealthy, Input::Stop) => to(Stopping, news("service_stopping")),
        (Stopping, Input::Gone) => to(Stopped, news("service_stopped")),
        (_, _) => Err(Refused { state }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inputs() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Ready),
            Just(Input::CheckFailed),
            Just(Input::Crashed),
            Just(Input::Restart),
            any::<bool>().prop_map(|healthy| Input::FellBack { healthy }),
            Just(Input::Broke(Phase::Readiness)),
            Just(Input::Stop),
            Just(Input::Gone),
        ]
    }

    proptest! {
        #[test]
        fn every_life_keeps_the_rules(story in proptest::collection::vec(inputs(), 0..32)) {
            let mut state = State::Starting;
            for input in story {
                let Ok(step) = step(state, input) else { continue };
                // What ended comes back by a restart alone.
                prop_assert!(!state.is_terminal() || input == Input::Restart);
                // Only a check that passed makes it ready.
                if step.state == State::Ready {
                    let passed = matches!(input, Input::Ready | Input::FellBack { healthy: true });
                    prop_assert!(passed);
                }
                // What somebody stops is stopped or failed, and nothing else.
                if state == State::Stopping {
                    prop_assert!(step.state.is_terminal());
                }
                prop_assert_eq!(step.state == State::Failed, step.event.failure_phase.is_some());
                state = step.state;
            }
        }
    }

    #[test]
    fn whatever_lives_can_be_stopped_and_whatever_does_not_stop_can_be_restarted() {
        for state in State::ALL {
            let stops = step(state, Input::Stop).is_ok();
            assert_eq!(stops, !state.is_terminal() && state != State::Stopping);
            assert_eq!(
                step(state, Input::Restart).is_ok(),
                state != State::Stopping
            );
        }
    }

    #[test]
    fn words_are_read_back() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
        assert_eq!(State::parse("asleep"), None);
    }
}
