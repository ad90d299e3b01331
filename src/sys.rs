//! All libc, all unsafe.
