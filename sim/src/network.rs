//! The network between simulated members: connections that deliver in order, slowly, or not at all.
//!
//! # Fault model
//!
//! A connection joins a downstream and an upstream member, and has a few lanes in each direction (a pool of TCP
//! connections). Within a lane messages come in the order sent; between lanes in any. A message that was sent may be
//! lost only together with the connection, and with it all that was sent later in any lane. The two ends notice a broken
//! connection at different times, and one may go on talking to nobody meanwhile. In a one-way cut nothing comes through
//! in one direction until the cut ends or the connection breaks.

use std::collections::VecDeque;

use anabranch_net::message::{Envelope, Message, Piece};
use anabranch_volume::simulated::Rng;

/// Lanes in each direction: control, and content.
pub(crate) const LANES: usize = 2;

/// Which end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum End {
    /// The one that pulls.
    Down = 0,
    /// The one that is pulled from.
    Up = 1,
}

impl End {
    /// The other one.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Down => Self::Up,
            Self::Up => Self::Down,
        }
    }
}

/// Messages on their way in one direction of one lane.
#[derive(Default)]
struct Lane {
    /// When each arrives, how many were sent before it anywhere, and what it is.
    queue: VecDeque<(u64, u64, Envelope)>,
    /// When the last one arrives: none may overtake it.
    last: u64,
}

/// One connection of a group: the downstream member pulls from the upstream one.
pub(crate) struct Connection {
    /// Members by end.
    pub(crate) ends: [usize; 2],
    /// The link's number at each end, while that end believes that it stands.
    pub(crate) link: [Option<u64>; 2],
    /// Nothing that this end sends arrives.
    pub(crate) cut: [bool; 2],
    /// One way, in microseconds.
    pub(crate) latency: u64,
    /// Added at random, up to this.
    pub(crate) jitter: u64,
    /// Bytes a second.
    pub(crate) rate: u64,
    lanes: [[Lane; LANES]; 2],
    /// Number of the connection's life: what was planned for an earlier one is void.
    pub(crate) life: u64,
}

impl Connection {
    /// A good connection, down.
    pub(crate) fn new(downstream: usize, upstream: usize) -> Self {
        Self {
            ends: [downstream, upstream],
            link: [None; 2],
            cut: [false; 2],
            latency: 500,
            jitter: 200,
            rate: 100_000_000,
            lanes: Default::default(),
            life: 0,
        }
    }

    /// Which end a member is at with this link.
    pub(crate) fn end_of(&self, member: usize, link: u64) -> Option<End> {
        [End::Down, End::Up]
            .into_iter()
            .find(|&e| self.ends[e as usize] == member && self.link[e as usize] == Some(link))
    }

    /// Is nothing on its way?
    pub(crate) fn idle(&self) -> bool {
        self.lanes.iter().flatten().all(|l| l.queue.is_empty())
    }

    /// Puts a message, with its number, on its way from `end`; says when it arrives and in which lane. To nobody where the other end is
    /// gone.
    pub(crate) fn send(
        &mut self,
        end: End,
        now: u64,
        (number, envelope): (u64, Envelope),
        rng: &mut Rng,
        lanes: bool,
    ) -> Option<(u64, usize)> {
        self.link[end.other() as usize]?;
        let lane = if lanes { lane_of(&envelope.message) } else { 0 };
        let size = bytes(&envelope.message);
        let line = &mut self.lanes[end as usize][lane];
        let flight = self.latency + rng.below(self.jitter + 1) + size.saturating_mul(1_000_000) / self.rate.max(1);
        let at = (now + flight).max(line.last + 1);
        line.last = at;
        line.queue.push_back((at, number, envelope));
        Some((at, lane))
    }

    /// What `end` sent in that lane and has arrived by now, with its number.
    pub(crate) fn arrived(&mut self, end: End, lane: usize, now: u64) -> Option<(u64, Envelope)> {
        if self.cut[end as usize] {
            return None;
        }
        let line = &mut self.lanes[end as usize][lane];
        match line.queue.front() {
            Some((at, ..)) if *at <= now => line.queue.pop_front().map(|(_, number, envelope)| (number, envelope)),
            _ => None,
        }
    }

    /// Messages on their way from `end` in that lane.
    pub(crate) fn waiting(&self, end: End, lane: usize) -> usize {
        self.lanes[end as usize][lane].queue.len()
    }

    /// All that is on its way is lost.
    pub(crate) fn lose_all(&mut self) -> usize {
        self.life += 1;
        let lost = self.lanes.iter().flatten().map(|l| l.queue.len()).sum();
        self.lanes = Default::default();
        lost
    }
}

fn lane_of(message: &Message) -> usize {
    usize::from(matches!(message, Message::Fetch { .. } | Message::Pieces { .. }))
}

/// About what a message takes on the wire.
fn bytes(message: &Message) -> u64 {
    let sum = match message {
        Message::Page(page) => page.rows.iter().chain(&page.attributes).map(Vec::len).sum::<usize>(),
        Message::Pieces { pieces, .. } => pieces.iter().map(|p| if let Piece::Data(d) = p { d.len() } else { 1 }).sum(),
        Message::Fetch { wants, .. } => wants.len() * 80,
        _ => 64,
    };
    sum as u64 + 20
}
