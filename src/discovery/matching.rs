//! Which answers count. Pure.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use super::packet::{self, Datagram, Kind, Nonce, Packet, flags};
use crate::manager::pool::{Input, Notice, Sighting, Unusable};
use crate::pairing::{identity::Identity, noise::Key};

/// Answers to this many of our last rounds of probes count.
const ROUNDS: usize = 3;

/// The probes whose answers count.
#[derive(Debug)]
pub struct Expected {
    own: Identity,
    rounds: VecDeque<Vec<Question>>,
}

/// One probe: its nonce, and the key that it was made with.
pub type Question = (Nonce, Option<Key>);

/// A received datagram: what it says, its bytes, and its sender.
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub struct Received<'a> {
    pub packet: Packet,
    pub bytes: &'a [u8],
    pub source: SocketAddr,
}

impl Expected {
    /// No probes yet. `own` is this process, whose own server isn't one to use.
    pub fn new(own: Identity) -> Self {
        Expected { own, rounds: VecDeque::new() }
    }

    /// This round of probes is about to be sent.
    pub fn asked(&mut self, round: Vec<Question>) {
        self.rounds.push_front(round);
        self.rounds.truncate(ROUNDS);
    }

    /// What a packet means to the Manager, and the key that it is authenticated with; `None` if it
    /// doesn't count. `is_open` tells whether the sender, as far as it is known, is talked to
    /// without a key. `is_on_link` is called last, because it costs most.
    pub fn accept(
        &self,
        received: Received<'_>,
        is_open: impl Fn(Option<(Identity, SocketAddr)>) -> bool,
        is_on_link: impl FnOnce() -> bool,
    ) -> Option<(Input, Option<Key>)> {
        let Received { packet, bytes, source } = received;
        let accepted = match packet {
            Packet::Legacy => is_open(None).then_some((Input::LegacySighted(source.ip()), None))?,
            Packet::V1(datagram) => {
                let mut asked = self.rounds.iter().flatten();
                let (_, key) = asked.find(|(nonce, _)| *nonce == datagram.nonce)?;
                let address = SocketAddr::new(source.ip(), datagram.http_port);
                let is_genuine = match key {
                    Some(key) => packet::is_authentic(bytes, None, key),
                    None => is_open(Some((datagram.sender, address))),
                };
                if datagram.is_notice() {
                    let is_strict = !is_open(None);
                    let why = why(&datagram, key.is_some(), is_genuine, is_strict)?;
                    let notice = self.notice(datagram, source.ip(), why)?;
                    return is_on_link().then_some((Input::Noticed(notice), None));
                }
                (self.answer(datagram, address).filter(|_| is_genuine)?, key.clone())
            }
        };
        is_on_link().then_some(accepted)
    }

    fn notice(&self, told: Datagram, from: IpAddr, why: Unusable) -> Option<Notice> {
        let Datagram { sender: identity, name, .. } = told;
        (identity != self.own).then_some(Notice { identity, name, from, why })
    }

    fn answer(&self, datagram: Datagram, address: SocketAddr) -> Option<Input> {
        match datagram.kind {
            _ if datagram.sender == self.own => None,
            Kind::Announce if datagram.http_port != 0 => Some(Input::Sighted(Sighting {
                address,
                identity: datagram.sender,
                instance: datagram.instance,
                name: datagram.name,
                ollama_up: datagram.flags & flags::OLLAMA_UP != 0,
                management_open: datagram.flags & flags::MANAGEMENT_OPEN != 0,
            })),
            Kind::Goodbye => {
                Some(Input::Farewell { identity: datagram.sender, from: address.ip() })
            }
            Kind::Announce | Kind::Probe => None,
        }
    }
}

/// What a notice means. It isn't authenticated where its sender doesn't have the key of the probe;
/// `is_strict` tells whether we talk to paired machines only.
pub(super) fn why(
    told: &Datagram,
    has_key: bool,
    is_genuine: bool,
    is_strict: bool,
) -> Option<Unusable> {
    let has = |flag| told.flags & flag != 0;
    match () {
        () if has(flags::KEY_REQUIRED) => Some(Unusable::KeyRequired),
        () if is_genuine && !has(flags::OLLAMA_UP) => Some(Unusable::NotRunning),
        () if has_key && !is_genuine && is_strict => Some(Unusable::NotPaired),
        () => None,
    }
}

