//! The built-in image `host`.
