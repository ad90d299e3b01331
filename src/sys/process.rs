//! What the process may use and has used: descriptors, memory, time, the umask.

use super::{check, reason};
use std::mem::MaybeUninit;
use std::time::Duration;

/// The host's name; empty if it is not told.
pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: name is ours to write, that many bytes; the last one is left 0 all the same.
    let said = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let end = name.iter().position(|b| *b == 0).unwrap_or(0);
    match said {
        0 => String::from_utf8_lossy(&name[..end]).into_owned(),
        _ => String::new(),
    }
}

/// Makes room for `need` descriptors; the hard limit is raised too where that is allowed.
///
/// # Errors
/// A line that names the need and the limit.
pub fn raise_nofile(need: u64) -> Result<(), String> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: limit is ours to write.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })
        .map_err(|e| format!("the limit of descriptors: {}", reason(&e)))?;
    if limit.rlim_cur >= need {
        return Ok(());
    }
    let raised = libc::rlimit {
        rlim_cur: need,
        rlim_max: limit.rlim_max.max(need),
    };
    // SAFETY: raised is read only.
    match check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) }) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "{need} descriptors are needed, the limit is {} (ulimit -Hn)",
            limit.rlim_max
        )),
    }
}

/// Gives free memory back to the system. glibc keeps what small blocks hold otherwise.
pub fn trim_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a plain number; glibc locks its own heap.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives the whole pages of `bytes` back to the system; they hold anything from now on.
pub fn release_pages(bytes: &mut [u8]) {
    const PAGE: usize = 4096;
    let skip = bytes.as_ptr().align_offset(PAGE).min(bytes.len());
    let pages = &mut bytes[skip..];
    let len = pages.len() / PAGE * PAGE;
    if len > 0 {
        // SAFETY: the pages are all the caller's own, and any bytes are valid ones. It is refused,
        // and nothing happens, where pages are larger.
        unsafe {
            libc::madvise(pages.as_mut_ptr().cast(), len, libc::MADV_DONTNEED);
        }
    }
}

/// Time that the process spent so far: in user code, in the kernel.
pub fn cpu_time() -> (Duration, Duration) {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: usage is ours to write.
    let answer = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    debug_assert_eq!(answer, 0, "getrusage only fails for bad arguments");
    // SAFETY: all zero bits are a valid rusage, had the call failed.
    let usage = unsafe { usage.assume_init() };
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    (time(usage.ru_utime), time(usage.ru_stime))
}

/// Memory that the process holds now, in bytes, as the kernel counts it.
pub fn resident_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    // SAFETY: a plain number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page).ok()?)
}

/// The system's monotonic clock in nanoseconds, which `Instant` does not show.
pub fn monotonic() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// Processor time that this thread spent so far, in nanoseconds.
pub fn thread_time() -> u64 {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// A clock of the system's, in nanoseconds.
fn clock(which: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: time is ours to write.
    unsafe { libc::clock_gettime(which, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Runs `f` under a umask of its own, for files whose mode no later call could set in time.
pub fn with_umask<T>(mask: u32, f: impl FnOnce() -> T) -> T {
    // SAFETY: a plain number.
    let before = unsafe { libc::umask(mask as libc::mode_t) };
    let answer = f();
    // SAFETY: a plain number.
    unsafe { libc::umask(before) };
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_name_need_and_limit() {
        assert_eq!(raise_nofile(16), Ok(()));
        // Nobody, not even root, may go beyond fs.nr_open.
        let line = raise_nofile(1 << 40).unwrap_err();
        assert!(line.starts_with("1099511627776 descriptors are needed, the limit is "));
    }

    #[test]
    fn cpu_time_grows() {
        let spent = || {
            let (user, system) = cpu_time();
            user + system
        };
        let before = spent();
        while spent() == before {
            std::hint::black_box(vec![1u8; 4096]);
        }
        trim_memory();
    }
}
