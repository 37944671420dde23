use super::session::REKEY_AFTER;
use super::*;

fn key(n: u8) -> Key {
    Key::new([n; 32])
}

fn who(n: u8) -> Introduction {
    Introduction { name: format!("machine {n}"), ..Introduction::of(Identity([n; 16])) }
}

const BOTH: [Purpose; 2] = [Purpose::Requests, Purpose::Pairing];

fn shake_hands(purpose: Purpose) -> (Established, Established) {
    shake_hands_with(purpose, [true; 2])
}

/// Two machines of which each has AES instructions or not.
fn shake_hands_with(purpose: Purpose, aes: [bool; 2]) -> (Established, Established) {
    let who = |n: u8| Introduction { has_aes: aes[usize::from(n) - 1], ..who(n) };
    let (initiator, hello) = initiate(purpose, &key(1), &who(1)).unwrap();
    let (reply, server) = respond(purpose, &key(1), &who(2), &hello).unwrap();
    (initiator.finish(&reply).unwrap(), server)
}

fn seal(session: &mut Session, plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0; plain.len() + OVERHEAD];
    let n = session.seal(plain, &mut out).unwrap();
    assert_eq!((n, Session::record_len(&out)), (out.len(), Some(out.len())));
    out
}

fn open(session: &mut Session, record: &[u8]) -> Result<Vec<u8>, NoiseError> {
    let mut record = record.to_vec();
    let plain = session.open(&mut record)?;
    Ok(record[plain].to_vec())
}

#[test]
fn who_has_the_key_is_known_and_heard() {
    for purpose in BOTH {
        let (mut client, mut server) = shake_hands(purpose);
        assert_eq!(client.peer.identity, who(2).identity);
        assert_eq!(server.peer.identity, who(1).identity);
        let name = if purpose == Purpose::Pairing { "machine 1" } else { "" };
        assert_eq!(server.peer.name, name);
        for text in [&b"GET /"[..], b"", &[7; MAX_RECORD]] {
            let record = seal(&mut client.session, text);
            assert!(text.len() < 5 || !record.windows(text.len()).any(|w| w == text));
            assert_eq!(open(&mut server.session, &record).unwrap(), text);
            let record = seal(&mut server.session, text);
            assert_eq!(open(&mut client.session, &record).unwrap(), text);
        }
    }
}

#[test]
fn a_server_that_reads_a_line_gets_one() {
    for purpose in BOTH {
        for _ in 0..100 {
            let (_, hello) = initiate_with_line(purpose, &key(1), &who(1)).unwrap();
            assert!(hello.contains(&b'\n'), "{hello:?}");
        }
    }
}

