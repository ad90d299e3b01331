//! Base64 as memcached reads and writes it in meta keys.
