//! One body of a test on every engine that this machine has.

use crate::{
    server::{self, DataDir, Server},
    vm,
};

/// What runs the sandboxes of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Namespaces of this host.
    Namespace,
    /// Virtual machines.
    Qemu,
}

impl Engine {
    /// The image of sandboxes whose request names none.
    pub fn image(self) -> &'static str {
        match self {
            Self::Namespace => "host",
            Self::Qemu => vm::INITRAMFS_IMAGE,
        }
    }

    /// Starts a server on which requests that name no engine get this one, and proves after `body` that nothing is left
    /// and nothing was odd. A test that cannot run here is skipped aloud.
    pub fn with_server(self, name: &str, body: impl FnOnce(&Server, Self)) {
        match self {
            Self::Namespace => server::with_server(name, |server| body(server, self)),
            Self::Qemu => self.with_machines(name, body),
        }
    }

    fn with_machines(self, name: &str, body: impl FnOnce(&Server, Self)) {
        if !vm::bootable(name) {
            return;
        }
        let dir = DataDir::new();
        vm::initramfs_image(dir.path());
        server::with_server_on(&dir, &vm::options(""), |server| body(server, self));
    }
}

/// Makes a test of each body for each engine. A body takes the server and the engine.
#[macro_export]
macro_rules! on_every_engine {
    ($($body:ident),+ $(,)?) => {
        mod namespace {
            $(#[test]
            fn $body() {
                $crate::engine::Engine::Namespace
                    .with_server(concat!("namespace::", stringify!($body)), super::$body);
            })+
        }
        mod qemu {
            $(#[test]
            fn $body() {
                $crate::engine::Engine::Qemu.with_server(concat!("qemu::", stringify!($body)), super::$body);
            })+
        }
    };
}
