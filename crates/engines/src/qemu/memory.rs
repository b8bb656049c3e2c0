//! Memory images: writing and restoring them.
