//! The calls of the member: [`Fs`] on the simulated disk.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anabranch_model::{Attributes, Owner, Timestamp};

use super::disk::{BENEATH, Data, Disk, ROOT, error};
use super::{Call, SimDir, SimFile, SimFs};
use crate::fs::{Abilities, Entry, Fs, Kind, Lease, Object, Room, Stat};

impl SimFs {
    fn dir(disk: &Disk, dir: &SimDir) -> io::Result<u64> {
        if dir.epoch == disk.epoch { Ok(dir.inode) } else { Err(error(libc::EBADF)) }
    }

    /// A directory that the member's process may change: root any, another its own where the mode lets it.
    fn changeable(disk: &Disk, dir: &SimDir) -> io::Result<u64> {
        let number = Self::dir(disk, dir)?;
        let allowed = disk.config.process == 0 || disk.inode(number)?.now.attributes.mode & 0o200 != 0;
        if allowed { Ok(number) } else { Err(error(libc::EACCES)) }
    }

    fn file(disk: &Disk, file: &SimFile) -> io::Result<u64> {
        if file.epoch == disk.epoch { Ok(file.inode) } else { Err(error(libc::EBADF)) }
    }

    fn writable(disk: &Disk, file: &SimFile) -> io::Result<u64> {
        if file.writable { Self::file(disk, file) } else { Err(error(libc::EBADF)) }
    }

    fn open(&self, disk: &mut Disk, inode: u64, writable: bool) -> io::Result<SimFile> {
        let found = disk.inode_mut(inode)?;
        found.opens += 1;
        found.writers += u32::from(writable);
        disk.next_handle += 1;
        Ok(SimFile { fs: self.clone(), inode, epoch: disk.epoch, id: disk.next_handle, writable })
    }

    fn regular(disk: &Disk, dir: u64, name: &[u8]) -> io::Result<u64> {
        let number = disk.existing(dir, name)?;
        match disk.inode(number)?.kind {
            Kind::File => Ok(number),
            Kind::Directory => Err(error(libc::EISDIR)),
            Kind::Symlink => Err(error(libc::ELOOP)),
            Kind::Other => Err(error(libc::ENXIO)),
        }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut disk = self.fs.disk();
        if self.epoch == disk.epoch {
            // A machine without power lets nobody go on; those who wait die with it.
            if disk.power.is_on() {
                disk.drop_lease(self.inode, self.id);
            }
            disk.close(self.inode, self.writable);
        }
    }
}

impl Fs for SimFs {
    type Dir = SimDir;
    type File = SimFile;

    fn root(&self) -> SimDir {
        let disk = self.disk();
        SimDir { inode: if disk.mounted { ROOT } else { BENEATH }, epoch: disk.epoch }
    }

    fn root_in_place(&self) -> io::Result<bool> {
        Ok(self.enter(Call::Stat)?.mounted)
    }

    fn abilities(&self) -> Abilities {
        self.disk().config.abilities
    }

    fn room(&self) -> io::Result<Room> {
        let disk = self.enter(Call::Room)?;
        let total = disk.config.capacity;
        Ok(Room { free: total.saturating_sub(disk.state.used), total })
    }

    fn open_dir(&self, dir: &SimDir, name: &[u8]) -> io::Result<SimDir> {
        let disk = self.enter(Call::OpenDir)?;
        let inode = disk.existing(Self::dir(&disk, dir)?, name)?;
        let found = disk.inode(inode)?;
        match found.kind {
            Kind::Directory if found.foreign => Err(error(libc::EXDEV)),
            Kind::Directory => Ok(SimDir { inode, epoch: disk.epoch }),
            Kind::Symlink => Err(error(libc::ELOOP)),
            Kind::File | Kind::Other => Err(error(libc::ENOTDIR)),
        }
    }

    fn list(&self, dir: &SimDir) -> io::Result<Vec<Entry>> {
        let disk = self.enter(Call::List)?;
        let dir = disk.inode(Self::dir(&disk, dir)?)?;
        if dir.links == 0 {
            return Err(error(libc::ENOENT));
        }
        let kind = |number| disk.inode(number).ok().map(|i| i.kind);
        Ok(dir.entries.iter().map(|(name, &number)| Entry { name: name.to_vec(), kind: kind(number) }).collect())
    }

