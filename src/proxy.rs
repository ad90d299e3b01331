//! Owns every connection; routes requests, settles replies.
