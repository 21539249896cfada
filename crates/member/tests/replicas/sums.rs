//! Two members compare what they hold.

use crate::couple::{Couple, settle};
use anabranch_member::{Comparison, Limits};
use anabranch_volume::simulated::DiskConfig;

const FILES: usize = 300;

fn name(number: usize) -> Vec<u8> {
    format!("{number:03}").into_bytes()
}

/// What the second one finds when it compares itself with the first, and the pages of records that both read for it.
fn compare(couple: &mut Couple) -> (Comparison, usize) {
    let pages = |couple: &Couple| couple.members.iter().map(|member| member.database.pages.get()).sum::<usize>();
    let before = pages(couple);
    couple.members[1].replica.as_mut().unwrap().begin_verify().unwrap();
    couple.queue.push_back((1, anabranch_member::Input::Time));
    while couple.members[1].replica.as_ref().unwrap().verify_outcome().is_none() {
        assert!(couple.step(), "no answer comes");
    }
    let outcome = couple.members[1].replica.as_ref().unwrap().verify_outcome().unwrap();
    (outcome.into_iter().next().unwrap(), pages(couple) - before)
}

#[test]
fn what_differs_is_named_and_costs_a_few_walks_through_the_records_however_much_it_is() {
    let mut couple = Couple::new(Limits::default(), DiskConfig::default(), |fs| {
        (0..FILES).for_each(|number| fs.write(&name(number), b"one").unwrap());
    });
    couple.connect();
    settle(&mut couple);
    let (equal, pages) = compare(&mut couple);
    assert_eq!((equal.paths.len(), equal.complete), (0, true));
    assert!(pages <= 4, "{pages} pages");
    // The first one does not follow the second.
    let second = couple.members[1].fs.clone();
    (0..FILES).filter(|number| number % 3 != 0).for_each(|number| second.write(&name(number), b"two").unwrap());
    settle(&mut couple);
    let (differs, pages) = compare(&mut couple);
    let mut paths = differs.paths;
    paths.sort_unstable();
    let expected = (0..FILES).filter(|number| number % 3 != 0).map(|number| format!("{number:03}"));
    assert_eq!(paths, expected.collect::<Vec<_>>());
    assert!(differs.complete && pages <= 8, "{pages} pages");
}
