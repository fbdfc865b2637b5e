//! What a pool does next: a pure function of what it should be and what it has.
//!
//! ```text
//!  should be enabled? ── no ──▶ let all go
//!      │ yes
//!  of before (another build, another size) ──▶ let go: no request can have them
//!  fewer good ones than the target ──▶ make, never beyond max_ready
//!  too old ──▶ let go as others take their place; where there is no room for these, one at a time
//!  beyond max_ready ──▶ let go        beyond the target for too long ──▶ let go
//! ```

/// What a pool should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Whether it hands machines out.
    pub(super) is_enabled: bool,
    /// Machines that are kept ready.
    pub(super) min_ready: u32,
    /// The most that are ready or on their way.
    pub(super) max_ready: u32,
    /// Requests that wait for a machine.
    pub(super) waiting: u32,
    /// How long one beyond the target may wait, in microseconds.
    pub(super) idle: i64,
    /// How old one may become, in microseconds.
    pub(super) stale: i64,
    /// Whether machines can be made now.
    pub(super) can_make: bool,
}

impl Wanted {
    /// How many should be ready: more than the least while requests wait.
    pub(super) fn target(&self) -> u32 {
        match self.is_enabled {
            true => self
                .min_ready
                .saturating_add(self.waiting)
                .min(self.max_ready),
            false => 0,
        }
    }
}

/// A machine that a pool has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: String,
    /// Since when it is ready; `None` while it is on its way.
    pub(super) ready_at: Option<i64>,
    /// Whether it is what the pool makes now.
    pub(super) is_current: bool,
}

