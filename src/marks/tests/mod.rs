//! The rules in all orders in which things can happen, for few magents, writes and faults. Each is left
//! out once: then something must be found. `MAGENT_MARKS_LONG=1` looks at many more states.

mod backup;
mod explore;
mod parts;
mod primary;

use explore::{Model, Outcome, explore};
use primary::Kinds;

/// More states than any run needs in which something is found.
const MANY: usize = 10_000_000;

/// Two magents, two writes, two faults of all kinds.
const WORLD: primary::World<2> = primary::World {
    writes: 2,
    faults: 2,
    kinds: Kinds::ALL,
    without: None,
    vote: false,
    announces_again: true,
    unknown_is_silent: true,
};

const BACKUP: backup::World<2> = backup::World {
    writes: 2,
    faults: 2,
    without: None,
};

/// Tens of millions of states: minutes, and gigabytes of memory.
fn is_long() -> bool {
    std::env::var_os("MAGENT_MARKS_LONG").is_some()
}

/// All states are looked at, nothing is wrong in any, and a way home leads from each.
#[track_caller]
fn holds<M: Model + std::fmt::Debug>(model: &M, home: bool) {
    match explore(model, usize::MAX, home) {
        Outcome::Whole {
            states,
            homeless: None,
        } => println!("{states} states: {model:?}"),
        found => panic!("{model:?}: {found:?}"),
    }
}

/// Something is found, and it is this.
#[track_caller]
fn breaks<M: Model + std::fmt::Debug>(model: &M, expected: &str) {
    match explore(model, MANY, false) {
        Outcome::Broken {
            promise,
            states,
            trace,
        } if promise == expected => println!("{states} states, {promise}: {trace}"),
        found => panic!("{model:?}: {found:?}"),
    }
}

#[test]
fn two_magents_read_nothing_old_and_find_home() {
    holds(&WORLD, true);
    if is_long() {
        // Written out, since these are the ones that take long.
        holds(&primary::World { writes: 3, ..WORLD }, true);
        holds(&primary::World { faults: 3, ..WORLD }, false);
    }
}

#[test]
fn they_find_home_when_they_wait_for_each_other() {
    let world = primary::World {
        vote: true,
        faults: if is_long() { 2 } else { 1 },
        ..WORLD
    };
    holds(&world, true);
}

/// Who finds its line gone announces again. Without that nothing old is read either: it is needed
/// only where the list was lost.
#[test]
fn to_announce_again_is_peace_and_not_truth() {
    let world = primary::World {
        announces_again: false,
        faults: if is_long() { 2 } else { 1 },
        ..WORLD
    };
    holds(&world, true);
}

/// What is under way at the primary when others are seen to be listed keeps its place there.
#[test]
fn answers_are_held_while_others_are_listed() {
    let cut = Kinds {
        cut: true,
        flying: true,
        ..primary::NO_KINDS
    };
    let many = Kinds {
        restart: true,
        crash: true,
        late: true,
        ..cut
    };
    let (kinds, faults) = if is_long() { (many, 2) } else { (cut, 1) };
    let world = primary::World {
        faults,
        kinds,
        ..WORLD
    };
    holds(&world, true);
}

/// The only one that is listed, since it has taken over the line of one that died: what that wrote to
/// the partner is newer than the late write.
#[test]
fn a_late_answer_is_void_where_a_debt_was_taken_over() {
    use super::primary::{Debt, Listed, Primary};
    let mine = Listed {
        mine: true,
        others: false,
    };
    let late = |takes_over| {
        let mut primary = Primary::new(true);
        primary.looked(Listed {
            mine: false,
            others: true,
        });
        primary.write_is_late();
        primary.late_answer();
        if takes_over {
            primary.taken_over();
        }
        primary.announced(mine);
        primary
    };
    assert!(late(false).may_withdraw());
    let mut primary = late(true);
    assert!(!primary.may_withdraw() && !primary.leave());
    assert_eq!(primary.debt(), Debt::Flush { is_due: false });
}

/// A magent that is alone may write lines about servers that never answered it.
#[test]
fn to_be_silent_about_the_unknown_is_peace_and_not_truth() {
    let few = Kinds {
        slow: false,
        early: false,
        unsure: false,
        late: false,
        stall: false,
        ..Kinds::ALL
    };
    let world = primary::World {
        unknown_is_silent: false,
        kinds: if is_long() { Kinds::ALL } else { few },
        ..WORLD
    };
    holds(&world, true);
}

#[test]
fn three_magents() {
    let world = primary::World::<3> {
        writes: if is_long() { 2 } else { 1 },
        faults: 1,
        kinds: Kinds::ALL,
        without: None,
        vote: true,
        announces_again: true,
        unknown_is_silent: true,
    };
    holds(&world, true);
}

#[test]
fn each_rule_is_needed() {
    for rule in primary::RULES {
        let kinds = rule.is_shown_by();
        let world = primary::World {
            without: Some(rule),
            // A late write, a death, and a lost link.
            faults: if rule == primary::Rule::UnsureOver {
                3
            } else {
                2
            },
            kinds,
            ..WORLD
        };
        let expected = match rule {
            primary::Rule::Gone => "a server is flushed though nobody died",
            _ => "an old value was read",
        };
        print!("{rule:?}: ");
        breaks(&world, expected);
    }
}

#[test]
fn a_backup_that_is_not_listed_holds_no_old_copy() {
    holds(&BACKUP, true);
    if is_long() {
        holds(
            &backup::World {
                writes: 3,
                ..BACKUP
            },
            true,
        );
        let world = backup::World::<3> {
            writes: 2,
            faults: 1,
            without: None,
        };
        holds(&world, true);
    }
}

#[test]
fn each_rule_of_backups_is_needed() {
    for rule in backup::RULES {
        let world = backup::World {
            writes: 3,
            without: Some(rule),
            ..BACKUP
        };
        print!("{rule:?}: ");
        breaks(&world, "an old copy stands unlisted");
    }
}

/// A line of three rooms, and a fourth that only a fault leads to and nothing out of.
struct Rooms {
    has_exit: bool,
}

impl Model for Rooms {
    type State = u64;

    fn start(&self) -> u64 {
        0
    }

    fn sorted(&self, state: &u64) -> (u64, explore::Key) {
        (*state, [*state, 0, 0, 0])
    }

    fn steps(&self, at: &u64, steps: &mut explore::Steps<u64>) -> Result<(), &'static str> {
        match at {
            0 => steps.add("east", 1),
            1 => {
                steps.add("east", 2);
                steps.add("west", 0);
                steps.add("FALL", 3);
            }
            2 => steps.add("west", 1),
            3 if self.has_exit => steps.add("up", 2),
            3 => steps.add("UP", 2),
            _ => return Err("four rooms"),
        }
        Ok(())
    }

    fn is_home(&self, at: &u64) -> bool {
        *at == 0
    }
}

#[test]
fn a_state_without_a_way_home_is_found() {
    let find = |has_exit| match explore(&Rooms { has_exit }, 100, true) {
        Outcome::Whole { states, homeless } => (states, homeless),
        found => panic!("{found:?}"),
    };
    assert_eq!(find(true), (4, None));
    assert_eq!(find(false), (4, Some("east0 FALL0".to_string())));
}
