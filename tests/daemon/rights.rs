//! `-u` and `-g`: who it becomes, for good.

use super::common::TempDir;
use super::{Daemon, is_root};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// Debian's `nobody` and `nogroup`, and `daemon`.
const NOBODY: u32 = 65534;
const DAEMON: u32 = 1;

fn four(id: u32) -> String {
    [
        id.to_string(),
        id.to_string(),
        id.to_string(),
        id.to_string(),
    ]
    .join(" ")
}

#[track_caller]
fn check(options: &[&str], uid: u32, gid: u32) {
    let daemon = Daemon::start(options);
    // Real, effective, saved and file system: there is no way back.
    assert_eq!(daemon.status("Uid"), four(uid));
    assert_eq!(daemon.status("Gid"), four(gid));
    let groups = daemon.status("Groups");
    assert!(groups.is_empty() || groups == gid.to_string(), "{groups}");
    for set in ["CapEff", "CapPrm"] {
        assert_eq!(daemon.status(set).trim_start_matches('0'), "", "{set}");
    }
    for name in ["pid", "log", "s"] {
        let file = fs::symlink_metadata(daemon.file(name)).unwrap();
        assert_eq!((file.uid(), file.gid()), (uid, gid), "{name}");
    }
    let version = daemon.client().ask_line("version\r\n");
    assert!(version.starts_with("VERSION"));
    // It can still reopen its log and remove its files.
    fs::rename(daemon.file("log"), daemon.file("old")).unwrap();
    daemon.signal(Signal::SIGHUP);
    super::wait_for("a new log", || daemon.file("log").exists().then_some(()));
    assert_eq!(fs::metadata(daemon.file("log")).unwrap().uid(), uid);
    daemon.terminate();
    assert!(!daemon.file("pid").exists() && !daemon.file("s").exists());
}

#[test]
fn it_becomes_who_it_was_told_to_be() {
    if !is_root("-u and -g") {
        return;
    }
    check(&["-u", "nobody"], NOBODY, NOBODY);
    check(&["-u", "65534"], NOBODY, NOBODY);
    check(&["-u", "nobody", "-g", "daemon"], NOBODY, DAEMON);
    check(&["-u", "daemon", "-g", "65534"], DAEMON, NOBODY);
    // A number that no user has needs its group said.
    check(&["-u", "4711", "-g", "4712"], 4711, 4712);
}

#[test]
fn root_stays_root_where_recipes_say_so() {
    if !is_root("-u root") {
        return;
    }
    let daemon = Daemon::start(&["-u", "root"]);
    assert_eq!(daemon.status("Uid"), four(0));
}

/// A pid file in a folder that `-u`'s user may not change: it names no process, and the log says why.
#[test]
fn what_cannot_be_removed_at_the_end_is_logged() {
    if !is_root("a folder that the daemon may not write to") {
        return;
    }
    let dir = TempDir::new();
    let daemon = Daemon::start_in(dir, &["-u", "nobody"]);
    fs::set_permissions(daemon.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    daemon.terminate();
    let log = daemon.log();
    let pid = fs::read_to_string(daemon.file("pid")).unwrap();
    assert_eq!(pid, "4194304\n");
    // The kernel never gives this number to anybody.
    let highest = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    assert!(highest.trim_end().parse::<u32>().unwrap() <= 4_194_304);
    assert!(daemon.file("s").exists());
    for name in ["pid", "s"] {
        let path = daemon.file(name);
        let told = |l: &str| l.contains(path.to_str().unwrap()) && l.contains("can't be removed");
        assert!(log.lines().any(told), "{name}: {log}");
    }
}
