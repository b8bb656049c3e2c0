//! What a snapshot says of itself.
