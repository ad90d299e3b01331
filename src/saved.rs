//! The bytes by which a process hands its state over to another program: [`Saver`] writes them, [`Loader`]
//! reads them, and what can be handed over is [`Saved`].
//!
//! Fields follow one another in the order in which they are named, without names: [`FORMAT`] says which
//! they are. Who changes what is saved gives it the next number; a program that reads another one says no.
//! Counters are saved with their names, so that one more is no other format.

use crate::time::Time;
use std::io::{self, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// What is saved, and in which order.
pub const FORMAT: u64 = 3;

/// Bytes gathered before they are written.
const PIECE: usize = 64 * 1024;

/// Writes.
pub struct Saver<'a> {
    to: &'a mut dyn Write,
    held: Vec<u8>,
    failed: Option<io::Error>,
}

impl<'a> Saver<'a> {
    /// Nothing is written yet.
    pub fn new(to: &'a mut dyn Write) -> Saver<'a> {
        Saver {
            to,
            held: Vec::with_capacity(PIECE),
            failed: None,
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= PIECE {
            self.write();
        }
    }

    fn write(&mut self) {
        if self.failed.is_none() {
            self.failed = self.to.write_all(&self.held).err();
        }
        self.held.clear();
    }

    /// A run of bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        bytes.len().save(self);
        self.put(bytes);
    }

    /// A run of so many bytes, which `pieces` hands over one after the other.
    pub fn pieces(&mut self, len: usize, pieces: impl FnOnce(&mut dyn FnMut(&[u8]))) {
        len.save(self);
        pieces(&mut |piece| self.put(piece));
    }

    /// All is said.
    ///
    /// # Errors
    /// Why it could not be written.
    pub fn finish(mut self) -> io::Result<()> {
        self.write();
        self.failed.map_or(Ok(()), Err)
    }
}

/// What is wrong with bytes that are to be loaded, in words.
#[derive(Debug)]
pub struct Damaged(pub String);

/// What was loaded.
pub type Loaded<T> = Result<T, Damaged>;

/// Reads.
pub struct Loader<'a> {
    from: BufReader<Box<dyn Read + 'a>>,
    /// Bytes that may still come: no length is larger.
    left: usize,
}

