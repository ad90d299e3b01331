//! Tells systemd about the service, in its own small protocol: one datagram for each change.

use super::process::monotonic;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// What systemd is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It serves (again).
    Ready,
    /// It reads its configuration again; [`State::Ready`] follows.
    Reloading,
    /// It was asked to stop.
    Stopping,
}

/// How long systemd may take to take a line.
const NOTIFY_PATIENCE: Duration = Duration::from_secs(1);

/// Tells systemd, if it asked to be told (`NOTIFY_SOCKET`); `status` is what `systemctl status` shows.
///
/// # Errors
/// What the system says; a service that can't report may be stopped by systemd, so log it.
pub fn notify(state: State, status: &str) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(socket) if !socket.is_empty() => notify_at(&socket, state, status),
        _ => Ok(()),
    }
}

fn notify_at(socket: &OsStr, state: State, status: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let mut text = match state {
        State::Ready => "READY=1".to_string(),
        // The time is what Type=notify-reload wants, to tell this reload from an older one.
        State::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic() / 1000),
        State::Stopping => "STOPPING=1".to_string(),
    };
    text.push_str("\nSTATUS=");
    // A line end would begin another assignment.
    text.extend(status.chars().map(|c| if c.is_control() { '?' } else { c }));
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(NOTIFY_PATIENCE))?;
    loop {
        match socket.send_to_addr(text.as_bytes(), &address) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            sent => return sent.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told_at_paths_and_abstract_names() {
        let name = format!("magent-test-{}", std::process::id());
        let abstract_end =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let path = std::env::temp_dir().join(&name);
        let path_end = UnixDatagram::bind(&path).unwrap();
        let receive = |socket: &UnixDatagram| {
            let mut bytes = [0; 100];
            let n = socket.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..n]).into_owned()
        };
        notify_at(OsStr::new(&format!("@{name}")), State::Ready, "a\nb").unwrap();
        assert_eq!(receive(&abstract_end), "READY=1\nSTATUS=a?b");
        notify_at(path.as_os_str(), State::Reloading, "c").unwrap();
        let said = receive(&path_end);
        assert!(said.starts_with("RELOADING=1\nMONOTONIC_USEC=") && said.ends_with("\nSTATUS=c"));
        notify_at(path.as_os_str(), State::Stopping, "").unwrap();
        assert_eq!(receive(&path_end), "STOPPING=1\nSTATUS=");
        std::fs::remove_file(&path).unwrap();
        assert!(notify_at(path.as_os_str(), State::Ready, "").is_err());
    }
}
