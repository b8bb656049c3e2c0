//! Registries: how images are named there, what they say about them, who may ask, and how they are asked.

pub(crate) mod challenge;
pub(crate) mod client;
pub(crate) mod connect;
pub(crate) mod credentials;
pub(crate) mod manifest;
pub(crate) mod reference;