impl Seen {
    /// Whether it is older than it should be.
    pub(super) fn is_stale(&self, wanted: &Wanted, now: i64) -> bool {
        self.ready_at
            .is_some_and(|at| at.saturating_add(wanted.stale) <= now)
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// So many are to be made.
    pub(super) make: u32,
    /// These are to be ended.
    pub(super) release: Vec<String>,
}

pub(super) fn decide(wanted: &Wanted, seen: &[Seen], now: i64) -> Plan {
    let mut plan = Plan::default();
    if !wanted.is_enabled {
        plan.release = seen.iter().map(|one| one.id.clone()).collect();
        return plan;
    }
    let (current, old): (Vec<&Seen>, Vec<&Seen>) = seen.iter().partition(|one| one.is_current);
    plan.release = old.iter().map(|one| one.id.clone()).collect();
    let mut stale: Vec<&Seen> = Vec::new();
    let mut ready: Vec<&Seen> = Vec::new();
    let mut warming: Vec<&Seen> = Vec::new();
    for one in current {
        match one.ready_at {
            None => warming.push(one),
            Some(_) if one.is_stale(wanted, now) => stale.push(one),
            Some(_) => ready.push(one),
        }
    }
    // The oldest are let go first.
    stale.sort_by_key(|one| one.ready_at);
    ready.sort_by_key(|one| one.ready_at);
    let let_go = |plan: &mut Plan, from: &mut Vec<&Seen>, count: usize| {
        let gone = from.drain(..count.min(from.len()));
        plan.release.extend(gone.map(|one| one.id.clone()));
    };
    let (target, max) = (wanted.target() as usize, wanted.max_ready as usize);
    let surplus = |stale: &[&Seen], ready: &[&Seen], warming: &[&Seen], most: usize| {
        (stale.len() + ready.len() + warming.len()).saturating_sub(most)
    };
    for _ in 0..3 {
        let count = surplus(&stale, &ready, &warming, max);
        match count {
            0 => break,
            _ if !stale.is_empty() => let_go(&mut plan, &mut stale, count),
            _ if !warming.is_empty() => let_go(&mut plan, &mut warming, count),
            _ => let_go(&mut plan, &mut ready, count),
        }
    }
    // One that is ready and too old is still better than none.
    let count = (stale.len() + ready.len()).saturating_sub(target);
    let_go(&mut plan, &mut stale, count);
    let missing = target.saturating_sub(ready.len() + warming.len());
    let mut room = max.saturating_sub(stale.len() + ready.len() + warming.len());
    if wanted.can_make && missing > 0 && room == 0 && warming.is_empty() && !stale.is_empty() {
        let_go(&mut plan, &mut stale, 1);
        room = 1;
    }
    if wanted.can_make {
        plan.make = u32::try_from(missing.min(room)).unwrap_or(u32::MAX);
    }
    let beyond = ready.len().saturating_sub(target);
    let idle = ready
        .iter()
        .take_while(|one| {
            one.ready_at
                .is_some_and(|at| at.saturating_add(wanted.idle) <= now)
        })
        .count();
    let_go(&mut plan, &mut ready, beyond.min(idle));
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_000_000;

    fn wanted(min: u32, max: u32) -> Wanted {
        Wanted {
            is_enabled: true,
            min_ready: min,
            max_ready: max,
            waiting: 0,
            idle: 1000,
            stale: 10_000,
            can_make: true,
        }
    }

    fn one(id: u32, age: Option<i64>, is_current: bool) -> Seen {
        Seen {
            id: id.to_string(),
            ready_at: age.map(|age| NOW - age),
            is_current,
        }
    }

    fn ids(plan: &Plan) -> Vec<&str> {
        plan.release.iter().map(String::as_str).collect()
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_on_its_way_counts() {
        assert_eq!(decide(&wanted(3, 5), &[], NOW).make, 3);
        let seen = [one(1, Some(1), true), one(2, None, true)];
        assert_eq!(decide(&wanted(3, 5), &seen, NOW).make, 1);
        let blocked = Wanted {
            can_make: false,
            ..wanted(3, 5)
        };
        assert_eq!(decide(&blocked, &seen, NOW), Plan::default());
    }

    #[test]
    fn who_waits_gets_more_than_the_least_but_never_more_than_the_most() {
        let waited = Wanted {
            waiting: 9,
            ..wanted(0, 2)
        };
        assert_eq!(decide(&waited, &[], NOW).make, 2);
        assert_eq!(decide(&wanted(0, 2), &[], NOW).make, 0);
    }

    #[test]
    fn a_pool_that_is_not_enabled_lets_all_go() {
        let seen = [one(1, Some(1), true), one(2, None, true)];
        let off = Wanted {
            is_enabled: false,
            ..wanted(2, 2)
        };
        let plan = decide(&off, &seen, NOW);
        assert_eq!((plan.make, ids(&plan)), (0, vec!["1", "2"]));
    }

    #[test]
    fn those_of_before_go_at_once_and_others_are_made() {
        let seen = [
            one(1, Some(1), false),
            one(2, None, false),
            one(3, Some(1), true),
        ];
        let plan = decide(&wanted(2, 2), &seen, NOW);
        assert_eq!((plan.make, ids(&plan)), (1, vec!["1", "2"]));
    }

    #[test]
    fn old_ones_stay_until_others_have_taken_their_place() {
        let (a, b) = (one(1, Some(20_000), true), one(2, Some(30_000), true));
        // There is room: the new ones first.
        let plan = decide(&wanted(2, 4), &[a.clone(), b.clone()], NOW);
        assert_eq!((plan.make, ids(&plan)), (2, vec![]));
        let plan = decide(
            &wanted(2, 4),
            &[
                a.clone(),
                b.clone(),
                one(3, Some(1), true),
                one(4, None, true),
            ],
            NOW,
        );
        assert_eq!((plan.make, ids(&plan)), (0, vec!["2"]));
        // There is none: one at a time, the oldest first.
        let plan = decide(&wanted(2, 2), &[a.clone(), b], NOW);
        assert_eq!((plan.make, ids(&plan)), (1, vec!["2"]));
        let plan = decide(&wanted(2, 2), &[a, one(3, None, true)], NOW);
        assert_eq!((plan.make, ids(&plan)), (0, vec![]));
    }

    #[test]
    fn those_beyond_the_target_go_when_they_were_idle_for_long() {
        let seen = [
            one(1, Some(2000), true),
            one(2, Some(900), true),
            one(3, Some(3000), true),
        ];
        assert_eq!(ids(&decide(&wanted(1, 3), &seen, NOW)), vec!["3", "1"]);
        assert_eq!(ids(&decide(&wanted(2, 3), &seen, NOW)), vec!["3"]);
        assert_eq!(ids(&decide(&wanted(3, 3), &seen, NOW)), Vec::<&str>::new());
    }

    #[test]
    fn scaling_down_ends_what_is_on_its_way_first() {
        let seen = [
            one(1, Some(1), true),
            one(2, Some(2), true),
            one(3, None, true),
        ];
        assert_eq!(ids(&decide(&wanted(1, 2), &seen, NOW)), vec!["3"]);
        assert_eq!(ids(&decide(&wanted(1, 1), &seen, NOW)), vec!["3", "2"]);
    }

    prop_compose! {
        fn machines()(ages in proptest::collection::vec((proptest::option::of(0i64..40_000), any::<bool>()), 0..12)) -> Vec<Seen> {
            ages.into_iter()
                .enumerate()
                .map(|(id, (age, is_current))| one(u32::try_from(id).unwrap_or(0), age, is_current))
                .collect()
        }
    }

    proptest! {
        #[test]
        fn every_plan_keeps_the_rules(
            seen in machines(), min in 0u32..6, extra in 0u32..6, waiting in 0u32..8, can_make: bool, is_enabled: bool,
        ) {
            let wanted = Wanted { waiting, can_make, is_enabled, ..wanted(min, min + extra) };
            let plan = decide(&wanted, &seen, NOW);
            let left: Vec<&Seen> = seen.iter().filter(|one| !plan.release.contains(&one.id)).collect();
            let mut once = plan.release.clone();
            once.sort();
            once.dedup();
            prop_assert_eq!(once.len(), plan.release.len());
            prop_assert!(left.len() + plan.make as usize <= wanted.max_ready as usize || !is_enabled);
            prop_assert!(is_enabled || (left.is_empty() && plan.make == 0));
            prop_assert!(can_make || plan.make == 0);
            prop_assert!(left.iter().all(|one| one.is_current) );
            // Good ones are never let go below the target.
            let good = |all: &mut dyn Iterator<Item = &&Seen>| all.filter(|one| one.is_current && one.ready_at.is_some() && !one.is_stale(&wanted, NOW)).count();
            let before = good(&mut seen.iter().collect::<Vec<_>>().iter());
            let after = good(&mut left.iter());
            prop_assert!(after == before || after >= wanted.target() as usize);
        }

        #[test]
        fn every_pool_comes_to_rest_where_it_should_be(seen in machines(), min in 0u32..6, extra in 0u32..6) {
            let wanted = wanted(min, min + extra);
            let (mut seen, mut next) = (seen, 1000);
            for _ in 0..40 {
                let plan = decide(&wanted, &seen, NOW);
                if plan == Plan::default() && seen.iter().all(|one| one.ready_at.is_some()) {
                    break;
                }
                seen.retain(|one| !plan.release.contains(&one.id));
                seen.iter_mut().for_each(|one| { one.ready_at.get_or_insert(NOW); });
                for _ in 0..plan.make {
                    next += 1;
                    seen.push(one(next, None, true));
                }
            }
            prop_assert_eq!(decide(&wanted, &seen, NOW), Plan::default());
            let ready = seen.iter().filter(|one| !one.is_stale(&wanted, NOW)).count();
            prop_assert!(ready >= min as usize && ready <= (min + extra) as usize);
            prop_assert!(seen.iter().all(|one| one.is_current && !one.is_stale(&wanted, NOW)));
        }
    }
}
