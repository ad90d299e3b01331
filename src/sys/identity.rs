//! Users and groups: who the process is, and becoming somebody else for good.

use super::{check, reason};
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// Who to become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The login name, if the user is in the system's list: its other groups come along.
    login: Option<CString>,
}

/// True if the process may change its user.
pub fn is_root() -> bool {
    user() == 0
}

/// The effective user id.
pub fn user() -> u32 {
    // SAFETY: no arguments.
    unsafe { libc::geteuid() }
}

/// Changes the owner of the file behind a descriptor, also one that was opened with `O_PATH`.
///
/// # Errors
/// What the system says.
pub fn give(file: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the path is empty and ends in a NUL.
    let done = unsafe { libc::fchownat(fd, c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) };
    check(done).map(drop)
}

/// Resolves `-u` and `-g`: names first, then numbers. `None` if neither is given.
///
/// # Errors
/// One line naming the option and its value.
pub fn identity(user: Option<&str>, group: Option<&str>) -> Result<Option<Identity>, String> {
    if user.is_none() && group.is_none() {
        return Ok(None);
    }
    let gid = group.map(find_group).transpose()?;
    let Some(user) = user else {
        // SAFETY: no arguments.
        let uid = unsafe { libc::geteuid() };
        return Ok(gid.map(|gid| Identity {
            uid,
            gid,
            login: None,
        }));
    };
    let found = find_user(user).map_err(|e| format!("-u {user}: {}", reason(&e)))?;
    match (found, gid, user.parse()) {
        (Some(found), gid, _) => Ok(Some(Identity {
            gid: gid.unwrap_or(found.gid),
            ..found
        })),
        (None, Some(gid), Ok(uid)) => Ok(Some(Identity {
            uid,
            gid,
            login: None,
        })),
        (None, None, Ok(_)) => Err(format!(
            "-u {user}: no user has this number, so -g must name the group"
        )),
        (None, _, Err(_)) => Err(format!("-u {user}: no such user")),
    }
}

fn find_group(group: &str) -> Result<u32, String> {
    let found = match CString::new(group) {
        Ok(name) => look_up(
            |entry, buffer, size, result| {
                // SAFETY: name ends in NUL; the rest is look_up's promise.
                unsafe { libc::getgrnam_r(name.as_ptr(), entry, buffer, size, result) }
            },
            |entry: &libc::group| entry.gr_gid,
        )
        .map_err(|e| format!("-g {group}: {}", reason(&e)))?,
        Err(_) => None,
    };
    found
        .or_else(|| group.parse().ok())
        .ok_or_else(|| format!("-g {group}: no such group"))
}

fn find_user(user: &str) -> io::Result<Option<Identity>> {
    let read = |entry: &libc::passwd| Identity {
        uid: entry.pw_uid,
        gid: entry.pw_gid,
        // SAFETY: look_up calls this while the entry's strings are alive; they end in NUL.
        login: Some(unsafe { CStr::from_ptr(entry.pw_name) }.to_owned()),
    };
    let Ok(name) = CString::new(user) else {
        return Ok(None);
    };
    let by_name = look_up(
        |entry, buffer, size, result| {
            // SAFETY: name ends in NUL; the rest is look_up's promise.
            unsafe { libc::getpwnam_r(name.as_ptr(), entry, buffer, size, result) }
        },
        read,
    )?;
    match (by_name, user.parse::<u32>()) {
        (None, Ok(uid)) => look_up(
            |entry, buffer, size, result| {
                // SAFETY: look_up's promise.
                unsafe { libc::getpwuid_r(uid, entry, buffer, size, result) }
            },
            read,
        ),
        (by_name, _) => Ok(by_name),
    }
}

/// Calls one of the `get…_r` family with a buffer that grows until the entry fits. `call` gets
/// an entry to fill, a buffer with its size, and where to put the address of the result;
/// `read` sees the entry while the buffer that it points into is alive.
fn look_up<T, R>(
    call: impl Fn(*mut T, *mut libc::c_char, usize, *mut *mut T) -> libc::c_int,
    read: impl Fn(&T) -> R,
) -> io::Result<Option<R>> {
    let mut entry = MaybeUninit::<T>::uninit();
    let mut buffer: Vec<libc::c_char> = vec![0; 1024];
    loop {
        let mut result = std::ptr::null_mut();
        let status = call(
            entry.as_mut_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &mut result,
        );
        match status {
            // SAFETY: not null, so it is the entry, filled in.
            _ if !result.is_null() => return Ok(Some(read(unsafe { &*result }))),
            libc::ERANGE if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            // POSIX lets an absent name be reported in any of these ways.
            0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Becomes `identity` for good: groups, group, user, and then makes sure that there is no way
/// back to root.
///
/// # Errors
/// The call that failed and why; the process must end then, since it is half changed.
pub fn drop_privileges(identity: &Identity) -> Result<(), String> {
    let (uid, gid) = (identity.uid, identity.gid);
    let step = |name: &str, answer: libc::c_int| {
        check(answer).map_err(|e| format!("{name}: {}", reason(&e)))
    };
    match &identity.login {
        // SAFETY: login ends in NUL.
        Some(login) => step("initgroups", unsafe {
            libc::initgroups(login.as_ptr(), gid)
        })?,
        // SAFETY: one group stands at the address given.
        None => step("setgroups", unsafe { libc::setgroups(1, &gid) })?,
    };
    // SAFETY: plain numbers.
    step("setgid", unsafe { libc::setgid(gid) })?;
    // SAFETY: plain numbers.
    step("setuid", unsafe { libc::setuid(uid) })?;
    // SAFETY: plain numbers.
    if uid != 0 && unsafe { libc::setuid(0) } != -1 {
        return Err("root could be regained after setuid".to_string());
    }
    // SAFETY: plain numbers.
    if uid != 0 && gid != 0 && unsafe { libc::setgid(0) } != -1 {
        return Err("root's group could be regained after setgid".to_string());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_of_users() {
        let nobody = identity(Some("nobody"), None).unwrap().unwrap();
        assert!(nobody.uid != 0 && nobody.login.is_some());
        let by_number = identity(Some(&nobody.uid.to_string()), None).unwrap();
        assert_eq!(by_number, Some(nobody.clone()));
        let in_root = identity(Some("nobody"), Some("0")).unwrap().unwrap();
        assert_eq!((in_root.uid, in_root.gid), (nobody.uid, 0));
        assert_eq!(identity(None, None), Ok(None));
        let bare = identity(Some("4123456789"), Some("12")).unwrap().unwrap();
        assert_eq!((bare.uid, bare.gid, bare.login), (4123456789, 12, None));
    }

    #[test]
    fn errors_name_option_and_value() {
        let error = |user, group| identity(user, group).unwrap_err();
        assert_eq!(error(Some("no-such"), None), "-u no-such: no such user");
        assert_eq!(error(Some(""), Some("0")), "-u : no such user");
        assert_eq!(error(None, Some("no-such")), "-g no-such: no such group");
        assert!(error(Some("4123456789"), None).starts_with("-u 4123456789: "));
    }
}