#[test]
fn the_first_message_has_the_documented_bytes() {
    let (_, hello) = initiate(Purpose::Requests, &key(1), &who(1)).unwrap();
    assert_eq!(hello.len(), 77);
    assert_eq!(hello[..4], [0xF5, b'L', b'N', 1]);
    assert_eq!(hello[4..12], key(1).id().0);
    assert_eq!(Purpose::Requests.read_id(&hello), Some(key(1).id()));
    assert_eq!(Purpose::Requests.reply_len(), 65);
    let (_, hello) = initiate(Purpose::Pairing, &key(1), &who(1)).unwrap();
    assert_eq!(hello[..12], [0xF5, b'L', b'N', 2, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Purpose::Requests.read_id(&hello), None);
}

#[test]
fn every_flipped_bit_of_a_handshake_is_refused() {
    for purpose in BOTH {
        let (_, hello) = initiate(purpose, &key(1), &who(1)).unwrap();
        for bit in 0..hello.len() * 8 {
            let mut changed = hello.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(respond(purpose, &key(1), &who(2), &changed).is_err(), "bit {bit}");
        }
        for bit in 0..purpose.reply_len() * 8 {
            let (initiator, hello) = initiate(purpose, &key(1), &who(1)).unwrap();
            let (mut reply, _) = respond(purpose, &key(1), &who(2), &hello).unwrap();
            reply[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(initiator.finish(&reply).unwrap_err(), NoiseError::WrongKey, "bit {bit}");
        }
    }
}

#[test]
fn every_truncation_of_a_handshake_is_refused() {
    for purpose in BOTH {
        let (_, hello) = initiate(purpose, &key(1), &who(1)).unwrap();
        for len in 0..hello.len() {
            assert!(respond(purpose, &key(1), &who(2), &hello[..len]).is_err(), "{len} bytes");
        }
        let long = [&hello[..], &[0]].concat();
        assert!(respond(purpose, &key(1), &who(2), &long).is_err());
        for len in (0..purpose.reply_len()).chain([purpose.reply_len() + 1]) {
            let (initiator, hello) = initiate(purpose, &key(1), &who(1)).unwrap();
            let (mut reply, _) = respond(purpose, &key(1), &who(2), &hello).unwrap();
            reply.resize(len, 0);
            assert!(initiator.finish(&reply).is_err(), "{len} bytes");
        }
    }
}

#[test]
fn another_key_another_purpose_and_ourselves_are_refused() {
    let (initiator, hello) = initiate(Purpose::Requests, &key(1), &who(1)).unwrap();
    assert!(respond(Purpose::Requests, &key(2), &who(2), &hello).is_err());
    assert!(respond(Purpose::Pairing, &key(1), &who(2), &hello).is_err());
    // With the right key's name and another key.
    let mut forged = initiate(Purpose::Requests, &key(2), &who(1)).unwrap().1;
    forged[..PROLOGUE].copy_from_slice(&hello[..PROLOGUE]);
    let refused = respond(Purpose::Requests, &key(1), &who(2), &forged).unwrap_err();
    assert_eq!(refused, NoiseError::WrongKey);
    // From a machine that only knows the id of the key, or has another code.
    let prologue = Purpose::Requests.prologue(key(1).id());
    let mut state = builder(&key(2).handshake_key(), &prologue).unwrap().build_initiator().unwrap();
    let mut forged = vec![0; Purpose::Requests.hello_len()];
    forged[..PROLOGUE].copy_from_slice(&prologue);
    state.write_message(&who(1).encode(Purpose::Requests), &mut forged[PROLOGUE..]).unwrap();
    let refused = respond(Purpose::Requests, &key(1), &who(2), &forged).unwrap_err();
    assert_eq!(refused, NoiseError::WrongKey);
    let (_, guess) = initiate(Purpose::Pairing, &key(2), &who(1)).unwrap();
    let refused = respond(Purpose::Pairing, &key(1), &who(2), &guess).unwrap_err();
    assert_eq!(refused, NoiseError::WrongKey);
    // Sent back to its sender, as a first and as a second message.
    let refused = respond(Purpose::Requests, &key(1), &who(1), &hello).unwrap_err();
    assert_eq!(refused, NoiseError::OwnIdentity);
    assert_eq!(initiator.finish(&hello[PROLOGUE..]).unwrap_err(), NoiseError::WrongKey);
}

#[test]
fn a_replayed_handshake_leads_nowhere() {
    let (initiator, hello) = initiate(Purpose::Requests, &key(1), &who(1)).unwrap();
    let (reply, _) = respond(Purpose::Requests, &key(1), &who(2), &hello).unwrap();
    let mut client = initiator.finish(&reply).unwrap();
    let recorded = seal(&mut client.session, b"POST /api/chat");
    // To the same server again: it answers, with another key of its own …
    let (second, mut server) = respond(Purpose::Requests, &key(1), &who(2), &hello).unwrap();
    assert_ne!(second, reply);
    // … under which the recorded request doesn't open.
    assert_eq!(open(&mut server.session, &recorded).unwrap_err(), NoiseError::Record);
    // A recorded answer fits no other handshake.
    let (initiator, _) = initiate(Purpose::Requests, &key(1), &who(1)).unwrap();
    assert_eq!(initiator.finish(&reply).unwrap_err(), NoiseError::WrongKey);
}

#[test]
fn records_open_once_in_order_and_unchanged() {
    let (mut client, mut server) = shake_hands(Purpose::Requests);
    let records: Vec<_> = (0..3).map(|n| seal(&mut client.session, &[n; 20])).collect();
    assert!(open(&mut server.session, &records[1]).is_err(), "out of turn");
    assert_eq!(open(&mut server.session, &records[0]).unwrap(), [0; 20]);
    assert!(open(&mut server.session, &records[0]).is_err(), "twice");
    for bit in 16..records[1].len() * 8 {
        let mut changed = records[1].clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&mut server.session, &changed).is_err(), "bit {bit}");
    }
    for len in 0..records[1].len() {
        assert!(open(&mut server.session, &records[1][..len]).is_err(), "{len} bytes");
    }
    assert!(open(&mut client.session, &records[1]).is_err(), "sent back to its sender");
    assert_eq!(open(&mut server.session, &records[1]).unwrap(), [1; 20]);
}

