//! Reading what an executable is, from `/proc/PID/exe`.

use std::fs;

use object::{Object, read::ReadCache};

use crate::classify::runtime::Image;

/// The image that a process runs. `None` when the process is gone.
pub fn read(tgid: u32) -> Option<Image> {
    let link = format!("/proc/{tgid}/exe");
    let path = fs::read_link(&link).ok()?.to_string_lossy().into_owned();
    // A file that is no ELF (or cannot be read) is simply not a Go program.
    let go = fs::File::open(&link).ok().is_some_and(|file| {
        let cache = ReadCache::new(file);
        object::File::parse(&cache).is_ok_and(|elf| elf.section_by_name(".go.buildinfo").is_some())
    });
    Some(Image { path, go })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_image_is_no_go_program() {
        let image = read(std::process::id()).expect("we are alive");
        assert!(!image.go);
        assert_eq!(
            Some(image.path.as_ref()),
            std::env::current_exe().unwrap().to_str()
        );
    }
}
