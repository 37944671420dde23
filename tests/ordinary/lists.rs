//! Merged lists, token counts, errors in the newest shapes.
