//! The life of a run: of a job's, and of what backs a service.
//!
//! ```text
//!          Begin            InstallStarted           EntrypointStarted        EntrypointExited(0)
//!  queued ──────▶ starting ───────────────▶ installing ──────────────▶ running ──────────▶ succeeded
//!     │              │  └───────────────────────────────────────────────▲ │
//!     │              │          (no install: EntrypointStarted)           │
//!     └──────────────┴────────────────────────┬───────────────────────────┘
//!                       InstallExited(≠0), EntrypointExited(≠0), Broke ──▶ failed
//!                       Cancelled ───────────────────────────────────────▶ cancelled
//!                       DeadlineReached ─────────────────────────────────▶ timed_out
//! ```
//! The happy path: a request records `queued`; the run's task asks for a machine (`Begin`, `MachineReady`),
//! runs the install command in it if there is one, starts the entry point, follows its output, keeps what it
//! left behind, and records the end. Work inside the machine goes on while the server is away: at start-up the
//! task picks the run up in the state it is recorded in.
//!
//! What backs a service has an entry point without an end: it is started again (`EntrypointRestarted`) until somebody
//! ends the service (`Cancelled`) or it is given up (`Broke`).
//!
//! An install is started again (`InstallStarted` while `installing`) when a server was killed before what it left was kept
//! and its machine is gone: the result of an install lives in one of the two.
//!
//! The end of a run is recorded after its outputs were kept, so whoever sees a terminal status sees them too.

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Recorded.
    Queued,
    /// Its machine is being made.
    Starting,
    /// The install command runs.
    Installing,
    /// The entry point runs.
    Running,
    /// The entry point exited with 0.
    Succeeded,
    /// Something went wrong; the failure says what.
    Failed,
    /// Somebody ended it.
    Cancelled,
    /// A time limit ended it.
    TimedOut,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Starting,
        Self::Installing,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::TimedOut,
    ];

    /// Whether nothing more happens to the run.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::TimedOut
        )
    }

    /// The word in the record and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Installing => "installing",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }
}

/// Which part of a run something belongs to; `failure_phase` in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Making the machine and putting the input into it.
    Start,
    /// The install command.
    Install,
    /// The entry point.
    Entrypoint,
    /// The checks before a service is ready.
    Readiness,
    /// Whatever happens when somebody cancels.
    Cancel,
}

impl Phase {
    /// The word in the log, as clients show it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "startup",
            Self::Install => "install",
            Self::Entrypoint => "entrypoint",
            Self::Readiness => "readiness",
            Self::Cancel => "cancel",
        }
    }
}

/// What is asked of a run, or became known about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A task has taken it on.
    Begin,
    /// Its machine runs.
    MachineReady,
    /// The install command was started.
    InstallStarted,
    /// The install command ended with this code.
    InstallExited(i32),
    /// The result of the install command was kept, and nothing else was wanted.
    Built,
    /// The entry point was started.
    EntrypointStarted,
    /// The entry point of a service was started again.
    EntrypointRestarted,
    /// The entry point ended with this code.
    EntrypointExited(i32),
    /// The time limit of the install command or of the entry point ended it.
    DeadlineReached,
    /// Somebody cancelled it, and nothing of it runs any more.
    Cancelled,
    /// It cannot go on: no machine, a lost machine, lost values, a program that cannot be started.
    Broke,
}

/// What the log says about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `run_queued`, `run_starting`, …
    pub event_type: &'static str,
    /// Whether it is bad news.
    pub is_error: bool,
    /// Where it went wrong, if it did.
    pub failure_phase: Option<Phase>,
}

/// What is done once the step is on disk. Harmless when repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// End the machine.
    Destroy,
    /// Keep the machine for a while if the run or its version asks for that, end it otherwise.
    KeepIfAsked,
}

/// A step that is right to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The state to record.
    pub state: State,
    /// To record in the same transaction.
    pub event: Event,
    /// Set on steps into a terminal state.
    pub release: Option<Release>,
}

/// The input makes no sense in that state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where the run stands.
    pub state: State,
}

/// The event of a run that was just recorded as `queued`.
pub const QUEUED: Event = news("run_queued");

const fn news(event_type: &'static str) -> Event {
    Event {
        event_type,
        is_error: false,
        failure_phase: None,
    }
}

/// Where a run that is in this state would fail.
#[must_use]
pub fn phase_of(state: State) -> Phase {
    match state {
        State::Installing => Phase::Install,
        State::Running => Phase::Entrypoint,
        _ => Phase::Start,
    }
}