impl<'a> Loader<'a> {
    /// Reads `len` bytes at most.
    pub fn new(from: impl Read + 'a, len: usize) -> Loader<'a> {
        Loader {
            from: BufReader::with_capacity(PIECE, Box::new(from)),
            left: len,
        }
    }

    fn take(&mut self, to: &mut [u8]) -> Loaded<()> {
        let ended = |e: io::Error| Damaged(format!("the saved state ends early: {e}"));
        self.from.read_exact(to).map_err(ended)?;
        self.left = self.left.saturating_sub(to.len());
        Ok(())
    }

    /// A run of bytes.
    ///
    /// # Errors
    /// It is damaged.
    pub fn bytes(&mut self) -> Loaded<Vec<u8>> {
        let len = usize::load(self)?;
        if len > self.left {
            return Err(Damaged(format!("{len} bytes are said to follow")));
        }
        let mut bytes = vec![0; len];
        self.take(&mut bytes)?;
        Ok(bytes)
    }
}

/// What can be handed over.
pub trait Saved: Sized {
    /// Writes it.
    fn save(&self, to: &mut Saver<'_>);

    /// Reads it.
    ///
    /// # Errors
    /// It is damaged, or of another format.
    fn load(from: &mut Loader<'_>) -> Loaded<Self>;
}

/// A struct whose fields are saved in this order; those that are not named are what `..` says.
macro_rules! saved_fields {
    ($name:ident { $($field:ident),* $(,)? } $(.. $rest:expr)?) => {
        impl crate::saved::Saved for $name {
            fn save(&self, to: &mut crate::saved::Saver<'_>) {
                $(crate::saved::Saved::save(&self.$field, to);)*
            }

            fn load(from: &mut crate::saved::Loader<'_>) -> crate::saved::Loaded<Self> {
                Ok($name { $($field: crate::saved::Saved::load(from)?,)* $(..$rest)? })
            }
        }
    };
}

/// An enum of names, each with its number.
macro_rules! saved_names {
    ($name:ident { $($variant:ident = $number:literal),* $(,)? }) => {
        impl crate::saved::Saved for $name {
            fn save(&self, to: &mut crate::saved::Saver<'_>) {
                let number: u64 = match self { $($name::$variant => $number,)* };
                number.save(to);
            }

            fn load(from: &mut crate::saved::Loader<'_>) -> crate::saved::Loaded<Self> {
                match u64::load(from)? {
                    $($number => Ok($name::$variant),)*
                    n => Err(crate::saved::Damaged(format!(concat!(stringify!($name), " {}"), n))),
                }
            }
        }
    };
}

pub(crate) use {saved_fields, saved_names};

impl Saved for u64 {
    /// Seven bits a byte, the lowest first; the last byte has its top bit clear.
    fn save(&self, to: &mut Saver<'_>) {
        let mut rest = *self;
        while rest >= 0x80 {
            to.put(&[rest as u8 | 0x80]);
            rest >>= 7;
        }
        to.put(&[rest as u8]);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            from.take(&mut byte)?;
            number |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(number);
            }
        }
        Err(Damaged("a number does not end".into()))
    }
}

/// Smaller numbers are saved as a large one.
macro_rules! saved_numbers {
    ($($number:ty),*) => {
        $(impl Saved for $number {
            fn save(&self, to: &mut Saver<'_>) {
                (*self as u64).save(to);
            }

            fn load(from: &mut Loader<'_>) -> Loaded<$number> {
                let number = u64::load(from)?;
                <$number>::try_from(number).map_err(|e| Damaged(format!("{number}: {e}")))
            }
        })*
    };
}

saved_numbers!(u8, u16, u32, usize);

impl Saved for i64 {
    fn save(&self, to: &mut Saver<'_>) {
        (*self as u64).save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<i64> {
        Ok(u64::load(from)? as i64)
    }
}

impl Saved for bool {
    fn save(&self, to: &mut Saver<'_>) {
        u64::from(*self).save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<bool> {
        Ok(u64::load(from)? != 0)
    }
}

impl Saved for Time {
    /// The time that never comes is the smallest number.
    fn save(&self, to: &mut Saver<'_>) {
        self.0.wrapping_add(1).save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Time> {
        Ok(Time(u64::load(from)?.wrapping_sub(1)))
    }
}

impl Saved for Vec<u8> {
    fn save(&self, to: &mut Saver<'_>) {
        to.bytes(self);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Vec<u8>> {
        from.bytes()
    }
}

impl Saved for Box<[u8]> {
    fn save(&self, to: &mut Saver<'_>) {
        to.bytes(self);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Box<[u8]>> {
        from.bytes().map(Vec::into_boxed_slice)
    }
}

impl Saved for String {
    fn save(&self, to: &mut Saver<'_>) {
        to.bytes(self.as_bytes());
    }

    fn load(from: &mut Loader<'_>) -> Loaded<String> {
        String::from_utf8(from.bytes()?).map_err(|e| Damaged(e.to_string()))
    }
}

impl Saved for PathBuf {
    fn save(&self, to: &mut Saver<'_>) {
        to.bytes(self.as_os_str().as_bytes());
    }

