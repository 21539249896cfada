//! Owners and groups: numbers and names, as the system's name service says.
//!
//! Answers are kept for a while, since attributes are read for every file and few owners own them all. An answer that
//! could not be had (a directory service that is down) is an error and never "no such name": taken for that, an owner
//! would be written by another machine's number.
#![allow(unsafe_code, reason = "the name service is libc's")]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::hash::Hash;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anabranch_model::Owner;

/// How long an answer is good for.
const KEPT: Duration = Duration::from_secs(30);
/// How many answers of one kind are kept; at more, all are forgotten.
const ANSWERS_MAX: usize = 4096;
/// Where the buffer for one entry starts, and where it stops growing (a group with very many members).
const BUFFER_BYTES: usize = 4096;
const BUFFER_BYTES_MAX: usize = 16 << 20;

/// The name service with its answers.
#[derive(Default)]
pub(super) struct Principals {
    user_names: Answers<u32, Box<str>>,
    group_names: Answers<u32, Box<str>>,
    user_numbers: Answers<Box<str>, u32>,
    group_numbers: Answers<Box<str>, u32>,
}

impl Principals {
    /// The user with this number.
    pub(super) fn user(&self, number: u32) -> io::Result<Owner> {
        Ok(Owner { number, name: self.user_names.get(number, || lookup(&Key::Number(number), ask_user).map(name_of))? })
    }

    /// The group with this number.
    pub(super) fn group(&self, number: u32) -> io::Result<Owner> {
        Ok(Owner {
            number,
            name: self.group_names.get(number, || lookup(&Key::Number(number), ask_group).map(name_of))?,
        })
    }

    /// The number that a user has here: by name where it resolves, else as it came.
    pub(super) fn user_number(&self, user: &Owner) -> io::Result<u32> {
        number(user, &self.user_numbers, ask_user)
    }

    /// The number that a group has here.
    pub(super) fn group_number(&self, group: &Owner) -> io::Result<u32> {
        number(group, &self.group_numbers, ask_group)
    }
}

fn number(who: &Owner, answers: &Answers<Box<str>, u32>, ask: Ask) -> io::Result<u32> {
    let Some(name) = &who.name else { return Ok(who.number) };
    // A name with a NUL cannot resolve.
    let Ok(asked) = CString::new(name.as_bytes()) else { return Ok(who.number) };
    let found = answers.get(name.clone(), || Ok(lookup(&Key::Name(asked), ask)?.map(|(_, number)| number)))?;
    Ok(found.unwrap_or(who.number))
}

fn name_of(entry: Found) -> Option<Box<str>> {
    entry.map(|(name, _)| name)
}

/// Answers to one kind of question, "there is none" among them, each with the time when it was given.
struct Answers<Q, A>(Mutex<HashMap<Q, (Instant, Option<A>)>>);

impl<Q, A> Default for Answers<Q, A> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<Q: Eq + Hash, A: Clone> Answers<Q, A> {
    fn get(&self, question: Q, ask: impl FnOnce() -> io::Result<Option<A>>) -> io::Result<Option<A>> {
        let lock = || self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((when, answer)) = lock().get(&question)
            && when.elapsed() < KEPT
        {
            return Ok(answer.clone());
        }
        // Not under the lock: a directory service may take seconds.
        let answer = ask()?;
        let mut answers = lock();
        if answers.len() >= ANSWERS_MAX {
            answers.clear();
        }
        answers.insert(question, (Instant::now(), answer.clone()));
        Ok(answer)
    }
}

/// A question to the name service.
enum Key {
    Number(u32),
    Name(CString),
}

/// What it found: name and number. Names that are not UTF-8 cannot be carried, and count as none.
type Found = Option<(Box<str>, u32)>;

/// One question with the room given: the error number of the call, and what it found.
type Ask = fn(&Key, &mut [c_char]) -> (c_int, Found);

