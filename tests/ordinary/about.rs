//! What a request is about, wherever it says so.
