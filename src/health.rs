//! One server's life: up, warming, down; probe times; journal.