/// The bytes of a probe that is sent from this address, authenticated if there is a key.
pub(crate) fn probe(probe: Datagram, key: Option<&Key>, from: IpAddr) -> Vec<u8> {
    let mut bytes = Datagram { key: key.map(Key::id), ..probe }.encode(packet::PROBE_LEN);
    if let Some(key) = key {
        packet::authenticate(&mut bytes, Some(from), key);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ollama::version::OllamaVersion;

    fn announcement(nonce: u8) -> Datagram {
        Datagram {
            kind: Kind::Announce,
            nonce: [nonce; 16],
            sender: Identity([7; 16]),
            http_port: 11435,
            flags: flags::OLLAMA_UP,
            capabilities: 0,
            version: OllamaVersion::default(),
            in_flight: 0,
            instance: 1,
            name: "desk".to_owned(),
            key: None,
        }
    }

    fn received(datagram: Datagram, bytes: &[u8], source: SocketAddr) -> Received<'_> {
        Received { packet: Packet::V1(datagram), bytes, source }
    }

    #[test]
    fn an_answer_needs_the_key_that_was_asked_with() {
        let source: SocketAddr = "10.0.0.2:11436".parse().expect("address");
        let [ours, other] = [1, 2].map(|n| Key::new([n; 32]));
        let mut expected = Expected::new(Identity([1; 16]));
        expected.asked(vec![([1; 16], Some(ours.clone())), ([2; 16], None)]);
        for (nonce, key, is_open, counts) in [
            (1, Some(&ours), false, true),
            (1, Some(&other), true, false),
            (1, None, true, false),
            (2, None, true, true),
            (2, None, false, false),
            (2, Some(&ours), false, false),
            (3, Some(&ours), true, false),
        ] {
            let datagram = announcement(nonce);
            let mut bytes = datagram.encode(packet::PROBE_LEN);
            if let Some(key) = key {
                packet::authenticate(&mut bytes, None, key);
            }
            let accepted = expected.accept(
                received(datagram, &bytes, source),
                |about| {
                    let address = "10.0.0.2:11435".parse().expect("address");
                    assert_eq!(about, Some((Identity([7; 16]), address)));
                    is_open
                },
                || true,
            );
            assert_eq!(accepted.is_some(), counts, "{nonce} {key:?} {is_open}");
            let with = accepted.and_then(|(_, key)| key);
            assert_eq!(with.as_ref(), key.filter(|_| counts));
        }
        let bare = || Received { packet: Packet::Legacy, bytes: b"LANA", source };
        assert!(expected.accept(bare(), |_| true, || true).is_some());
        assert!(expected.accept(bare(), |_| false, || true).is_none());
    }

    #[test]
    fn a_notice_says_why_its_sender_cannot_be_used() {
        use Unusable::{KeyRequired, NotPaired, NotRunning};
        let source: SocketAddr = "10.0.0.2:11436".parse().expect("address");
        let key = Key::new([1; 32]);
        let mut expected = Expected::new(Identity([1; 16]));
        expected.asked(vec![([1; 16], Some(key.clone())), ([2; 16], None)]);
        // The probe's nonce, flags, whether it is sealed, whether others are talked to in clear.
        for (nonce, flags, is_sealed, is_open, want) in [
            (1, 0, true, false, Some(NotRunning)),
            (1, 0, false, false, Some(NotPaired)),
            (1, 0, false, true, None),
            (1, flags::KEY_REQUIRED, false, false, Some(KeyRequired)),
            (2, flags::KEY_REQUIRED, false, true, Some(KeyRequired)),
            (2, 0, false, true, Some(NotRunning)),
            (2, 0, false, false, None),
            (2, flags::OLLAMA_UP, false, true, None),
            (3, flags::KEY_REQUIRED, false, true, None),
        ] {
            let datagram = Datagram { http_port: 0, flags, ..announcement(nonce) };
            let mut bytes = datagram.encode(packet::PROBE_LEN);
            if is_sealed {
                packet::authenticate(&mut bytes, None, &key);
            }
            let received = received(datagram, &bytes, source);
            let got = expected.accept(received.clone(), |_| is_open, || true);
            let why = got.map(|(input, key)| match (input, key) {
                (Input::Noticed(notice), None) => {
                    assert_eq!((notice.from, &*notice.name), (source.ip(), "desk"));
                    notice.why
                }
                other => panic!("{other:?}"),
            });
            assert_eq!(why, want, "{nonce} {flags} {is_sealed} {is_open}");
            assert!(expected.accept(received, |_| is_open, || false).is_none(), "from afar");
        }
    }

    #[test]
    fn only_answers_to_the_last_three_probes_count() {
        let source: SocketAddr = "10.0.0.2:11436".parse().expect("address");
        let mut expected = Expected::new(Identity([1; 16]));
        let counts = |expected: &Expected, datagram: Datagram| {
            expected.accept(received(datagram, &[], source), |_| true, || true).is_some()
        };
        assert!(!counts(&expected, announcement(0)), "nothing was asked");
        for nonce in 1..=5 {
            expected.asked(vec![([nonce; 16], None)]);
        }
        let counted: Vec<u8> =
            (0..=6).filter(|nonce| counts(&expected, announcement(*nonce))).collect();
        assert_eq!(counted, [3, 4, 5]);
        let input = expected.accept(received(announcement(4), &[], source), |_| true, || true);
        let Some((Input::Sighted(sighting), None)) = input else { panic!("{input:?}") };
        assert_eq!(sighting.address.to_string(), "10.0.0.2:11435", "the packet's own source");
        assert!(sighting.ollama_up && sighting.name == "desk");
        let away = expected.accept(received(announcement(4), &[], source), |_| true, || false);
        assert!(away.is_none(), "from another link");
        let own = Datagram { sender: Identity([1; 16]), ..announcement(4) };
        assert!(!counts(&expected, own), "our own server");
        let nowhere = Datagram { http_port: 0, ..announcement(4) };
        assert!(!counts(&expected, nowhere));
        let probe = Datagram { kind: Kind::Probe, ..announcement(4) };
        assert!(!counts(&expected, probe));
        let farewell = Datagram { kind: Kind::Goodbye, ..announcement(4) };
        assert!(counts(&expected, farewell));
        let bare = || Received { packet: Packet::Legacy, bytes: b"LANA", source };
        assert!(expected.accept(bare(), |_| true, || true).is_some());
        assert!(expected.accept(bare(), |_| true, || false).is_none());
    }
}