/// Asks, with more room if that was too little.
fn lookup(key: &Key, ask: Ask) -> io::Result<Found> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match ask(key, &mut buffer) {
            (0, found) => return Ok(found),
            (libc::EINTR, _) => {}
            (libc::ERANGE, _) if buffer.len() < BUFFER_BYTES_MAX => buffer.resize(buffer.len() * 4, 0),
            // The ways in which systems say "no such name" beside the standard one (see getpwnam(3)).
            (libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM, _) => return Ok(None),
            (error, _) => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn ask_user(key: &Key, buffer: &mut [c_char]) -> (c_int, Found) {
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut found = ptr::null_mut();
    let (room, length) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: `entry`, `found` and the room with its length live through the call; the name ends in NUL.
    let error = unsafe {
        match key {
            Key::Number(number) => libc::getpwuid_r(*number, entry.as_mut_ptr(), room, length, &raw mut found),
            Key::Name(name) => libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), room, length, &raw mut found),
        }
    };
    if error != 0 || found.is_null() {
        return (error, None);
    }
    // SAFETY: a result that is not null points to `entry`, now written, whose name points into the buffer.
    let (name, number) = unsafe { (CStr::from_ptr((*found).pw_name), (*found).pw_uid) };
    (0, name.to_str().ok().map(|name| (name.into(), number)))
}

fn ask_group(key: &Key, buffer: &mut [c_char]) -> (c_int, Found) {
    let mut entry = MaybeUninit::<libc::group>::uninit();
    let mut found = ptr::null_mut();
    let (room, length) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: as in `ask_user`.
    let error = unsafe {
        match key {
            Key::Number(number) => libc::getgrgid_r(*number, entry.as_mut_ptr(), room, length, &raw mut found),
            Key::Name(name) => libc::getgrnam_r(name.as_ptr(), entry.as_mut_ptr(), room, length, &raw mut found),
        }
    };
    if error != 0 || found.is_null() {
        return (error, None);
    }
    // SAFETY: as in `ask_user`.
    let (name, number) = unsafe { (CStr::from_ptr((*found).gr_name), (*found).gr_gid) };
    (0, name.to_str().ok().map(|name| (name.into(), number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_both_ways_and_unknown_ones_keep_their_number() {
        let p = Principals::default();
        assert_eq!(p.user(0).unwrap(), Owner { number: 0, name: Some("root".into()) });
        assert_eq!(p.group(0).unwrap().name.as_deref(), Some("root"));
        // The name counts, not the number of another machine.
        assert_eq!(p.user_number(&Owner { number: 77, name: Some("root".into()) }).unwrap(), 0);
        assert_eq!(p.group_number(&Owner { number: 77, name: Some("root".into()) }).unwrap(), 0);
        let nobody_here = Owner { number: 3_999_999_999, name: Some("no such principal\0".into()) };
        assert_eq!(p.user_number(&nobody_here).unwrap(), 3_999_999_999);
        assert_eq!(p.user(3_999_999_999).unwrap().name, None);
        assert_eq!(p.group_number(&Owner { number: 5, name: None }).unwrap(), 5);
    }

    #[test]
    fn answers_are_kept_and_bounded() {
        let answers = Answers::<u32, u32>::default();
        assert_eq!(answers.get(1, || Ok(Some(10))).unwrap(), Some(10));
        assert_eq!(answers.get(1, || panic!("asked again")).unwrap(), Some(10));
        assert_eq!(answers.get(2, || Ok(None)).unwrap(), None);
        assert_eq!(answers.get(2, || panic!("asked again")).unwrap(), None);
        assert!(answers.get(3, || Err(io::ErrorKind::TimedOut.into())).is_err());
        assert_eq!(answers.get(3, || Ok(Some(30))).unwrap(), Some(30));
        for question in 0..ANSWERS_MAX as u32 * 2 {
            answers.get(question, || Ok(Some(0))).unwrap();
        }
        assert!(answers.0.lock().unwrap().len() <= ANSWERS_MAX);
    }

    #[test]
    fn a_small_buffer_grows() {
        let ask: Ask = |key, buffer| if buffer.len() < 100_000 { (libc::ERANGE, None) } else { ask_user(key, buffer) };
        assert_eq!(lookup(&Key::Number(0), ask).unwrap(), Some(("root".into(), 0)));
        assert!(lookup(&Key::Number(0), |_, _| (libc::EIO, None)).is_err());
        assert_eq!(lookup(&Key::Number(0), |_, _| (libc::ESRCH, None)).unwrap(), None);
    }
}
