//! What counts, what waits, and how a limit is learned.
