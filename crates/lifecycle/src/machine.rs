//! The life of a machine.
//!
//! ```text
//!            Requested                 Built                       Hibernated
//!   (none) ────────────▶ creating ───────────────▶ running ───────────────────▶ paused
//!                          │   │                    │ │ │ ◀──────────────────── │  │ │
//!                BuildFailed   │ Destroy      Ended │ │ │ Destroy    Resumed    │  │ │ Ended
//!                     Gone │   │               Gone │ │ │ TimeLimit(destroy)    │  │ │ Gone
//!                          │   │                    │ │ ▼               Destroy │  │ │
//!                          │   └────────────────────┼─┴─▶ destroyed ◀──────────┴──┘ │
//!                          ▼                        │         ▲                     │
//!                        error ◀────────────────────┴─────────┼─────────────────────┘
//!                          └──────────────────────── Destroy ─┘
//! ```
//! The happy path: `Requested` records `creating`; the engine builds; `Built` records `running` and arms
//! the time limit; `Destroy` records `destroyed` while the engine ends the machine. Facts found at
//! start-up (`Alive`, `Gone`) bring record and reality together again: the record follows reality, except
//! that what was recorded as ended is ended.
//!
//! Stopping with memory kept takes two steps each way: `Hibernate` is recorded as asked for, the engine acts, and
//! `Hibernated` or `HibernateFailed` says what came of it; `Resume`, `Resumed` and `ResumeFailed` likewise. Until the second step
//! the machine is what it was: one that could not be kept goes on running, one that could not be woken stays paused.

/// Where a machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Recorded; the engine may be building it.
    Creating,
    /// Ready for commands.
    Running,
    /// Stopped with its memory kept.
    Paused,
    /// Ended on purpose.
    Destroyed,
    /// Never started, or ended by itself.
    Error,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Creating,
        Self::Running,
        Self::Paused,
        Self::Destroyed,
        Self::Error,
    ];

    /// Whether nothing of the machine may be alive.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Destroyed | Self::Error)
    }

    /// The word in the record.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Destroyed => "destroyed",
            Self::Error => "error",
        }
    }

    /// Reads the word in the record.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }
}

/// Why a machine ended without being asked to; one word in the record and in events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Its process 1 ended.
    GuestEnded,
    /// It ran out of memory as a whole.
    OutOfMemory,
    /// The engine's helper died and took it along.
    EngineLost,
    /// It was gone when the server started.
    GoneAtStart,
    /// The server stopped while it was being created.
    InterruptedCreate,
    /// The engine could not build it.
    BuildFailed,
}

impl Loss {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GuestEnded => "guest_ended",
            Self::OutOfMemory => "out_of_memory",
            Self::EngineLost => "engine_lost",
            Self::GoneAtStart => "gone_at_start",
            Self::InterruptedCreate => "interrupted_create",
            Self::BuildFailed => "build_failed",
        }
    }
}

/// What is asked of a machine, or became known about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The engine built it and its guest answers.
    Built,
    /// The engine could not build it; nothing of it remains.
    BuildFailed,
    /// Somebody wants it ended.
    Destroy,
    /// Somebody changed its time limit.
    SetTimeLimit,
    /// Its time limit, with action destroy, is reached.
    TimeLimit,
    /// Its time limit, with action hibernate, is reached.
    TimeLimitHibernate,
    /// Its time limit is near.
    TimeLimitNear,
    /// Somebody wants it stopped with its memory kept.
    Hibernate,
    /// The engine has kept it; nothing of it runs.
    Hibernated,
    /// The engine could not keep it; it runs as before.
    HibernateFailed,
    /// Somebody wants a paused one to go on, or uses it.
    Resume,
    /// It goes on.
    Resumed,
    /// It could not go on; what was kept is as before.
    ResumeFailed,
    /// The engine says that it ended by itself.
    Ended(Loss),
    /// At start-up: the engine keeps it alive and its guest answers.
    Alive,
    /// At start-up: the engine does not know it, or its guest does not answer.
    Gone,
}

/// What the owner does once the new state is on disk; ending the machine it does at the same time. All of it is
/// harmless when repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start counting the time limit from now.
    StartClock,
    /// Count the recorded time limit on.
    KeepClock,
    /// Count the whole time limit again, from now.
    RestartClock,
    /// Count no more.
    StopClock,
    /// Have the engine stop it and keep its memory.
    Hibernate,
    /// Have the engine let it go on.
    Resume,
    /// Have the engine end whatever is left.
    EndMachine,
}

/// Who caused a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A caller of the API.
    User,
    /// The platform itself.
    System,
    /// The comparison of record and reality.
    Reconcile,
}

/// What the event log says about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `create`, `destroy`, `timeout_updated`, `timeout_expired`, `hibernate`, `resume_from_snapshot` or `reconcile`.
    pub operation: &'static str,
    /// `requested`, `succeeded` or `failed`.
    pub status: &'static str,
    /// Who caused it.
    pub actor: Actor,
    /// Why, if the operation does not say it.
    pub reason: Option<&'static str>,
}

