//! N tokio tasks that each sleep SECONDS, on the default multi-thread runtime.

use std::process::exit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::sleep;

#[tokio::main]
async fn main() {
    let Some((tasks, pause)) = arguments() else {
        eprintln!("usage: tokio N SECONDS");
        exit(2);
    };
    let payload = bytes("TASK_PAYLOAD");
    let mut handles = Vec::with_capacity(tasks);
    println!("launch={tasks}");
    for _ in 0..tasks {
        let task = async move {
            enter(tasks);
            loop {
                sleep(pause).await;
                if all_have_come(tasks) {
                    break;
                }
            }
            leave();
        };
        handles.push(match payload {
            0 => tokio::spawn(task),
            bytes => tokio::spawn(async move {
                let held = vec![1_u8; bytes];
                task.await;
                drop(std::hint::black_box(held));
            }),
        });
    }
    for handle in handles {
        handle.await.expect("a task panicked");
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

/// The first to be started go on waiting until the last has come.
fn all_have_come(tasks: usize) -> bool {
    LIVE_PEAK.load(Ordering::Relaxed) == tasks
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
