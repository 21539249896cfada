//! Golden bytes of every message, round trips, and bytes that are wrong on purpose.

use super::*;

/// A small generator of numbers (xorshift64*), so that every failure has a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A number with all lengths equally likely.
    fn number(&mut self) -> u64 {
        self.next() >> self.below(64)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        (0..self.below(max + 1)).map(|_| self.next() as u8).collect()
    }

    fn text(&mut self) -> String {
        (0..self.below(20)).map(|_| ['a', 'z', '-', 'ü', '語'][self.below(5)]).collect()
    }

    fn list<T>(&mut self, max: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(max + 1)).map(|_| one(self)).collect()
    }

    fn knowledge(&mut self) -> Knowledge {
        self.list(5, |r| (ReplicaId(r.array()), Sequence(r.number()))).into_iter().collect()
    }

    fn closed(&mut self) -> Vec<Version> {
        self.knowledge().iter().map(|(replica, sequence)| Version { replica, sequence }).collect()
    }

    fn mark(&mut self) -> Mark {
        match self.below(3) {
            0 => Mark::default(),
            _ => Mark { replica: ReplicaId(self.array()), highest: Sequence(self.number()), digest: self.array() },
        }
    }

    fn version(&mut self) -> Version {
        Version { replica: ReplicaId(self.array()), sequence: Sequence(self.number()) }
    }

    fn message(&mut self) -> Message {
        match self.below(17) {
            15 => Message::Echo(self.mark()),
            0 => Message::Open {
                member: self.text(),
                replica: ReplicaId(self.array()),
                echo: self.mark(),
                closed: self.closed(),
                clock: Hlc(self.number()),
                known: self.knowledge(),
                names: self.text(),
            },
            1 => Message::Opened {
                member: self.text(),
                replica: ReplicaId(self.array()),
                echo: self.mark(),
                closed: self.closed(),
                clock: Hlc(self.number()),
                number: ChangeNumber(self.number()),
                known: self.knowledge(),
                names: self.text(),
                joining: self.below(2) == 1,
            },
            2 => Message::Refused { reason: self.text() },
            3 => Message::Grown { number: ChangeNumber(self.number()) },
            4 => Message::Pull {
                after: ChangeNumber(self.number()),
                known: self.knowledge(),
                part: self.number() % 2 == 1,
            },
            5 => Message::Page(Page {
                replicas: self.list(5, |r| ReplicaId(r.array())),
                attributes: self.list(5, |r| [vec![1], r.bytes(200)].concat()),
                rows: self.list(5, |r| [vec![1], r.bytes(200)].concat()),
                through: ChangeNumber(self.number()),
                complete: (self.below(2) == 0).then(|| (self.knowledge(), self.mark())),
            }),
            6 => Message::Fetch {
                request: self.number(),
                wants: self.list(5, |r| Want {
                    uid: Uid(r.version()),
                    version: r.version(),
                    hash: r.array(),
                    offset: r.number() >> 1,
                    length: r.below(PIECE_BYTES_MAX as usize + 1) as u32,
                }),
            },
            7 => Message::Pieces {
                request: self.number(),
                first: self.below(1000) as u32,
                pieces: self.list(5, |r| match r.below(4) {
                    0 => Piece::NotHeld,
                    1 => Piece::Busy,
                    _ => Piece::Data(r.bytes(300).into()),
                }),
            },
            8 => Message::Acknowledged {
                members: (0..self.below(4))
                    .map(|at| Acknowledgement {
                        member: format!("{at}{}", self.text()),
                        replica: ReplicaId(self.array()),
                        serial: self.number(),
                        held: self.knowledge(),
                    })
                    .collect(),
            },
            9 => Message::AskSums { request: self.number() },
            10 => Message::Sums {
                request: self.number(),
                outstanding: self.number(),
                sums: (0..self.below(5))
                    .map(|at| Sum { bucket: (at * 9_000 + self.below(9_000)) as u16, sum: self.array() })
                    .collect(),
            },
            11 => Message::AskBucket { request: self.number(), bucket: self.next() as u16 },
            12 => Message::Bucket { request: self.number(), rows: self.list(5, |r| (Uid(r.version()), r.array())) },
            14 => Message::Held { uids: self.list(5, |r| Uid(r.version())) },
            13 => Message::AskRecords { request: self.number(), uids: self.list(5, |r| Uid(r.version())) },
            _ => Message::Records { request: self.number(), present: self.list(20, |r| r.below(2) == 0) },
        }
    }

    fn envelope(&mut self) -> Envelope {
        Envelope { folder: FolderId(self.array()), message: self.message() }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn knowledge_of(entries: &[(u8, u64)]) -> Knowledge {
    entries.iter().map(|&(replica, sequence)| (ReplicaId([replica; 16]), Sequence(sequence))).collect()
}

fn version_named(replica: u8, sequence: u64) -> Version {
    Version { replica: ReplicaId([replica; 16]), sequence: Sequence(sequence) }
}

/// One example of every message with its body in hexadecimal. `RR*16` stands for a byte repeated.
fn golden() -> Vec<(u8, Message, &'static str)> {
    let known = knowledge_of(&[(1, 5), (2, 300)]);
    let echo = Mark { replica: ReplicaId([2; 16]), highest: Sequence(7), digest: [3; 32] };
    vec![
        (
            1,
            Message::Open {
                member: "hq1".into(),
                replica: ReplicaId([1; 16]),
                echo,
                closed: vec![version_named(3, 4)],
                clock: Hlc(300),
                known: known.clone(),
                names: String::new(),
            },
            "0a03687131 1210 01*16 1a36 0a10 02*16 1007 1a20 03*32 2227 0a20 01*16 02*16 1203 05 ac02 \
             2a18 03*16 0400000000000000 30ac02",
        ),
        (
            2,
            Message::Opened {
                member: "hq2".into(),
                replica: ReplicaId([2; 16]),
                echo: Mark::default(),
                closed: Vec::new(),
                clock: Hlc(1),
                number: ChangeNumber(9),
                known: Knowledge::default(),
                names: "windows 16.0.0".into(),
                joining: true,
            },
            "0a03687132 1210 02*16 1a34 0a10 00*16 1a20 00*32 2200 3001 3809 420e 77696e646f77732031362e302e30 4801",
        ),
        (3, Message::Refused { reason: "No.".into() }, "0a03 4e6f2e"),
        (4, Message::Grown { number: ChangeNumber(300) }, "08ac02"),
        (
            5,
            Message::Pull { after: ChangeNumber(0), known: knowledge_of(&[(1, 5)]), part: true },
            "1215 0a10 01*16 1201 05 1801",
        ),
        (
            6,
            Message::Page(Page {
                replicas: vec![ReplicaId([2; 16]), ReplicaId([1; 16])],
                attributes: vec![vec![0xa0, 0xa1]],
                rows: vec![vec![0xb0], vec![0xb1]],
                through: ChangeNumber(4),
                complete: Some((Knowledge::default(), echo)),
            }),
            "0a20 02*16 01*16 1202a0a1 1a01b0 1a01b1 2004 2a00 3236 0a10 02*16 1007 1a20 03*32",
        ),
        (
            7,
            Message::Fetch {
                request: 1,
                wants: vec![Want {
                    uid: Uid(version_named(1, 0x0102)),
                    version: version_named(2, 3),
                    hash: [4; 32],
                    offset: 5,
                    length: 6,
                }],
            },
            "0801 125a 0a18 01*16 0201000000000000 1218 02*16 0300000000000000 1a20 04*32 2005 2806",
        ),
        (
            8,
            Message::Pieces {
                request: 1,
                first: 2,
                pieces: vec![
                    Piece::Data(b"xy".to_vec().into()),
                    Piece::NotHeld,
                    Piece::Busy,
                    Piece::Data(Vec::new().into()),
                ],
            },
            "0801 1002 1a04 12027879 1a02 0801 1a02 0802 1a00",
        ),
        (
            9,
            Message::Acknowledged {
                members: vec![Acknowledgement {
                    member: "hq1".into(),
                    replica: ReplicaId([1; 16]),
                    serial: 2,
                    held: knowledge_of(&[(1, 5)]),
                }],
            },
            "0a30 0a03687131 1210 01*16 1802 2215 0a10 01*16 1201 05",
        ),
        (10, Message::AskSums { request: 1 }, "0801"),
        (
            11,
            Message::Sums {
                request: 1,
                outstanding: 2,
                sums: vec![Sum { bucket: 1, sum: [3; 32] }, Sum { bucket: 0x0201, sum: [4; 32] }],
            },
            "0801 1002 1a44 0100 03*32 0102 04*32",
        ),
        (12, Message::AskBucket { request: 1, bucket: 65_535 }, "0801 10ffff03"),
        (
            13,
            Message::Bucket { request: 1, rows: vec![(Uid(version_named(1, 2)), [3; 32])] },
            "0801 1238 01*16 0200000000000000 03*32",
        ),
        (
            14,
            Message::AskRecords { request: 1, uids: vec![Uid(version_named(1, 2))] },
            "0801 1218 01*16 0200000000000000",
        ),
        (
            15,
            Message::Records {
                request: 1,
                present: vec![true, false, false, false, false, false, false, true, false, true],
            },
            "0801 100a 1a02 8102",
        ),
        (16, Message::Held { uids: vec![Uid(version_named(1, 2))] }, "0a18 01*16 0200000000000000"),
        (17, Message::Echo(Mark::default()), "0a34 0a10 00*16 1a20 00*32"),
    ]
}

/// Writes out `RR*count`.
fn expand(golden: &str) -> Vec<u8> {
    golden
        .split_whitespace()
        .flat_map(|word| match word.split_once('*') {
            Some((byte, count)) => unhex(byte).repeat(count.parse().unwrap()),
            None => unhex(word),
        })
        .collect()
}

#[test]
fn golden_bytes_of_every_message() {
    let folder = FolderId([9; 16]);
    let mut kinds = Vec::new();
    for (kind, message, body) in golden() {
        let body = expand(body);
        let mut want = expand("0a10 09*16 10");
        want.extend([kind, 0x1a, u8::try_from(body.len()).unwrap_or(0)]);
        if body.len() >= 128 {
            want.truncate(want.len() - 1);
            want.extend([(body.len() & 0x7f) as u8 | 0x80, (body.len() >> 7) as u8]);
        }
        want.extend(body);
        let envelope = Envelope { folder, message };
        assert_eq!(hex(&encode(&envelope)), hex(&want), "kind {kind}");
        assert_eq!(decode(want.clone().into()), Ok(envelope.clone()), "kind {kind}");
        let head = u32::try_from(want.len()).unwrap().to_le_bytes();
        assert_eq!(frame(envelope), Ok([&head, want.as_slice()].concat()), "kind {kind}");
        kinds.push(kind);
    }
    assert_eq!(kinds, (1..=17).collect::<Vec<_>>());
}

#[test]
fn first_bytes_are_versioned() {
    assert_eq!(hex(&preamble()), "414e42520100");
    assert_eq!(check_preamble(preamble()), Ok(()));
    assert_eq!(check_preamble(*b"SSH-2."), Err(PeerError::Magic));
    assert_eq!(check_preamble(*b"ANBR\x02\0"), Err(PeerError::Version { theirs: 2, ours: 1 }));
    assert_eq!(frame_length([0, 0, 0x40, 0]), Ok(MESSAGE_BYTES_MAX));
    assert!(matches!(frame_length([1, 0, 0x40, 0]), Err(PeerError::TooLong { .. })));
}

#[test]
fn what_is_encoded_comes_back() {
    for seed in 1..=3000 {
        let envelope = Random(seed * 0x9e37_79b9).envelope();
        let bytes = encode(&envelope);
        assert_eq!(decode(bytes.clone().into()), Ok(envelope.clone()), "seed {seed}");
        assert_eq!(frame(envelope).unwrap()[FRAME_HEAD_BYTES..], bytes, "seed {seed}");
    }
}

#[test]
fn changed_bytes_never_panic_and_what_decodes_encodes_to_the_same_value() {
    let mut random = Random(0xa5a5);
    let mut taken = 0;
    for _ in 0..20_000 {
        let mut bytes = encode(&random.envelope());
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len().max(1));
            match random.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random.next() as u8),
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << random.below(8);
                    }
                }
            }
        }
        if let Ok(envelope) = decode(bytes.into()) {
            taken += 1;
            assert_eq!(decode(encode(&envelope).into()), Ok(envelope));
        }
    }
    assert!(taken > 100, "the mutations are too wild to reach the inner checks: {taken}");
}