/// A step that is right to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The state to record.
    pub state: State,
    /// To record in the same transaction.
    pub events: Vec<Event>,
    /// To do afterwards.
    pub actions: Vec<Action>,
    /// Why the state is `error`, when this step makes it so.
    pub loss: Option<Loss>,
}

/// The input makes no sense in that state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where the machine stands.
    pub state: State,
}

const fn event(operation: &'static str, status: &'static str, actor: Actor) -> Event {
    Event {
        operation,
        status,
        actor,
        reason: None,
    }
}

/// The event of a machine that was just recorded as `creating`.
pub const REQUESTED: Event = event("create", "requested", Actor::User);
/// The event after the engine ended a machine that was recorded as destroyed.
pub const DESTROYED: Event = event("destroy", "succeeded", Actor::System);

/// Decides. Calls with the same arguments give the same answer.
///
/// # Errors
/// [`Refused`] when the input makes no sense in that state; nothing changes then.
pub fn step(state: State, input: Input) -> Result<Step, Refused> {
    use State::{Creating, Destroyed, Error, Paused, Running};
    let to = |state, events: &[Event], actions: &[Action]| {
        Ok(Step {
            state,
            events: events.to_vec(),
            actions: actions.to_vec(),
            loss: None,
        })
    };
    let lost = |operation, actor, loss: Loss| {
        Ok(Step {
            state: Error,
            events: vec![Event {
                reason: Some(loss.as_str()),
                ..event(operation, "failed", actor)
            }],
            actions: vec![Action::EndMachine],
            loss: Some(loss),
        })
    };
    match (state, input) {
        (Creating, Input::Built) => to(
            Running,
            &[event("create", "succeeded", Actor::System)],
            &[Action::StartClock],
        ),
        (Creating, Input::BuildFailed) => lost("create", Actor::System, Loss::BuildFailed),
        (Creating, Input::Ended(loss)) => lost("create", Actor::System, loss),
        // The server died between building and recording: the machine is whole, so keep it.
        (Creating, Input::Alive) => to(
            Running,
            &[Event {
                reason: Some("adopted_at_start"),
                ..event("create", "succeeded", Actor::Reconcile)
            }],
            &[Action::StartClock],
        ),
        (Creating, Input::Gone) => lost("create", Actor::Reconcile, Loss::InterruptedCreate),

        (Running, Input::Alive) => to(Running, &[], &[Action::KeepClock]),
        (Running, Input::Gone) => lost("reconcile", Actor::Reconcile, Loss::GoneAtStart),
        (Running, Input::Ended(loss)) => lost("reconcile", Actor::System, loss),
        (Running, Input::TimeLimit) => to(
            Destroyed,
            &[
                event("timeout_expired", "succeeded", Actor::System),
                Event {
                    reason: Some("timeout"),
                    ..event("destroy", "requested", Actor::System)
                },
            ],
            &[Action::EndMachine],
        ),
        (Running, Input::SetTimeLimit) => to(
            Running,
            &[event("timeout_updated", "succeeded", Actor::User)],
            &[Action::KeepClock],
        ),
        // Said before anything is done to what runs.
        (Running, Input::TimeLimitNear) => to(
            Running,
            &[Event {
                reason: Some("near"),
                ..event("timeout_expired", "requested", Actor::System)
            }],
            &[],
        ),
        (Running, Input::TimeLimitHibernate) => to(
            Running,
            &[
                event("timeout_expired", "succeeded", Actor::System),
                Event {
                    reason: Some("timeout"),
                    ..event("hibernate", "requested", Actor::System)
                },
            ],
            &[Action::Hibernate],
        ),
        (Running, Input::Hibernate) => to(
            Running,
            &[event("hibernate", "requested", Actor::User)],
            &[Action::Hibernate],
        ),
        (Running, Input::Hibernated) => to(
            Paused,
            &[event("hibernate", "succeeded", Actor::System)],
            &[Action::StopClock],
        ),
        (Running, Input::HibernateFailed) => to(
            Running,
            &[event("hibernate", "failed", Actor::System)],
            &[Action::KeepClock],
        ),
        (Paused, Input::Resume) => to(
            Paused,
            &[event("resume_from_snapshot", "requested", Actor::User)],
            &[Action::Resume],
        ),
        (Paused, Input::Resumed) => to(
            Running,
            &[event("resume_from_snapshot", "succeeded", Actor::System)],
            &[Action::RestartClock],
        ),
        (Paused, Input::ResumeFailed) => to(
            Paused,
            &[event("resume_from_snapshot", "failed", Actor::System)],
            &[],
        ),
        // The server died between waking it and recording that: it runs, so let it.
        (Paused, Input::Alive) => to(
            Running,
            &[Event {
                reason: Some("adopted_at_start"),
                ..event("resume_from_snapshot", "succeeded", Actor::Reconcile)
            }],
            &[Action::RestartClock],
        ),
        // Its memory was on the host, and is no more.
        (Paused, Input::Gone) => lost("reconcile", Actor::Reconcile, Loss::GoneAtStart),
        (Paused, Input::Ended(loss)) => lost("reconcile", Actor::System, loss),
        // Only the policy: the clock starts when it runs again.
        (Paused, Input::SetTimeLimit) => to(
            Paused,
            &[event("timeout_updated", "succeeded", Actor::User)],
            &[],
        ),
        (Creating | Running | Paused | Error, Input::Destroy) => to(
            Destroyed,
            &[event("destroy", "requested", Actor::User)],
            &[Action::EndMachine],
        ),
        // Asked twice: fine, and nothing more happens.
        (Destroyed, Input::Destroy) => to(Destroyed, &[], &[]),
        (Destroyed | Error, Input::Alive) => to(
            state,
            &[Event {
                reason: Some("alive_after_end"),
                ..event("reconcile", "succeeded", Actor::Reconcile)
            }],
            &[Action::EndMachine],
        ),
        // The end of what was ended already is no news.
        (
            Destroyed | Error,
            Input::Ended(_)
            | Input::Gone
            | Input::TimeLimit
            | Input::TimeLimitHibernate
            | Input::TimeLimitNear,
        ) => to(state, &[], &[]),
        // What was kept or woken of one that was ended meanwhile is ended.
        (Destroyed | Error, Input::Hibernated | Input::Resumed) => {
            to(state, &[], &[Action::EndMachine])
        }
        // A build that was overtaken by a destroy: what was built is ended.
        (Destroyed | Error, Input::Built) => to(state, &[], &[Action::EndMachine]),
        (Destroyed | Error, Input::BuildFailed) => to(state, &[], &[]),
        (_, _) => Err(Refused { state }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inputs() -> impl Strategy<Value = Input> {
        let loss = prop_oneof![
            Just(Loss::GuestEnded),
            Just(Loss::OutOfMemory),
            Just(Loss::EngineLost)
        ];
        prop_oneof![
            Just(Input::Built),
            Just(Input::BuildFailed),
            Just(Input::Destroy),
            Just(Input::SetTimeLimit),
            Just(Input::TimeLimit),
            Just(Input::TimeLimitHibernate),
            Just(Input::TimeLimitNear),
            Just(Input::Hibernate),
            Just(Input::Hibernated),
            Just(Input::HibernateFailed),
            Just(Input::Resume),
            Just(Input::Resumed),
            Just(Input::ResumeFailed),
            loss.prop_map(Input::Ended),
            Just(Input::Alive),
            Just(Input::Gone),
        ]
    }

    proptest! {
        #[test]
        fn every_life_keeps_the_rules(story in proptest::collection::vec(inputs(), 0..20)) {
            let mut state = State::Creating;
            for input in story {
                let Ok(step) = step(state, input) else { continue };
                // What ended stays ended; only an explicit destroy moves `error` on.
                if state.has_ended() {
                    prop_assert!(step.state.has_ended());
                    prop_assert!(state != State::Destroyed || step.state == State::Destroyed);
                }
                // Every change of state is in the log, and `error` always says why.
                prop_assert!(step.state == state || !step.events.is_empty());
                prop_assert_eq!(
                    step.loss.is_some(),
                    step.state == State::Error && state != State::Error
                );
                // Whoever leaves life is ended for real, and no clock runs for the dead.
                if step.state.has_ended() && !state.has_ended() {
                    prop_assert_eq!(&step.actions[..], &[Action::EndMachine]);
                }
                // A time limit runs for what runs, and for nothing else.
                let counts = step.actions.iter().any(|a| matches!(a, Action::StartClock | Action::KeepClock | Action::RestartClock));
                prop_assert!(!counts || step.state == State::Running);
                prop_assert_eq!(
                    step.actions.contains(&Action::StopClock),
                    step.state == State::Paused && state != State::Paused
                );
                // Nothing is acted on that is not in the log.
                let acts = step.actions.iter().any(|a| matches!(a, Action::Hibernate | Action::Resume));
                prop_assert!(!acts || step.events.iter().any(|e| e.status == "requested"));
                state = step.state;
            }
        }

        #[test]
        fn destroy_always_works_and_is_harmless_twice(story in proptest::collection::vec(inputs(), 0..20)) {
            let mut state = State::Creating;
            for input in story {
                state = step(state, input).map_or(state, |s| s.state);
            }
            let once = step(state, Input::Destroy);
            prop_assert_eq!(once.as_ref().map(|s| s.state), Ok(State::Destroyed));
            let twice = step(State::Destroyed, Input::Destroy);
            prop_assert!(twice.is_ok_and(|s| s.events.is_empty() && s.actions.is_empty()));
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
