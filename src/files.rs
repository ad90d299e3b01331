//! Files that are opened by name while magent may still be root: pid file, log, socket file.
//!
//! In a folder that others can write to, a name may be a trap: a link to a file that only root
//! can write to. So what was opened is looked at, not the name, and only that is given away.

use crate::sys;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

/// User and group that magent's files are given to.
pub type Owner = Option<(u32, u32)>;

/// A new log is not for everybody, whatever the umask says: it names keys and addresses.
const LOG_MODE: u32 = 0o640;
const PID_MODE: u32 = 0o644;

/// Neither a fifo nor a terminal holds up whoever opens it, or becomes its own terminal.
const AT_ONCE: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

/// Opens a log to append to, and makes it if it is not there. A fifo may have no reader yet.
///
/// # Errors
/// What the system says, or that the name is a link that others may have set.
pub fn open_log(path: &Path) -> io::Result<File> {
    let follow = if is_trusted(path)? {
        0
    } else {
        libc::O_NOFOLLOW
    };
    let mut options = File::options();
    options
        .append(true)
        .create(true)
        .mode(LOG_MODE)
        .custom_flags(AT_ONCE | follow);
    let file = match options.open(path) {
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => {
            options.read(true).create(false).open(path)
        }
        file => file,
    };
    let file = file.map_err(name_link)?;
    refuse_second_name(&file.metadata()?)?;
    Ok(file)
}

/// Opens a pid file to write to; true if it was not there. What it holds stays.
///
/// # Errors
/// What the system says, or that it is not a plain file of one name.
pub fn open_pid(path: &Path, owner: Owner) -> io::Result<(File, bool)> {
    let mut options = File::options();
    options
        .write(true)
        .mode(PID_MODE)
        .custom_flags(AT_ONCE | libc::O_NOFOLLOW);
    match options.clone().create_new(true).open(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => return Ok((made?, true)),
    }
    let not_plain = || io::Error::other("it exists and is not a regular file");
    let file = match options.open(path) {
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Err(not_plain()),
        file => file.map_err(name_link)?,
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(not_plain());
    }
    refuse_second_name(&found)?;
    let own = [0, sys::user(), owner.map_or(0, |(uid, _)| uid)];
    // Whoever made it may write another pid into it.
    if !own.contains(&found.uid()) && !is_trusted(path)? {
        return Err(io::Error::other("it belongs to another user"));
    }
    Ok((file, false))
}

/// Gives a plain file away; devices, pipes and terminals stay whose they are.
///
/// # Errors
/// What the system says.
pub fn give(file: &File, owner: Owner) -> io::Result<()> {
    match owner {
        Some((uid, gid)) if file.metadata()?.is_file() => fchown(file, Some(uid), Some(gid)),
        _ => Ok(()),
    }
}

/// A socket file that is held, so that what is done to it can't reach another file which gets
/// its name meanwhile.
pub struct SocketInode(File);

impl SocketInode {
    /// Holds what the name stands for now.
    ///
    /// # Errors
    /// What the system says, or that it is no socket of one name.
    pub fn hold(path: &Path) -> io::Result<SocketInode> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
            .open(path)?;
        let found = file.metadata()?;
        if !found.file_type().is_socket() || found.nlink() != 1 {
            return Err(io::Error::other("it was replaced"));
        }
        Ok(SocketInode(file))
    }

    /// Device and inode.
    ///
    /// # Errors
    /// What the system says.
    pub fn id(&self) -> io::Result<(u64, u64)> {
        self.0.metadata().map(|m| (m.dev(), m.ino()))
    }

    /// Gives it to `owner`, if there is one.
    ///
    /// # Errors
    /// What the system says.
    pub fn give(&self, owner: Owner) -> io::Result<()> {
        match owner {
            Some((uid, gid)) => sys::give(&self.0, uid, gid),
            None => Ok(()),
        }
    }

    /// # Errors
    /// What the system says.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        // The system has no call that changes the mode of what is only held.
        let name = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        fs::set_permissions(name, fs::Permissions::from_mode(mode))
    }
}

/// True if nobody but root and this user can change what the name stands for.
fn is_trusted(path: &Path) -> io::Result<bool> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = fs::metadata(folder.unwrap_or(Path::new(".")))?;
    let ours = folder.uid() == 0 || folder.uid() == sys::user();
    Ok(ours && folder.mode() & 0o022 == 0)
}

fn name_link(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ELOOP) => io::Error::other("it is a symbolic link"),
        _ => error,
    }
}

fn refuse_second_name(found: &Metadata) -> io::Result<()> {
    match found.is_file() && found.nlink() > 1 {
        true => Err(io::Error::other("it has more than one name (hard links)")),
        false => Ok(()),
    }
}
