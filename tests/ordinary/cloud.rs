//! Cloud models and accounts.
