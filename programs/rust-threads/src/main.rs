//! N threads of the standard library (2 MiB stacks) that each sleep SECONDS.

use std::hint::black_box;
use std::process::exit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

fn main() {
    let Some((tasks, pause)) = arguments() else {
        eprintln!("usage: rust-threads N SECONDS");
        exit(2);
    };
    let (depth, payload) = (bytes("TASK_STACK_DEPTH"), bytes("TASK_PAYLOAD"));
    let mut handles = Vec::with_capacity(tasks);
    println!("launch={tasks}");
    for started in 0..tasks {
        // `thread::spawn` would panic where we want the operating system's reason.
        let spawned = thread::Builder::new().spawn(move || {
            enter(tasks);
            if depth == 0 && payload == 0 {
                wait(tasks, pause);
            } else {
                wait_with(depth, payload, tasks, pause);
            }
            leave();
        });
        match spawned {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                eprintln!("failed at {started}: {error}");
                exit(1);
            }
        }
    }
    for handle in handles {
        handle.join().expect("a task panicked");
    }
    println!("live_peak={}", LIVE_PEAK.load(Ordering::Relaxed));
}

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIVE_PEAK: AtomicUsize = AtomicUsize::new(0);

/// Counts this task as alive, and says so when it is the last of them.
fn enter(tasks: usize) {
    let now = LIVE.fetch_add(1, Ordering::Relaxed) + 1;
    LIVE_PEAK.fetch_max(now, Ordering::Relaxed);
    if now == tasks {
        println!("alive={now}");
    }
}

fn wait(tasks: usize, pause: Duration) {
    loop {
        thread::sleep(pause);
        // The first to be started go on waiting until the last has come.
        if LIVE_PEAK.load(Ordering::Relaxed) == tasks {
            return;
        }
    }
}

/// Waits `depth` bytes further down the stack, with an array of `payload` bytes.
#[inline(never)]
fn wait_with(depth: usize, payload: usize, tasks: usize, pause: Duration) {
    let held = vec![1_u8; payload];
    let top = black_box(0_u8);
    descend(&raw const top as usize, depth, tasks, pause);
    drop(black_box(held));
}

#[inline(never)]
fn descend(top: usize, depth: usize, tasks: usize, pause: Duration) {
    let frame = black_box([1_u8; 256]);
    if top - (frame.as_ptr() as usize) < depth {
        descend(top, depth, tasks, pause);
    } else {
        wait(tasks, pause);
    }
    // Not the last thing that is done above, or there would be no frame.
    black_box(&frame);
}

fn leave() {
    LIVE.fetch_sub(1, Ordering::Relaxed);
}

/// A number of bytes from the environment, 0 where there is none.
fn bytes(variable: &str) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().expect("a number of bytes"),
        Err(_) => 0,
    }
}

fn arguments() -> Option<(usize, Duration)> {
    let mut words = std::env::args().skip(1);
    let tasks = words.next()?.parse().ok()?;
    let seconds = words.next()?.parse().ok()?;
    Some((tasks, Duration::try_from_secs_f64(seconds).ok()?))
}