#[test]
fn aes_is_used_where_both_have_it_in_hardware() {
    for aes in [[true, true], [true, false], [false, true], [false, false]] {
        for purpose in BOTH {
            let (mut client, mut server) = shake_hands_with(purpose, aes);
            for session in [&client.session, &server.session] {
                assert_eq!(session.uses_aes(), aes == [true; 2], "{aes:?}");
            }
            let record = seal(&mut client.session, b"there");
            assert_eq!(open(&mut server.session, &record).unwrap(), b"there");
            let record = seal(&mut server.session, b"and back");
            assert_eq!(open(&mut client.session, &record).unwrap(), b"and back");
        }
    }
}

#[test]
fn keys_are_replaced_on_both_sides_at_once() {
    for aes in [true, false] {
        let (mut client, mut server) = shake_hands_with(Purpose::Requests, [aes; 2]);
        let mut record = [0; 1 + OVERHEAD];
        for n in 0..REKEY_AFTER * 2 + 3 {
            client.session.seal(&[n as u8], &mut record).unwrap();
            assert_eq!(server.session.open(&mut record), Ok(2..3), "record {n}");
            assert_eq!(record[2], n as u8);
        }
    }
}

#[test]
fn datagrams_are_authenticated() {
    let code = key(1).authenticate(b"datagram");
    assert!(key(1).verifies(b"datagram", &code));
    assert!(!key(2).verifies(b"datagram", &code));
    assert!(!key(1).verifies(b"datagrax", &code));
    for bit in 0..128 {
        let mut changed = code;
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(!key(1).verifies(b"datagram", &changed), "bit {bit}");
    }
}

#[test]
fn each_use_has_a_key_of_its_own() {
    let key = key(1);
    assert_ne!(key.handshake_key(), *key.bytes());
    assert_ne!(key.handshake_key()[..8], key.id().0);
    assert_ne!(Key::of_code("k7pm2xvd9q"), Key::of_code("k7pm2xvd9r"));
    let unstretched = key::derive(&[0; 32], b"ollana code", b"k7pm2xvd9q");
    assert_ne!(Key::of_code("k7pm2xvd9q").bytes(), &unstretched, "each guess costs time");
    assert_ne!(Key::of_halves(&[1; 32], &[2; 32]), Key::of_halves(&[2; 32], &[1; 32]));
    assert_ne!(Key::of_halves(&[1; 32], &[2; 32]), Key::of_halves(&[1; 32], &[3; 32]));
    assert_ne!(Key::of_halves(&[1; 32], &[2; 32]), Key::of_halves(&[3; 32], &[2; 32]));
    assert_eq!(format!("{key:?}"), format!("Key({})", key.id()), "the log never has a secret");
}
