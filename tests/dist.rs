//! What `dist/` holds, under the programs that read it. Not part of `cargo test`, since few machines have
//! them: `make interop` runs it.

mod common;

use common::process::{finish, is_root, own_uid, text};
use common::{Magent, TempDir, wait_for};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// Debian keeps it where users do not look.
fn logrotate() -> Command {
    let mut command = Command::new("logrotate");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin"));
    command
}

/// Rotates at once, as if it were time.
fn rotate(dir: &Path) {
    let mut command = logrotate();
    command.arg("--force").arg("--state").arg(dir.join("state"));
    command.arg(dir.join("magent.logrotate"));
    let output = finish(command);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(
        output.status.success() && said.is_empty(),
        "{}: {said}",
        output.status
    );
}

/// How often each request stands in the logs of a folder, compressed ones included.
fn requests(logs: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for file in fs::read_dir(logs).expect("the folder") {
        let mut zcat = Command::new("gzip");
        zcat.arg("-cdf").arg(file.expect("a file").path());
        for line in text(&finish(zcat).stdout).lines() {
            if let Some((_, request)) = line.split_once(" nobody <- touch ") {
                let key = request.split(' ').next().unwrap_or_default();
                *counts.entry(key.to_string()).or_default() += 1;
            }
        }
    }
    counts
}

#[test]
fn logrotate_rotates_the_log_of_a_magent_that_gave_up_root() {
    if let Err(e) = logrotate().arg("--version").output() {
        panic!("logrotate: {e}; this test needs it: apt-get install logrotate");
    }
    let dir = TempDir::new();
    let folder = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir(&path).expect("a folder");
        // Only its owner may make files in it, as in /var/log and /run.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        path
    };
    let (logs, run) = (folder("log"), folder("run"));
    let others = folder("run/magent");
    let text = include_str!("../dist/magent.logrotate")
        .replace("/var/log/", &format!("{}/", logs.display()))
        .replace("/run/magent", &format!("{}/magent", run.display()));
    fs::write(dir.path().join("magent.logrotate"), text).expect("its configuration");
    // A number that a crash has left, and that somebody else has now.
    let mut stranger = Command::new("cat");
    let mut stranger = stranger.stdin(Stdio::piped()).spawn().expect("cat");
    fs::write(others.join("old.pid"), format!("{}\n", stranger.id())).expect("a pid file");

    let (log, pid) = (logs.join("magent.log"), run.join("magent.pid"));
    let [log_text, pid_text] = [&log, &pid].map(|p| p.display().to_string());
    let mut options = vec!["-s", "127.0.0.1:1", "-vv", "-L", &log_text, "-P", &pid_text];
    let user = match is_root("-u") {
        true => {
            options.extend(["-u", "nobody"]);
            65534
        }
        false => own_uid(),
    };
    let magent = Magent::start(&options);
    let mut client = magent.client();
    let mut sent = 0;
    let mut say = || {
        client.ask_line(format!("touch key{sent} 1\r\n"));
        sent += 1;
    };
    for round in 0..3 {
        (0..20).for_each(|_| say());
        rotate(dir.path());
        let file = fs::metadata(&log).expect("a new log");
        assert_eq!(
            (file.uid(), file.mode() & 0o7777),
            (user, 0o640),
            "round {round}"
        );
        wait_for("requests in the new log", || {
            say();
            fs::read_to_string(&log)
                .ok()
                .filter(|l| l.contains("touch key"))
        });
    }
    // Each stands in one of them, the last two of which were compressed.
    let all: BTreeMap<String, usize> = (0..sent).map(|n| (format!("key{n}"), 1)).collect();
    assert_eq!(requests(&logs), all);
    let mut names: Vec<_> = fs::read_dir(&logs).expect("the logs").flatten().collect();
    names.sort_by_key(|n| n.file_name());
    let names: Vec<_> = names.iter().map(|n| n.file_name()).collect();
    assert_eq!(
        names,
        [
            "magent.log",
            "magent.log.1",
            "magent.log.2.gz",
            "magent.log.3.gz"
        ]
    );
    assert_eq!(
        stranger.try_wait().expect("its status"),
        None,
        "the stranger"
    );
    drop(stranger.stdin.take());
    assert!(stranger.wait().expect("its end").success());
}