/// Decides. Calls with the same arguments give the same answer.
///
/// # Errors
/// [`Refused`] when the input makes no sense in that state; nothing changes then.
pub fn step(state: State, input: Input) -> Result<Step, Refused> {
    use State::{Cancelled, Failed, Installing, Queued, Running, Starting, Succeeded, TimedOut};
    let goes_on = |state, event_type| {
        Ok(Step {
            state,
            event: news(event_type),
            release: None,
        })
    };
    let ends = |end, event_type, phase, release| {
        Ok(Step {
            state: end,
            event: Event {
                event_type,
                is_error: end != Succeeded,
                failure_phase: phase,
            },
            release: Some(release),
        })
    };
    let failed = |phase| ends(Failed, "run_failed", Some(phase), Release::KeepIfAsked);
    match (state, input) {
        // The end is the end.
        (Succeeded | Failed | Cancelled | TimedOut, _) => Err(Refused { state }),

        // A server that stopped while the machine was being made begins again.
        (Queued | Starting, Input::Begin) => goes_on(Starting, "run_starting"),
        (Starting, Input::MachineReady) => goes_on(Starting, "sandbox_created"),
        (Starting | Installing, Input::InstallStarted) => goes_on(Installing, "install_started"),
        (Installing, Input::InstallExited(0)) => goes_on(Installing, "install_finished"),
        (Installing, Input::InstallExited(_)) => failed(Phase::Install),
        (Installing, Input::Built) => ends(Succeeded, "build_succeeded", None, Release::Destroy),
        (Starting | Installing, Input::EntrypointStarted) => goes_on(Running, "run_started"),
        (Running, Input::EntrypointRestarted) => goes_on(Running, "run_restarted"),
        (Running, Input::EntrypointExited(0)) => {
            ends(Succeeded, "run_succeeded", None, Release::Destroy)
        }
        (Running, Input::EntrypointExited(_)) => failed(Phase::Entrypoint),
        (Installing | Running, Input::DeadlineReached) => ends(
            TimedOut,
            "run_timed_out",
            Some(phase_of(state)),
            Release::KeepIfAsked,
        ),
        (_, Input::Cancelled) => ends(
            Cancelled,
            "run_cancelled",
            Some(Phase::Cancel),
            Release::Destroy,
        ),
        (_, Input::Broke) => failed(phase_of(state)),

        (_, Input::Begin)
        | (_, Input::MachineReady)
        | (_, Input::InstallStarted)
        | (_, Input::InstallExited(_))
        | (_, Input::Built)
        | (_, Input::EntrypointStarted)
        | (_, Input::EntrypointRestarted)
        | (_, Input::EntrypointExited(_))
        | (_, Input::DeadlineReached) => Err(Refused { state }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inputs() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Begin),
            Just(Input::MachineReady),
            Just(Input::InstallStarted),
            (-1..3i32).prop_map(Input::InstallExited),
            Just(Input::Built),
            Just(Input::EntrypointStarted),
            Just(Input::EntrypointRestarted),
            (-1..3i32).prop_map(Input::EntrypointExited),
            Just(Input::DeadlineReached),
            Just(Input::Cancelled),
            Just(Input::Broke),
        ]
    }

    proptest! {
        #[test]
        fn every_life_keeps_the_rules(story in proptest::collection::vec(inputs(), 0..24)) {
            let order = |s: State| State::ALL.iter().position(|x| *x == s).unwrap_or(0);
            let mut state = State::Queued;
            for input in story {
                let Ok(step) = step(state, input) else { continue };
                // What ended stays ended, and a run never goes back.
                prop_assert!(!state.is_terminal());
                prop_assert!(order(step.state) >= order(state));
                // The machine is dealt with exactly once: when the run ends.
                prop_assert_eq!(step.release.is_some(), step.state.is_terminal());
                // Only an exit code of 0 of the entry point is a success, or a build that was kept.
                prop_assert_eq!(
                    step.state == State::Succeeded,
                    matches!(input, Input::EntrypointExited(0) | Input::Built)
                );
                // Bad news says where it happened; good news keeps nothing behind.
                prop_assert_eq!(step.event.is_error, step.event.failure_phase.is_some());
                if step.state == State::Succeeded {
                    prop_assert_eq!(step.release, Some(Release::Destroy));
                }
                state = step.state;
            }
        }

        #[test]
        fn whatever_has_not_ended_can_be_cancelled_and_can_break(
            story in proptest::collection::vec(inputs(), 0..24)
        ) {
            let mut state = State::Queued;
            for input in story {
                state = step(state, input).map_or(state, |s| s.state);
            }
            let cancelled = step(state, Input::Cancelled);
            prop_assert_eq!(cancelled.is_err(), state.is_terminal());
            prop_assert_eq!(step(state, Input::Broke).is_err(), state.is_terminal());
        }
    }

    #[test]
    fn the_happy_path() {
        let mut state = State::Queued;
        let story = [
            (Input::Begin, State::Starting, "run_starting"),
            (Input::MachineReady, State::Starting, "sandbox_created"),
            (Input::InstallStarted, State::Installing, "install_started"),
            (
                Input::InstallExited(0),
                State::Installing,
                "install_finished",
            ),
            (Input::EntrypointStarted, State::Running, "run_started"),
            (
                Input::EntrypointExited(0),
                State::Succeeded,
                "run_succeeded",
            ),
        ];
        for (input, to, event) in story {
            let step = step(state, input).map(|s| (s.state, s.event.event_type));
            assert_eq!(step, Ok((to, event)));
            state = to;
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
