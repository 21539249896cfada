//! What befalls members and the network, how it begins and how it ends.

use anabranch_volume::simulated::{Call, Fault, Faults};

use crate::network::End;
use crate::plan::Trouble;
use crate::users::Ambush;
use crate::world::{Event, GIVE_UP, SYNC_TIME, Stop, World};

/// Calls that fail together, how, and how often in a million.
pub(crate) const FAULTS: [(&str, Fault, &[Call], u32); 9] = [
    ("ENOSPC", Fault::NoSpace, &[Call::Write, Call::CreateFile, Call::CreateDir, Call::SetSize], 200_000),
    ("EDQUOT", Fault::Quota, &[Call::Write, Call::CreateFile, Call::RenameNew, Call::CreateDir], 200_000),
    ("EIO on read", Fault::Io, &[Call::Read, Call::OpenFile, Call::DataRange, Call::ReadLink], 200_000),
    ("EIO in enumeration", Fault::Io, &[Call::List, Call::OpenDir], 300_000),
    (
        "EIO on stat",
        Fault::Io,
        &[Call::Stat, Call::StatDir, Call::StatFile, Call::ReadAttributes, Call::Locate],
        50_000,
    ),
    ("EIO on sync", Fault::Io, &[Call::SyncFile, Call::SyncDir, Call::SyncAll], 300_000),
    ("EIO on write", Fault::Io, &[Call::Write, Call::WriteAttributes, Call::SetMtime, Call::Exchange], 100_000),
    (
        "EPERM",
        Fault::NotPermitted,
        &[Call::Exchange, Call::RenameNew, Call::WriteAttributes, Call::RemoveFile, Call::RemoveDir],
        300_000,
    ),
    ("EMFILE", Fault::TooManyOpen, &[Call::OpenFile, Call::OpenDir, Call::CreateFile, Call::OpenPrivate], 100_000),
];

/// Calls of an install after which a stop is most likely to find what is wrong with its order.
const INSTALLS: [Call; 5] = [Call::Exchange, Call::Exchange, Call::RenameNew, Call::SyncDir, Call::Pause];

/// How far a clock may be off, in microseconds, once everything was mended: two members are never the ten minutes apart then
/// after which the one that is ahead issues nothing (design, section 4).
const OFF_AT_REST: i64 = 270_000_000;

