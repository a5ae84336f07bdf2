//! tracefs, which few have mounted at boot.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// tracefs where distributions have it mounted, which whoever is not root asks for; ours goes at the end.
pub struct Tracefs {
    is_ours: bool,
}

const TRACEFS: &str = "/sys/kernel/tracing";

impl Tracefs {
    pub fn mounted() -> Tracefs {
        let is_ours = !Path::new(TRACEFS).join("events").exists();
        if is_ours {
            let none: Option<&str> = None;
            mount(
                Some("tracefs"),
                TRACEFS,
                Some("tracefs"),
                MsFlags::empty(),
                none,
            )
            .expect("we are root");
        }
        Tracefs { is_ours }
    }
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = umount2(TRACEFS, MntFlags::MNT_DETACH);
        }
    }
}
