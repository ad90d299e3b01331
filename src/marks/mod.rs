//! What several magents over the same servers leave for each other on the servers themselves, so
//! that none of them serves what another one has replaced. Pure: answers and times come in,
//! requests and decisions go out.
//!
//! | file | is |
//! |---|---|
//! | `bytes` | requests and answers |
//! | `lines` | lists: who is away from whom, who is there |
//! | `beacon` | who else uses a server; alone or not |
//! | `primary`, `backup` | the rules |
//! | `times` | what passing time does to them |

mod backup;
mod beacon;
pub mod bytes;
mod lines;
mod primary;
#[cfg(test)]
mod tests;
pub mod times;

pub use backup::{Backup, Write};
pub use beacon::{Beacon, Other, Presence};
pub use lines::{Id, Line, Lines, push_line};
pub use primary::{Debt, Listed, Primary, Use};
