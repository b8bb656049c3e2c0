//! The edge over real TCP, on a service whose engine and agent are scripted: what a real agent seldom does (break off,
//! refuse, lose output) is made to happen here.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod agent;
mod commands;
mod devices;
mod document;
mod errors;
mod page;
mod proxy;
mod runner;
mod server;
mod snapshots;
mod streams;
