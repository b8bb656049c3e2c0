//! One client: it is let in, then its channels are given to whoever serves them.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use sandhaus_ssh::{Connection, Control, Forward, Incoming, OpeningKind, Question, Refusal};
use tokio::{
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    task::{AbortHandle, JoinSet},
};

use super::{Keeper, Service, forward, process};
use crate::agent::Agent;

/// Places that one client may listen at.
const FORWARDS_MAX: usize = 64;

/// A connection that nobody has logged in on yet.
pub(super) struct Visit {
    pub(super) agent: Arc<Agent>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) service: Service,
    pub(super) peer: SocketAddr,
}

/// What the channels of one client share.
pub(super) struct Client {
    pub(super) agent: Arc<Agent>,
    pub(super) control: Control,
    pub(super) service: Service,
    pub(super) peer: SocketAddr,
    /// Where the client came in.
    pub(super) own: Option<SocketAddr>,
}

impl Visit {
    /// Serves the client to its end. `stranger` is given back once it is known.
    pub(super) async fn receive(self, stream: TcpStream, stranger: OwnedSemaphorePermit) {
        let own = stream.local_addr().ok();
        let accepted = Connection::accept(stream, self.keeper.settings(), &*self.keeper).await;
        drop(stranger);
        // Why it ended is told to the client; to others it is noise that anybody can make.
        let Ok(mut connection) = accepted else { return };
        let client = Arc::new(Client {
            agent: self.agent,
            control: connection.control(),
            service: self.service,
            peer: self.peer,
            own,
        });
        // What is left of them when the connection ends is cut off: it has nobody to talk to.
        let mut tasks = JoinSet::new();
        let mut listening = BTreeMap::new();
        while let Ok(incoming) = connection.next().await {
            while tasks.try_join_next().is_some() {}
            match incoming {
                Incoming::Open(opening) => match (&opening.kind, client.service) {
                    (OpeningKind::Session, _) => {
                        // Not cut off: it has a process to see to its end.
                        tokio::spawn(process::serve(Arc::clone(&client), opening.accept()));
                    }
                    (OpeningKind::Tcp { .. } | OpeningKind::Local { .. }, Service::Whole) => {
                        drop(tasks.spawn(forward::connect(Arc::clone(&client), opening)));
                    }
                    (OpeningKind::Tcp { .. } | OpeningKind::Local { .. }, Service::Rescue) => {
                        opening.refuse(Refusal::Prohibited, "the rescue door has shell and commands only");
                    }
                },
                Incoming::Listen(place, question) => {
                    listen(&client, &mut tasks, &mut listening, place, question).await;
                }
                Incoming::Unlisten(place, question) => {
                    if let Some(task) = listening.remove(&place) {
                        task.abort();
                        question.agree();
                    }
                }
            }
        }
    }
}

/// Listens where the client wants, if that can be. A question that is dropped is answered with no.
async fn listen(
    client: &Arc<Client>,
    tasks: &mut JoinSet<()>,
    listening: &mut BTreeMap<Forward, AbortHandle>,
    place: Forward,
    question: Question,
) {
    if client.service == Service::Rescue || listening.len() >= FORWARDS_MAX || listening.contains_key(&place)
    {
        return;
    }
    let Ok((listener, place)) = forward::Listener::open(client, place).await else { return };
    match &place {
        Forward::Tcp { port, .. } => question.agree_with_port(*port),
        Forward::Local { .. } => question.agree(),
    }
    listening.insert(place.clone(), tasks.spawn(listener.run(Arc::clone(client), place)));
}
