use super::*;
use crate::config::ListenSpec;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn spec(address: Address) -> ListenSpec {
    ListenSpec {
        address,
        mode: 0o640,
        backlog: 16,
    }
}

fn any_port() -> ListenSpec {
    spec(Address::Tcp("127.0.0.1:0".parse().unwrap()))
}

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("magent-net-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir).unwrap();
    dir
}

fn soon<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited in vain");
        std::thread::yield_now();
    }
}

fn talk(listener: &Listener) {
    let mut here = connect(&listener.local().unwrap(), true).unwrap();
    let mut there = soon(|| listener.accept().ok());
    soon(|| here.connected().unwrap().then_some(()));
    let slices = [IoSlice::new(b"one "), IoSlice::new(b"two")];
    assert_eq!(here.write(&slices).unwrap(), 7);
    assert_eq!(here.write(&slices[..1]).unwrap(), 4);
    here.shutdown_write().unwrap();
    let (mut got, mut buf) = (Vec::new(), [0; 64]);
    while let n @ 1.. = soon(|| there.read(&mut buf).ok()) {
        got.extend_from_slice(&buf[..n]);
    }
    assert_eq!(got, b"one twoone ");
    let nothing = there.write(&[]).unwrap();
    assert_eq!(nothing, 0);
    assert_eq!(
        here.read(&mut buf).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
}

#[test]
fn bytes_over_tcp() {
    talk(&Listener::bind(&any_port(), None, false).unwrap());
}

#[test]
fn bytes_over_a_unix_socket() {
    let dir = folder("talk");
    let path = dir.join("s");
    let listener = Listener::bind(&spec(Address::Unix(path.clone())), None, false).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    talk(&listener);
    drop(listener);
    assert!(!path.exists());
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn a_refused_connect_says_so() {
    let listener = Listener::bind(&any_port(), None, false).unwrap();
    let address = listener.local().unwrap();
    drop(listener);
    let outcome = match connect(&address, false) {
        Err(e) => e,
        Ok(mut stream) => soon(|| match stream.connected() {
            Ok(true) => panic!("nobody listens"),
            Ok(false) => None,
            Err(e) => Some(e),
        }),
    };
    assert_eq!(outcome.kind(), ErrorKind::ConnectionRefused);
    let nowhere = Address::Unix("/nonexistent/socket".into());
    assert_eq!(
        connect(&nowhere, false).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn only_a_stale_socket_is_replaced() {
    let dir = folder("stale");
    let path = dir.join("s");
    let spec = spec(Address::Unix(path.clone()));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = Listener::bind(&spec, None, false).unwrap();
    let in_use = Listener::bind(&spec, None, false).err().unwrap();
    assert_eq!(in_use.kind(), ErrorKind::AddrInUse);
    // That one knocked to see whether anybody listens.
    drop(soon(|| listener.accept().ok()));
    talk(&listener);

    // A successor's file stays when we go.
    fs::remove_file(&path).unwrap();
    let successor = Listener::bind(&spec, None, false).unwrap();
    drop(listener);
    talk(&successor);
    drop(successor);

    fs::write(&path, "precious").unwrap();
    let no_socket = Listener::bind(&spec, None, false).err().unwrap();
    assert_eq!(sys::reason(&no_socket), "it exists and is not a socket");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn mode_and_backlog_change_in_place() {
    let dir = folder("adjust");
    let path = dir.join("s");
    let mut wanted = spec(Address::Unix(path.clone()));
    let mut listener = Listener::bind(&wanted, None, false).unwrap();
    (wanted.mode, wanted.backlog) = (0o600, 99);
    listener.adjust(&wanted).unwrap();
    assert_eq!(listener.spec(), &wanted);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    talk(&listener);

    // Another file by that name keeps its mode.
    fs::write(dir.join("precious"), "").unwrap();
    let before = fs::metadata(dir.join("precious")).unwrap().mode();
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(dir.join("precious"), &path).unwrap();
    wanted.mode = 0o777;
    let refused = listener.adjust(&wanted).unwrap_err();
    assert_eq!(sys::reason(&refused), "it was replaced");
    assert_eq!(fs::metadata(dir.join("precious")).unwrap().mode(), before);
    drop(listener);
    fs::remove_dir_all(&dir).unwrap();
}
