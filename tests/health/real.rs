//! Real memcacheds that nobody asks anything, and scripted ones for what a real one won't do.

use crate::common::farm::Farm;
use crate::common::time::pause_of;
use crate::common::{Fake, FakeLink, Magent, Memcached, wait_for};
use std::time::{Duration, Instant};

/// Nothing of this takes longer on a busy machine: silence, a timeout, and time to find a processor.
const SOON: Duration = Duration::from_secs(5);

const QUICK: [&str; 8] = [
    "--probe",
    "100",
    "--timeout",
    "300",
    "--connect-timeout",
    "300",
    "--retry",
    "50",
];

/// One memcached, known to be up over a link that nobody uses.
fn idle() -> (Magent, Memcached) {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &QUICK);
    server.wait_connections(1);
    (magent, server)
}

fn number(magent: &Magent, name: &str, field: &str) -> u64 {
    magent.server(name)[field].parse().expect("a number")
}

#[track_caller]
fn wait_down(magent: &Magent, name: &str, why: &str) {
    let begin = Instant::now();
    magent.wait_state(name, "down");
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let error = magent.server(name)["last_error"].clone();
    assert!(error.ends_with(why), "{error}");
    let pools = magent.client().stats("stats pools\r\n");
    assert_eq!(pools["default:primaries_up"], "0");
}

#[test]
fn a_killed_server_is_down_and_back_though_nobody_asks() {
    let (magent, mut server) = idle();
    server.kill();
    wait_down(&magent, &server.name, "connection refused");
    server.restart();
    magent.wait_state(&server.name, "up");
    assert_eq!(number(&magent, &server.name, "requests"), 0);
}

#[test]
fn a_stopped_server_is_down_and_back_though_nobody_asks() {
    let (magent, server) = idle();
    for _ in 0..3 {
        server.stop();
        wait_down(&magent, &server.name, "timed out");
        server.cont();
        magent.wait_state(&server.name, "up");
    }
    assert_eq!(number(&magent, &server.name, "restarts"), 0);
    assert_eq!(number(&magent, &server.name, "timeouts"), 0);
}

/// Old enough that its next life begins later than this one, as `uptime` tells it.
fn wait_old(server: &Memcached) {
    wait_for("it to be some seconds old", || {
        (server.stat("uptime") >= 6).then_some(())
    });
}

#[test]
fn an_idle_restart_is_seen_once_for_all_links() {
    let farm = Farm::of(
        vec![Memcached::start()],
        vec![Memcached::start()],
        &["--probe", "100", "-i", "3"],
    );
    let Farm {
        magent,
        mut primaries,
        mut backups,
    } = farm;
    let mut client = magent.client();
    // Of any key, so of every link.
    let use_all = |client: &mut crate::common::Client| {
        for i in 0..20 {
            client.set(&format!("k{i}"), "x");
        }
    };
    use_all(&mut client);
    for server in [&mut primaries[0], &mut backups[0]] {
        wait_old(server);
        server.restart();
        let name = server.name.clone();
        wait_for("the restart to be seen", || {
            (number(&magent, &name, "restarts") == 1).then_some(())
        });
        use_all(&mut client);
        server.wait_connections(3);
        assert_eq!(number(&magent, &name, "restarts"), 1);
        let line = format!("{name}: has restarted");
        let said = wait_for("its line in the log", || {
            let log = magent.log();
            log.contains(&line).then_some(log)
        });
        assert_eq!(said.matches(&line).count(), 1, "{said}");
    }
}

/// What was stopped for longer than it had lived has not restarted when it goes on.
#[test]
fn a_server_that_wakes_has_not_restarted() {
    let (magent, server) = idle();
    server.stop();
    wait_down(&magent, &server.name, "timed out");
    pause_of(Duration::from_secs(8));
    server.cont();
    magent.wait_state(&server.name, "up");
    assert_eq!(number(&magent, &server.name, "restarts"), 0);
}

/// A magent whose one server does this with each link after the handshake.
fn before(script: impl Fn(&mut FakeLink) + Send + Sync + 'static) -> (Magent, Fake) {
    let fake = Fake::start(script);
    let magent = Magent::farm(&[&fake.name], &[], &QUICK);
    (magent, fake)
}

#[test]
fn half_an_answer_to_a_probe_is_none() {
    for half in ["V", "VERSION 1.6.18", "VERSION 1.6.18\r"] {
        let (magent, fake) = before(move |link| {
            link.line();
            link.send(half);
            link.silence();
        });
        // It greets well, so it is up again before it is found out again.
        wait_for("it to be seen", || {
            let log = magent.log();
            log.contains("down: timed out").then_some(())
        });
        assert_eq!(number(&magent, &fake.name, "requests"), 0);
    }
}

/// A server that greets well and speaks nonsense afterwards is not used for long.
#[test]
fn nonsense_for_a_probe_takes_it_down() {
    let (magent, fake) = before(|link| {
        link.line();
        link.send("nonsense\r\n");
        link.silence();
    });
    wait_for("it to be seen", || {
        let log = magent.log();
        log.contains("down: connection lost").then_some(())
    });
    assert!(fake.links() >= 2);
}

#[test]
fn each_probe_may_cost_the_link() {
    let (magent, fake) = before(|link| {
        link.line();
    });
    wait_for("some links", || (fake.links() > 10).then_some(()));
    assert_eq!(magent.server(&fake.name)["state"], "up");
    assert_eq!(magent.server(&fake.name)["last_error"], "none");
}

/// Nothing is counted or done in between; and a loop that spun would be seen.
#[test]
fn idleness_costs_next_to_nothing() {
    let (magent, fake) = before(|link| while link.request().is_some() {});
    let seen = |n: usize| {
        wait_for("probes", || (fake.probes() >= n).then_some(()));
        (magent.stat("polls"), fake.probes())
    };
    let (polls, probes) = seen(5);
    let (more_polls, more_probes) = seen(probes + 20);
    let each = (more_polls - polls) / (more_probes - probes) as u64;
    assert!(each <= 8, "{each} turns for each probe");
    assert_eq!(fake.requests(), Vec::<Vec<u8>>::new());
    assert_eq!(fake.links(), 1);
}
