//! The real replica of the `member` crate behind [`Machine`].

use std::hash::{DefaultHasher, Hash, Hasher};

use anabranch_engine::kv::KvError;
use anabranch_member::{Config, Input as In, Limits, LinkId, Output as Out, Partner, Phase, RecoveryPolicy, Replica};
use anabranch_model::{FolderId, Hlc, Record, Uid, Version};
use anabranch_volume::simulated::SimFs;

use crate::kv::SimKv;
use crate::machine::{Figures, Input, Kept, Machine, Named, Output, Role, Start};

struct Member(Replica<SimFs, SimKv>);

impl Member {
    fn each_record(&self, each: &mut dyn FnMut(&Record)) -> Result<(), String> {
        let mut after: Option<Uid> = None;
        loop {
            let page = self.0.records().records(after, 1000).map_err(|e: KvError| chain(&e))?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.uid);
            page.iter().for_each(&mut *each);
        }
    }
}

/// Opens the replica of a member.
///
/// # Errors
/// A sentence: it cannot start now.
pub(crate) fn open(start: Start) -> Result<Box<dyn Machine>, String> {
    // People's files are small here: where pages are small, pieces are too, so that files come in several of them, and how
    // far they have come is noted at once.
    let large_from = if start.page_bytes < 1000 { 256 } else { u32::MAX };
    let usual = Limits::default();
    let limits = Limits {
        piece_bytes: usual.piece_bytes.min(large_from),
        slice_bytes: usual.slice_bytes.min(u64::from(large_from).max(256)),
        note_bytes: usual.note_bytes.min(u64::from(large_from)),
        note_every: if large_from == u32::MAX { usual.note_every } else { 1_000 },
        staging_bytes: start.staging_bytes,
        page_bytes: start.page_bytes,
        name_memory: start.name_memory,
        batch_installs: 16,
        ..usual
    };
    let config = Config {
        folder: FolderId([7; 16]),
        folder_name: "sim/folder".into(),
        member: start.name,
        members: start.members,
        primary: start.primary,
        keep_beside: start.keep_beside,
        names: start.names,
        recovery: RecoveryPolicy::Auto,
        boot: start.boot,
        place: start.place,
        token: None,
        limits,
    };
    let replica = Replica::open(start.fs, start.kv, config, start.fresh, start.now, false).map_err(|e| chain(&e))?;
    Ok(Box::new(Member(replica)))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Machine for Member {
    fn handle(&mut self, now: Hlc, input: Input) -> Result<(), String> {
        let input = match input {
            Input::Time => In::Time,
            Input::Hints(hints) => In::Hints(hints),
            Input::LinkUp(link, Role::Upstream) => In::LinkUp(LinkId(link), Partner::Upstream),
            Input::LinkUp(link, Role::Downstream) => In::LinkUp(LinkId(link), Partner::Downstream),
            Input::LinkDown(link) => In::LinkDown(LinkId(link)),
            Input::Received(link, message) => In::Received(LinkId(link), message),
        };
        self.0.handle(now, input).map_err(|e| chain(&e))
    }

    fn poll(&mut self) -> Option<Output> {
        Some(match self.0.poll()? {
            Out::Send(link, envelope) => Output::Send(link.0, envelope),
            Out::Close(link, why) => Output::Close(link.0, why),
            Out::Report(event) => Output::Report(event.kind.number(), event.detail),
        })
    }

    fn deadline(&self) -> Option<Hlc> {
        self.0.deadline()
    }

    fn looked(&self) -> bool {
        self.0.looked()
    }

    fn settled(&self) -> bool {
        self.0.pulled() && self.0.settled().unwrap_or(false)
    }

    fn waits(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.0.phase() != Phase::Normal {
            out.push(format!("phase {:?}", self.0.phase()));
        }
        if !self.0.pulled() {
            out.push("a pass is outstanding".into());
        }
        match self.0.waiting_items(8) {
            Ok(items) => out.extend(items.into_iter().map(|(path, why)| format!("{path} {why:?}"))),
            Err(error) => out.push(chain(&error)),
        }
        match self.0.outstanding(1000) {
            Ok(0) => {}
            Ok(count) => out.push(format!("{count} items outstanding")),
            Err(error) => out.push(chain(&error)),
        }
        out
    }

    fn describe(&self) -> Vec<String> {
        self.0.describe(10_000).unwrap_or_else(|error| vec![chain(&error)])
    }

    fn preserved(&self) -> Result<Vec<Kept>, String> {
        let mut out = Vec::new();
        let mut after = 0;
        loop {
            let page = self.0.preserved(after, 1000).map_err(|e| chain(&e))?;
            let Some(last) = page.last() else { return Ok(out) };
            after = last.number;
            out.extend(page.into_iter().map(|item| Kept {
                place: [item.directory_name(), b"/", &item.file_name()].concat(),
                unseen: item.reason.unseen(),
                pending: item.pending,
                reason: item.reason.word().to_owned(),
                path: item.path,
            }));
        }
    }

    fn versions(&self, until: Hlc) -> Result<Vec<(Named, u64)>, String> {
        let mut out = Vec::new();
        self.each_record(&mut |record| values(record, until, &mut out))?;
        Ok(out)
    }

    fn records(&self) -> Result<Vec<(Uid, Record)>, String> {
        let mut out = Vec::new();
        self.each_record(&mut |record| {
            let mut record = record.clone();
            // Whether maps were joined here, or came joined, differs.
            record.placement.written.merged = false;
            record.content.iter_mut().for_each(|f| f.written.merged = false);
            record.attributes.iter_mut().for_each(|f| f.written.merged = false);
            out.push((record.uid, record));
        })?;
        Ok(out)
    }

    fn state(&self) -> u64 {
        let mut sum = 0_u64;
        // A database that cannot be read stops its replica before anybody asks.
        let _ = self.each_record(&mut |record| {
            if record.placement.value.deleted {
                return;
            }
            let mut hash = 0xcbf2_9ce4_8422_2325_u64;
            for version in record.versions() {
                for part in version.replica.0.into_iter().chain(version.sequence.0.to_be_bytes()) {
                    hash = (hash ^ u64::from(part)).wrapping_mul(0x100_0000_01b3);
                }
            }
            // In any order: that of the database is each member's own.
            sum = sum.wrapping_add(hash);
        });
        sum
    }

    fn clock(&self) -> Hlc {
        self.0.records().clock()
    }

    fn figures(&self) -> Figures {
        let c = self.0.counters();
        let [old, descendant, equal, concurrent] = c.cases;
        vec![
            ("passes", c.passes),
            ("installs", c.installs),
            ("contents reused", c.reused),
            ("adopted", c.adopted),
            ("taken back after the exchange", c.taken_back),
            ("in use before the exchange", c.in_use),
            ("bytes of content received", c.content_received),
            ("preserved as unseen", c.unseen),
            ("intents completed or undone", c.intents),
            ("case 1: old", old),
            ("case 2: descendant", descendant),
            ("case 3: equal", equal),
            ("case 4: concurrent", concurrent),
            ("resolutions", c.resolutions),
        ]
    }

    fn close(&mut self) -> Result<(), String> {
        self.0.close().map_err(|e| chain(&e))
    }
}

/// What each version in a record names: the thing, the value and the stamp. The maps are joined as time goes by and are no
/// part of it.
fn values(record: &Record, until: Hlc, out: &mut Vec<(Named, u64)>) {
    let mut push = |facet: &'static str, version: Version, value: u64| {
        if version.sequence.0 <= until.0 {
            out.push((Named::Thing(version), hash(&record.uid)));
            out.push((Named::Value(facet, record.uid, version), value));
        }
    };
    let placement = &record.placement;
    push("placement", placement.written.version, hash(&(&placement.value, placement.written.time)));
    if let Some(content) = &record.content {
        let value = hash(&(&content.value, content.mtime, content.bytes, content.written.time));
        push("content", content.written.version, value);
    }
    if let Some(attributes) = &record.attributes {
        let value = hash(&(&attributes.value, attributes.directory_mtime, attributes.written.time));
        push("attributes", attributes.written.version, value);
    }
}

/// The same in every run.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
