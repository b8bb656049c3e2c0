//! Who may come in: the messages of a login and what each is answered with. Whatever the client is told of a refusal is
//! the same for every wrong key and every wrong password.

use crate::{
    error::{Error, Result},
    keys::PublicKey,
    message,
    wire::{Reader, Writer},
};

/// The service that clients want once they are in.
const CONNECTION: &str = "ssh-connection";
const LOGIN: &str = "ssh-userauth";

/// Wrong passwords and signatures before the connection is ended.
const WRONG_MAX: u32 = 6;

/// Keys that a client may ask about. People have many; an answer costs nearly nothing.
const QUESTIONS_MAX: u32 = 32;

/// Longest password.
const PASSWORD_BYTES_MAX: usize = 1024;

/// Decides who may come in. Any user name is as good as another.
pub trait Authority {
    /// Whether this is the password. It must take as long for a wrong one as for the right one.
    fn is_password(&self, password: &[u8]) -> bool;
    /// Whether the holder of this key may come in.
    fn knows(&self, key: &PublicKey) -> bool;
    /// Whether there is a password at all.
    fn takes_passwords(&self) -> bool;
}

/// What follows a message of a login.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This is said, and another message waited for.
    Reply(Vec<u8>),
    /// The same, after a pause: somebody may be guessing.
    Refuse(Vec<u8>),
    /// This is said, and the client is in.
    Welcome(Vec<u8>),
}

/// A login under way.
#[derive(Debug, Default)]
pub(crate) struct Login {
    requested: bool,
    wrong: u32,
    questions: u32,
}

impl Login {
    /// Answers a message. `session` is the connection's name.
    pub(crate) fn answer(
        &mut self,
        payload: &[u8],
        session: &[u8],
        authority: &dyn Authority,
    ) -> Result<Verdict> {
        let mut reader = Reader::new(payload);
        match reader.byte()? {
            message::SERVICE_REQUEST => {
                if reader.text()? != LOGIN {
                    return Err(Error::Protocol("a service that is not there"));
                }
                self.requested = true;
                Ok(Verdict::Reply(Writer::message(message::SERVICE_ACCEPT).string(LOGIN).finish()))
            }
            message::USERAUTH_REQUEST if self.requested => self.attempt(reader, session, authority),
            _ => Err(Error::Protocol("a message before the login")),
        }
    }

    fn attempt(
        &mut self,
        mut reader: Reader<'_>,
        session: &[u8],
        authority: &dyn Authority,
    ) -> Result<Verdict> {
        let user = reader.string()?;
        if reader.text()? != CONNECTION {
            return Err(Error::Protocol("a service that is not there"));
        }
        let refusal = || {
            let methods = if authority.takes_passwords() { "publickey,password" } else { "publickey" };
            Writer::message(message::USERAUTH_FAILURE).string(methods).boolean(false).finish()
        };
        let verdict = match reader.text()? {
            "password" => {
                let (change, password) = (reader.boolean()?, reader.string()?);
                !change && password.len() <= PASSWORD_BYTES_MAX && authority.is_password(password)
            }
            "publickey" => {
                let signed = reader.boolean()?;
                let (algorithm, blob) = (reader.text()?, reader.string()?);
                let key = PublicKey::from_blob(blob).ok();
                let key = key.filter(|key| key.signs_with(algorithm) && authority.knows(key));
                if !signed {
                    return self.answer_question(
                        key.map(|_| {
                            Writer::message(message::USERAUTH_PK_OK).string(algorithm).string(blob).finish()
                        }),
                        refusal,
                    );
                }
                let signature = reader.string()?;
                let message = Writer::default()
                    .string(session)
                    .byte(message::USERAUTH_REQUEST)
                    .string(user)
                    .string(CONNECTION)
                    .string("publickey")
                    .boolean(true)
                    .string(algorithm)
                    .string(blob)
                    .finish();
                key.is_some_and(|key| key.has_signed(algorithm, &message, signature))
            }
            // Clients ask so what there is.
            "none" => return self.answer_question(None, refusal),
            _ => false,
        };
        if verdict {
            return Ok(Verdict::Welcome(vec![message::USERAUTH_SUCCESS]));
        }
        self.wrong += 1;
        if self.wrong >= WRONG_MAX {
            return Err(Error::TooManyAttempts);
        }
        Ok(Verdict::Refuse(refusal()))
    }