fn envelope_bytes(kind: u8, body: &[u8]) -> Bytes {
    let mut out = expand("0a10 09*16 10");
    out.extend([kind, 0x1a]);
    encode_varint(body.len() as u64, &mut out);
    out.extend(body);
    out.into()
}

#[test]
fn what_breaks_a_rule_is_refused_by_its_name() {
    let too_many = |count: usize, row: &str| expand(row).repeat(count);
    let knowledge_twice = expand("1227 0a20 01*16 01*16 1202 05 06");
    let cases: Vec<(&str, u8, Vec<u8>, PeerError)> = vec![
        ("a kind of later", 99, vec![], PeerError::Unknown { folder: FolderId([9; 16]), kind: 99 }),
        ("no replica", 1, expand("0a0161"), PeerError::Missing("a replica id")),
        ("short replica", 1, expand("0a0161 120101"), PeerError::Range("a replica id")),
        ("no echo", 1, expand("1210 01*16"), PeerError::Missing("the mark")),
        ("long name", 1, expand("0a8002 61*256"), PeerError::TooLong { what: "a member's name", max: 255 }),
        ("name twice", 1, expand("0a0161 0a0161"), PeerError::Twice("a member's name")),
        ("name of wrong type", 1, expand("0801"), PeerError::Malformed("the message Open")),
        ("name not UTF-8", 3, expand("0a01ff"), PeerError::Malformed("the message Refused")),
        ("group", 4, expand("0b"), PeerError::Malformed("a field's type")),
        ("cut", 3, expand("0a05 61"), PeerError::Malformed("a field's length")),
        ("replica twice", 5, expand("1226 0a20 01*16 01*16 1202 05 06"), PeerError::Twice("a replica id of knowledge")),
        ("sequence missing", 5, expand("1225 0a20 01*16 02*16 1201 05"), PeerError::Malformed("knowledge")),
        ("cut in knowledge", 5, knowledge_twice, PeerError::Malformed("a field's length")),
        ("wants", 7, too_many(1025, "1200"), PeerError::TooMany { what: "the list of wants", max: 1024 }),
        ("want too long", 7, expand("1204 28818040"), PeerError::Range("the length of a want")),
        ("pieces", 8, too_many(1025, "1a00"), PeerError::TooMany { what: "the list of pieces", max: 1024 }),
        ("index of piece", 8, expand("108008 1a00"), PeerError::Range("an index of pieces")),
        ("outcome", 8, expand("1a020803"), PeerError::Range("the outcome of a piece")),
        ("data and none", 8, expand("1a05 0801 120178"), PeerError::Malformed("a piece")),
        ("empty row", 6, expand("1a00"), PeerError::Missing("a row or attribute value of a page")),
        ("rows", 6, too_many(ROWS_MAX + 1, "1a0101"), PeerError::TooMany { what: "a page's row", max: ROWS_MAX }),
        ("half complete", 6, expand("2a00"), PeerError::Missing("the mark")),
        ("mark alone", 6, expand("3200"), PeerError::Missing("a complete page's knowledge")),
        (
            "closed twice",
            1,
            expand("0a0161 1210 01*16 1a34 0a10 00*16 1a20 00*32 2a30 01*48"),
            PeerError::Twice("a closed replica id"),
        ),
        ("page's replica twice", 6, expand("0a20 01*32"), PeerError::Twice("a replica id of a page")),
        ("sums out of order", 11, expand("1a44 0200 03*32 0100 03*32"), PeerError::Twice("a bucket")),
        ("sums cut", 11, expand("1a21 0200 03*31"), PeerError::Range("the list of sums")),
        ("bucket", 12, expand("10808004"), PeerError::Range("a bucket")),
        ("UID twice", 14, expand("1230 01*48"), PeerError::Twice("a UID")),
        ("bits too many", 15, expand("108120"), PeerError::TooMany { what: "the list of bits", max: 4096 }),
        ("bits left over", 15, expand("1001 1a0102"), PeerError::Malformed("the list of bits")),
    ];
    for (what, kind, body, error) in cases {
        assert_eq!(decode(envelope_bytes(kind, &body)), Err(error), "{what}");
    }
    let mut page = vec![0x1a, 0x80, 0x80, 0x10];
    page.extend(vec![1; RECORD_BYTES_MAX]);
    assert!(decode(envelope_bytes(6, &page.repeat(5))).is_ok());
    assert!(matches!(decode(envelope_bytes(6, &page.repeat(6))), Err(PeerError::TooLong { what: "a page", .. })));
    let folder_cut = decode(Bytes::from_static(b"\x0a\x01x"));
    assert_eq!(folder_cut, Err(PeerError::Range("the folder id")));
    assert_eq!(decode(Bytes::new()), Err(PeerError::Missing("the folder id")));
    assert!(matches!(decode(vec![0; MESSAGE_BYTES_MAX + 1].into()), Err(PeerError::TooLong { .. })));
}

