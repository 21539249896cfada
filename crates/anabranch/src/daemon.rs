//! The daemon: keeps the folders that the domain gives this member, and the links with its partners.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anabranch_console::Failure;
use anabranch_domain::{Effective, KeyFingerprint, Membership, Object, ObjectName, Policy, Problem};
use anabranch_member::host::{Host, HostSpec, chain};
use anabranch_member::{Config, Event, EventKind, Limits, Partner, Phase, RecoveryPolicy};
use anabranch_model::{FolderId, Names};
use anabranch_net::message::{Envelope, Message};
use anabranch_net::{Accepted, Identity, LinkCause, LinkCounters, Listener, dial};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::invitations::Invitations;
use crate::journal::Journal;
use crate::local::{Data, Local};
use crate::problems::Problems;
use crate::reach::{Heard, moved};

/// Name of the domain's own folder in events and listings.
pub(crate) const DOMAIN: &str = "$domain";
/// How long between two tries to reach a partner, at first and at most.
const REDIAL: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];
/// How long a connection may take.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// The cache of a folder's database.
const CACHE_BYTES: u64 = 32 << 20;

/// A folder that runs here.
pub(crate) struct Running {
    pub(crate) host: Arc<Host>,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Everybody who keeps it.
    pub(crate) members: Vec<String>,
    /// A partner has reached us: it can be reached too, so the wait for another try is over.
    called: Arc<Notify>,
    dialers: BTreeMap<(String, KeyFingerprint, Vec<String>), JoinHandle<()>>,
}

/// A folder that the domain gives this member, and that cannot be kept here as it stands.
#[derive(Clone)]
pub(crate) struct Refused {
    pub(crate) name: String,
    pub(crate) path: String,
    /// Everybody who is to keep it.
    pub(crate) members: Vec<String>,
    /// Why it cannot be kept.
    pub(crate) cause: String,
}

/// Bytes on the wire: of links that stand, and of those that have ended.
#[derive(Default)]
struct Wire {
    standing: Vec<(FolderId, LinkCounters)>,
    ended: BTreeMap<FolderId, (u64, u64)>,
}

