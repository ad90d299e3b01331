//! TCP and Unix streams, `fill` and `flush` with the edge-trigger rules.
