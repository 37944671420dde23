//! What a server had is remembered while it is away.