/// What the parts of the daemon have in common.
pub(crate) struct Daemon {
    pub(crate) data: Data,
    pub(crate) local: Local,
    pub(crate) identity: Identity,
    pub(crate) journal: Arc<Journal>,
    pub(crate) invitations: Invitations,
    heard: Heard,
    pub(crate) domain: RwLock<(Effective, Vec<Object>, Vec<String>)>,
    pub(crate) folders: Mutex<BTreeMap<FolderId, Running>>,
    pub(crate) refused: Mutex<BTreeMap<FolderId, Refused>>,
    problems: Mutex<Problems>,
    /// Held while what `$domain` says is read and carried out: two at once would both start a folder that is new, and the
    /// second could not open the database, which the first has.
    applying: Mutex<()>,
    pub(crate) links: Mutex<BTreeMap<(FolderId, String, bool), u64>>,
    wire: Mutex<Wire>,
    said: Mutex<BTreeSet<String>>,
    pub(crate) reread: Notify,
    pub(crate) runtime: Handle,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Daemon {
    /// Runs until a signal to end comes.
    pub(crate) async fn run(data: Data) -> Result<(), Failure> {
        let local = data.load()?;
        raise_descriptors();
        let _lock = data.lock()?;
        let identity = Identity::load(&data.keys()).map_err(|e| Failure::usage(chain(&e)))?;
        let domain_id: FolderId = local
            .domain
            .parse()
            .map_err(|()| Failure::usage(format!("domain = {:?} is no folder id", local.domain)))?;
        let journal = Arc::new(Journal::new(data.0.clone()));
        let invitations = Invitations::load(data.0.join("invitations.json"))?;
        let daemon = Arc::new(Self {
            data,
            local,
            identity,
            journal,
            invitations,
            heard: Heard::default(),
            domain: RwLock::new((Effective::default(), Vec::new(), Vec::new())),
            folders: Mutex::new(BTreeMap::new()),
            refused: Mutex::new(BTreeMap::new()),
            problems: Mutex::default(),
            applying: Mutex::new(()),
            links: Mutex::new(BTreeMap::new()),
            wire: Mutex::new(Wire::default()),
            said: Mutex::new(BTreeSet::new()),
            reread: Notify::new(),
            runtime: Handle::current(),
        });
        daemon.read_domain();
        daemon.check_name()?;
        let pins = {
            let daemon = Arc::clone(&daemon);
            Arc::new(move |key: &KeyFingerprint| daemon.member_of(key).is_some())
        };
        let listener = Listener::bind(daemon.local.listen, &daemon.identity, pins).await.map_err(|e| {
            // It is about no link yet: what the system says is the cause.
            let cause = match &e.cause {
                LinkCause::Io(error) => error.to_string(),
                other => chain(other),
            };
            Failure::failed(format!("cannot listen on {}", daemon.local.listen)).because(cause).hint(format!(
                "end what listens there, or set `listen` in {}/anabranch.toml to a free address of this machine",
                daemon.data.0.display()
            ))
        })?;
        let socket = anabranch_console::bind(&daemon.data.socket()).map_err(|e| {
            Failure::failed(format!("cannot make {}", daemon.data.socket().display())).because(e.to_string())
        })?;
        daemon.start_domain(domain_id)?;
        daemon.follow_once();
        let api = {
            let daemon = Arc::clone(&daemon);
            anabranch_console::serve(socket, move |request| crate::api::handle(Arc::clone(&daemon), request))
        };
        let follow = Arc::clone(&daemon).follow_domain(domain_id);
        let accept = Arc::clone(&daemon).accept(listener);
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(|e| Failure::failed("cannot take signals").because(e.to_string()))?;
        tracing::info!(member = daemon.local.name, listen = %daemon.local.listen, "ready");
        tokio::select! {
            () = api => {}
            () = follow => {}
            () = accept => {}
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        daemon.shut_down().await;
        Ok(())
    }

    /// Closes all folders, at the same time.
    async fn shut_down(&self) {
        let folders = std::mem::take(&mut *lock(&self.folders));
        tracing::info!(member = self.local.name, folders = folders.len(), "stopping");
        for running in folders.values() {
            running.dialers.values().for_each(JoinHandle::abort);
            running.host.request_stop().await;
        }
        for running in folders.values() {
            running.host.stop().await;
        }
        tracing::info!(member = self.local.name, "stopped");
    }

    /// The name is fixed by `init` or `join`: under another one the member would take itself for somebody else.
    fn check_name(&self) -> Result<(), Failure> {
        let known = self.member_of(&self.identity.fingerprint()).map(|name| name.to_string());
        match known {
            Some(known) if known != self.local.name => {
                let file = self.data.0.join("anabranch.toml");
                Err(Failure::usage(format!(
                    "{}: name = {:?} is not this member's name",
                    file.display(),
                    self.local.name
                ))
                .because(format!("its key is that of {known}: a member's name is fixed by `init` or `join`"))
                .hint(format!("set name = {known:?} there")))
            }
            _ => Ok(()),
        }
    }

    /// The member with this key.
    pub(crate) fn member_of(&self, key: &KeyFingerprint) -> Option<ObjectName> {
        self.domain.read().unwrap_or_else(PoisonError::into_inner).0.member_by_key(key).cloned()
    }

    pub(crate) fn event(&self, folder: &str, kind: EventKind, detail: impl Into<String>) {
        self.journal.put(folder, &Event::new(kind, detail));
    }

    /// Says something lasting once.
    fn event_once(&self, folder: &str, kind: EventKind, detail: String) {
        if lock(&self.said).insert(format!("{folder} {detail}")) {
            self.event(folder, kind, detail);
        }
    }

    /// Reads the objects of `$domain` anew.
    pub(crate) fn read_domain(&self) {
        let mut files = Vec::new();
        collect(&self.data.domain(), &self.data.domain(), &mut files);
        let (objects, errors) = anabranch_domain::read(files.iter().map(|(f, t)| (f.as_str(), t.as_str())));
        let (effective, problems) = Effective::of(&objects);
        let mut said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        for error in &said {
            self.event_once(DOMAIN, EventKind::InvalidObject, error.clone());
        }
        let problems: Vec<String> = problems.iter().map(Problem::to_string).collect();
        let mut standing = lock(&self.problems);
        for problem in standing.look(Instant::now(), &problems) {
            self.event_once(DOMAIN, EventKind::InvalidObject, problem);
        }
        said.extend(problems.iter().map(|problem| standing.in_words(problem)));
        drop(standing);
        *self.domain.write().unwrap_or_else(PoisonError::into_inner) = (effective, objects, said);
    }

    /// Writes objects into this member's copy of `$domain`; they replicate from there.
    pub(crate) fn write_objects(self: &Arc<Self>, objects: &[Object]) -> Result<(), Failure> {
        for object in objects {
            let path = self.data.domain().join(object.file());
            let write = || {
                if let Some(dir) = path.parent() {
                    fs::create_dir_all(dir)?;
                }
                crate::local::write_whole_by(&path, &self.data.0, object.to_text().as_bytes())
            };
            write().map_err(|e| Failure::failed(format!("cannot write {}", path.display())).because(e.to_string()))?;
        }
        self.follow_once();
        Ok(())
    }

    /// Where `listen` in the local file was changed, this member's object follows; `true`: it says so by now. Not before the
    /// initial sync of `$domain` is complete and its objects are in place: until then what partners have replaces what is here.
    async fn follow_listen(self: &Arc<Self>, domain: &Host) -> Result<bool, Failure> {
        let now = self.local.listen;
        let before = self.data.listened();
        if before == Some(now) {
            return Ok(true);
        }
        let in_place =
            domain.ask(|replica| replica.phase() == Phase::Normal && replica.not_in_place(1).is_ok_and(|n| n == 0));
        if in_place.await != Some(true) {
            return Ok(false);
        }
        self.read_domain();
        let own = self.local.name.parse::<ObjectName>().map_err(|e| Failure::usage(format!("{e}")))?;
        let member = self.domain.read().unwrap_or_else(PoisonError::into_inner).0.members.get(&own).cloned();
        if let (Some(before), Some(mut member)) = (before, member) {
            member.addresses = moved(&member.addresses, before, now);
            tracing::info!(member = self.local.name, addresses = ?member.addresses, "listens elsewhere than before");
            self.write_objects(&[Object::Member(own, member)])?;
        }
        self.data.note_listened(now).map(|()| true)
    }

    /// Reads what `$domain` says now, and carries it out.
    fn follow_once(self: &Arc<Self>) {
        let _alone = lock(&self.applying);
        self.read_domain();
        self.apply();
    }

    async fn follow_domain(self: Arc<Self>, id: FolderId) {
        let Some(host) = lock(&self.folders).get(&id).map(|r| Arc::clone(&r.host)) else { return };
        let mut changes = host.changes();
        let mut listen_said = false;
        loop {
            if !listen_said {
                listen_said = self.follow_listen(&host).await.unwrap_or_else(|failure| {
                    tracing::warn!(
                        error = failure.error,
                        cause = failure.cause,
                        "cannot say where this member listens"
                    );
                    false
                });
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.reread.notified() => {}
                // What could not be started (a path that is missing, say) is tried again by and by.
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
            self.follow_once();
        }
    }

    fn config(&self, id: FolderId, name: &str, members: &[String], primary: bool) -> Config {
        let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let place = fs::read("/etc/machine-id").unwrap_or_default();
        Config {
            folder: id,
            folder_name: name.into(),
            member: self.local.name.clone(),
            members: members.to_vec(),
            primary,
            keep_beside: false,
            names: Names::Bytes,
            recovery: if self.local.recovery == "manual" { RecoveryPolicy::Manual } else { RecoveryPolicy::Auto },
            boot,
            place,
            token: fs::read(self.data.token(&id.to_string())).ok(),
            limits: Limits::default(),
        }
    }

    fn host(&self, config: Config, root: &Path) -> Result<Arc<Host>, Failure> {
        let journal = Arc::clone(&self.journal);
        let token = self.data.token(&config.folder.to_string());
        let name = config.folder_name.clone();
        let spec = HostSpec {
            config,
            root: root.to_path_buf(),
            cache_bytes: CACHE_BYTES,
            own_writes: name == DOMAIN,
            events: Arc::new(move |folder, event| journal.put(folder, event)),
            token: Arc::new(move |bytes| {
                if let Err(error) = crate::local::write_whole(&token, bytes) {
                    tracing::error!(%error, "cannot keep the token of a folder");
                }
            }),
        };
        let host = Host::start(spec, self.runtime.clone())
            .map_err(|e| Failure::failed(format!("cannot start {name}")).because(e.to_string()))?;
        Ok(Arc::new(host))
    }

    fn start_domain(self: &Arc<Self>, id: FolderId) -> Result<(), Failure> {
        let root = self.data.domain();
        let members = self.member_names();
        let config = self.config(id, DOMAIN, &members, self.local.founder);
        let host = self.host(config, &root)?;
        let running = Running {
            host,
            name: DOMAIN.into(),
            path: root,
            members,
            called: Arc::default(),
            dialers: BTreeMap::new(),
        };
        lock(&self.folders).insert(id, running);
        Ok(())
    }

    fn member_names(&self) -> Vec<String> {
        let domain = self.domain.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> = domain.0.members.keys().map(ToString::to_string).collect();
        if !names.contains(&self.local.name) {
            names.push(self.local.name.clone());
        }
        names
    }

    /// Makes what runs here what the domain says.
    fn apply(self: &Arc<Self>) {
        let domain = self.domain.read().unwrap_or_else(PoisonError::into_inner).0.clone();
        let Ok(own) = self.local.name.parse::<ObjectName>() else { return };
        let domain_id: FolderId = self.local.domain.parse().unwrap_or_default();
        let mut wanted: BTreeSet<FolderId> = BTreeSet::from([domain_id]);
        let mut refused = BTreeMap::new();
        for (name, folder) in &domain.folders {
            let Some(membership) = folder.memberships.get(&own) else { continue };
            wanted.insert(folder.id);
            let members: Vec<String> = folder.memberships.keys().map(ToString::to_string).collect();
            let known = lock(&self.folders).contains_key(&folder.id);
            if !known {
                let mut refuse = |cause: String, detail: String| {
                    let (name, path) = (name.to_string(), membership.path.clone());
                    self.event_once(&name, EventKind::PathRefused, detail);
                    refused.insert(folder.id, Refused { name, path, members: members.clone(), cause });
                };
                if let Err(cause) = self.check_path(&membership.path) {
                    refuse(cause.clone(), format!("{}: {cause}", membership.path));
                    continue;
                }
                let mut config = self.config(folder.id, &name.to_string(), &members, folder.primary == own);
                config.keep_beside = folder.policy == Policy::Keep;
                config.names = folder.names.into();
                set_quotas(&mut config.limits, membership);
                let path = PathBuf::from(&membership.path);
                match self.host(config, &path) {
                    Ok(host) => {
                        let running = Running {
                            host,
                            name: name.to_string(),
                            path,
                            members: members.clone(),
                            called: Arc::default(),
                            dialers: BTreeMap::new(),
                        };
                        lock(&self.folders).insert(folder.id, running);
                    }
                    Err(failure) => refuse(failure.to_string(), failure.to_string()),
                }
            }
            let upstreams: Vec<ObjectName> = domain.upstreams(name, &own).into_iter().cloned().collect();
            self.connect(folder.id, &members, &upstreams, &domain);
        }
        *lock(&self.refused) = refused;
        let others: Vec<ObjectName> = domain.members.keys().filter(|m| **m != own).cloned().collect();
        self.connect(domain_id, &self.member_names(), &others, &domain);
        let gone: Vec<Running> = {
            let mut folders = lock(&self.folders);
            let ids: Vec<FolderId> = folders.keys().filter(|id| !wanted.contains(id)).copied().collect();
            ids.into_iter().filter_map(|id| folders.remove(&id)).collect()
        };
        for running in gone {
            running.dialers.values().for_each(JoinHandle::abort);
            self.runtime.spawn(async move { running.host.request_stop().await });
        }
    }

    /// Dials the upstream partners of a folder, and no others.
    fn connect(self: &Arc<Self>, id: FolderId, members: &[String], upstreams: &[ObjectName], domain: &Effective) {
        let mut folders = lock(&self.folders);
        let Some(running) = folders.get_mut(&id) else { return };
        if running.members != members {
            running.members = members.to_vec();
            let (host, members) = (Arc::clone(&running.host), members.to_vec());
            self.runtime.spawn(async move {
                // If the folder is not open it takes the members from its configuration when it is.
                host.set_members(members).await;
            });
        }
        let wanted: BTreeSet<_> = upstreams
            .iter()
            .filter_map(|name| domain.members.get(name).map(|m| (name.to_string(), m)))
            .map(|(name, m)| (name.clone(), m.key, self.heard.with(&name, m.addresses.clone())))
            .collect();
        running.dialers.retain(|key, task| {
            let keep = wanted.contains(key) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        for key in wanted {
            let (daemon, host, name) = (Arc::clone(self), Arc::clone(&running.host), running.name.clone());
            let called = Arc::clone(&running.called);
            running.dialers.entry(key.clone()).or_insert_with(|| {
                self.runtime.spawn(async move { daemon.keep_dialing(host, id, name, called, key).await })
            });
        }
    }

    async fn keep_dialing(
        self: Arc<Self>,
        host: Arc<Host>,
        id: FolderId,
        folder: String,
        called: Arc<Notify>,
        (partner, key, addresses): (String, KeyFingerprint, Vec<String>),
    ) {
        let mut wait = REDIAL[0];
        let listens = self.local.listen.to_string();
        loop {
            for address in &addresses {
                match dial(address, &self.identity, key, &listens, DIAL_LIMIT).await {
                    Ok(link) => {
                        wait = REDIAL[0];
                        self.count(id, &link.counters);
                        *lock(&self.links).entry((id, partner.clone(), true)).or_default() += 1;
                        let ended = host.carry(link, Partner::Upstream, None).await;
                        if let Some(count) = lock(&self.links).get_mut(&(id, partner.clone(), true)) {
                            *count -= 1;
                        }
                        tracing::debug!(folder, partner, %ended, "a link ended");
                    }
                    Err(error) => {
                        let detail = format!("{partner}: {}", chain(&error));
                        self.event_once(&folder, EventKind::PartnerRefused, detail);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(REDIAL[1]),
                () = called.notified() => wait = REDIAL[0],
            }
        }
    }

    /// A link of this folder stands: its bytes are counted from now on.
    fn count(&self, id: FolderId, counters: &LinkCounters) {
        let wire = &mut *lock(&self.wire);
        let ended = &mut wire.ended;
        wire.standing.retain(|(folder, counters)| {
            // Nobody else has them: nothing will change them any more.
            let over = counters.is_last();
            if over {
                let sum = ended.entry(*folder).or_default();
                *sum = (sum.0 + counters.sent_bytes(), sum.1 + counters.received_bytes());
            }
            !over
        });
        wire.standing.push((id, counters.clone()));
    }

    /// Bytes sent and received on the wire for a folder since the daemon was started, as TLS has made them.
    pub(crate) fn wire_bytes(&self, id: FolderId) -> (u64, u64) {
        let wire = lock(&self.wire);
        let ended = wire.ended.get(&id).copied().unwrap_or_default();
        wire.standing
            .iter()
            .filter(|(folder, _)| *folder == id)
            .fold(ended, |sum, (_, counters)| (sum.0 + counters.sent_bytes(), sum.1 + counters.received_bytes()))
    }

    async fn accept(self: Arc<Self>, mut listener: Listener) {
        let joins = listener.joins();
        loop {
            joins.set_open(self.invitations.outstanding());
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // An invitation may have been given or have expired.
                () = self.invitations.changed() => continue,
            };
            match accepted {
                None => return,
                Some(Accepted::Link(link)) => {
                    let daemon = Arc::clone(&self);
                    self.runtime.spawn(async move { daemon.take_link(link).await });
                }
                Some(Accepted::Join(attempt)) => {
                    let daemon = Arc::clone(&self);
                    self.runtime.spawn_blocking(move || crate::invitations::redeem(&daemon, attempt));
                }
                Some(Accepted::Refused(error)) => {
                    self.event_once(DOMAIN, EventKind::PartnerRefused, chain(&error));
                }
            }
        }
    }

    /// Somebody dialled: its first message says which folder the link is for.
    async fn take_link(self: Arc<Self>, mut link: anabranch_net::Link) {
        let first = tokio::time::timeout(DIAL_LIMIT, link.receiver.recv()).await;
        let Ok(Some(Ok(first))) = first else { return };
        let Some(member) = self.member_of(&link.peer) else { return };
        if self.heard.hear(&member.to_string(), &link.listens, link.address.ip()) {
            self.reread.notify_one();
        }
        let refusal = match &first.message {
            Message::Open { member: said, .. } if *said == member.to_string() => self.may_pull(first.folder, &member),
            Message::Open { member: said, .. } => Err(format!("the key is that of {member}, not of {said}")),
            _ => Err("a link begins with Open".to_owned()),
        };
        let host = match refusal {
            Ok(host) => host,
            Err(reason) => {
                // It may be gone already.
                let _ = link.sender.send(Envelope { folder: first.folder, message: Message::Refused { reason } }).await;
                link.sender.close();
                let _ = tokio::time::timeout(Duration::from_secs(5), link.sender.ended()).await;
                return;
            }
        };
        let id = first.folder;
        self.count(id, &link.counters);
        *lock(&self.links).entry((id, member.to_string(), false)).or_default() += 1;
        host.carry(link, Partner::Downstream, Some(first)).await;
        if let Some(count) = lock(&self.links).get_mut(&(id, member.to_string(), false)) {
            *count -= 1;
        }
    }

    fn may_pull(&self, id: FolderId, member: &ObjectName) -> Result<Arc<Host>, String> {
        let own = &self.local.name;
        let folders = lock(&self.folders);
        let running = folders.get(&id).ok_or_else(|| format!("{own} does not keep that folder (yet)"))?;
        let domain = self.domain.read().unwrap_or_else(PoisonError::into_inner);
        if running.name != DOMAIN {
            let name = running.name.parse().map_err(|_| "a folder without a name".to_owned())?;
            let own = own.parse::<ObjectName>().map_err(|e| e.to_string())?;
            if !domain.0.downstreams(&name, &own).contains(&member) {
                return Err(format!("there is no connection from {own} to {member} for {name}"));
            }
        }
        running.called.notify_waiters();
        Ok(Arc::clone(&running.host))
    }

    /// May a folder be kept at this path here? (design, section 13: allowed roots; the list of bad input)
    pub(crate) fn check_path(&self, path: &str) -> Result<(), String> {
        let refused = || {
            let roots: Vec<String> = self.local.roots.iter().map(|r| r.display().to_string()).collect();
            format!("it is not beneath the roots that {} allows ({})", self.local.name, roots.join(", "))
        };
        if !self.local.roots.iter().any(|root| Path::new(path).starts_with(root)) {
            return Err(refused());
        }
        let real = fs::canonicalize(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "the directory does not exist; make it, or mount its disk".to_owned(),
            _ => format!("the directory cannot be used: {error}"),
        })?;
        let allowed =
            self.local.roots.iter().any(|root| fs::canonicalize(root).is_ok_and(|root| real.starts_with(root)));
        if !allowed {
            return Err(refused());
        }
        if real != Path::new(path) {
            return Err(format!(
                "it leads through a symlink to {}, outside the root's own tree of directories",
                real.display()
            ));
        }
        if !real.is_dir() {
            return Err("it is not a directory".into());
        }
        let folders = lock(&self.folders);
        if let Some(running) = folders.values().find(|r| real.starts_with(&r.path)) {
            return Err(format!("it is inside the replicated folder {} ({})", running.name, running.path.display()));
        }
        let within: Vec<String> = folders
            .values()
            .filter(|r| r.path.starts_with(&real))
            .map(|r| format!("{} ({})", r.name, r.path.display()))
            .collect();
        drop(folders);
        if !within.is_empty() {
            return Err(format!("replicated folders lie inside it: {}", within.join(", ")));
        }
        let flags = rustix::fs::statvfs(&real).map_err(|e| format!("the file system cannot be looked at: {e}"))?.f_flag;
        if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Err("it lies on a read-only mount".into());
        }
        rustix::fs::access(&real, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
            .map_err(|e| format!("the daemon may not write there: {e}"))?;
        Ok(())
    }
}

/// A batch has a descriptor of each of its directories: as many as the system lets this process have. Where that cannot be
/// raised, what finds none waits and is tried again.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    if now.current != now.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum })
    {
        tracing::warn!(%error, limit = now.current, "cannot raise the number of descriptors");
    }
}

/// The part of a file system that preserved files of the class *seen* take at most, where no quota is given.
const SEEN_SHARE: u64 = 8;

fn set_quotas(limits: &mut Limits, membership: &Membership) {
    if let Some(bytes) = membership.staging_bytes {
        limits.staging_bytes = bytes;
    }
    match membership.seen_bytes {
        Some(bytes) => limits.seen_bytes = bytes,
        // What was deleted elsewhere must make room in the end, on a small file system too.
        None => {
            if let Ok(disk) = rustix::fs::statvfs(&membership.path) {
                let total = disk.f_blocks.saturating_mul(disk.f_frsize);
                limits.seen_bytes = limits.seen_bytes.min(total / SEEN_SHARE);
            }
        }
    }
    if let Some(bytes) = membership.unseen_bytes {
        limits.unseen_bytes = bytes;
    }
}

/// Files of objects below `dir`, by path within `top`.
fn collect(top: &Path, dir: &Path, out: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if name.to_string_lossy().starts_with(".anabranch") || out.len() > 100_000 {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(top, &path, out),
            Ok(kind) if kind.is_file() => {
                let within = path.strip_prefix(top).unwrap_or(&path).to_string_lossy().into_owned();
                if let Ok(text) = fs::read_to_string(&path) {
                    out.push((within, text));
                }
            }
            _ => {}
        }
    }
}
