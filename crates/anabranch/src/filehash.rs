//! `anabranch filehash`: the hashes of paths, data and attributes apart, so that seeds can be checked (design, section 10).

use std::path::{Path, PathBuf};

use anabranch_console::Failure;
use anabranch_model::codec::encode_attributes;
use anabranch_volume::fs::{Fs, Kind};
use anabranch_volume::hash::{Hashing, hash_file};
use anabranch_volume::linux::LinuxFs;
use serde_json::json;

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Hashes {
    kind: &'static str,
    size: u64,
    data: Option<String>,
    attributes: String,
}

fn of(path: &Path) -> Result<Hashes, String> {
    let absolute = std::path::absolute(path).map_err(|e| e.to_string())?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err("it has no parent directory".into());
    };
    let fs = LinuxFs::open(parent).map_err(|e| e.to_string())?;
    let (dir, name) = (fs.root(), name.as_encoded_bytes());
    let stat = fs.stat(&dir, name).map_err(|e| e.to_string())?.ok_or("it does not exist")?;
    let attributes = fs.read_attributes(&dir, name).map_err(|e| e.to_string())?;
    let attributes = blake3::hash(&encode_attributes(&attributes)).to_hex().to_string();
    let (kind, data) = match stat.kind {
        Kind::Directory => ("directory", None),
        Kind::Symlink => {
            let target = fs.read_link(&dir, name).map_err(|e| e.to_string())?;
            ("symlink", Some(blake3::hash(&target).to_hex().to_string()))
        }
        Kind::File => match hash_file(&fs, &dir, name).map_err(|e| e.to_string())? {
            Hashing::Done { content: anabranch_model::Content::File { hash, .. }, .. } => ("file", Some(hex(&hash))),
            Hashing::InUse => return Err("somebody has it open for writing; its content is not settled".into()),
            _ => return Err("it went away while it was read".into()),
        },
        Kind::Other => return Err("it is a socket, device or FIFO, which is not replicated".into()),
    };
    Ok(Hashes { kind, size: stat.stamp.size, data, attributes })
}

/// Prints one line a path; 1 if one could not be hashed.
pub(crate) fn run(paths: &[PathBuf], json: bool) -> Result<u8, Failure> {
    let mut code = 0;
    for path in paths {
        match of(path) {
            Ok(h) if json => crate::commands::print(&json!({
                "path": path.to_string_lossy(), "kind": h.kind, "size": h.size, "data": h.data, "attributes": h.attributes
            }).to_string()),
            Ok(h) => {
                let data = h.data.unwrap_or_else(|| "-".repeat(64));
                crate::commands::print(&format!("{data}  {}  {:<9}  {}", h.attributes, h.kind, path.display()));
            }
            Err(cause) => {
                crate::complain(&format!("error: {}: {cause}", path.display()));
                code = 1;
            }
        }
    }
    Ok(code)
}
