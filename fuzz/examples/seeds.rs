//! Writes valid inputs for every target to `corpus/TARGET/`, to begin with.

use std::fs;
use std::io;
use std::path::Path;

use anabranch_model::codec::{Dictionary, Intern, encode_attributes, encode_record};
use anabranch_model::{
    Attributes, AttributesFacet, ChangeNumber, Content, ContentFacet, FolderId, Hlc, Knowledge, Name, Owner, Placement,
    PlacementFacet, Record, ReplicaId, Sequence, Stamp, Time, Timestamp, Uid, Version, Written,
};
use anabranch_net::message::{Acknowledgement, Envelope, Mark, Message, Page, Piece, Sum, Want};
use anabranch_net::wire;

const ATTRIBUTES: u8 = 7;
const REPLICAS: u8 = 7;

fn version(replica: u8, sequence: u64) -> Version {
    Version { replica: ReplicaId([replica; 16]), sequence: Sequence(sequence) }
}

fn written(v: Version, more: &[Version]) -> Written {
    let mut history = Knowledge::of(v);
    more.iter().for_each(|&v| history.learn(v));
    let resolutions = u32::try_from(more.len()).unwrap_or(0);
    let change = more.first().copied().unwrap_or(v);
    Written { version: v, time: Time { clock: Hlc(9_000_000), change, resolutions }, history, merged: resolutions > 0 }
}

fn records() -> Vec<Record> {
    let uid = Uid(version(1, 9_000_000));
    let placement = |directory, deleted| PlacementFacet {
        value: Placement {
            parent: Uid(version(2, 8_000_000)),
            name: Name::new(*b"plan.txt").expect("an allowed name"),
            directory,
            deleted,
            author: if deleted { "laptop".into() } else { "".into() },
        },
        written: if deleted { written(version(3, 5), &[version(1, 2), version(4, 7)]) } else { written(uid.0, &[]) },
        seen: if deleted { Knowledge::of(version(1, 9_000_001)) } else { Knowledge::default() },
    };
    let content = |value, own| {
        let written = written(version(1, 9_000_001), &[]);
        let bytes = if own { written.stamp() } else { Stamp { version: version(5, 3), ..written.stamp() } };
        let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };
        Some(ContentFacet { value, mtime, birth: (!own).then_some(mtime), written, bytes })
    };
    let attributes = |directory_mtime| {
        let value = Attributes { mode: 3, ..Attributes::default() };
        Some(AttributesFacet { value, directory_mtime, written: written(version(1, 9_000_002), &[]) })
    };
    let record = |placement, content, attributes, unknown: &[u8]| Record {
        uid,
        placement,
        content,
        attributes,
        unknown: unknown.into(),
    };
    let file = Content::File { size: 5, hash: [7; 32] };
    let link = Content::Symlink { target: (*b"../up").into() };
    vec![
        record(placement(false, false), content(file.clone(), true), attributes(None), b""),
        record(placement(false, true), content(file, false), None, b"\x10\x01x\x20\x00"),
        record(placement(false, false), content(link, true), None, b""),
        record(placement(true, false), None, attributes(Some(Timestamp::default())), b""),
    ]
}

fn attributes() -> Vec<Attributes> {
    let mut full = Attributes { mode: 0o2755, ..Attributes::default() };
    full.owner = Owner { number: 1000, name: Some("anna".into()) };
    full.group = Owner { number: 70_000, name: Some("staff".into()) };
    full.xattrs.insert((*b"system.posix_acl_access").into(), [2, 0, 0, 0, 1, 0, 7, 0].into());
    full.xattrs.insert((*b"user.note").into(), (*b"").into());
    vec![Attributes::default(), full]
}

fn messages() -> Vec<Message> {
    let replica = ReplicaId([1; 16]);
    let (uid, request) = (Uid(version(1, 5)), 77);
    let known: Knowledge = [(replica, Sequence(9)), (ReplicaId([2; 16]), Sequence(10))].into_iter().collect();
    let mark = Mark { replica, highest: Sequence(9), digest: [4; 32] };
    let closed = vec![version(3, 4)];
    let (member, clock, number) = ("hq1".to_owned(), Hlc(5), ChangeNumber(7));
    let mut dictionary = Dictionary::default();
    let rows = records().iter().map(|r| encode_record(r, &mut dictionary)).collect();
    let page = Page {
        replicas: dictionary.replicas.clone(),
        attributes: dictionary.attributes.iter().map(encode_attributes).collect(),
        rows,
        through: number,
        complete: Some((known.clone(), mark)),
    };
    vec![
        Message::Open {
            member: member.clone(),
            replica,
            echo: mark,
            closed: closed.clone(),
            clock,
            known: known.clone(),
            names: String::new(),
        },
        Message::Opened {
            member: member.clone(),
            replica,
            echo: mark,
            closed,
            clock,
            number,
            known: known.clone(),
            names: "windows 16.0.0".to_owned(),
            joining: true,
        },
        Message::Refused { reason: "It is stopped.".to_owned() },
        Message::Grown { number },
        Message::Pull { after: number, known: known.clone(), part: true },
        Message::Page(page),
        Message::Page(Page::default()),
        Message::Fetch {
            request,
            wants: vec![Want { uid, version: version(1, 6), hash: [3; 32], offset: 65_536, length: 4_096 }; 2],
        },
        Message::Pieces { request, first: 1, pieces: vec![Piece::Data(vec![1, 2].into()), Piece::NotHeld, Piece::Busy] },
        Message::Held { uids: vec![uid] },
        Message::Acknowledged { members: vec![Acknowledgement { member, replica, serial: 3, held: known }] },
        Message::AskSums { request },
        Message::Sums { request, outstanding: 2, sums: vec![Sum { bucket: 5, sum: [9; 32] }] },
        Message::AskBucket { request, bucket: 5 },
        Message::Bucket { request, rows: vec![(uid, [8; 32])] },
        Message::AskRecords { request, uids: vec![uid] },
        Message::Records { request, present: vec![true, false, true] },
    ]
}

fn write(target: &str, inputs: impl IntoIterator<Item = Vec<u8>>) -> io::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&directory)?;
    inputs.into_iter().enumerate().try_for_each(|(at, bytes)| fs::write(directory.join(format!("seed-{at}")), bytes))
}

fn main() -> io::Result<()> {
    let (mut dictionary, _) = anabranch_fuzz::dictionary(&[REPLICAS, ATTRIBUTES]);
    let before = (dictionary.replicas.len(), dictionary.attributes.len());
    let encoded: Vec<Vec<u8>> =
        records().iter().map(|r| [&[REPLICAS, ATTRIBUTES][..], &encode_record(r, &mut dictionary)].concat()).collect();
    assert_eq!(before, (dictionary.replicas.len(), dictionary.attributes.len()), "the seeds use what is there");
    assert_eq!(dictionary.replica(ReplicaId([1; 16])), 1);
    write("record", encoded)?;
    write("attributes", attributes().iter().map(encode_attributes))?;
    let folder = FolderId([6; 16]);
    let envelopes: Vec<Envelope> = messages().into_iter().map(|message| Envelope { folder, message }).collect();
    write("message", envelopes.iter().map(wire::encode))?;
    let mut connection = wire::preamble().to_vec();
    for envelope in envelopes {
        connection.extend(wire::frame(envelope).map_err(io::Error::other)?);
    }
    write("frame", [connection])
}