    fn load(from: &mut Loader<'_>) -> Loaded<PathBuf> {
        Ok(std::ffi::OsString::from_vec(from.bytes()?).into())
    }
}

impl Saved for SocketAddr {
    fn save(&self, to: &mut Saver<'_>) {
        self.to_string().save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<SocketAddr> {
        let text = String::load(from)?;
        text.parse().map_err(|_| Damaged(format!("address {text}")))
    }
}

impl<T: Saved> Saved for Option<T> {
    fn save(&self, to: &mut Saver<'_>) {
        self.is_some().save(to);
        if let Some(value) = self {
            value.save(to);
        }
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Option<T>> {
        bool::load(from)?.then(|| T::load(from)).transpose()
    }
}

impl<T: Saved> Saved for Box<T> {
    fn save(&self, to: &mut Saver<'_>) {
        (**self).save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Box<T>> {
        T::load(from).map(Box::new)
    }
}

/// A list, in its order.
pub fn save_all<'a, T: Saved + 'a>(
    to: &mut Saver<'_>,
    members: impl ExactSizeIterator<Item = &'a T>,
) {
    members.len().save(to);
    members.for_each(|member| member.save(to));
}

/// A list of what `load` loads.
///
/// # Errors
/// It is damaged.
pub fn load_all<T, C: Default + Extend<T>>(
    from: &mut Loader<'_>,
    mut load: impl FnMut(&mut Loader<'_>) -> Loaded<T>,
) -> Loaded<C> {
    let mut all = C::default();
    for _ in 0..u64::load(from)? {
        all.extend([load(from)?]);
    }
    Ok(all)
}

impl<const N: usize> Saved for [u64; N] {
    fn save(&self, to: &mut Saver<'_>) {
        save_all(to, self.iter());
    }

    fn load(from: &mut Loader<'_>) -> Loaded<[u64; N]> {
        let all: Vec<u64> = load_all(from, u64::load)?;
        let wrong = |all: Vec<u64>| Damaged(format!("{} numbers", all.len()));
        all.try_into().map_err(wrong)
    }
}

impl<A: Saved, B: Saved> Saved for (A, B) {
    fn save(&self, to: &mut Saver<'_>) {
        self.0.save(to);
        self.1.save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<(A, B)> {
        Ok((A::load(from)?, B::load(from)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_loaded_is_what_was_saved() {
        let mut bytes = Vec::new();
        let mut to = Saver::new(&mut bytes);
        let numbers = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX];
        save_all(&mut to, numbers.iter());
        (-5i64).save(&mut to);
        for time in [Time(0), Time(7), Time::NEVER] {
            time.save(&mut to);
        }
        "text".to_string().save(&mut to);
        (Some(true), Option::<bool>::None).save(&mut to);
        to.bytes(&[7; 3 * PIECE]);
        "[::1]:7".parse::<SocketAddr>().unwrap().save(&mut to);
        to.finish().unwrap();

        let mut from = Loader::new(&bytes[..], bytes.len());
        let loaded: Vec<u64> = load_all(&mut from, u64::load).unwrap();
        assert_eq!(loaded, numbers);
        assert_eq!(i64::load(&mut from).unwrap(), -5);
        let times = [(); 3].map(|()| Time::load(&mut from).unwrap());
        assert_eq!(times, [Time(0), Time(7), Time::NEVER]);
        assert_eq!(String::load(&mut from).unwrap(), "text");
        let pair = <(Option<bool>, Option<bool>)>::load(&mut from).unwrap();
        assert_eq!(pair, (Some(true), None));
        assert_eq!(from.bytes().unwrap(), [7; 3 * PIECE]);
        assert_eq!(SocketAddr::load(&mut from).unwrap().port(), 7);
        assert!(u64::load(&mut from).is_err(), "that was all");
    }

    #[test]
    fn nonsense_is_an_error_and_takes_no_memory() {
        let mut bytes = Vec::new();
        let mut to = Saver::new(&mut bytes);
        (usize::MAX / 2).save(&mut to);
        to.finish().unwrap();
        let said = Loader::new(&bytes[..], bytes.len()).bytes().unwrap_err();
        assert!(said.0.ends_with("bytes are said to follow"), "{said:?}");
        assert!(u8::load(&mut Loader::new(&[0x80, 0x02][..], 2)).is_err());
        assert!(u64::load(&mut Loader::new(&[0xff; 20][..], 20)).is_err());
    }
}
