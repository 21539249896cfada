//! Connections of the simulated network: they are dialled, carry messages, are cut, and break.

use anabranch_net::message::Message;

use super::{Event, GIVE_UP, World};
use crate::machine::{Input, Role};
use crate::network::{End, LANES};

impl World<'_> {
    /// Nothing reaches this member, and nothing that it says reaches anybody; or everything again.
    pub(crate) fn cut_off(&mut self, number: usize, cut: bool) {
        for index in self.connections_of(number) {
            self.set_cut(index, End::Down, cut);
            self.set_cut(index, End::Up, cut);
        }
    }

    // ---- the network ----

    pub(super) fn connections_of(&self, number: usize) -> Vec<usize> {
        (0..self.connections.len()).filter(|&c| self.connections[c].ends.contains(&number)).collect()
    }

    pub(super) fn find_link(&self, number: usize, link: u64) -> Option<(usize, End)> {
        self.connections.iter().enumerate().find_map(|(index, c)| Some((index, c.end_of(number, link)?)))
    }

    pub(super) fn dial(&mut self, index: usize) {
        let connection = &self.connections[index];
        if connection.link.iter().all(Option::is_some) {
            return;
        }
        let up = connection.ends.iter().all(|&m| self.members[m].machine.is_some());
        let free = connection.link.iter().all(Option::is_none) && connection.cut == [false; 2];
        if !up || !free {
            let delay = self.rng.between(200_000, 2_000_000);
            self.after(delay, Event::Dial { connection: index });
            return;
        }
        let (down, upper) = (self.next_link, self.next_link + 1);
        self.next_link += 2;
        self.connections[index].link = [Some(down), Some(upper)];
        self.connections[index].lose_all();
        let [downstream, upstream] = self.connections[index].ends;
        self.counters.count("links made");
        self.say(|| format!("link {down}/{upper}: member {downstream} pulls from member {upstream}"));
        self.call(upstream, Input::LinkUp(upper, Role::Downstream));
        // The call may have ended the link, or the member.
        if self.connections[index].link[0] == Some(down) {
            self.call(downstream, Input::LinkUp(down, Role::Upstream));
        }
    }

    pub(super) fn deliver(&mut self, index: usize, end: End, lane: usize, life: u64) {
        if self.connections[index].life != life {
            return;
        }
        let to = end.other();
        let number = self.connections[index].ends[to as usize];
        let busy = self.members[number].busy;
        if busy > self.now {
            let owed = self.backlog.entry((index, end, lane, life)).or_insert(0);
            *owed += 1;
            if *owed == 1 {
                self.at(busy, Event::Backlog { connection: index, end, lane, life });
            }
            return;
        }
        let Some((sent, envelope)) = self.connections[index].arrived(end, lane, self.now) else { return };
        let Some(link) = self.connections[index].link[to as usize] else { return };
        if self.break_passes > 0 && matches!(envelope.message, Message::Page(_)) && self.rng.chance(1, 2) {
            self.break_passes -= 1;
            self.counters.count("broken passes");
            self.say(|| format!("the pass on link {link} is broken"));
            self.break_connection(index);
            return;
        }
        self.counters.count("messages");
        let member = &mut self.members[number];
        if sent < member.received {
            self.counters.count("messages that others overtook");
        }
        member.received = member.received.max(sent);
        let half = matches!(&envelope.message, Message::Page(page) if page.complete.is_none());
        let own_page =
            matches!(&envelope.message, Message::Page(page) if !page.rows.is_empty() && page.complete.is_some());
        self.call(number, Input::Received(link, envelope.message));
        if half {
            self.look_for_halves(number);
        }
        let sender = self.connections[index].ends[end as usize];
        if own_page && self.members[sender].put_back_after_page {
            self.counters.count("members put back just after a partner heard of them");
            self.roll_back(sender, false);
        }
    }

    pub(super) fn work_off(&mut self, index: usize, end: End, lane: usize, life: u64) {
        let next = Event::Backlog { connection: index, end, lane, life };
        let busy = self.members[self.connections[index].ends[end.other() as usize]].busy;
        if self.connections[index].life != life {
            self.backlog.remove(&(index, end, lane, life));
        } else if busy > self.now {
            self.at(busy, next);
        } else if let Some(owed) = self.backlog.get_mut(&(index, end, lane, life)) {
            *owed -= 1;
            if *owed > 0 {
                self.after(0, next);
            } else {
                self.backlog.remove(&(index, end, lane, life));
            }
            self.deliver(index, end, lane, life);
        }
    }

    /// A connection breaks: what is on its way is lost, and each end notices in its own time.
    pub(crate) fn break_connection(&mut self, index: usize) {
        let lost = self.connections[index].lose_all();
        self.counters.add("messages lost", lost as u64);
        self.notice_later(index, End::Down);
        self.notice_later(index, End::Up);
    }

    pub(super) fn notice_later(&mut self, index: usize, end: End) {
        if let Some(link) = self.connections[index].link[end as usize] {
            let delay = *self.rng.pick(&[0, 1000, 100_000, 3_000_000]).unwrap_or(&0);
            self.after(delay, Event::Notice { connection: index, end, link });
        }
    }

    pub(super) fn notice(&mut self, index: usize, end: End, link: u64) {
        let connection = &mut self.connections[index];
        if connection.link[end as usize] != Some(link) {
            return;
        }
        connection.link[end as usize] = None;
        connection.lose_all();
        let number = connection.ends[end as usize];
        self.say(|| format!("link {link} of member {number} is gone"));
        // Where only one end had it, the other one notices too.
        self.notice_later(index, end.other());
        self.call(number, Input::LinkDown(link));
        let delay = self.rng.between(10_000, 1_000_000);
        self.after(delay, Event::Dial { connection: index });
    }

    /// Stops one direction, or lets it go again.
    pub(crate) fn set_cut(&mut self, index: usize, end: End, cut: bool) {
        let connection = &mut self.connections[index];
        connection.cut[end as usize] = cut;
        let life = connection.life;
        if cut {
            let delay = self.rng.between(GIVE_UP / 10, GIVE_UP);
            self.after(delay, Event::GiveUp { connection: index, life });
            return;
        }
        for lane in 0..LANES {
            // All that waited: one event a message.
            for _ in 0..self.connections[index].waiting(end, lane) {
                self.after(1, Event::Deliver { connection: index, end, lane, life });
            }
        }
    }

    pub(super) fn give_up(&mut self, index: usize, life: u64) {
        let connection = &self.connections[index];
        if connection.life == life && connection.cut != [false; 2] {
            self.break_connection(index);
        }
    }
}
