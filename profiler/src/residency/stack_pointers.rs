//! Where the threads of a stopped process have their stack pointers: `/proc/PID/task/TID/syscall`.

use std::{fs, io};

/// The stack pointer of each thread, with its tid. Threads that are gone, or that run at this moment, are
/// left out.
///
/// The last two numbers of the file are stack pointer and program counter, whatever stands before them
/// (`proc_pid_syscall`, fs/proc/base.c). A running thread has `running` there.
pub fn stack_pointers(pid: u32) -> io::Result<Vec<(u32, u64)>> {
    let mut pointers = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        let tid = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let text = fs::read_to_string(path.join("syscall")).unwrap_or_default();
        pointers.extend(tid.zip(stack_pointer(&text)));
    }
    Ok(pointers)
}

fn stack_pointer(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace().rev().skip(1);
    u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_pointer_is_the_last_but_one_number() {
        let sleeping = "230 0x0 0x0 0x7ffc1 0x7ffc2 0x0 0x0 0x7ffc58a8 0x7f31d2f7\n";
        assert_eq!(stack_pointer(sleeping), Some(0x7ffc_58a8));
        assert_eq!(
            stack_pointer("-1 0x7ffc58a8 0x7f31d2f7\n"),
            Some(0x7ffc_58a8)
        );
        assert_eq!(stack_pointer("running\n"), None);
        assert_eq!(stack_pointer(""), None);
    }

    #[test]
    fn a_sleeping_thread_of_ours_has_its_pointer_in_its_stack() {
        let (place, placed) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let here = 0_u8;
            place.send(&raw const here as u64).expect("somebody waits");
            let _ = ended.recv();
        });
        let here = placed.recv().expect("it was started");
        // It may not sleep yet.
        let near = |(_, pointer): &(u32, u64)| pointer.abs_diff(here) < 64 * 1024;
        while !stack_pointers(std::process::id())
            .expect("we are alive")
            .iter()
            .any(near)
        {
            std::thread::yield_now();
        }
        drop(end);
        thread.join().expect("it ends");
    }
}
