//! Processes of any program.

use super::DEADLINE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Instant;

/// Runs a command that must end soon.
#[track_caller]
pub fn finish(mut command: Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let pid = Pid::from_raw(child.id() as i32);
    let (done, over) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if over.recv_timeout(DEADLINE).is_err() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let begun = Instant::now();
    let output = child.wait_with_output().expect("its output");
    let _ = done.send(());
    let _ = watch.join();
    assert!(begun.elapsed() < DEADLINE, "{command:?} did not end");
    output
}

/// A line of `/proc/PID/status`, without its name; single spaces between its words.
#[track_caller]
pub fn status_line(pid: u32, name: &str) -> String {
    let all = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = all
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    let line = line.unwrap_or_else(|| panic!("no {name} in {all}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// True once a process has ended, whether or not somebody asked for its status.
pub fn is_gone(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit(") ")
            .next()
            .is_some_and(|s| s.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

pub fn own_uid() -> u32 {
    fs::metadata("/proc/self").expect("this process").uid()
}

/// Says what a test leaves out because it does not run as root.
pub fn is_root(left_out: &str) -> bool {
    let root = own_uid() == 0;
    if !root {
        eprintln!("not root, so this was not tested: {left_out}");
    }
    root
}

/// The program where every user can reach it. Copied by another process: while this one has the
/// copy open to write, a child that another thread starts has it too, and it can't be run.
pub fn public_copy(dir: &Path) -> PathBuf {
    let copy = dir.join("magent");
    let done = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_magent"))
        .arg(&copy)
        .status();
    assert!(done.expect("cp").success());
    copy
}
