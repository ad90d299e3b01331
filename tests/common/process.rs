//! Processes of any program.

use super::DEADLINE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
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
