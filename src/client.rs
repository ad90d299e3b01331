//! One client: bytes become requests, outcomes become bytes in order.
