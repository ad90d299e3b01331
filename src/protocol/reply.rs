//! Finds the end of one reply and says what it means.
