//! A worker on its thread, and the handle that others hold on it.
#![forbid(unsafe_code)]

use super::open::Reins;
use super::{Command, Engine, SetupError, Worker, WorkerConfig};
use crate::port::Waker;
use crossbeam::channel::{Sender, bounded, unbounded};
use stack::buf::Pool;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Tells and asks a worker from other threads.
pub struct WorkerLink<E> {
    commands: Sender<Command<E>>,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
}

impl<E> Clone for WorkerLink<E> {
    fn clone(&self) -> WorkerLink<E> {
        WorkerLink {
            commands: self.commands.clone(),
            waker: self.waker.clone(),
            stop: self.stop.clone(),
        }
    }
}

impl<E: Engine + 'static> WorkerLink<E> {
    /// Runs `command` on the worker's thread, soon. False: the worker has ended.
    pub fn send(&self, command: Command<E>) -> bool {
        let sent = self.commands.send(command).is_ok();
        self.waker.wake();
        sent
    }

    /// Runs `question` on the worker's thread and waits for the answer. `None`: the worker has ended.
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Worker<E>) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = bounded(1);
        let command: Command<E> = Box::new(move |worker| {
            let _ = answer.send(question(worker));
        });
        if self.send(command) { answered.recv().ok() } else { None }
    }

    /// Makes the worker's loop end after its current turn.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
    }
}

/// A worker that runs.
pub struct Running<E> {
    /// To tell and ask it.
    pub link: WorkerLink<E>,
    /// Its thread.
    pub thread: JoinHandle<()>,
    /// What could not be set up as well as it might be, and what to do about it.
    pub warnings: Vec<String>,
}

/// Starts a worker on a thread of its own, in the network namespace of the calling thread. `build` makes the engine
/// there, over the worker's pool.
///
/// # Errors
/// [`SetupError`] of whatever could not be opened; nothing is left behind then.
pub fn start<E: Engine + 'static>(
    name: &str,
    config: WorkerConfig,
    build: impl FnOnce(&Pool) -> E + Send + 'static,
) -> Result<Running<E>, SetupError> {
    let system = |step| move |error| SetupError::System { step, error };
    let waker = Arc::new(Waker::new().map_err(system("making an eventfd"))?);
    let stop = Arc::new(AtomicBool::new(false));
    let (commands, receiver) = unbounded();
    let link = WorkerLink { commands, waker: waker.clone(), stop: stop.clone() };
    let (ready, opened) = bounded(1);
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            if let Some(id) = config.core {
                core_affinity::set_for_current(core_affinity::CoreId { id });
            }
            match Worker::open(config, Reins { commands: receiver, waker, stop }, build) {
                Ok(mut worker) => {
                    let _ = ready.send(Ok(worker.warnings().to_vec()));
                    worker.run();
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })
        .map_err(system("starting a thread"))?;
    let warnings = opened.recv().unwrap_or(Err(SetupError::Died))?;
    Ok(Running { link, thread, warnings })
}