    fn stat(&self, dir: &SimDir, name: &[u8]) -> io::Result<Option<Stat>> {
        let disk = self.enter(Call::Stat)?;
        match disk.entry(Self::dir(&disk, dir)?, name)? {
            Some(number) => disk.stat(number).map(Some),
            None => Ok(None),
        }
    }

    fn stat_dir(&self, dir: &SimDir) -> io::Result<Stat> {
        let disk = self.enter(Call::StatDir)?;
        disk.stat(Self::dir(&disk, dir)?)
    }

    fn stat_file(&self, file: &SimFile) -> io::Result<Stat> {
        let disk = self.enter(Call::StatFile)?;
        disk.stat(Self::file(&disk, file)?)
    }

    fn open_file(&self, dir: &SimDir, name: &[u8]) -> io::Result<SimFile> {
        let mut disk = self.enter(Call::OpenFile)?;
        let number = Self::regular(&disk, Self::dir(&disk, dir)?, name)?;
        self.open(&mut disk, number, false)
    }

    fn read_at(&self, file: &SimFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let disk = self.enter(Call::Read)?;
        let bytes = &disk.inode(Self::file(&disk, file)?)?.now.data.bytes;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let count = buffer.len().min(bytes.len() - from);
        buffer[..count].copy_from_slice(&bytes[from..from + count]);
        Ok(count)
    }

    fn data_range(&self, file: &SimFile, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let disk = self.enter(Call::DataRange)?;
        let data = &disk.inode(Self::file(&disk, file)?)?.now.data;
        Ok(data.range(offset))
    }

    fn read_link(&self, dir: &SimDir, name: &[u8]) -> io::Result<Vec<u8>> {
        let disk = self.enter(Call::ReadLink)?;
        let inode = disk.inode(disk.existing(Self::dir(&disk, dir)?, name)?)?;
        match inode.kind {
            Kind::Symlink => Ok(inode.now.data.bytes.clone()),
            Kind::File | Kind::Directory | Kind::Other => Err(error(libc::EINVAL)),
        }
    }

    fn lease(&self, file: &SimFile) -> io::Result<Lease> {
        let mut disk = self.enter(Call::Lease)?;
        if !disk.config.abilities.leases {
            return Ok(Lease::Unavailable);
        }
        let number = Self::file(&disk, file)?;
        let inode = disk.inode_mut(number)?;
        if inode.writers > 0 || !inode.waiting.is_empty() || inode.lease.is_some_and(|l| l != file.id) {
            return Ok(Lease::InUse);
        }
        inode.lease = Some(file.id);
        Ok(Lease::Granted)
    }

    fn lease_unbroken(&self, file: &SimFile) -> io::Result<bool> {
        let disk = self.enter(Call::LeaseUnbroken)?;
        let inode = disk.inode(Self::file(&disk, file)?)?;
        Ok(inode.lease == Some(file.id) && inode.waiting.is_empty())
    }

    fn release(&self, file: &SimFile) -> io::Result<()> {
        let mut disk = self.enter(Call::Release)?;
        let number = Self::file(&disk, file)?;
        disk.drop_lease(number, file.id);
        Ok(())
    }

    fn pause(&self, _time: Duration) {
        // What can happen meanwhile is what the interloper does, and that opens under way get to their files; an error
        // has nowhere to go.
        if let Ok(mut disk) = self.enter(Call::Pause) {
            disk.arrive_all();
        }
    }

    fn create_file(&self, dir: &SimDir, name: &[u8]) -> io::Result<SimFile> {
        let mut disk = self.enter(Call::CreateFile)?;
        let dir = Self::changeable(&disk, dir)?;
        let number = disk.put_new(dir, name, |disk| {
            let attributes = disk.default_attributes(0o600, disk.config.process);
            disk.add_inode(Kind::File, attributes, Arc::clone(&disk.no_data))
        })?;
        self.open(&mut disk, number, true)
    }

    fn open_private(&self, dir: &SimDir, name: &[u8]) -> io::Result<SimFile> {
        let mut disk = self.enter(Call::OpenPrivate)?;
        let number = Self::regular(&disk, Self::dir(&disk, dir)?, name)?;
        self.open(&mut disk, number, true)
    }

