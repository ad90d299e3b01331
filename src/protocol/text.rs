//! Classic text commands, and the line that every text request starts with.
