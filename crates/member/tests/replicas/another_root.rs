//! The disk of another folder lies where a member keeps this one: its records do not become this folder's.

use crate::couple::Couple;
use anabranch_member::{Config, Limits, RecoveryPolicy, Replica, Stop};
use anabranch_model::{FolderId, Hlc, Names, ReplicaId};
use anabranch_volume::simulated::{DiskConfig, SimFs};

#[test]
fn a_root_with_another_token_than_the_member_remembers_is_refused() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs: &SimFs| fs.mkdir(b"desk").unwrap());
    let member = &mut couple.members[0];
    let mut first = member.replica.take().unwrap();
    let token = first.token().unwrap();
    first.close().unwrap();
    drop(first);
    let open = |token: &[u8]| {
        let config = Config {
            folder: FolderId([7; 16]),
            folder_name: "web/site".into(),
            member: "m0".into(),
            members: vec!["m0".into(), "m1".into()],
            primary: true,
            keep_beside: false,
            names: Names::Bytes,
            recovery: RecoveryPolicy::Auto,
            boot: vec![1],
            place: vec![0],
            token: Some(token.to_vec()),
            limits: Limits::default(),
        };
        let fresh = Box::new(|| ReplicaId([9; 16]));
        Replica::open(member.fs.clone(), member.database.committed(), config, fresh, Hlc(couple.now), false)
    };
    let refused = open(b"another\n").err();
    let Some(Stop::Root(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("another") && text.contains(String::from_utf8_lossy(&token).trim()), "{text}");
    assert!(open(&token).is_ok());
}
