//! Sockets as far as the standard library does not make them: listening with a backlog, options.

use super::check;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A listening TCP socket, non-blocking. An IPv6 one takes IPv6 only, so that `0.0.0.0` and
/// `::` can have the same port. Accepted connections inherit keepalive, as with memcached: a
/// client whose machine died gives its place back some day. With `is_shared` other processes of this user
/// may listen there too, if they all say so, and the system spreads connections over them.
///
/// # Errors
/// What the system says.
pub fn listen_tcp(address: &SocketAddr, backlog: u32, is_shared: bool) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers.
    let fd = check(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: fresh, so nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    if is_shared {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    if address.is_ipv6() {
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    bind(&socket, address)?;
    set_backlog(&socket, backlog)?;
    Ok(TcpListener::from(socket))
}

fn bind(socket: &OwnedFd, address: &SocketAddr) -> io::Result<()> {
    let answer = match address {
        SocketAddr::V4(v4) => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            let size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            // SAFETY: name is a whole sockaddr_in of that size.
            unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), size) }
        }
        SocketAddr::V6(v6) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            let size = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            // SAFETY: name is a whole sockaddr_in6 of that size.
            unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), size) }
        }
    };
    check(answer).map(|_| ())
}

/// Starts listening, or changes the length of the accept queue of a socket that listens.
///
/// # Errors
/// What the system says.
pub fn set_backlog(socket: &impl AsFd, backlog: u32) -> io::Result<()> {
    let backlog = libc::c_int::try_from(backlog).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is borrowed, so it is open.
    check(unsafe { libc::listen(socket.as_fd().as_raw_fd(), backlog) }).map(|_| ())
}

/// Lets the system find out that a silent peer is gone.
///
/// # Errors
/// What the system says.
pub fn keep_alive(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)
}

/// The process at the other end of a Unix socket, as of its connect.
pub fn peer_process(socket: &impl AsFd) -> Option<i32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: the descriptor is borrowed, so it is open; peer is a ucred of that size.
    let answer =
        unsafe { libc::getsockopt(fd, level, option, (&raw mut peer).cast(), &raw mut size) };
    // A process outside of this one's namespace has no number here.
    (answer == 0 && peer.pid > 0).then_some(peer.pid)
}

fn set_option(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed, so it is open; value is an int of that size.
    check(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), size) })
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_share_a_port() {
        let v4 = listen_tcp(&"0.0.0.0:0".parse().unwrap(), 5, false).unwrap();
        let port = v4.local_addr().unwrap().port();
        // A machine without IPv6 has nothing to share.
        if listen_tcp(&"[::]:0".parse().unwrap(), 5, false).is_ok() {
            let v6 = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
            let v6 = listen_tcp(&v6, 5, false).unwrap();
            assert_eq!(v6.local_addr().unwrap().port(), port);
        }
    }

    #[test]
    fn a_port_is_shared_only_where_all_say_so() {
        for first in [false, true] {
            let one = listen_tcp(&"127.0.0.1:0".parse().unwrap(), 5, first).unwrap();
            for second in [false, true] {
                let other = listen_tcp(&one.local_addr().unwrap(), 5, second);
                match first && second {
                    true => drop(other.unwrap()),
                    false => assert_eq!(other.unwrap_err().kind(), io::ErrorKind::AddrInUse),
                }
            }
        }
    }
}
