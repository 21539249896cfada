//! Configuration objects of the domain and the effective configuration, a function of all objects.
//!
//! Owns the text forms of objects and what they mean together. Must never do I/O, read a clock, or draw randomness.
//! Files of the folder `$domain` become objects ([`parse`]), and all objects the effective configuration
//! ([`Effective::of`]) with a list of what does not fit.
//!
//! ```
//! use anabranch_domain::{Effective, FolderName, Object, Topology, create, problems_of_change};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use anabranch_domain::KeyFingerprint;
//! # use anabranch_model::FolderId;
//! let mut objects = Vec::new();
//! for (name, key) in [("hq1", 1), ("hq2", 2)] {
//!     objects.push(create::member(name.parse()?, KeyFingerprint([key; 32]), vec![format!("{name}:7400")])?);
//! }
//! objects.push(create::group("web".parse()?, vec!["hq1".parse()?, "hq2".parse()?], Topology::Mesh, vec![])?);
//! let site: FolderName = "web/site".parse()?;
//! let paths = [("hq1".parse()?, "/srv/site".into()), ("hq2".parse()?, "/srv/site".into())];
//! let new = create::folder(&site, FolderId([7; 16]), "hq1".parse()?, &paths, Default::default(), Default::default())?;
//! assert!(problems_of_change(&objects, &new, &[]).is_empty());
//! objects.extend(new);
//! let (effective, problems) = Effective::of(&objects);
//! assert!(problems.is_empty());
//! assert_eq!(effective.upstreams(&site, &"hq1".parse()?), [&"hq2".parse()?]);
//! assert_eq!(objects[2].file(), "groups/web.toml");
//! # Ok(())
//! # }
//! ```

pub mod base32;
pub mod create;
mod effective;
mod fingerprint;
mod name;
pub mod object;

pub use effective::{
    Effective, EffectiveFolder, EffectiveGroup, GROUP_MEMBERS_MAX, MESH_MEMBERS_MAX, Problem, problems_of_change, read,
};
pub use fingerprint::{FingerprintError, KeyFingerprint};
pub use name::{FolderName, NameError, OBJECT_NAME_BYTES_MAX, ObjectName};
pub use object::{
    Connection, Folder, Group, Member, Membership, Names, Object, ObjectError, ObjectKey, Policy, Topology, parse,
    parse_topology,
};