    fn write_at(&self, file: &SimFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut disk, fault) = self.enter_write(Call::Write)?;
        let number = Self::writable(&disk, file)?;
        let offset = usize::try_from(offset).map_err(|_| error(libc::EFBIG))?;
        if let Some(fault) = fault {
            // A full disk or an error stops a write half way: a part of it stays.
            let part = disk.rng.index(bytes.len() + 1);
            disk.change_data(number, false, true, |data| data.write(&bytes[..part], offset))?;
            return Err(fault.error());
        }
        disk.room_for(bytes.len() as u64)?;
        disk.change_data(number, false, true, |data| data.write(bytes, offset))
    }

    fn set_size(&self, file: &SimFile, size: u64) -> io::Result<()> {
        let mut disk = self.enter(Call::SetSize)?;
        let number = Self::writable(&disk, file)?;
        let size = usize::try_from(size).map_err(|_| error(libc::EFBIG))?;
        disk.change_data(number, false, true, |data| data.resize(size))
    }

    fn clone_range(&self, from: &SimFile, to: &SimFile, length: u64) -> io::Result<()> {
        let mut disk = self.enter(Call::CloneRange)?;
        if !disk.config.abilities.reflinks {
            return Err(error(libc::EOPNOTSUPP));
        }
        let (from, to) = (Self::file(&disk, from)?, Self::writable(&disk, to)?);
        let source = Arc::clone(&disk.inode(from)?.now.data);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > source.bytes.len() {
            return Err(error(libc::EINVAL));
        }
        disk.change_data(to, false, true, |data| {
            if length == source.bytes.len() && data.bytes.len() <= length {
                *data = Data::clone(&source);
            } else {
                data.write(&source.bytes[..length], 0);
            }
        })
    }

    fn create_dir(&self, dir: &SimDir, name: &[u8]) -> io::Result<()> {
        let mut disk = self.enter(Call::CreateDir)?;
        let dir = Self::changeable(&disk, dir)?;
        disk.put_new(dir, name, |disk| {
            let attributes = disk.default_attributes(0o700, disk.config.process);
            disk.add_inode(Kind::Directory, attributes, Arc::clone(&disk.no_data))
        })?;
        Ok(())
    }

    fn create_symlink(&self, dir: &SimDir, name: &[u8], target: &[u8]) -> io::Result<()> {
        let mut disk = self.enter(Call::CreateSymlink)?;
        let dir = Self::changeable(&disk, dir)?;
        if target.is_empty() || target.len() > 4095 {
            return Err(error(libc::ENAMETOOLONG));
        }
        disk.put_new(dir, name, |disk| {
            let attributes = disk.default_attributes(0o777, disk.config.process);
            disk.add_inode(Kind::Symlink, attributes, Arc::new(Data::full(target.to_vec())))
        })?;
        Ok(())
    }

    fn read_attributes(&self, dir: &SimDir, name: &[u8]) -> io::Result<Attributes> {
        let disk = self.enter(Call::ReadAttributes)?;
        let number = disk.existing(Self::dir(&disk, dir)?, name)?;
        Ok((*disk.inode(number)?.now.attributes).clone())
    }

    fn write_attributes(&self, dir: &SimDir, name: &[u8], wanted: &Attributes) -> io::Result<Attributes> {
        let mut disk = self.enter(Call::WriteAttributes)?;
        let number = disk.existing(Self::dir(&disk, dir)?, name)?;
        let inode = disk.inode(number)?;
        let was = Arc::clone(&inode.now.attributes);
        let symlink = inode.kind == Kind::Symlink;
        let mut now = Attributes::clone(&was);
        if disk.config.abilities.owners {
            now.owner = resolve(&disk, &wanted.owner);
            now.group = resolve(&disk, &wanted.group);
        }
        if !symlink {
            now.mode = wanted.mode & 0o7777;
            let mut room = disk.config.xattr_bytes_max;
            now.xattrs.clear();
            for (key, value) in &wanted.xattrs {
                let size = key.len() + value.len();
                if size <= room {
                    room -= size;
                    now.xattrs.insert(key.clone(), value.clone());
                }
            }
        }
        if now != *was {
            disk.inode_mut(number)?.now.attributes = Arc::new(now.clone());
            disk.hint_inode(number, false);
        }
        disk.touch(number, false)?;
        Ok(now)
    }

    fn set_mode(&self, dir: &SimDir, mode: u32) -> io::Result<()> {
        let mut disk = self.enter(Call::WriteAttributes)?;
        let number = Self::dir(&disk, dir)?;
        let mut now = Attributes::clone(&disk.inode(number)?.now.attributes);
        now.mode = mode & 0o7777;
        disk.inode_mut(number)?.now.attributes = Arc::new(now);
        disk.hint_inode(number, false);
        disk.touch(number, false)
    }

    fn set_mtime(&self, dir: &SimDir, name: &[u8], mtime: Timestamp) -> io::Result<()> {
        let mut disk = self.enter(Call::SetMtime)?;
        let number = disk.existing(Self::dir(&disk, dir)?, name)?;
        disk.touch(number, false)?;
        let inode = disk.inode_mut(number)?;
        inode.now.mtime = mtime;
        disk.hint_inode(number, false);
        Ok(())
    }

    fn rename_new(&self, from: &SimDir, old: &[u8], to: &SimDir, new: &[u8]) -> io::Result<()> {
        let mut disk = self.enter(Call::RenameNew)?;
        let (from, to) = (Self::changeable(&disk, from)?, Self::changeable(&disk, to)?);
        disk.rename((from, old), (to, new), false).map(drop)
    }

    fn exchange(&self, one: &SimDir, name: &[u8], other: &SimDir, with: &[u8]) -> io::Result<()> {
        let mut disk = self.enter(Call::Exchange)?;
        let (one, other) = (Self::changeable(&disk, one)?, Self::changeable(&disk, other)?);
        disk.exchange((one, name), (other, with))
    }

    fn remove_file(&self, dir: &SimDir, name: &[u8]) -> io::Result<()> {
        let mut disk = self.enter(Call::RemoveFile)?;
        let dir = Self::changeable(&disk, dir)?;
        disk.remove(dir, name, false).map(drop)
    }

    fn remove_dir(&self, dir: &SimDir, name: &[u8]) -> io::Result<()> {
        let mut disk = self.enter(Call::RemoveDir)?;
        let dir = Self::changeable(&disk, dir)?;
        disk.remove(dir, name, true).map(drop)
    }

    fn sync_file(&self, file: &SimFile) -> io::Result<()> {
        let (mut disk, fault) = self.enter_write(Call::SyncFile)?;
        let number = Self::file(&disk, file)?;
        if let Some(fault) = fault {
            disk.fail_sync(number);
            return Err(fault.error());
        }
        disk.sync_inode(number);
        Ok(())
    }

    fn sync_dir(&self, dir: &SimDir) -> io::Result<()> {
        let mut disk = self.enter(Call::SyncDir)?;
        let number = Self::dir(&disk, dir)?;
        disk.sync_inode(number);
        disk.sync_names(number);
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        let (mut disk, fault) = self.enter_write(Call::SyncAll)?;
        if let Some(fault) = fault {
            disk.sync_something();
            return Err(fault.error());
        }
        disk.sync_everything();
        Ok(())
    }

    fn locate(&self, object: &Object) -> io::Result<Option<(Object, Vec<u8>)>> {
        let disk = self.enter(Call::Locate)?;
        if !disk.config.abilities.handles {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let Some(number) = disk.by_object(object) else { return Ok(None) };
        let Some((dir, name)) = &disk.inode(number)?.place else { return Ok(None) };
        Ok(Some((disk.object(*dir)?, name.to_vec())))
    }

    fn parallelism(&self) -> usize {
        1
    }
}

/// The owner as this machine has it: the number of the name where it knows the name, else the number given.
fn resolve(disk: &Disk, wanted: &Owner) -> Owner {
    let number = wanted
        .name
        .as_ref()
        .and_then(|name| disk.config.owner_names.iter().find(|(_, n)| *n == name))
        .map_or(wanted.number, |(&number, _)| number);
    disk.owner(number)
}
