//! Members go down and come up: they are stopped, killed, lose power, or are put back to an image of their disk.

use anabranch_model::ReplicaId;
use anabranch_volume::simulated::{Rng, Thing};

use super::{Event, Stop, World, in_any_tree, name, on_any, places};
use crate::kv::SimKv;
use crate::machine::{Input, Start};
use crate::network::End;

impl World<'_> {
    // ---- members ----

    /// A member starts, or starts again.
    pub(super) fn up(&mut self, number: usize) {
        let member = &mut self.members[number];
        if member.machine.is_some() {
            return;
        }
        if !member.mounted {
            // The service does not start before the volume is there.
            self.after(1_000_000, Event::Up { member: number });
            return;
        }
        let now = member.set_clock(self.now);
        let mut fresh = member.fresh.fork();
        let start = Start {
            fs: member.fs.clone(),
            kv: member.kv.clone(),
            name: member.name.clone(),
            members: (0..self.plan.members).map(name).collect(),
            primary: number == self.plan.writer.unwrap_or(0),
            keep_beside: self.plan.keep_beside,
            names: self.plan.rule,
            boot: member.boot.to_be_bytes().to_vec(),
            place: member.place.to_be_bytes().to_vec(),
            now,
            fresh: Box::new(move || {
                let mut id = [0; 16];
                id[..8].copy_from_slice(&fresh.bits().to_be_bytes());
                id[8..].copy_from_slice(&fresh.bits().to_be_bytes());
                ReplicaId(id)
            }),
            staging_bytes: self.plan.staging_bytes,
            page_bytes: self.plan.page_bytes,
            name_memory: self.plan.name_memory,
        };
        // The watcher's marks stand before the replica begins to scan: hints from here on are its own.
        let _ = member.fs.take_hints();
        member.hints_at = None;
        member.wake_at = None;
        let opened = (self.open)(start);
        self.after_users(number);
        self.say(|| format!("member {number} starts"));
        match opened {
            Ok(machine) => {
                self.counters.count("starts");
                self.members[number].machine = Some(machine);
                self.call(number, Input::Time);
                for connection in self.connections_of(number) {
                    self.after(1000, Event::Dial { connection });
                }
            }
            Err(why) if self.members[number].power.is_on() => {
                self.counters.count("starts that failed");
                self.say(|| format!("member {number} does not start: {why}"));
                self.end_process(number);
                self.after(1_000_000, Event::Up { member: number });
            }
            // It was cut off while it recovered.
            Err(_) => self.stopped(number),
        }
    }

    /// The replica is gone; its links go with it, and the other ends notice later.
    pub(crate) fn go_down(&mut self, number: usize) {
        self.count_figures(number);
        self.members[number].machine = None;
        for index in self.connections_of(number) {
            let connection = &mut self.connections[index];
            let end = if connection.ends[0] == number { End::Down } else { End::Up };
            if connection.link[end as usize].take().is_some() {
                connection.lose_all();
                self.notice_later(index, end.other());
            }
        }
    }

    /// Takes what a replica counted into the table.
    pub(crate) fn count_figures(&mut self, number: usize) {
        for (what, count) in self.members[number].machine.iter().flat_map(|m| m.figures()) {
            self.counters.add(&format!("replica: {what}"), count);
        }
    }

    /// The planned cut has come.
    pub(super) fn stopped(&mut self, number: usize) {
        match self.members[number].stop.take() {
            Some(Stop::Process) => self.kill(number),
            Some(Stop::Power) | None => self.crash(number),
        }
    }

    pub(super) fn off(&mut self, number: usize, boot: u64) {
        let member = &mut self.members[number];
        if member.boot == boot && member.stop.is_some() {
            member.power.cut();
            self.stopped(number);
        }
    }

    fn crash(&mut self, number: usize) {
        self.after_users(number);
        self.go_down(number);
        let seed = self.rng.bits();
        let member = &mut self.members[number];
        member.crowd().die();
        let wreck = member.fs.crash(seed);
        member.kv = SimKv::from_image(&member.kv.durable(), member.power.clone());
        member.boot += 1;
        self.counters.count("power cuts");
        self.counters.add("names lost by power cuts", wreck.names_lost as u64);
        for changed in &wreck.changed {
            self.counters.count(&format!("file after power cut: {:?}", changed.damage));
        }
        self.say(|| format!("member {number} loses power: {wreck:?}"));
        let others = self.disks_but(number);
        let found = self.oracle.wrecked(self.now, &wreck, &|content| on_any(&others, content));
        self.violations.extend(found);
        self.look_at(number);
        self.back_later(number);
    }

    /// The process is gone: what it had open is closed, what it had not committed is taken back.
    pub(crate) fn end_process(&mut self, number: usize) {
        self.go_down(number);
        let member = &mut self.members[number];
        member.fs.process_died();
        member.kv = SimKv::from_image(&member.kv.image(), member.power.clone());
        member.stop = None;
        member.crowd().ambush = None;
        self.after_users(number);
    }

    fn kill(&mut self, number: usize) {
        self.end_process(number);
        self.counters.count("processes killed");
        self.say(|| format!("member {number} is killed"));
        self.after_users(number);
        self.look_at(number);
        self.back_later(number);
    }

    fn back_later(&mut self, number: usize) {
        let delay =
            if self.healing { 1000 } else { *self.rng.pick(&[1000, 300_000, 5_000_000, 60_000_000]).unwrap_or(&0) };
        self.after(delay, Event::Up { member: number });
    }

    /// Puts disk and database back to an image.
    pub(crate) fn roll_back(&mut self, number: usize, copied: bool) {
        let Some((image, kv)) = self.members[number].image.take() else { return };
        self.members[number].put_back_after_page = false;
        // Whatever is there afterwards counts as there: so it is asked about before.
        self.look_at(number);
        (0..self.members.len()).for_each(|member| self.look_into(member));
        self.go_down(number);
        // Whoever waited for a lease of the process has written now, and that goes back with the disk.
        self.after_users(number);
        let member = &mut self.members[number];
        let (before, places) = (member.fs.contents(), places(&member.fs));
        member.crowd().die();
        // By a backup of its files, that is, where all are other objects than in the image of the database. What that did not
        // know of is new then.
        if member.image_rested && Rng::new(self.plan.seed ^ self.now).chance(1, 2) {
            self.counters.count("members put back file by file");
            member.fs.restore_copied(&image);
        } else {
            member.fs.restore(&image);
        }
        member.power.restore();
        member.stop = None;
        member.kv = SimKv::from_image(&kv, member.power.clone());
        member.boot += 1;
        member.place += u64::from(copied);
        let after = member.fs.contents();
        let gone: Vec<Thing> = before.difference(&after).cloned().collect();
        let there_no_more = &places - &self::places(&member.fs);
        self.counters.count(if copied { "members copied to other hardware" } else { "members put back to an image" });
        self.say(|| format!("member {number} goes back to its image: {} contents fewer", gone.len()));
        let others = self.disks_but(number);
        let name = self.members[number].name.clone();
        self.oracle.rolled_back((number, &name), self.now, &after, &gone, &|content| in_any_tree(&others, content));
        self.oracle.left_places(there_no_more.into_iter().map(|(_, content)| content));
        self.look_at(number);
        self.back_later(number);
        if !copied && self.rng.chance(1, 2) {
            self.leave_alone(number);
        }
    }
}
