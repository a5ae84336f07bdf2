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
    let mut handles = Vec::with_capacity(tasks);
    println!("launch={tasks}");
    for _ in 0..tasks {
        handles.push(tokio::spawn(async move {
            enter(tasks);
            sleep(pause).await;
            leave();
        }));
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

fn leave() {
    LIVE.fetch_sub(1, Ordering::Relaxed);
}

fn arguments() -> Option<(usize, Duration)> {
    let mut words = std::env::args().skip(1);
    let tasks = words.next()?.parse().ok()?;
    let seconds = words.next()?.parse().ok()?;
    Some((tasks, Duration::try_from_secs_f64(seconds).ok()?))
}
