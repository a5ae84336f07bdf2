//! Raising settings of the system for one run, and giving them back however the run ends.
//!
//! What a setting was is on disk before it is changed. Whoever needs raised settings holds a shared lock for
//! as long; the last one to let go gives everything back, so that of several runs at a time none takes a
//! raised value for an old one or takes a value away from another. The lock is the kernel's (flock), so the
//! dead hold nothing: what they left is given back by the guardian, which shares the lock of its
//! profiler, or else by the next start.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    Raise,
    sysctl::{Sysctl, Sysctls},
};
use crate::units::thousands;

/// Why settings could not be raised or given back.
#[derive(Debug, Error)]
pub enum RaiseError {
    /// A setting could not be read or changed.
    #[error("cannot set {} to {}: {error}", sysctl.name(), thousands(*value))]
    Set {
        /// The setting.
        sysctl: Sysctl,
        /// The new value.
        value: u64,
        /// What the kernel said.
        error: io::Error,
    },
    /// The files in which old values are kept.
    #[error("cannot use {}, where raised limits are recorded: {error}", path.display())]
    Record {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A setting that is higher than it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// The setting.
    pub sysctl: Sysctl,
    /// What it was, and will be again.
    pub original: u64,
    /// What it is.
    pub current: u64,
}

/// What became of settings that had been raised.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Restored {
    /// They have their old values again.
    pub restored: Vec<(Sysctl, u64)>,
    /// Somebody else has changed them since; they keep the value that is given here.
    pub left_alone: Vec<(Sysctl, u64)>,
    /// Others still need them: nothing was changed.
    pub in_use: bool,
}

/// Where settings are changed and where old values are kept.
#[derive(Debug, Clone)]
pub struct Place {
    sysctls: Sysctls,
    folder: PathBuf,
    boot: String,
}

/// Keeps raised settings raised, as long as the value or its copy in a forked process lives.
#[derive(Debug)]
pub struct Hold {
    place: Place,
    lock: File,
}

/// The record, as JSON.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    /// Settings are lost at a reboot, and so is the meaning of the record.
    boot: String,
    settings: BTreeMap<Sysctl, Setting>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Setting {
    original: u64,
    /// Every value that was, or was about to be, set: a value that is none of them is somebody else's.
    set: Vec<u64>,
}

impl Place {
    /// This machine's settings; the record is in `/run/profiler`, which everybody may read.
    pub fn of_this_machine() -> Place {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Place::at(Sysctls::default(), Path::new("/run/profiler"), boot.trim())
    }

    /// Other settings, another record, and a name for this boot: for tests.
    pub fn at(sysctls: Sysctls, folder: &Path, boot: &str) -> Place {
        Place {
            sysctls,
            folder: folder.to_owned(),
            boot: boot.to_owned(),
        }
    }

    /// From now on raised settings are not given back to anybody, until the value is gone.
    pub fn hold(&self) -> Result<Hold, RaiseError> {
        fs::create_dir_all(&self.folder).map_err(self.at_record(&self.folder))?;
        let transaction = self.begin()?;
        let lock = self.open_lock("held")?;
        lock.lock_shared().map_err(self.at_record(&self.folder))?;
        drop(transaction);
        Ok(Hold {
            place: self.clone(),
            lock,
        })
    }

    /// Settings that are raised now.
    pub fn raised(&self) -> Result<Vec<Raised>, RaiseError> {
        let settings = self.read_record()?.settings.into_iter();
        let raised = settings.filter_map(|(sysctl, setting)| {
            let current = self.sysctls.read(sysctl).ok()?;
            let original = setting.original;
            (setting.set.contains(&current) && current != original).then_some(Raised {
                sysctl,
                original,
                current,
            })
        });
        Ok(raised.collect())
    }

    /// Gives back what runs have left behind that could not do so themselves.
    pub fn restore_abandoned(&self) -> Result<Restored, RaiseError> {
        if !self.record().exists() {
            return Ok(Restored::default());
        }
        let _transaction = self.begin()?;
        let lock = self.open_lock("held")?;
        self.restore_unless_held(&lock)
    }

    /// The transaction must have begun. Whatever lock there was is exclusive or gone afterwards.
    fn restore_unless_held(&self, lock: &File) -> Result<Restored, RaiseError> {
        match lock.try_lock() {
            Ok(()) => self.restore(),
            Err(TryLockError::WouldBlock) => Ok(Restored {
                in_use: true,
                ..Restored::default()
            }),
            Err(TryLockError::Error(error)) => Err(self.at_record(&self.folder)(error)),
        }
    }

