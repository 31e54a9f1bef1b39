//! Workers on their threads, and the handles that others hold on them.
#![forbid(unsafe_code)]

use super::cross::Crew;
use super::mailbox::Mailbox;
use super::open::Reins;
use super::{Command, Engine, SetupError, Worker, WorkerConfig};
use crate::port::Share;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use stack::buf::Pool;
use stack::shard::Homes;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Ends all workers of a node.
#[derive(Clone)]
struct Ending {
    stop: Arc<AtomicBool>,
    mailboxes: Arc<[Mailbox]>,
}

impl Ending {
    fn begin(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.mailboxes.iter().for_each(|mailbox| mailbox.waker().wake());
    }
}

/// A worker that ends takes the others along, however it ends: without it they lose what it is home to.
struct TakesOthersAlong(Ending);

impl Drop for TakesOthersAlong {
    fn drop(&mut self) {
        self.0.begin();
    }
}

/// Tells and asks a worker from other threads.
pub struct WorkerLink<E> {
    commands: Sender<Command<E>>,
    number: usize,
    ending: Ending,
}

impl<E> Clone for WorkerLink<E> {
    fn clone(&self) -> WorkerLink<E> {
        let (commands, ending) = (self.commands.clone(), self.ending.clone());
        WorkerLink { commands, number: self.number, ending }
    }
}

impl<E: Engine + 'static> WorkerLink<E> {
    /// Runs `command` on the worker's thread, soon. False: the worker has ended.
    pub fn send(&self, command: Command<E>) -> bool {
        let sent = self.commands.send(command).is_ok();
        if let Some(mailbox) = self.ending.mailboxes.get(self.number) {
            mailbox.waker().wake();
        }
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

    /// Makes the loops of this worker and of those it was started with end after their current turn.
    pub fn stop(&self) {
        self.ending.begin();
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
    let mut running = start_all(name, Homes::ALONE, vec![(config, build)])?;
    running.pop().ok_or(SetupError::Died)
}

/// Starts the workers of a node, one for each shard of `homes`, as [`start`] does: one after the other, as their order on
/// a device is that in which they open it. All have the same ports. None does anything before all are there.
///
/// # Errors
/// As [`start`].
pub fn start_all<E: Engine + 'static, B: FnOnce(&Pool) -> E + Send + 'static>(
    name: &str,
    homes: Homes,
    workers: Vec<(WorkerConfig, B)>,
) -> Result<Vec<Running<E>>, SetupError> {
    let mailboxes = workers.iter().map(|_| Mailbox::new()).collect::<io::Result<Arc<[Mailbox]>>>();
    let mailboxes =
        mailboxes.map_err(|error| SetupError::System { step: "making an eventfd", error })?;
    let ending = Ending { stop: Arc::default(), mailboxes };
    let ports = workers.first().map_or(0, |(config, _)| config.ports.len());
    let shares: Vec<Vec<Share>> = (0..ports).map(|_| Share::among(homes)).collect();
    let (go, gone) = bounded(workers.len());
    let mut running: Vec<Running<E>> = Vec::new();
    for (number, (config, build)) in workers.into_iter().enumerate() {
        let shares = shares.iter().filter_map(|of| of.get(number).cloned()).collect();
        let crew = Crew::new(number as u32, homes, ending.mailboxes.clone());
        let thread = if number == 0 { name.to_owned() } else { format!("{name}-{number}") };
        match spawn(thread, (config, build), (crew, shares), (&ending, gone.clone())) {
            Ok(worker) => running.push(worker),
            Err(error) => {
                drop(go);
                running.into_iter().for_each(|worker| drop(worker.thread.join()));
                return Err(error);
            }
        }
    }
    for _ in &running {
        let _ = go.send(()); // one that has ended meanwhile has told the others
    }
    Ok(running)
}

/// One of them. It waits until something comes through `go`, or ends when that closes.
fn spawn<E: Engine + 'static>(
    name: String,
    (config, build): (WorkerConfig, impl FnOnce(&Pool) -> E + Send + 'static),
    (crew, shares): (Crew, Vec<Share>),
    (ending, go): (&Ending, Receiver<()>),
) -> Result<Running<E>, SetupError> {
    let (commands, receiver) = unbounded();
    let link = WorkerLink { commands, number: crew.number as usize, ending: ending.clone() };
    let ending = ending.clone();
    let (ready, opened) = bounded(1);
    let thread = thread::Builder::new()
        .name(name)
        .spawn(move || {
            if let Some(id) = config.core {
                core_affinity::set_for_current(core_affinity::CoreId { id });
            }
            let reins = Reins { commands: receiver, stop: ending.stop.clone(), crew, shares };
            match Worker::open(config, reins, build) {
                Ok(mut worker) => {
                    let _ending = TakesOthersAlong(ending);
                    let _ = ready.send(Ok(worker.warnings().to_vec()));
                    if go.recv().is_ok() {
                        worker.run();
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })
        .map_err(|error| SetupError::System { step: "starting a thread", error })?;
    let warnings = opened.recv().unwrap_or(Err(SetupError::Died))?;
    Ok(Running { link, thread, warnings })
}
