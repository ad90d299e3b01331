//! Counters, latency histograms, every `stats` text.
