//! Bytes are proof of life; slow networks and slow readers.
