//! The `log` backend: stderr, file, syslog.