    fn answer_question(&mut self, answer: Option<Vec<u8>>, refusal: impl Fn() -> Vec<u8>) -> Result<Verdict> {
        self.questions += 1;
        if self.questions > QUESTIONS_MAX {
            return Err(Error::TooManyAttempts);
        }
        Ok(Verdict::Reply(answer.unwrap_or_else(refusal)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keys::HostKey;

    struct Door {
        password: Option<&'static str>,
        key: Option<PublicKey>,
    }

    impl Authority for Door {
        fn is_password(&self, password: &[u8]) -> bool {
            self.password.is_some_and(|known| known.as_bytes() == password)
        }

        fn knows(&self, key: &PublicKey) -> bool {
            self.key.as_ref() == Some(key)
        }

        fn takes_passwords(&self) -> bool {
            self.password.is_some()
        }
    }

    fn started() -> Login {
        Login { requested: true, ..Login::default() }
    }

    fn request(method: &str) -> Writer {
        Writer::message(message::USERAUTH_REQUEST).string("anybody").string(CONNECTION).string(method)
    }

    fn password(text: &str) -> Vec<u8> {
        request("password").boolean(false).string(text).finish()
    }

    #[test]
    fn passwords() {
        let door = Door { password: Some("right"), key: None };
        let mut login = started();
        for _ in 1..WRONG_MAX {
            assert!(matches!(login.answer(&password("wrong"), b"", &door), Ok(Verdict::Refuse(_))));
        }
        assert!(matches!(login.answer(&password("wrong"), b"", &door), Err(Error::TooManyAttempts)));
        assert!(matches!(started().answer(&password("right"), b"", &door), Ok(Verdict::Welcome(_))));
        let changing = request("password").boolean(true).string("right").string("new").finish();
        assert!(matches!(started().answer(&changing, b"", &door), Ok(Verdict::Refuse(_))));
        let closed = Door { password: None, key: None };
        assert!(matches!(started().answer(&password(""), b"", &closed), Ok(Verdict::Refuse(_))));
        assert!(matches!(Login::default().answer(&password("right"), b"", &door), Err(Error::Protocol(_))));
    }

    #[test]
    fn keys() {
        let host = HostKey::from_seed(&[5; 32]);
        let key = PublicKey::from_blob(&host.public()).expect("a key");
        let door = Door { password: None, key: Some(key) };
        let attempt =
            |signed| request("publickey").boolean(signed).string("ssh-ed25519").string(host.public());
        let question = attempt(false).finish();
        let answer =
            Writer::message(message::USERAUTH_PK_OK).string("ssh-ed25519").string(host.public()).finish();
        assert_eq!(started().answer(&question, b"s", &door).ok(), Some(Verdict::Reply(answer)));
        let message = [Writer::default().string("s").finish(), attempt(true).finish()].concat();
        let signed = attempt(true).string(host.sign(&message)).finish();
        assert!(matches!(started().answer(&signed, b"s", &door), Ok(Verdict::Welcome(_))));
        let refused = started().answer(&signed, b"another session", &door);
        assert!(matches!(refused, Ok(Verdict::Refuse(_))));
        let nobody = Door { password: None, key: None };
        assert!(matches!(started().answer(&signed, b"s", &nobody), Ok(Verdict::Refuse(_))));
        let mut login = started();
        for _ in 0..QUESTIONS_MAX {
            assert!(matches!(login.answer(&question, b"s", &nobody), Ok(Verdict::Reply(_))));
        }
        assert!(matches!(login.answer(&question, b"s", &nobody), Err(Error::TooManyAttempts)));
    }

    proptest! {
        #[test]
        fn any_message_lets_nobody_in(kind in prop::sample::select(&[5_u8, 50, 51, 80][..]), rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let door = Door { password: Some("right"), key: None };
            let payload = [&[kind][..], &rest].concat();
            prop_assert!(!matches!(started().answer(&payload, b"", &door), Ok(Verdict::Welcome(_))));
        }
    }
}
