//! The pid file: there while magent runs, and with its pid. It is locked until magent is told to stop, so that no
//! other process takes it for its own.

use magent::files::{self, Owner};
use magent::sys::{self, reason};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the file can't be removed at the end, it is left with this: kill finds no such process, now or
/// later, since Linux numbers processes below 2^22.
const NO_PROCESS: u32 = 1 << 22;

/// The pid file, kept open: where it can't be removed any more it can still be written.
pub struct PidFile {
    path: PathBuf,
    file: File,
    /// Whose pid it holds. Until it holds ours, dropping it removes it only if we made it.
    written: bool,
    made: bool,
}

impl PidFile {
    /// Opens it, so that it is known that it can be written; what it holds stays. A new one is
    /// never seen empty: it holds the pid of the process that starts the daemon.
    pub fn open(path: &Path, owner: Owner) -> io::Result<PidFile> {
        let (file, made) = files::open_pid(path, owner)?;
        if !sys::lock(&file)? {
            let pid = fs::read_to_string(path)?;
            let why = format!("process {} uses it", pid.trim_end());
            return Err(io::Error::other(why));
        }
        let pid_file = PidFile {
            path: path.to_path_buf(),
            file,
            written: false,
            made,
        };
        files::give(&pid_file.file, owner)?;
        if made {
            pid_file.put(std::process::id())?;
        }
        Ok(pid_file)
    }

    /// The file that the program before has left open, with the pid of this process in it.
    pub fn inherited(path: &Path, file: OwnedFd) -> PidFile {
        // It is locked, unless that program was one that did not lock it.
        let _ = sys::lock(&file);
        PidFile {
            path: path.to_path_buf(),
            file: file.into(),
            written: true,
            made: true,
        }
    }

    /// What the next program inherits.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the pid of this process.
    pub fn write(&mut self) -> io::Result<()> {
        self.written = true;
        self.put(std::process::id())
    }

    /// In one call over what is there, and then the rest is cut: whoever reads meanwhile finds
    /// a number in the first line.
    fn put(&self, pid: u32) -> io::Result<()> {
        let line = format!("{pid}\n");
        self.file.write_all_at(line.as_bytes(), 0)?;
        self.file.set_len(line.len() as u64)
    }

    /// True if the path still names the file that was opened, and no successor uses it already.
    fn is_ours(&self) -> bool {
        let is_there = match (fs::symlink_metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(here)) => (there.dev(), there.ino()) == (here.dev(), here.ino()),
            _ => false,
        };
        is_there && sys::lock(&self.file).unwrap_or(true)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if !(self.written || self.made) || !self.is_ours() {
            return;
        }
        if let Err(e) = fs::remove_file(&self.path) {
            let path = self.path.display();
            log::warn!("the pid file {path} can't be removed: {}", reason(&e));
            // Nobody is misled into sending signals to a stranger.
            if let Err(e) = self.put(NO_PROCESS) {
                log::warn!("the pid file {path} can't be written: {}", reason(&e));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("magent-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    #[test]
    fn a_pid_file_comes_and_goes() {
        let path = path("comes");
        let mut file = PidFile::open(&path, None).unwrap();
        file.write().unwrap();
        let pid = format!("{}\n", std::process::id());
        assert_eq!(fs::read_to_string(&path).unwrap(), pid);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_failed_start_leaves_no_pid_file_and_spoils_none() {
        let path = path("failed");
        drop(PidFile::open(&path, None).unwrap());
        assert!(!path.exists());
        fs::write(&path, "123456\n").unwrap();
        drop(PidFile::open(&path, None).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "123456\n");
        PidFile::open(&path, None).unwrap().write().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_successors_pid_file_stays() {
        let path = path("successor");
        let mut file = PidFile::open(&path, None).unwrap();
        file.write().unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "123456\n").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "123456\n");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn nobody_else_has_it_until_the_end_begins() {
        let path = path("locked");
        let mut first = PidFile::open(&path, None).unwrap();
        first.write().unwrap();
        let refused = PidFile::open(&path, None).err().map(|e| e.to_string());
        let why = format!("process {} uses it", std::process::id());
        assert_eq!(refused, Some(why));
        sys::unlock(first.descriptor());
        let mut second = PidFile::open(&path, None).unwrap();
        second.write().unwrap();
        drop(first);
        assert!(path.exists(), "it is the second one's");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn devices_are_no_pid_files() {
        let refused = PidFile::open(Path::new("/dev/null"), Some((65534, 65534)));
        let why = refused.err().map(|e| reason(&e));
        assert_eq!(why.as_deref(), Some("it exists and is not a regular file"));
        assert_eq!(fs::metadata("/dev/null").unwrap().uid(), 0);
    }
}
