//! What several magents over the same servers leave for each other on the servers themselves, so
//! that none of them serves what another one has replaced. Pure: answers and times come in,
//! requests and decisions go out.

mod backup;
pub mod bytes;
mod lines;
mod primary;
#[cfg(test)]
mod tests;

pub use backup::{Backup, Write};
pub use lines::{Id, Line, Lines};
pub use primary::{Debt, Listed, Primary, Use};
