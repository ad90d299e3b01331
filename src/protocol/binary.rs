//! The binary protocol, a dialect of clients only: requests become meta commands, replies binary again.
