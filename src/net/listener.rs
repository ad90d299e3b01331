//! Listening sockets, TCP and Unix, with the file that a Unix one has in the file system.

use super::{Stream, retry};
use crate::config::{Address, ListenSpec};
use crate::files::{Owner, SocketInode};
use crate::sys;
use mio::event::Source;
use mio::{Interest, Registry, Token};
use std::fs;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Where clients come in. Dropping it closes it and removes its socket file.
pub struct Listener {
    spec: ListenSpec,
    pub(super) socket: Accepting,
}

pub(super) enum Accepting {
    Tcp(mio::net::TcpListener),
    Unix {
        listener: mio::net::UnixListener,
        /// `None`: it belongs to whoever gave the socket.
        file: Option<SocketFile>,
    },
}

/// A socket that listens already: whoever started the process made it.
pub struct Given {
    pub(super) address: Address,
    pub(super) socket: Accepting,
}

impl Given {
    /// Where it listens, and the socket.
    ///
    /// # Errors
    /// What the system says, or that it is neither TCP nor in the file system.
    pub fn new(socket: OwnedFd) -> io::Result<Given> {
        let tcp = TcpListener::from(socket);
        tcp.set_nonblocking(true)?;
        if let Ok(address) = tcp.local_addr() {
            sys::keep_alive(&tcp)?;
            return Ok(Given {
                address: Address::Tcp(address),
                socket: Accepting::Tcp(mio::net::TcpListener::from_std(tcp)),
            });
        }
        let unix = UnixListener::from(OwnedFd::from(tcp));
        let address = unix.local_addr()?;
        let Some(path) = address.as_pathname() else {
            return Err(io::Error::other("it has no path"));
        };
        Ok(Given {
            address: Address::Unix(path.to_path_buf()),
            socket: Accepting::Unix {
                listener: mio::net::UnixListener::from_std(unix),
                file: None,
            },
        })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Listener {
    /// Listens. A socket file that nobody listens on any more is replaced. With `is_shared` other processes
    /// may listen on the same port.
    ///
    /// # Errors
    /// What the system says, or that the path is in use or no socket.
    pub fn bind(spec: &ListenSpec, owner: Owner, is_shared: bool) -> io::Result<Listener> {
        let socket = match &spec.address {
            Address::Tcp(address) => Accepting::Tcp(mio::net::TcpListener::from_std(
                sys::listen_tcp(address, spec.backlog, is_shared)?,
            )),
            Address::Unix(path) => bind_unix(path, spec, owner)?,
        };
        Ok(Listener {
            spec: spec.clone(),
            socket,
        })
    }

    /// Takes a socket that listens at the address of `spec` already. A socket file keeps owner and mode.
    ///
    /// # Errors
    /// What the system says.
    pub fn adopt(given: Given, spec: &ListenSpec) -> io::Result<Listener> {
        match &given.socket {
            Accepting::Tcp(l) => sys::set_backlog(l, spec.backlog)?,
            Accepting::Unix { listener, .. } => sys::set_backlog(listener, spec.backlog)?,
        }
        Ok(Listener {
            spec: spec.clone(),
            socket: given.socket,
        })
    }

    /// As it was asked for.
    pub fn spec(&self) -> &ListenSpec {
        &self.spec
    }

    /// Takes over what a new configuration says about the same address: mode and backlog.
    ///
    /// # Errors
    /// What the system says; the listener goes on as it is then.
    pub fn adjust(&mut self, spec: &ListenSpec) -> io::Result<()> {
        if self.spec.backlog != spec.backlog {
            match &self.socket {
                Accepting::Tcp(l) => sys::set_backlog(l, spec.backlog)?,
                Accepting::Unix { listener, .. } => sys::set_backlog(listener, spec.backlog)?,
            }
            self.spec.backlog = spec.backlog;
        }
        if let Accepting::Unix {
            file: Some(file), ..
        } = &self.socket
        {
            if self.spec.mode != spec.mode {
                let inode = SocketInode::hold(&file.path)?;
                if inode.id()? != file.id {
                    return Err(io::Error::other("it was replaced"));
                }
                inode.set_mode(spec.mode)?;
                self.spec.mode = spec.mode;
            }
        }
        Ok(())
    }

    /// The next client that waits, without delay of small packets.
    ///
    /// # Errors
    /// `WouldBlock` if none waits; what the system says.
    pub fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Accepting::Tcp(listener) => {
                let (stream, _) = retry(|| listener.accept())?;
                // A client that is gone already is noticed at the first read.
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream))
            }
            Accepting::Unix { listener, .. } => {
                let (stream, _) = retry(|| listener.accept())?;
                Ok(Stream::Unix(stream))
            }
        }
    }

    /// Where it listens, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// What the system says.
    pub fn local(&self) -> io::Result<Address> {
        match &self.socket {
            Accepting::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Accepting::Unix { .. } => Ok(self.spec.address.clone()),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match &mut self.socket {
            Accepting::Tcp(listener) => listener,
            Accepting::Unix { listener, .. } => listener,
        }
    }
}

impl Source for Listener {
    fn register(&mut self, to: &Registry, token: Token, what: Interest) -> io::Result<()> {
        self.source().register(to, token, what)
    }

    fn reregister(&mut self, to: &Registry, token: Token, what: Interest) -> io::Result<()> {
        self.source().reregister(to, token, what)
    }

    fn deregister(&mut self, from: &Registry) -> io::Result<()> {
        self.source().deregister(from)
    }
}

fn bind_unix(path: &Path, spec: &ListenSpec, owner: Owner) -> io::Result<Accepting> {
    make_way(path)?;
    // By umask, not by chmod: there must be no moment at which too many may connect.
    let bound = sys::with_umask(0o777 & !spec.mode, || UnixListener::bind(path))?;
    let inode = SocketInode::hold(path)?;
    inode.give(owner)?;
    let file = SocketFile {
        path: path.to_path_buf(),
        id: inode.id()?,
    };
    sys::set_backlog(&bound, spec.backlog)?;
    bound.set_nonblocking(true)?;
    let listener = mio::net::UnixListener::from_std(bound);
    Ok(Accepting::Unix {
        listener,
        file: Some(file),
    })
}

/// Removes a socket file whose listener is gone, and nothing else.
fn make_way(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::other("it exists and is not a socket"));
    }
    // Non-blocking: a listener whose accept queue is full answers `WouldBlock`.
    match mio::net::UnixStream::connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
        _ => Err(io::Error::new(
            ErrorKind::AddrInUse,
            "Address already in use",
        )),
    }
}

/// The name of a Unix listener in the file system; removed when dropped.
pub(super) struct SocketFile {
    pub(super) path: PathBuf,
    /// Device and inode: a successor's file at the same path is left alone.
    pub(super) id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        match file_id(&self.path) {
            Ok(id) if id == self.id => {}
            _ => return,
        }
        if let Err(e) = fs::remove_file(&self.path) {
            let path = self.path.display();
            log::warn!("the socket {path} can't be removed: {}", sys::reason(&e));
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}
