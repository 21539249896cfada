//! Links: opening them, passes, and what is asked of and by partners.
//!
//! A partner is trusted with the folder's content and with nothing else: what it says is checked, and whoever breaks the
//! protocol is told which rule, and its link closed.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_engine::PassEnd;
use anabranch_engine::kv::{Kv, Table};
use anabranch_model::codec::{Dictionary, decode_attributes, decode_record};
use anabranch_model::{ChangeNumber, Hlc, Knowledge, Names, Sequence, Version, is_reserved};
use anabranch_net::message::{Acknowledgement, Mark, Message, PAGE_BYTES_MAX, Page};
use anabranch_volume::fs::Fs;

use crate::acknowledged::{Judgement, Told, falls_short, judge};
use crate::events::EventKind;
use crate::replica::{Continued, Link, LinkId, Output, Partner, Phase, Replica, Result};
use crate::returned::Point;
use crate::steps::{Step, broken};
use crate::tables::{self, Gap, Meta};

/// Marks kept: an echo older than the oldest is taken as it is.
const MARKS_MAX: usize = 8192;

/// Why links are closed when a return to an earlier state was noticed.
const RETURNED: &str = "this member was returned to an earlier state; it goes on under a fresh replica id";

impl<F: Fs + Sync, K: Kv> Replica<F, K>
where
    F::Dir: Send + Sync,
    F::File: Send,
{
    pub(crate) fn link_up(&mut self, id: LinkId, partner: Partner) -> Result<()> {
        let link = Link {
            partner,
            peer: None,
            number: ChangeNumber::default(),
            pulling: false,
            pushed: ChangeNumber::default(),
            told: Knowledge::default(),
            told_acknowledgements: Told::default(),
            refused: BTreeSet::new(),
            served: BTreeMap::new(),
            ahead: false,
            joining: false,
            skew: 0,
            passed: false,
            continued: Continued::Unasked,
            unanswered: None,
        };
        self.links.insert(id, link);
        if partner == Partner::Upstream {
            let known = self.records.known().clone();
            if let Some(link) = self.links.get_mut(&id) {
                link.told = known.clone();
            }
            // Which replica the partner is comes with its answer; until then the last one of all marks is echoed by it.
            let message = Message::Open {
                member: self.config.member.clone(),
                replica: self.records.replica(),
                echo: self.echo_for(id)?,
                known,
                closed: tables::closed(self.records.kv())?,
                clock: self.now,
                names: self.names_said(),
            };
            self.send(id, message);
        }
        Ok(())
    }

    /// The rule for names, as partners are told.
    fn names_said(&self) -> String {
        match self.config.names {
            Names::Bytes => String::new(),
            other @ Names::Windows => other.to_string(),
        }
    }

    /// Two members that compare names by other rules, or by other tables, derive other trees from the same records: they
    /// do not talk about the folder until they agree.
    fn compares_names_otherwise(&mut self, id: LinkId, member: &str, theirs: &str) -> bool {
        let ours = self.names_said();
        if theirs == ours {
            return false;
        }
        let [ours, theirs] = [ours.as_str(), theirs].map(|rule| if rule.is_empty() { "bytes" } else { rule });
        let reason = format!(
            "{member} compares names of {} as `{theirs}`, {} as `{ours}`: they need versions of the program with one table",
            self.config.folder_name, self.config.member
        );
        self.send(id, Message::Refused { reason: reason.clone() });
        self.refuse_link(id, reason);
        true
    }

    /// The newest mark that we were given, of any partner: its owner recognises its own replica id.
    fn echo_for(&self, _link: LinkId) -> Result<Mark> {
        Ok(Mark::default())
    }

    pub(crate) fn link_down(&mut self, id: LinkId) {
        self.links.remove(&id);
        self.fetching.link_down(id);
        if self.returning_request.as_ref().is_some_and(|(link, _)| *link == id) {
            self.returning_request = None;
            self.returning_at = Some(self.now);
        }
    }

    /// Closes a link because its partner broke a rule.
    fn refuse_link(&mut self, id: LinkId, reason: String) {
        self.report(EventKind::PartnerRefused, reason.clone());
        self.out.push_back(Output::Close(id, reason));
        self.link_down(id);
    }

    pub(crate) fn receive(&mut self, id: LinkId, message: Message) -> Result<()> {
        let Some(link) = self.links.get(&id) else { return Ok(()) };
        let (upstream, opened) = (link.partner == Partner::Upstream, link.peer.is_some());
        match message {
            Message::Open { member, replica, echo, known, closed, clock, names } if !upstream && !opened => {
                if !self.config.members.contains(&member) {
                    self.refuse_link(id, format!("{member} is no member of {}", self.config.folder_name));
                    return Ok(());
                }
                if self.compares_names_otherwise(id, &member, &names)
                    || self.take_closed(&closed)?
                    || self.check_echo(&member, &echo)?
                    || self.was_passed_over(&known)?
                {
                    return Ok(());
                }
                let number = self.records.change_number();
                if let Some(link) = self.links.get_mut(&id) {
                    link.peer = Some((member, replica));
                    link.told = known;
                    link.pushed = number;
                    link.joining = self.phase == Phase::Joining;
                    link.skew = clock.0.cast_signed() - self.now.0.cast_signed();
                }
                let message = Message::Opened {
                    member: self.config.member.clone(),
                    replica: self.records.replica(),
                    echo: tables::partner_mark(self.records.kv(), replica)?,
                    number,
                    known: self.records.known().clone(),
                    closed: tables::closed(self.records.kv())?,
                    clock: self.now,
                    names: self.names_said(),
                    joining: self.phase == Phase::Joining,
                };
                self.send(id, message);
            }
            Message::Opened { member, replica, echo, number, known, closed, clock, names, joining }
                if upstream && !opened =>
            {
                if self.compares_names_otherwise(id, &member, &names)
                    || self.take_closed(&closed)?
                    || self.check_echo(&member, &echo)?
                    || self.was_passed_over(&known)?
                {
                    return Ok(());
                }
                self.report_once(EventKind::PartnerConnected, member.clone());
                if let Some(link) = self.links.get_mut(&id) {
                    link.peer = Some((member.clone(), replica));
                    link.number = number;
                    link.joining = joining;
                    link.skew = clock.0.cast_signed() - self.now.0.cast_signed();
                }
                // Now that we know who it is: the mark that it gave us, so that it can tell whether it was rolled back.
                let mark = tables::partner_mark(self.records.kv(), replica)?;
                self.send(id, Message::Echo(mark));
                // Those of its earlier lives, too: whoever was put back remembers only what was in the image.
                let earlier = tables::partner_marks(self.records.kv(), &member)?;
                for mark in earlier.into_iter().filter(|mark| mark.replica != replica) {
                    self.send(id, Message::Echo(mark));
                }
                self.pull(id)?;
            }
            Message::Echo(mark) if !upstream && opened => {
                let partner = link.peer.as_ref().map_or(String::new(), |(name, _)| name.clone());
                self.check_echo(&partner, &mark)?;
            }
            Message::Refused { reason } => {
                self.report_once(EventKind::PartnerRefused, reason.clone());
                self.out.push_back(Output::Close(id, reason));
                self.link_down(id);
            }
            Message::Grown { number } if upstream && opened => {
                if let Some(link) = self.links.get_mut(&id) {
                    link.number = link.number.max(number);
                    link.joining = false;
                }
                self.pull(id)?;
            }
            Message::Pull { after, known, part } if !upstream && opened => self.serve_page(id, after, &known, part)?,
            Message::Page(page) if upstream && opened => self.take_page(id, page)?,
            Message::Fetch { request, wants } if !upstream && opened => self.serve_content(id, request, &wants)?,
            Message::Pieces { request, first, pieces } if upstream && opened => {
                if let Err(reason) = self.take_pieces(id, request, first, pieces)? {
                    self.refuse_link(id, reason);
                }
            }
            Message::Held { uids } if upstream && opened => self.fetching.held(id, &uids),
            Message::Acknowledged { members } if opened => self.take_acknowledgements(id, members)?,
            Message::AskSums { request } if !upstream && opened => self.serve_sums(id, request)?,
            Message::AskBucket { request, bucket } if !upstream && opened => self.serve_bucket(id, request, bucket)?,
            Message::Sums { request, outstanding, sums } if upstream && opened => {
                self.take_sums(id, request, outstanding, sums)?;
            }
            Message::Bucket { request, rows } if upstream && opened => self.take_bucket(id, request, rows)?,
            Message::AskRecords { request, uids } if !upstream && opened => {
                let mut present = Vec::with_capacity(uids.len());
                // Who was put back itself cannot say what there is, until it has asked others.
                for uid in uids.into_iter().filter(|_| self.phase != Phase::Returning) {
                    present.push(self.records.record(uid)?.is_some());
                }
                self.send(id, Message::Records { request, present });
            }
            Message::Records { present, .. } if upstream && opened => self.take_presence(id, &present)?,
            _ => self.refuse_link(id, "a message that does not belong here".into()),
        }
        Ok(())
    }

    /// Asks for the next page, if there is anything above our cursor and no page is on its way.
    pub(crate) fn pull(&mut self, id: LinkId) -> Result<()> {
        let Some(link) = self.links.get(&id).filter(|l| !l.pulling && l.partner == Partner::Upstream) else {
            return Ok(());
        };
        let Some((_, replica)) = link.peer else { return Ok(()) };
        let (number, passed, joining) = (link.number, link.passed, link.joining);
        let state = self.records.pass_state(replica)?;
        if self.phase == Phase::Joining && self.links.values().any(|l| l.pulling) {
            // Initial sync talks to one partner after the other (design, section 6).
            return Ok(());
        }
        if number <= state.cursor && passed {
            return Ok(());
        }
        let part = self.part_will_do();
        if joining && !part {
            // It knows less than it will: what lies here would be taken for what nobody else has.
            return Ok(());
        }
        let Some(link) = self.links.get(&id) else { return Ok(()) };
        let mut news = Knowledge::default();
        for (replica, sequence) in self.records.known().iter() {
            if link.told.sequence(replica) < sequence {
                news.learn(Version { replica, sequence });
            }
        }
        let known = self.records.known().clone();
        if let Some(link) = self.links.get_mut(&id) {
            link.told = known;
            link.pulling = true;
        }
        let mut after = state.reached.max(state.cursor);
        if let Some(link) = self.links.get_mut(&id)
            && link.continued != Continued::Sure
        {
            link.continued = if state.heard > after { Continued::Asked } else { Continued::Sure };
            after = after.max(state.heard);
        }
        self.send(id, Message::Pull { after, known: news, part });
        Ok(())
    }

    fn take_page(&mut self, id: LinkId, page: Page) -> Result<()> {
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        let Some((name, replica)) = link.peer.clone() else { return Ok(()) };
        if !link.pulling {
            self.refuse_link(id, "a page that was not asked for".into());
            return Ok(());
        }
        link.pulling = false;
        if link.continued == Continued::Asked {
            // These rows come once more, after those before them.
            link.continued = Continued::Sure;
            return self.pull(id);
        }
        let number = link.number;
        let attributes: std::result::Result<Vec<_>, _> = page.attributes.iter().map(|a| decode_attributes(a)).collect();
        let rows = attributes.and_then(|attributes| {
            let dictionary = Dictionary::new(page.replicas.clone(), attributes);
            // With room from the start: a record is large, and a page has thousands of them.
            let mut rows = Vec::with_capacity(page.rows.len());
            for row in &page.rows {
                rows.push(decode_record(row, &dictionary)?);
            }
            Ok(rows)
        });
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => {
                self.refuse_link(id, format!("{name} sent a record that cannot be: {error}"));
                return Ok(());
            }
        };
        if let Some((known, _)) = &page.complete
            && self.was_passed_over(known)?
        {
            return Ok(());
        }
        self.records.begin()?;
        if let Some((mut known, mark)) = page.complete {
            Self::cap_closed(&tables::closed(self.records.kv())?, &mut known);
            let mut counts = self.counters.cases;
            let limit = if broken(Step::TimesAhead) { u64::MAX } else { self.config.limits.ahead };
            let former = self.former()?;
            self.records.set_former(former);
            self.records.set_comparing(self.phase == Phase::Returning);
            let end = self.records.complete_pass(replica, rows, page.through, &known, self.now, limit)?;
            match end {
                PassEnd::Complete(taken) => {
                    counts[0] += taken.old;
                    counts[1] += taken.descendants;
                    counts[2] += taken.equal;
                    counts[3] += taken.concurrent + taken.twice;
                    self.counters.cases = counts;
                    self.counters.passes += 1;
                    self.note_touched()?;
                    self.partner_known.insert(replica, known);
                    if mark.replica == replica {
                        tables::put_partner_mark(self.records.kv_mut(), &name, &mark)?;
                    }
                    self.commit()?;
                    if let Some(link) = self.links.get_mut(&id) {
                        link.passed = true;
                        link.ahead = false;
                        link.number = link.number.max(page.through);
                    }
                    self.passed(id)?;
                }
                PassEnd::AheadOfClock { clock } => {
                    self.records.rollback()?;
                    // By the hour, so that one clock is one event.
                    let hours = (clock.0.saturating_sub(self.now.0)).div_ceil(3_600_000_000);
                    self.report_once(
                        EventKind::ClockAhead,
                        format!(
                            "what {name} sends carries a time up to {hours} h ahead of the clock of {}",
                            self.config.member
                        ),
                    );
                    // What lay aside is fetched anew: its author may have stamped it anew by then.
                    self.records.begin()?;
                    self.records.drop_pass(replica)?;
                    self.records.commit()?;
                    if let Some(link) = self.links.get_mut(&id) {
                        link.ahead = true;
                    }
                    self.ahead_retry = Some(Hlc(self.now.0 + self.config.limits.retry));
                    return Ok(());
                }
            }
        } else {
            self.records.lay_aside_all(replica, &rows)?;
            self.records.set_reached(replica, page.through, number.max(page.through))?;
            self.records.commit()?;
        }
        self.pull(id)?;
        if self.phase == Phase::Joining {
            for other in self.links.keys().copied().collect::<Vec<_>>() {
                self.pull(other)?;
            }
        }
        Ok(())
    }

    /// A pass was completed.
    fn passed(&mut self, id: LinkId) -> Result<()> {
        match self.phase {
            Phase::Joining => {
                if self.adopting.is_none() {
                    self.begin_adoption();
                }
                Ok(())
            }
            Phase::Returning => self.compare_records(id),
            Phase::Normal => self.resolve(anabranch_engine::ResolveScope::Own),
        }
    }

    /// Whoever joins compares what lies in its tree with the first complete pass, so that must have all that the upstream
    /// has. Where nothing lies there is nothing to compare: what is there later was made meanwhile, by people.
    fn part_will_do(&mut self) -> bool {
        self.joins_empty = self.phase == Phase::Joining && {
            let entries = self.fs.list(&self.fs.root());
            entries.is_ok_and(|entries| entries.iter().all(|entry| is_reserved(&entry.name)))
        };
        self.phase != Phase::Joining || self.joins_empty
    }

    pub(crate) fn serve_page(&mut self, id: LinkId, after: ChangeNumber, news: &Knowledge, part: bool) -> Result<()> {
        if after > self.records.change_number() && self.links.contains_key(&id) {
            // It heard that from us, and we do not know it. What was issued since the start it may never have heard.
            let partner = self.links.get(&id).and_then(|link| link.peer.as_ref()).map(|(name, _)| name.as_str());
            let point = self.point_of_return(u64::MAX, partner)?;
            self.take_fresh_id(Some(Point { mark: point.mark.min(self.mark_at_start), ..point }))?;
            self.close_all(RETURNED);
            return Ok(());
        }
        if let Some(gap) = self.gap(|gap| gap.has_number(after)) {
            return self.return_before(gap);
        }
        if self.was_passed_over(news)? {
            return Ok(());
        }
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        link.told.join(news);
        let bytes = self.config.limits.page_bytes.min(PAGE_BYTES_MAX);
        let mut page = self.records.page(after, &link.told, bytes)?;
        if self.first_scan && !part && page.complete.take().is_some() && page.rows.is_empty() {
            link.unanswered = Some(after);
            return Ok(());
        }
        let complete = match page.complete {
            Some(known) => {
                link.pushed = page.through;
                Some((known, self.last_mark))
            }
            None => None,
        };
        let message = Message::Page(Page {
            replicas: page.dictionary.replicas.clone(),
            attributes: page.dictionary.attributes.iter().map(anabranch_model::codec::encode_attributes).collect(),
            rows: page.rows,
            through: page.through,
            complete,
        });
        self.send(id, message);
        Ok(())
    }

    fn take_acknowledgements(&mut self, id: LinkId, members: Vec<Acknowledgement>) -> Result<()> {
        let closed = tables::closed(self.records.kv())?;
        let mut fresh = Vec::new();
        for ack in members {
            if let Some(link) = self.links.get_mut(&id) {
                link.told_acknowledgements.has(&ack);
            }
            let own = ack.member == self.config.member;
            // Whoever heard of us over others, perhaps: marks are kept by those who are connected with us.
            if self.was_passed_over(&ack.held)? {
                return Ok(());
            }
            if own && ack.replica == self.records.replica() && self.forgot(&ack)? {
                return Ok(());
            }
            if own || !self.config.members.contains(&ack.member) {
                continue;
            }
            let kept = self.acknowledged.of(&ack.member);
            match judge(&closed, kept, &ack) {
                Judgement::Take => {
                    if kept.is_some_and(|kept| kept.serial > ack.serial) {
                        // The others have heard the one that does not count.
                        for (_, link) in self.links.iter_mut().filter(|(other, _)| **other != id) {
                            link.told_acknowledgements.forget(&ack.member);
                        }
                    }
                    fresh.push(ack);
                }
                Judgement::Known => {}
                Judgement::Refuse => {
                    if let Some(link) = self.links.get_mut(&id) {
                        link.told_acknowledgements.forget(&ack.member);
                    }
                }
            }
        }
        if !fresh.is_empty() {
            self.records.begin()?;
            for ack in fresh {
                self.acknowledged.put(self.records.kv_mut(), ack)?;
            }
            self.collect()?;
            self.records.commit()?;
        }
        self.tell_acknowledgements();
        Ok(())
    }

    /// Does a partner have an acknowledgement of ours that we do not remember? Then we were returned to an earlier state
    /// even if we had issued nothing since: what we had acknowledged as deleted may be here again (design, section 11).
    fn forgot(&mut self, told: &Acknowledgement) -> Result<bool> {
        let closed = tables::closed(self.records.kv())?;
        let own = self.acknowledged.of(&told.member);
        // A later one of ours may have been made after the return, before this one was heard of: it holds less, or it was
        // the first one since the start.
        let passed_over =
            told.serial > self.serial_at_start && self.first_serial.is_some_and(|first| told.serial < first);
        if !passed_over && own.is_some_and(|own| own.serial >= told.serial && !falls_short(&closed, told, own)) {
            return Ok(false);
        }
        // Both are times: what the image does not remember is later than all marks that were in it, and what was issued
        // since the return is later still.
        // Later ones must be newer than what partners have.
        let serial = own.map_or(0, |own| own.serial).max(told.serial);
        let point = self.point_of_return(told.serial.saturating_add(1), None)?;
        self.take_fresh_id(Some(point))?;
        let (member, replica) = (told.member.clone(), self.records.replica());
        let own = Acknowledgement { member, replica, serial, held: Knowledge::default() };
        (self.serial_at_start, self.first_serial) = (serial, None);
        self.records.begin()?;
        self.acknowledged.put(self.records.kv_mut(), own)?;
        self.records.commit()?;
        self.close_all(RETURNED);
        Ok(true)
    }

    /// Our clock was set: what it was compared with when links were opened no longer holds. They are opened anew, and until
    /// one partner was heard nothing is stamped (design, section 4).
    pub(crate) fn clock_leapt(&mut self) {
        self.close_all("the clock was set; the link is opened anew, so that clocks are compared");
        if self.config.members.len() > 1 {
            self.hold_until = Some(Hlc(self.now.0 + self.config.limits.hold));
        }
    }

    /// Our clock and every partner's differed by more than the limit when the links were opened, and something waits for
    /// them to agree. Clocks that are set by less than the limit each are not seen to leap, so after a while the links
    /// are opened anew.
    pub(crate) fn clocks_differ(&mut self) {
        if self.links.values().all(|l| l.peer.is_none()) {
            return;
        }
        let due = *self.compare_clocks_at.get_or_insert(Hlc(self.now.0 + self.config.limits.ahead / 10));
        if due <= self.now {
            self.compare_clocks_at = None;
            self.close_all("clocks differed; the link is opened anew, so that they are compared again");
        }
    }

    /// Is our clock more than the limit ahead of every partner's? Then we issue no versions (design, section 4).
    pub(crate) fn ahead_of_all(&self) -> bool {
        let limit = self.config.limits.ahead.cast_signed();
        let mut partners = self.links.values().filter(|l| l.peer.is_some()).peekable();
        partners.peek().is_some() && partners.all(|l| l.skew < -limit)
    }

    /// Takes in which replica ids were closed by a rollback. `true`: there was news, all links are closed and opened anew.
    fn take_closed(&mut self, closed: &[Version]) -> Result<bool> {
        let mut known = tables::closed(self.records.kv())?;
        let mut news = Vec::new();
        for version in closed {
            match known.iter_mut().find(|k| k.replica == version.replica) {
                Some(k) if k.sequence <= version.sequence => {}
                Some(k) => {
                    k.sequence = version.sequence;
                    news.push(*version);
                }
                None => {
                    known.push(*version);
                    news.push(*version);
                }
            }
        }
        if news.is_empty() {
            return Ok(false);
        }
        self.records.begin()?;
        tables::put_closed(self.records.kv_mut(), &known)?;
        for version in news {
            self.records.lower_known(version.replica, version.sequence)?;
        }
        self.commit()?;
        if let Some(closed) = known.iter().find(|k| k.replica == self.records.replica()) {
            // Somebody else knows that we were rolled back before we do; the image may be older than that.
            let point = self.point_of_return(closed.sequence.0.saturating_add(1), None)?;
            self.take_fresh_id(Some(point))?;
        } else if self.phase == Phase::Normal && self.compared_lately()? {
            self.compare_again()?;
        }
        self.close_all("replica ids were closed; the link is opened anew");
        Ok(true)
    }

    fn close_all(&mut self, reason: &str) {
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            self.out.push_back(Output::Close(id, reason.into()));
            self.link_down(id);
        }
    }

    /// A partner echoes a mark of ours. `true`: we were rolled back; all links are closed.
    fn check_echo(&mut self, partner: &str, echo: &Mark) -> Result<bool> {
        if echo.highest == Sequence(0) || broken(Step::MarkEcho) {
            return Ok(false);
        }
        if echo.replica != self.records.replica() {
            self.take_earlier_life(echo.replica)?;
            return Ok(false);
        }
        let key = [Meta::MARKS, &echo.highest.0.to_be_bytes()].concat();
        match self.records.kv().get(Table::Meta, &key)? {
            Some(digest) if *digest == echo.digest => return self.confirm(partner).map(|()| false),
            Some(_) => {}
            None => {
                let to = anabranch_engine::kv::after_prefix(Meta::MARKS);
                let oldest = self.records.kv().range(Table::Meta, Meta::MARKS, to.as_deref(), 1)?;
                let beyond = oldest.first().is_some_and(|(k, _)| *k > key) && self.marks >= MARKS_MAX;
                if beyond {
                    return Ok(false);
                }
            }
        }
        let point = self.point_of_return(echo.highest.0, Some(partner))?;
        self.take_fresh_id(Some(point))?;
        self.close_all(RETURNED);
        Ok(true)
    }

    /// Does somebody know a version of ours whose number was passed over here at a start? `true`: we were returned to an
    /// earlier state before that start, and all links are closed. No later number that was issued since hides it.
    fn was_passed_over(&mut self, known: &Knowledge) -> Result<bool> {
        let sequence = known.sequence(self.records.replica());
        let gap = self.gap(|gap| gap.has_sequence(sequence));
        gap.map_or(Ok(false), |gap| self.return_before(gap).map(|()| true))
    }

    fn gap(&self, has: impl Fn(&Gap) -> bool) -> Option<Gap> {
        // It is the net beneath the marks: where these are not looked at, it would hide that.
        self.gaps.iter().find(|gap| has(gap)).filter(|_| !broken(Step::MarkEcho)).copied()
    }

    /// We were returned to an earlier state before these numbers were passed over.
    fn return_before(&mut self, gap: Gap) -> Result<()> {
        let point = self.point_before(&gap)?;
        self.take_fresh_id(Some(point))?;
        self.close_all(RETURNED);
        Ok(())
    }

    /// The newest mark of ours below a number that others know and we do not: what we have surely issued.
    pub(crate) fn newest_mark_before(&self, number: u64) -> Result<Sequence> {
        let key = [Meta::MARKS, &number.to_be_bytes()].concat();
        let from = self.records.kv().range(Table::Meta, Meta::MARKS, Some(&key), usize::MAX)?;
        let newest = from.last().and_then(|(k, _)| tables::read_number(k.get(Meta::MARKS.len()..)?).ok());
        Ok(Sequence(newest.unwrap_or(0)))
    }

    /// Goes on under a fresh replica id, as a non-authoritative restore (design, section 11). With a point of return the
    /// old id is closed there.
    pub(crate) fn take_fresh_id(&mut self, closed_at: Option<Point>) -> Result<()> {
        let old = self.records.replica();
        let fresh = (self.fresh)();
        self.records.begin()?;
        if let Some(Point { mark: sequence, .. }) = closed_at {
            let mut closed = tables::closed(self.records.kv())?;
            closed.retain(|v| v.replica != old);
            closed.push(Version { replica: old, sequence });
            tables::put_closed(self.records.kv_mut(), &closed)?;
            self.records.lower_known(old, sequence)?;
        }
        self.note_former(old)?;
        let gaps = std::mem::take(&mut self.gaps);
        if let Some(Point { mark: sequence, mixed: true }) = closed_at {
            self.issue_second_life_anew(Version { replica: old, sequence }, &gaps)?;
        }
        self.records.set_replica(fresh);
        self.records.jump(self.now, 0, 0);
        tables::put_gaps(self.records.kv_mut(), &self.gaps)?;
        self.forget_confirmed()?;
        let to = anabranch_engine::kv::after_prefix(Meta::MARKS);
        for (key, _) in self.records.kv().range(Table::Meta, Meta::MARKS, to.as_deref(), usize::MAX)? {
            self.records.kv_mut().delete(Table::Meta, &key)?;
        }
        self.marks = 0;
        self.last_mark = Mark { replica: fresh, ..Mark::default() };
        self.mark_at_start = Sequence(0);
        self.phase = if self.config.members.len() > 1 { Phase::Returning } else { Phase::Normal };
        self.records.kv_mut().put(Table::Meta, Meta::PHASE, &[self.phase.byte()])?;
        if !self.looked_through {
            self.records.kv_mut().put(Table::Meta, Meta::ABSENCE_DOUBTED, &[])?;
            self.absence_doubted = true;
        }
        self.commit()?;
        self.report(EventKind::RolledBack, self.config.folder_name.clone());
        self.scan_everything();
        Ok(())
    }

    /// Keeps a mark of what was issued by the end of this transaction, if anything was.
    pub(crate) fn put_mark(&mut self) -> Result<()> {
        let highest = self.records.highest();
        if highest <= self.last_mark.highest && self.last_mark.replica == self.records.replica() {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.last_mark.digest);
        hasher.update(&self.records.replica().0);
        hasher.update(&highest.0.to_be_bytes());
        hasher.update(&self.records.change_number().0.to_be_bytes());
        // Two lives of one image never have a mark in common.
        hasher.update(&(self.fresh)().0);
        let digest = *hasher.finalize().as_bytes();
        let key = [Meta::MARKS, &highest.0.to_be_bytes()].concat();
        self.records.kv_mut().put(Table::Meta, &key, &digest)?;
        self.last_mark = Mark { replica: self.records.replica(), highest, digest };
        self.marks += 1;
        if self.marks > MARKS_MAX {
            let to = anabranch_engine::kv::after_prefix(Meta::MARKS);
            if let Some((key, _)) = self.records.kv().range(Table::Meta, Meta::MARKS, to.as_deref(), 1)?.first() {
                self.records.kv_mut().delete(Table::Meta, key)?;
                self.marks -= 1;
            }
        }
        Ok(())
    }

    /// Loads the newest mark at start.
    pub(crate) fn load_marks(&mut self) -> Result<()> {
        let to = anabranch_engine::kv::after_prefix(Meta::MARKS);
        let rows = self.records.kv().range(Table::Meta, Meta::MARKS, to.as_deref(), usize::MAX)?;
        self.marks = rows.len();
        self.last_mark = Mark { replica: self.records.replica(), ..Mark::default() };
        if let Some((key, digest)) = rows.last() {
            self.last_mark.highest = Sequence(tables::read_number(key.get(Meta::MARKS.len()..).unwrap_or_default())?);
            self.last_mark.digest = digest.as_slice().try_into().unwrap_or_default();
        }
        self.mark_at_start = self.last_mark.highest;
        self.issued_at_start = self.records.known().sequence(self.records.replica());
        Ok(())
    }
}
