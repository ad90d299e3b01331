//! One server link: send, match replies first-in first-out.
