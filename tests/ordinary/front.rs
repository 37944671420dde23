//! Requests as unusual clients write them.