impl World<'_> {
    /// Something begins to go wrong.
    pub(crate) fn begin_trouble(&mut self, number: usize, trouble: Trouble, member: usize) {
        self.say(|| format!("{trouble:?} at member {member}"));
        let over = Event::Over { number };
        match trouble {
            Trouble::PowerCut => self.stop_soon(member, Stop::Power),
            Trouble::Kill => self.stop_soon(member, Stop::Process),
            Trouble::Restart => self.restart(member),
            Trouble::Reordered => self.reorder(member),
            Trouble::Partition => {
                let here: Vec<bool> = (0..self.members.len()).map(|_| self.rng.chance(1, 2)).collect();
                for index in 0..self.connections.len() {
                    let [a, b] = self.connections[index].ends;
                    if here[a] != here[b] || a == member || b == member {
                        self.set_cut(index, End::Down, true);
                        self.set_cut(index, End::Up, true);
                    }
                }
                self.some_time(over);
            }
            Trouble::OneWayCut => {
                let index = self.rng.index(self.connections.len());
                let end = if self.rng.chance(1, 2) { End::Down } else { End::Up };
                self.set_cut(index, end, true);
                self.some_time(over);
            }
            Trouble::BrokenPass => self.break_passes += 1,
            Trouble::BrokenLink => {
                let index = self.rng.index(self.connections.len());
                self.break_connection(index);
            }
            Trouble::SlowLink => {
                let index = self.rng.index(self.connections.len());
                self.connections[index].latency = self.rng.between(100_000, 3_000_000);
                self.connections[index].rate = self.rng.between(1_000, 100_000);
                self.some_time(over);
            }
            Trouble::Faults => {
                let (what, fault, calls, rate) = FAULTS[self.rng.index(FAULTS.len())];
                self.say(|| format!("member {member}: {what}"));
                let fs = &self.members[member].fs;
                fs.faults(|f| calls.iter().for_each(|c| f.set(*c, fault, rate)));
                if calls.contains(&Call::List) || calls.contains(&Call::Stat) {
                    // Errors in enumeration matter while something is enumerated.
                    self.members[member].fs.overflow_hints();
                    self.plan_hints(member);
                }
                self.some_time(over);
            }
            Trouble::FullDisk => {
                let more = self.rng.below(2000);
                let fs = &self.members[member].fs;
                let used = fs.used();
                fs.configure(|c| c.capacity = used + more);
                self.some_time(over);
            }
            Trouble::SlowDisk => {
                self.members[member].sync_time = self.rng.between(10_000, 700_000);
                self.some_time(over);
            }
            Trouble::ClockJump => {
                let far = *self.rng.pick(&[2_000_000, 60_000_000, 540_000_000]).unwrap_or(&0);
                let jump = i64::try_from(self.rng.below(far)).unwrap_or(0);
                let forwards = jump % 2 == 0;
                let skew = &mut self.members[member].skew;
                *skew += if forwards { jump } else { -jump };
                if self.healing {
                    // Nobody sets a clock right any more.
                    *skew = (*skew).clamp(-OFF_AT_REST, OFF_AT_REST);
                }
                self.counters.count(if forwards { "clocks set forwards" } else { "clocks set back" });
            }
            Trouble::ClockFuture => {
                // Who can compare his clock with a partner's stamps nothing. So some cannot when it leaps, and partners hear
                // of what they stamped before the clock is right again.
                if self.rng.chance(1, 2) {
                    self.work_alone(member, 3, (GIVE_UP + 3_000_000, GIVE_UP + 20_000_000));
                    self.after(GIVE_UP + 2_000_000, Event::Leap { member });
                    self.after(GIVE_UP + 40_000_000, over);
                } else {
                    self.leap(member);
                    self.some_time(over);
                }
            }
            Trouble::Overflow => {
                self.members[member].fs.overflow_hints();
                self.plan_hints(member);
            }
            Trouble::Rollback | Trouble::Copied => {
                let member = &mut self.members[member];
                if member.image.is_none() && member.power.is_on() {
                    member.image = Some((member.fs.image(), member.kv.image()));
                    let settled = member.machine.as_ref().is_some_and(|machine| machine.settled());
                    member.image_rested = settled && !member.fs.has_hints();
                }
                self.some_time(over);
            }
            Trouble::Unmounted => {
                self.members[member].mounted = false;
                self.members[member].fs.set_mounted(false);
                self.some_time(over);
            }
            // At rest the trees are compared, and what is hidden beneath a mount cannot be.
            Trouble::MountedOver if self.healing => {}
            Trouble::MountedOver => {
                let fs = &self.members[member].fs;
                let found: Vec<_> =
                    fs.tree().into_iter().filter(|(_, e)| e.content.is_none()).map(|(p, _)| p).collect();
                if let Some(path) = self.rng.pick(&found) {
                    // It is there: it was just listed.
                    let _ = fs.mount_over(path, true);
                }
                self.some_time(over);
            }
        }
    }

    /// Something that lasted is over.
    pub(crate) fn end_trouble(&mut self, trouble: Trouble, number: usize) {
        self.say(|| format!("{trouble:?} is over at member {number}"));
        match trouble {
            Trouble::Partition | Trouble::OneWayCut => {
                for index in 0..self.connections.len() {
                    for end in [End::Down, End::Up] {
                        if self.connections[index].cut[end as usize] {
                            self.set_cut(index, end, false);
                        }
                    }
                }
            }
            Trouble::SlowLink => self.good_links(),
            Trouble::Faults => self.members[number].fs.faults(Faults::clear),
            Trouble::FullDisk => self.members[number].fs.configure(|c| c.capacity = 1 << 30),
            Trouble::SlowDisk => self.members[number].sync_time = SYNC_TIME,
            Trouble::ClockFuture => {
                (0..self.members.len()).for_each(|member| self.look_into(member));
                self.members[number].skew = 0;
            }
            Trouble::Rollback if self.members[number].image.is_some() && self.rng.chance(1, 2) => {
                // What it says next, it will not know any more.
                self.members[number].put_back_after_page = true;
            }
            Trouble::Rollback => self.roll_back(number, false),
            Trouble::Copied => self.roll_back(number, true),
            Trouble::Unmounted => {
                self.members[number].mounted = true;
                self.members[number].fs.set_mounted(true);
            }
            Trouble::MountedOver => self.members[number].fs.unmount_all(),
            Trouble::PowerCut
            | Trouble::Kill
            | Trouble::Restart
            | Trouble::Reordered
            | Trouble::BrokenPass
            | Trouble::BrokenLink
            | Trouble::ClockJump
            | Trouble::Overflow => {}
        }
    }

    /// Everything is mended, and stays so.
    pub(crate) fn heal(&mut self) {
        self.say(|| "everything is mended".into());
        self.healing = true;
        self.break_passes = 0;
        self.good_links();
        for index in 0..self.connections.len() {
            self.set_cut(index, End::Down, false);
            self.set_cut(index, End::Up, false);
            self.after(1000, Event::Dial { connection: index });
        }
        for number in 0..self.members.len() {
            let member = &mut self.members[number];
            member.image = None;
            member.put_back_after_page = false;
            member.skew = member.skew.clamp(-1_000_000, 1_000_000);
            member.sync_time = SYNC_TIME;
            member.mounted = true;
            member.fs.set_mounted(true);
            member.fs.faults(Faults::clear);
            member.fs.configure(|c| c.capacity = 1 << 30);
            member.fs.unmount_all();
            member.crowd().ambush = None;
            if member.stop.take().is_some() && member.power.is_on() {
                member.power.restore();
            }
            self.after(1000, Event::Up { member: number });
        }
    }

    fn good_links(&mut self) {
        for connection in &mut self.connections {
            connection.latency = connection.latency.min(20_000);
            connection.rate = 100_000_000;
        }
    }

    /// Ends a trouble after a while: shorter or longer than the history.
    fn some_time(&mut self, over: Event) {
        let far = *self.rng.pick(&[100_000, 2_000_000, 30_000_000, 200_000_000]).unwrap_or(&0);
        let delay = self.rng.below(far);
        self.after(delay, over);
    }

    /// The stop comes after a few more steps of the member's disk and database, so between any two of them; or in the
    /// middle of an install; or shortly after somebody changed something.
    fn stop_soon(&mut self, number: usize, stop: Stop) {
        let way = self.rng.below(3);
        let steps = self.rng.below(*self.rng.clone().pick(&[1, 8, 40, 200]).unwrap_or(&1));
        let ambush = if way == 0 {
            let call = *self.rng.pick(&INSTALLS).unwrap_or(&Call::Exchange);
            Ambush::Call { call, left: self.rng.below(4), steps: self.rng.below(8) }
        } else {
            Ambush::Deed { delay: self.rng.below(*self.rng.clone().pick(&[20_000, 200_000, 2_000_000]).unwrap_or(&1)) }
        };
        let limit = if way == 2 {
            self.rng.between(1000, 2_000_000)
        } else {
            self.rng.between(1000, 2_000_000 + self.plan.ends / 4)
        };
        let member = &mut self.members[number];
        if member.machine.is_none() || member.stop.is_some() {
            return;
        }
        member.stop = Some(stop);
        if way == 2 {
            member.power.cut_after(steps);
        } else {
            member.crowd().ambush = Some(ambush);
        }
        let boot = member.boot;
        self.after(limit, Event::Off { member: number, boot });
    }

    /// Nothing runs while people move directories about.
    fn reorder(&mut self, number: usize) {
        if self.healing || self.members[number].machine.is_none() {
            return;
        }
        if self.rng.chance(1, 2) {
            let closed = self.members[number].machine.as_mut().map(|machine| machine.close());
            self.say(|| format!("member {number} is closed: {closed:?}"));
        }
        self.end_process(number);
        let times = self.rng.between(20, 120);
        self.users(number, |crowd, fs, _| crowd.reorder(fs, times));
        let delay = *self.rng.pick(&[50_000, 3_000_000, 60_000_000]).unwrap_or(&50_000);
        self.after(delay, Event::Up { member: number });
    }

    fn restart(&mut self, number: usize) {
        let member = &mut self.members[number];
        if let Some(machine) = member.machine.as_mut() {
            if let Err(why) = machine.close() {
                self.say(|| format!("member {number} cannot close: {why}"));
            }
            self.end_process(number);
            self.after(50_000, Event::Up { member: number });
        }
    }
}
