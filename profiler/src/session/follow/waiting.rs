//! What a session waits for: the ring, the ticker, the target's words, its exit, the end of the time that was
//! asked for, a signal.

use std::{
    future::pending,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{
        AsyncBufReadExt, BufReader, Lines,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    net::unix::pipe,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};

use super::POLL;
use crate::{
    launch::held::Output,
    session::signals::{Received, Signals},
};

/// What happened.
pub(super) enum Next {
    /// There may be records in the ring.
    Ring,
    /// It is time to poll.
    Tick,
    /// A line.
    Stdout(String),
    /// A line.
    Stderr(String),
    StdoutEnd,
    StderrEnd,
    /// The target has ended.
    Exit,
    /// The time is over.
    Elapsed,
    /// We were told to end.
    Signal(Received),
}

/// Everything that can happen, as one future.
pub(super) struct Waiting {
    /// `None` without probes.
    ring: Option<AsyncFd<OwnedFd>>,
    /// When the time is over.
    deadline: Option<Instant>,
    ticker: Interval,
    exit: AsyncFd<OwnedFd>,
    stdout: Option<Lines<BufReader<pipe::Receiver>>>,
    stderr: Option<Lines<BufReader<pipe::Receiver>>>,
    signals: Signals,
    /// Held open by whoever started us.
    lifeline: Option<Lines<BufReader<pipe::Receiver>>>,
}

impl Waiting {
    /// `ring` is the descriptor of the ring, which is open for as long as this is used; `exit` is readable when
    /// the target has ended.
    pub fn new(
        ring: Option<RawFd>,
        exit: OwnedFd,
        output: Option<Output>,
        signals: Signals,
        until_stdin_closes: bool,
    ) -> Result<Waiting> {
        let mut ticker = interval(POLL);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (stdout, stderr) = match output {
            Some(Output { stdout, stderr }) => (Some(lines(stdout)?), Some(lines(stderr)?)),
            None => (None, None),
        };
        let ring = match ring {
            // SAFETY: the caller says that it is open.
            Some(ring) => Some(watch(
                unsafe { BorrowedFd::borrow_raw(ring) }.try_clone_to_owned()?,
            )?),
            None => None,
        };
        Ok(Waiting {
            ring,
            deadline: None,
            ticker,
            exit: watch(exit)?,
            stdout,
            stderr,
            signals,
            lifeline: match until_stdin_closes {
                true => Some(lines(io::stdin().as_fd().try_clone_to_owned()?)?),
                false => None,
            },
        })
    }

    /// For so long, from now on.
    pub fn at_most(self, duration: Option<Duration>) -> Waiting {
        // A time that no clock reaches is no end.
        let deadline = duration.and_then(|duration| Instant::now().checked_add(duration));
        Waiting { deadline, ..self }
    }

    /// The next thing that happens.
    pub async fn next(&mut self) -> Result<Next> {
        Ok(tokio::select! {
            ready = readable(&self.ring) => {
                ready?.clear_ready();
                Next::Ring
            }
            () = elapsed(self.deadline) => Next::Elapsed,
            _ = self.ticker.tick() => Next::Tick,
            line = next_line(&mut self.stdout) => line?.map_or(Next::StdoutEnd, Next::Stdout),
            line = next_line(&mut self.stderr) => line?.map_or(Next::StderrEnd, Next::Stderr),
            ready = self.exit.readable() => {
                ready?.retain_ready();
                Next::Exit
            }
            received = self.signals.next() => Next::Signal(received?),
            _ = end_of(&mut self.lifeline) => Next::Signal(Received::HANG_UP),
        })
    }

    /// What is still in the pipe of a program that has exited.
    pub async fn rest_of_stdout(&mut self) -> Vec<String> {
        rest(&mut self.stdout).await
    }

    /// The same.
    pub async fn rest_of_stderr(&mut self) -> Vec<String> {
        rest(&mut self.stderr).await
    }
}

/// When something is there to be read; never, without anything to read from.
async fn readable(source: &Option<AsyncFd<OwnedFd>>) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
    match source {
        Some(source) => source.readable().await,
        None => pending().await,
    }
}

/// When the time is over; never, without an end.
async fn elapsed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same open descriptor until it is dropped, which is after the
    // registration ends.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

fn lines(fd: OwnedFd) -> io::Result<Lines<BufReader<pipe::Receiver>>> {
    Ok(BufReader::new(pipe::Receiver::from_owned_fd(fd)?).lines())
}

/// The next line; never, once the writer has closed its end.
async fn next_line(
    source: &mut Option<Lines<BufReader<pipe::Receiver>>>,
) -> io::Result<Option<String>> {
    match source {
        Some(lines) => {
            let line = lines.next_line().await?;
            if line.is_none() {
                *source = None;
            }
            Ok(line)
        }
        None => pending().await,
    }
}

/// The end of what can be read; never, where there is nothing to read from.
async fn end_of(source: &mut Option<Lines<BufReader<pipe::Receiver>>>) {
    loop {
        // Once it fails, nobody is at the other end either.
        if !matches!(next_line(source).await, Ok(Some(_))) {
            return;
        }
    }
}

/// What is still in the pipe of a program that has exited. A child of it may hold the pipe open, so
/// this waits for no more than there is.
async fn rest(source: &mut Option<Lines<BufReader<pipe::Receiver>>>) -> Vec<String> {
    let mut rest = Vec::new();
    while source.is_some() {
        match tokio::time::timeout(POLL, next_line(source)).await {
            Ok(Ok(Some(line))) => rest.push(line),
            _ => break,
        }
    }
    rest
}