    fn restore(&self) -> Result<Restored, RaiseError> {
        let mut outcome = Restored::default();
        for (sysctl, setting) in self.read_record()?.settings {
            let original = setting.original;
            let failed = cannot_set(sysctl, original);
            let current = self.sysctls.read(sysctl).map_err(&failed)?;
            if current == original {
                continue;
            }
            if setting.set.contains(&current) {
                self.sysctls.write(sysctl, original).map_err(failed)?;
                outcome.restored.push((sysctl, original));
            } else {
                outcome.left_alone.push((sysctl, current));
            }
        }
        match fs::remove_file(self.record()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(self.at_record(&self.record())(error))
            }
            _ => Ok(outcome),
        }
    }

    fn raise(&self, wanted: &[Raise]) -> Result<(), RaiseError> {
        let _transaction = self.begin()?;
        let mut record = self.read_record()?;
        let mut to_set = Vec::new();
        for &Raise { sysctl, at_least } in wanted {
            let failed = cannot_set(sysctl, at_least);
            let current = self.sysctls.read(sysctl).map_err(failed)?;
            if current >= at_least {
                continue;
            }
            let setting = record.settings.entry(sysctl).or_insert(Setting {
                original: current,
                set: Vec::new(),
            });
            if !setting.set.contains(&current) {
                setting.original = current;
            }
            setting.set.push(at_least);
            to_set.push((sysctl, at_least));
        }
        if to_set.is_empty() {
            return Ok(());
        }
        record.boot.clone_from(&self.boot);
        self.write_record(&record)?;
        for (sysctl, value) in to_set {
            let failed = cannot_set(sysctl, value);
            self.sysctls.write(sysctl, value).map_err(failed)?;
        }
        Ok(())
    }

    fn record(&self) -> PathBuf {
        self.folder.join("raised-limits.json")
    }

    /// Empty where there is none, or where it is of an earlier boot.
    fn read_record(&self) -> Result<Record, RaiseError> {
        let path = self.record();
        let record: Record = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| self.at_record(&path)(error.into()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Record::default(),
            Err(error) => return Err(self.at_record(&path)(error)),
        };
        Ok(match record.boot == self.boot {
            true => record,
            false => Record::default(),
        })
    }

    fn write_record(&self, record: &Record) -> Result<(), RaiseError> {
        let path = self.record();
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new()
                .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
                .tempfile_in(&self.folder)?;
            serde_json::to_writer(&mut file, record)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(self.at_record(&path))
    }

    /// Nobody else changes settings, record or locks until the file is closed.
    fn begin(&self) -> Result<File, RaiseError> {
        let file = self.open_lock("lock")?;
        file.lock().map_err(self.at_record(&self.folder))?;
        Ok(file)
    }

    fn open_lock(&self, name: &str) -> Result<File, RaiseError> {
        let path = self.folder.join(name);
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        options.open(&path).map_err(self.at_record(&path))
    }

    fn at_record(&self, path: &Path) -> impl Fn(io::Error) -> RaiseError + use<> {
        let path = path.to_owned();
        move |error| RaiseError::Record {
            path: path.clone(),
            error,
        }
    }
}

fn cannot_set(sysctl: Sysctl, value: u64) -> impl Fn(io::Error) -> RaiseError {
    move |error| RaiseError::Set {
        sysctl,
        value,
        error,
    }
}

impl Hold {
    /// Raises what is lower than wanted. On an error some may be raised already; [`Hold::release`] knows.
    pub fn raise(&self, wanted: &[Raise]) -> Result<(), RaiseError> {
        self.place.raise(wanted)
    }

    /// Lets go, and gives everything back unless others need it. Doing so again does nothing.
    pub fn release(&self) -> Result<Restored, RaiseError> {
        let _transaction = self.place.begin()?;
        // A copy of the lock in a forked process is the same lock to flock(2), and turns exclusive with it.
        let outcome = self.place.restore_unless_held(&self.lock);
        let unlocked = self.lock.unlock();
        let outcome = outcome?;
        unlocked.map_err(self.place.at_record(&self.place.folder))?;
        Ok(outcome)
    }

