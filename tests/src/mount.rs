//! File systems that a test mounts and that go away with it. Needs root.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::program::tool;

/// A mount that ends when it is dropped.
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// A small file system in memory.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn memory(at: &Path, mebibytes: u32) -> Result<Self> {
        let options = format!("size={mebibytes}m,mode=0755");
        tool(at, "mount", &["-t", "tmpfs", "-o", &options, "tmpfs", &at.display().to_string()])?;
        Ok(Self { at: at.to_path_buf() })
    }

    /// A file system of its own in a file, which is made: `ext4`, `xfs` or `btrfs`.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn image(image: &Path, kind: &str, mebibytes: u64, at: &Path) -> Result<Self> {
        File::create(image)?.set_len(mebibytes << 20)?;
        let image = image.display().to_string();
        tool(Path::new("/"), &format!("mkfs.{kind}"), &[&image])?;
        tool(Path::new("/"), "mount", &["-o", "loop", &image, &at.display().to_string()])?;
        Ok(Self { at: at.to_path_buf() })
    }

    /// A directory that is also seen elsewhere.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn bind(from: &Path, at: &Path) -> Result<Self> {
        tool(Path::new("/"), "mount", &["--bind", &from.display().to_string(), &at.display().to_string()])?;
        Ok(Self { at: at.to_path_buf() })
    }

    /// The directory mounted onto itself, so that it can become read-only alone.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn itself(at: &Path) -> Result<Self> {
        Self::bind(at, at)
    }

    /// Mounts it anew with other options, e.g. `ro` or `size=64m`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn change(&self, options: &str) -> Result<()> {
        let options = format!("remount,{options}");
        tool(Path::new("/"), "mount", &["-o", &options, &self.at.display().to_string()]).map(drop)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a process that still has a file open there must not keep the test's folder from going away.
        if let Err(error) = tool(Path::new("/"), "umount", &["--lazy", &self.at.display().to_string()]) {
            eprintln!("{error:#}");
        }
    }
}
