//! Programs that cannot take over: nothing changes, and the log says why.

use super::common::{Client, Magent, Memcached, wait_for};
use super::{ANOTHER, Farm};
use nix::sys::signal::Signal;
use std::fs;
use std::time::{Duration, Instant};

/// What stands in the program's place, and what the log says then.
const REFUSED: &[(&str, &str)] = &[
    // It does not run.
    (
        "printf 'no program' > \"$NEW\"; chmod 755 \"$NEW\"",
        "Exec format error",
    ),
    (
        "cp \"$REAL\" \"$NEW\"; chmod 644 \"$NEW\"",
        "Permission denied",
    ),
    // It does not know the state.
    (
        "cp /bin/true \"$NEW\"",
        "it did not say that it knows the state",
    ),
    ("cp /bin/echo \"$NEW\"", "--try-state "),
    (
        "echo '#!/bin/sh\necho magent: the state has format 7, this program knows 8\nexit 1' > \"$NEW\"; chmod 755 \"$NEW\"",
        "the state has format 7, this program knows 8",
    ),
    // It crashes in the middle.
    (
        "echo '#!/bin/sh\nhead -c 1000 /proc/self/fd/$2 > /dev/null; kill -SEGV $$' > \"$NEW\"; chmod 755 \"$NEW\"",
        "signal 11 ended it while it was tried out",
    ),
    (
        "echo '#!/bin/sh\necho magent: the state is good\nkill -ABRT $$' > \"$NEW\"; chmod 755 \"$NEW\"",
        "signal 6 ended it while it was tried out",
    ),
    // It knows other options.
    (
        "printf '#!/bin/sh\na=$1 b=$2; shift 2; exec %s $a $b --no-such-option \"$@\"' \"$REAL\" > \"$NEW\"; chmod 755 \"$NEW\"",
        "--no-such-option",
    ),
    (
        "printf '#!/bin/sh\na=$1 b=$2; shift 2; exec %s $a $b \"$@\" -s 127.0.0.1:2' \"$REAL\" > \"$NEW\"; chmod 755 \"$NEW\"",
        "listeners, servers or their order are others than those in force",
    ),
];

#[test]
fn nothing_changes_for_a_program_that_cannot_take_over() {
    let farm = Farm::new(1, 1, &[]);
    let (magent, mut client) = (&farm.magent, farm.magent.client());
    client.set("a", "1");
    for (script, why) in REFUSED {
        client.send("get a\r\nge");
        magent.replace_program(script);
        let before = magent.log().len();
        assert!(!magent.upgrade(), "{script}");
        let log = magent.log().split_off(before);
        let line = format!("{}/magent does not take over: ", magent.dir().display());
        assert!(log.contains(&line) && log.contains(why), "{script}: {log}");
        client.expect("VALUE a 0 1\r\n1\r\nEND\r\n");
        client.send("t a\r\n").expect("VALUE a 0 1\r\n1\r\nEND\r\n");
    }
    fs::remove_file(magent.dir().join("magent")).expect("its program");
    assert!(!magent.upgrade());
    assert!(magent.log().contains("/magent: No such file or directory"));
    // And one that can.
    magent.replace_program(ANOTHER);
    assert!(magent.upgrade());
    client.ask("get a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n");
    let children = format!("/proc/{0}/task/{0}/children", magent.pid());
    let children = fs::read_to_string(children).expect("its children");
    assert_eq!(children, "", "nothing is left of the trials");
}

#[test]
fn a_program_that_hangs_is_given_up_while_clients_are_served() {
    let farm = Farm::new(1, 0, &[]);
    let mut client = farm.magent.client();
    client.set("a", "1");
    let hang = "printf '#!/bin/sh\nexec sleep 60' > \"$NEW\"; chmod 755 \"$NEW\"";
    farm.magent.replace_program(hang);
    let begun = Instant::now();
    farm.magent.signal(Signal::SIGUSR2);
    wait_for("it to be given up", || {
        client.ask("get a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n");
        farm.magent
            .log()
            .contains("it takes longer than 5s")
            .then_some(())
    });
    assert!((4..10).contains(&begun.elapsed().as_secs()));
    farm.change();
}

#[test]
fn a_file_that_is_replaced_while_it_is_tried_out_does_not_take_over() {
    let farm = Farm::new(1, 0, &[]);
    let slow = "printf '#!/bin/sh\nwhile ! [ -e %s ]; do :; done; exec %s \"$@\"' \
                \"${NEW%new}go\" \"$REAL\" > \"$NEW\"; chmod 755 \"$NEW\"";
    farm.magent.replace_program(slow);
    let program = farm.magent.dir().join("magent");
    let before = fs::metadata(&program).expect("its program");
    farm.magent.signal(Signal::SIGUSR2);
    let children = format!("/proc/{0}/task/{0}/children", farm.magent.pid());
    wait_for("it to be tried out", || {
        let children = fs::read_to_string(&children).ok()?;
        let child = children.split_whitespace().next()?;
        let line = fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
        line.starts_with("/bin/sh").then_some(())
    });
    farm.magent.replace_program(ANOTHER);
    fs::write(farm.magent.dir().join("go"), "").expect("a file");
    wait_for("a line in the log", || {
        farm.magent.log().contains("it was replaced").then_some(())
    });
    assert_ne!(fs::metadata(&program).expect("it").len(), before.len());
    farm.change();
}

#[test]
fn term_in_the_middle_stops_it() {
    let mut farm = Farm::new(1, 0, &[]);
    let hang = "printf '#!/bin/sh\nexec sleep 60' > \"$NEW\"; chmod 755 \"$NEW\"";
    farm.magent.replace_program(hang);
    farm.magent.signal(Signal::SIGUSR2);
    let mut client: Client = farm.magent.client();
    client.ask("get a\r\n", "END\r\n");
    let begun = Instant::now();
    assert!(farm.magent.terminate().success());
    assert!(begun.elapsed() < Duration::from_secs(4));
    client.read_to_end();
}

/// Where the keys were is not handed over.
#[test]
fn while_keys_move_after_a_reload_the_program_stays() {
    let servers = [Memcached::start(), Memcached::start()];
    let pool = |names: &[&str], warm: u32| {
        let list: String = names.iter().map(|n| format!("  - {n}:1\n")).collect();
        format!("a:\n  listen: 127.0.0.1:PORT\n  warm: {warm}\n  servers:\n{list}")
    };
    let names = servers.each_ref().map(|s| &s.name[..]);
    let magent = Magent::with_file(&pool(&names[..1], 3600));
    assert!(magent.reload(&pool(&names, 3600)));
    assert!(!magent.upgrade());
    let log = magent.log();
    assert!(log.contains("keys of pool a move since a reload"), "{log}");
    // A shorter time ends the move, and then it goes.
    assert!(magent.reload(&pool(&names, 1)));
    wait_for("the end of the move", || magent.upgrade().then_some(()));
}