    /// The descriptor that the lock hangs on.
    pub fn descriptor(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Sysctl::{MaxMapCount, PidMax};

    /// A made-up `/proc/sys` with a record beside it.
    struct Machine {
        folder: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Machine {
            let folder = tempfile::tempdir().unwrap();
            for group in ["kernel", "vm"] {
                fs::create_dir(folder.path().join(group)).unwrap();
            }
            let machine = Machine { folder };
            machine.set(PidMax, 32_768);
            machine.set(MaxMapCount, 65_530);
            machine
        }

        fn sysctls(&self) -> Sysctls {
            Sysctls::at(self.folder.path())
        }

        fn place(&self) -> Place {
            let folder = self.folder.path().join("run/profiler");
            Place::at(self.sysctls(), &folder, "this boot")
        }

        fn set(&self, sysctl: Sysctl, value: u64) {
            self.sysctls().write(sysctl, value).unwrap();
        }

        fn get(&self, sysctl: Sysctl) -> u64 {
            self.sysctls().read(sysctl).unwrap()
        }
    }

    fn pids(at_least: u64) -> [Raise; 1] {
        [Raise {
            sysctl: PidMax,
            at_least,
        }]
    }

    #[test]
    fn what_was_raised_is_given_back() {
        let machine = Machine::new();
        let hold = machine.place().hold().unwrap();
        hold.raise(&pids(100_300)).unwrap();
        assert_eq!(machine.get(PidMax), 100_300);
        assert_eq!(
            machine.place().raised().unwrap(),
            [Raised {
                sysctl: PidMax,
                original: 32_768,
                current: 100_300
            }]
        );
        assert_eq!(hold.release().unwrap().restored, [(PidMax, 32_768)]);
        assert_eq!(
            (machine.get(PidMax), machine.get(MaxMapCount)),
            (32_768, 65_530)
        );
        assert_eq!(machine.place().raised().unwrap(), []);
        assert_eq!(hold.release().unwrap(), Restored::default());
    }

    #[test]
    fn nothing_is_ever_lowered() {
        let machine = Machine::new();
        let hold = machine.place().hold().unwrap();
        hold.raise(&pids(1_000)).unwrap();
        assert_eq!(machine.get(PidMax), 32_768);
        assert!(!machine.place().record().exists());
    }

    #[test]
    fn the_last_of_several_runs_gives_back() {
        let machine = Machine::new();
        let (first, second) = (
            machine.place().hold().unwrap(),
            machine.place().hold().unwrap(),
        );
        first.raise(&pids(100_300)).unwrap();
        second.raise(&pids(200_300)).unwrap();
        assert!(second.release().unwrap().in_use);
        assert_eq!(machine.get(PidMax), 200_300);
        assert!(machine.place().restore_abandoned().unwrap().in_use);
        assert_eq!(first.release().unwrap().restored, [(PidMax, 32_768)]);
        assert_eq!(machine.get(PidMax), 32_768);
    }

    #[test]
    fn what_the_dead_left_is_given_back_by_the_next() {
        let machine = Machine::new();
        let hold = machine.place().hold().unwrap();
        hold.raise(&pids(100_300)).unwrap();
        drop(hold); // as the kernel does for a process that was killed
        assert_eq!(machine.get(PidMax), 100_300);
        let restored = machine.place().restore_abandoned().unwrap();
        assert_eq!(restored.restored, [(PidMax, 32_768)]);
        assert_eq!(machine.get(PidMax), 32_768);
        assert_eq!(
            machine.place().restore_abandoned().unwrap(),
            Restored::default()
        );
    }

    #[test]
    fn a_copy_of_the_lock_is_the_same_lock() {
        let machine = Machine::new();
        let hold = machine.place().hold().unwrap();
        let copy = Hold {
            place: machine.place(),
            lock: hold.lock.try_clone().unwrap(), // what fork(2) does
        };
        hold.raise(&pids(100_300)).unwrap();
        drop(hold);
        assert!(machine.place().restore_abandoned().unwrap().in_use);
        assert_eq!(copy.release().unwrap().restored, [(PidMax, 32_768)]);
    }

    #[test]
    fn a_death_between_record_and_setting_loses_nothing() {
        let machine = Machine::new();
        let hold = machine.place().hold().unwrap();
        hold.raise(&pids(100_300)).unwrap();
        hold.raise(&pids(200_300)).unwrap();
        machine.set(PidMax, 100_300); // the second never came to be set
        assert_eq!(hold.release().unwrap().restored, [(PidMax, 32_768)]);
    }

    #[test]
    fn what_somebody_else_set_is_theirs() {
        let machine = Machine::new();
        let hold = machine.place().hold().unwrap();
        hold.raise(&pids(100_300)).unwrap();
        machine.set(PidMax, 4 << 20);
        let released = hold.release().unwrap();
        assert_eq!(released.left_alone, [(PidMax, 4 << 20)]);
        assert_eq!(machine.get(PidMax), 4 << 20);
    }

    #[test]
    fn what_was_set_between_two_raises_is_the_new_original() {
        let machine = Machine::new();
        let hold = machine.place().hold().unwrap();
        hold.raise(&pids(100_300)).unwrap();
        machine.set(PidMax, 50_000);
        hold.raise(&pids(100_300)).unwrap();
        assert_eq!(hold.release().unwrap().restored, [(PidMax, 50_000)]);
    }

    #[test]
    fn a_record_of_an_earlier_boot_means_nothing() {
        let machine = Machine::new();
        let hold = machine.place().hold().unwrap();
        hold.raise(&pids(100_300)).unwrap();
        drop(hold);
        let folder = machine.place().folder;
        let rebooted = Place::at(machine.sysctls(), &folder, "next boot");
        assert_eq!(rebooted.raised().unwrap(), []);
        assert_eq!(rebooted.restore_abandoned().unwrap(), Restored::default());
        assert_eq!(machine.get(PidMax), 100_300);
        assert!(!rebooted.record().exists());
    }

    #[test]
    fn a_setting_that_cannot_be_changed_is_named() {
        let machine = Machine::new();
        fs::remove_file(machine.folder.path().join("vm/max_map_count")).unwrap();
        let wanted = [Raise {
            sysctl: MaxMapCount,
            at_least: 300_000,
        }];
        let error = machine.place().hold().unwrap().raise(&wanted).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot set vm.max_map_count to 300,000: "),
            "{error}"
        );
    }
}
