//! What each fuzz target demands of its decoder: any bytes are answered with a value or an error, never with a panic;
//! and a value that is accepted comes back the same from its own encoding.

use anabranch_model::codec::{Dictionary, decode_attributes, decode_record, encode_attributes, encode_record};
use anabranch_model::{Attributes, ReplicaId};
use anabranch_net::wire;
use bytes::Bytes;

/// A dictionary made of the first two bytes, and the bytes that are left.
///
/// The first says how many replica ids there are and whether one stands twice, as a page from a partner may have it; the
/// second how many attribute values.
pub fn dictionary(input: &[u8]) -> (Dictionary, &[u8]) {
    let (&[replicas, attributes], rest) = input.split_first_chunk().unwrap_or((&[0, 0], &[]));
    let id = |n: u8| ReplicaId([if replicas & 0x80 == 0 { n } else { n / 2 }; 16]);
    let value = |n: u8| Attributes { mode: n.into(), ..Attributes::default() };
    let ids = (0..replicas % 8).map(id).collect();
    (Dictionary::new(ids, (0..attributes % 8).map(value).collect()), rest)
}

/// One record; see [`dictionary`] for the first two bytes.
pub fn record(input: &[u8]) {
    let (dictionary, bytes) = dictionary(input);
    let Ok(record) = decode_record(bytes, &dictionary) else { return };
    let mut fresh = Dictionary::default();
    let encoded = encode_record(&record, &mut fresh);
    assert_eq!(decode_record(&encoded, &fresh).as_ref(), Ok(&record));
    assert_eq!(encode_record(&record, &mut fresh), encoded, "the numbers are settled after the first time");
}

/// One attribute value.
pub fn attributes(input: &[u8]) {
    let Ok(value) = decode_attributes(input) else { return };
    assert_eq!(decode_attributes(&encode_attributes(&value)), Ok(value));
}

/// One message of the wire protocol.
pub fn message(input: &[u8]) {
    let Ok(envelope) = wire::decode(Bytes::copy_from_slice(input)) else { return };
    let encoded = wire::encode(&envelope);
    assert_eq!(wire::decode(encoded.clone().into()).ok().as_ref(), Some(&envelope));
    let framed = wire::frame(envelope).expect("what came in one frame goes in one frame");
    assert_eq!(framed[wire::FRAME_HEAD_BYTES..], encoded);
}

/// A connection: the first bytes, then frames one after the other until the bytes end.
pub fn frame(input: &[u8]) {
    let Some((head, mut rest)) = input.split_first_chunk() else { return };
    if wire::check_preamble(*head).is_err() {
        return;
    }
    while let Some((head, after)) = rest.split_first_chunk() {
        let Ok(length) = wire::frame_length(*head) else { return };
        let Some((bytes, after)) = after.split_at_checked(length) else { return };
        message(bytes);
        rest = after;
    }
}
