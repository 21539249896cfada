//! The order of the layers: the root `Cargo.toml` lists the members top first, and a crate may use only crates that
//! stand below it (design, section 3).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Finding;
use crate::repository::Repository;

/// Members that are tools around the program and may use any crate of it.
const FREE: [&str; 5] = ["sim", "xtask", "tests", "fuzz", "crates/powercut"];

/// Packages that the lock file may hold: a new one must save more than it costs to read.
const LOCKED_PACKAGES_MAX: usize = 260;

/// The parts of a `Cargo.toml` that say who uses whom.
#[derive(Deserialize, Default)]
struct Manifest {
    workspace: Option<WorkspaceTable>,
    package: Option<Package>,
    #[serde(default)]
    dependencies: BTreeMap<String, toml::Value>,
    #[serde(default, rename = "dev-dependencies")]
    dev_dependencies: BTreeMap<String, toml::Value>,
    #[serde(default, rename = "build-dependencies")]
    build_dependencies: BTreeMap<String, toml::Value>,
    #[serde(default)]
    target: BTreeMap<String, TargetTable>,
}

#[derive(Deserialize, Default)]
struct TargetTable {
    #[serde(default)]
    dependencies: BTreeMap<String, toml::Value>,
    #[serde(default, rename = "dev-dependencies")]
    dev_dependencies: BTreeMap<String, toml::Value>,
    #[serde(default, rename = "build-dependencies")]
    build_dependencies: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
struct WorkspaceTable {
    #[serde(default)]
    members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
}

/// The members in layer order with what each depends on.
pub(crate) struct Workspace {
    /// Top first.
    pub(crate) members: Vec<Member>,
}

/// One crate of the workspace.
pub(crate) struct Member {
    /// Its directory, from the root.
    pub(crate) dir: String,
    /// Its package name.
    pub(crate) name: String,
    /// Package names of what it depends on, by kind of dependency.
    pub(crate) dependencies: Vec<(&'static str, String)>,
}

impl Member {
    /// Its manifest, from the root.
    pub(crate) fn manifest(&self) -> String {
        format!("{}/Cargo.toml", self.dir)
    }
}

impl Workspace {
    /// Reads the manifests that the root's list of members names.
    pub(crate) fn read(repository: &Repository) -> Result<Self, Finding> {
        let root = manifest(repository, "Cargo.toml")?;
        let list = root.workspace.map(|workspace| workspace.members).unwrap_or_default();
        let mut members = Vec::new();
        for dir in list {
            let manifest = manifest(repository, &format!("{dir}/Cargo.toml"))?;
            let name = manifest.package.as_ref().map(|package| package.name.clone()).unwrap_or_default();
            let dependencies = manifest.all_dependencies();
            members.push(Member { dir, name, dependencies });
        }
        Ok(Self { members })
    }

    /// Dependencies that point up or to the crate itself.
    pub(crate) fn arrows(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (place, member) in self.members.iter().enumerate() {
            if FREE.contains(&member.dir.as_str()) {
                continue;
            }
            for (kind, name) in &member.dependencies {
                let Some(used) = self.members.iter().position(|other| other.name == *name) else { continue };
                if used <= place || FREE.contains(&self.members[used].dir.as_str()) {
                    let text = format!("{kind} on {name}, which does not stand below it in the root Cargo.toml");
                    findings.push(Finding::new(&member.manifest(), 0, "layers", text));
                }
            }
        }
        findings
    }

    /// Crates that lie in the tree without being members: nothing would build, test or check them.
    pub(crate) fn strangers(&self, repository: &Repository) -> Vec<Finding> {
        let listed = |dir: &str| dir == "fuzz" || self.members.iter().any(|member| member.dir == dir);
        repository
            .files
            .keys()
            .filter_map(|path| path.strip_suffix("/Cargo.toml").map(|dir| (path, dir)))
            .filter(|(_, dir)| !listed(dir))
            .map(|(path, _)| Finding::new(path, 0, "layers", "is not among the members of the root Cargo.toml"))
            .collect()
    }
}

impl Manifest {
    fn all_dependencies(&self) -> Vec<(&'static str, String)> {
        let mut all = Vec::new();
        let mut take = |kind: &'static str, table: &BTreeMap<String, toml::Value>| {
            for (key, value) in table {
                // `package = "…"` renames: the key is then only what the sources call it.
                let renamed = value.get("package").and_then(toml::Value::as_str);
                all.push((kind, renamed.unwrap_or(key).to_owned()));
            }
        };
        take("dependency", &self.dependencies);
        take("dev-dependency", &self.dev_dependencies);
        take("build-dependency", &self.build_dependencies);
        for table in self.target.values() {
            take("dependency", &table.dependencies);
            take("dev-dependency", &table.dev_dependencies);
            take("build-dependency", &table.build_dependencies);
        }
        all
    }
}

fn manifest(repository: &Repository, path: &str) -> Result<Manifest, Finding> {
    let text = repository.text(path).ok_or_else(|| Finding::new(path, 0, "layers", "is missing"))?;
    toml::from_str(text).map_err(|error| Finding::new(path, 0, "layers", format!("cannot be read: {error}")))
}

/// A lock file with more packages than the cap.
pub(crate) fn lock_size(repository: &Repository) -> Vec<Finding> {
    let locked = repository.text("Cargo.lock").unwrap_or_default();
    let packages = locked.lines().filter(|line| *line == "[[package]]").count();
    if packages <= LOCKED_PACKAGES_MAX {
        return Vec::new();
    }
    let text = format!("{packages} packages, at most {LOCKED_PACKAGES_MAX} are agreed on");
    vec![Finding::new("Cargo.lock", 0, "packages", text)]
}
