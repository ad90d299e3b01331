//! The wire lines that magent itself makes: mirrors, deletes, fetches, copies, and what they carry over.
