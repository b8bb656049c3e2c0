//! What readers of a shell's output tell its driver, kept where the agent's successor can be told of it too.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use tokio::sync::Notify;

/// Messages for one receiver, in order.
pub(crate) struct Inbox<T> {
    queue: Mutex<VecDeque<T>>,
    arrived: Notify,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self::of(VecDeque::new())
    }
}

impl<T> Inbox<T> {
    /// One that has messages already.
    pub(crate) fn of(queue: VecDeque<T>) -> Self {
        Self { queue: Mutex::new(queue), arrived: Notify::new() }
    }

    /// Adds a message.
    pub(crate) fn push(&self, message: T) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(message);
        // Kept until the receiver waits.
        self.arrived.notify_one();
    }

    /// The next message. Cancel-safe: one is taken only when it is returned.
    pub(crate) async fn next(&self) -> T {
        loop {
            if let Some(message) = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                return message;
            }
            self.arrived.notified().await;
        }
    }
}

impl<T: Clone> Inbox<T> {
    /// All that wait.
    pub(crate) fn waiting(&self) -> VecDeque<T> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