#[test]
fn fields_of_later_versions_are_ignored() {
    let body = expand("08ac02 fa0703010203 f80701 f907 01*8 fd07 01*4");
    let grown = Envelope { folder: FolderId([9; 16]), message: Message::Grown { number: ChangeNumber(300) } };
    assert_eq!(decode(envelope_bytes(4, &body)), Ok(grown));
}

#[test]
fn messages_of_the_largest_size_pass_and_larger_ones_do_not() {
    let pieces = |count: usize| Envelope {
        folder: FolderId([9; 16]),
        message: Message::Pieces {
            request: 1,
            first: 0,
            pieces: vec![Piece::Data(vec![7; PIECE_BYTES_MAX as usize].into()); count],
        },
    };
    let three = frame(pieces(3)).unwrap();
    assert_eq!(decode(Bytes::from(three).slice(FRAME_HEAD_BYTES..)), Ok(pieces(3)));
    assert!(matches!(frame(pieces(4)), Err(PeerError::TooLong { .. })));
    let reason = Message::Refused { reason: "ü".repeat(REASON_BYTES_MAX) };
    let cut = decode(encode(&Envelope { folder: FolderId([9; 16]), message: reason }).into()).unwrap();
    assert_eq!(cut.message, Message::Refused { reason: "ü".repeat(REASON_BYTES_MAX / 2) });
}
