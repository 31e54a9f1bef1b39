//! Network namespaces that exist as long as a value does.
//!
//! A [`Namespace`] is an open descriptor and a thread that lives in it; nothing is named under `/run/netns`, so whatever
//! ends the process (return, error, panic, signal) ends the namespaces, and their virtual devices with them. Children
//! are started from the namespace's own thread, which lives as long as the `Namespace`: a child that asked for a signal
//! at its parent's death ([`die_with_parent`]) gets it when the namespace goes.
#![forbid(unsafe_code)]

use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid, getgid, getuid};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How this process may make namespaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// It has CAP_SYS_ADMIN in the machine's own user namespace.
    Root,
    /// It has become root of a user namespace of its own: no eBPF, no access to the machine's devices.
    UserNamespace,
}

/// Why namespaces are out of reach.
#[derive(thiserror::Error, Debug)]
#[error("network namespaces are not possible here: {0}")]
pub struct NotPossible(String);

impl Privilege {
    /// Gains the right to make network namespaces: as it is if it is there, else by entering a new user namespace, which
    /// needs a process that has no other thread yet. Call it first thing in `main`.
    pub fn acquire() -> Result<Privilege, NotPossible> {
        let direct = match probe() {
            Ok(()) => return Ok(Privilege::of_process()),
            Err(error) => error,
        };
        let (uid, gid) = (getuid(), getgid());
        enter_user_namespace().map_err(|error| {
            NotPossible(format!(
                "not allowed directly ({direct}), nor through a user namespace ({error}; `sysctl \
                 kernel.unprivileged_userns_clone`, `kernel.apparmor_restrict_unprivileged_userns` and \
                 `user.max_user_namespaces` decide)"
            ))
        })?;
        let map = |file: &str, text: String| {
            fs::write(file, text).map_err(|error| NotPossible(format!("writing {file}: {error}")))
        };
        map("/proc/self/setgroups", "deny".into())?;
        map("/proc/self/uid_map", format!("0 {uid} 1"))?;
        map("/proc/self/gid_map", format!("0 {gid} 1"))?;
        probe().map_err(|error| {
            NotPossible(format!("a user namespace was given, a network namespace not ({error})"))
        })?;
        Ok(Privilege::UserNamespace)
    }

    /// The initial user namespace maps every identifier to itself; any other maps less.
    fn of_process() -> Privilege {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
        if whole && geteuid().is_root() { Privilege::Root } else { Privilege::UserNamespace }
    }
}

/// EINVAL says that the process has another thread: the one that [`probe`] has joined may still be on its way out.
fn enter_user_namespace() -> nix::Result<()> {
    for _ in 0..100 {
        match unshare(CloneFlags::CLONE_NEWUSER) {
            Err(nix::errno::Errno::EINVAL) => thread::sleep(Duration::from_millis(1)),
            result => return result,
        }
    }
    unshare(CloneFlags::CLONE_NEWUSER)
}

/// Whether a thread of this process may make a network namespace and set its parameters.
fn probe() -> io::Result<()> {
    let namespace = Namespace::new("probe")?;
    namespace.set_sysctl("net.ipv4.ip_forward", "0").map_err(|error| {
        io::Error::new(error.kind(), format!("/proc/sys cannot be written: {error}"))
    })
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of our own. Gone when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
    jobs: Option<Sender<Job>>,
    keeper: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes a namespace with its loopback device up. `name` is for messages only.
    pub fn new(name: &str) -> io::Result<Namespace> {
        let (jobs, job_queue) = mpsc::channel();
        let (ready, made) = mpsc::sync_channel(1);
        let keeper = thread::Builder::new().name(format!("netns-{name}")).spawn(move || {
            let _ = ready.send(enter_new());
            keep(&job_queue);
        })?;
        let file = made.recv().map_err(|_| io::Error::other("the namespace's thread died"))??;
        let namespace =
            Namespace { name: name.into(), file, jobs: Some(jobs), keeper: Some(keeper) };
        namespace.run(|| crate::netlink::set_up("lo", true))?;
        Ok(namespace)
    }

    /// The name given to [`Namespace::new`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `job` in this namespace on a thread of its own and waits for it. A panic of `job` goes on in the caller.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                job()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `job` in this namespace on a thread of its own.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        name: &str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let file = self.file.try_clone()?;
        thread::Builder::new().name(name.into()).spawn(move || {
            enter(&file);
            drop(file);
            job()
        })
    }

    /// Moves the calling thread into this namespace for good.
    fn enter(&self) {
        enter(&self.file);
    }

    /// Starts a program in this namespace; it is killed when the returned value goes.
    pub fn spawn(&self, mut command: Command) -> io::Result<Process> {
        let (give, started) = mpsc::sync_channel(1);
        let program = command.get_program().to_string_lossy().into_owned();
        let job: Job = Box::new(move || {
            let _ = give.send(command.spawn());
        });
        let gone = || io::Error::other("the namespace's thread died");
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        let child = started.recv().map_err(|_| gone())?.map_err(|error| {
            io::Error::new(error.kind(), format!("starting {program} in {}: {error}", self.name))
        })?;
        Ok(Process { child })
    }

    /// Runs a program in this namespace to its end and collects what it wrote.
    pub fn output(&self, mut command: Command) -> io::Result<Output> {
        self.run(move || command.output())
    }

    /// Writes a kernel parameter of this namespace (`net.ipv4.ip_forward`).
    pub fn set_sysctl(&self, key: &str, value: &str) -> io::Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run(|| fs::write(&path, value))
            .map_err(|error| io::Error::new(error.kind(), format!("{key}={value}: {error}")))
    }

    /// Reads a kernel parameter of this namespace.
    pub fn sysctl(&self, key: &str) -> io::Result<String> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run(|| fs::read_to_string(&path)).map(|value| value.trim().to_owned())
    }

    /// Has the kernel hand all packets of a flow to the same processor when they arrive at devices made from now on, so
    /// that they stay in order (RPS, `networking/scaling.rst`). Without it a virtual Ethernet device hands a packet to
    /// the processor that sent it, and two packets sent by two processors may pass each other.
    ///
    /// Kernels before 6.3 cannot do this, and are left as they are.
    pub fn keep_flows_in_order(&self) -> io::Result<()> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut groups = [0u32; 32];
        for cpu in (0..CpuSet::count().min(1024)).filter(|&cpu| allowed.is_set(cpu) == Ok(true)) {
            groups[cpu / 32] |= 1 << (cpu % 32);
        }
        let used = groups.iter().rposition(|&group| group != 0).map_or(1, |last| last + 1);
        let mask: Vec<_> = groups[..used].iter().rev().map(|group| format!("{group:x}")).collect();
        match self.set_sysctl("net.core.rps_default_mask", &mask.join(",")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Joins this namespace and `peer` by a pair of virtual Ethernet devices, both switched on and ready.
    pub fn join(&self, device: &str, peer: &Namespace, peer_device: &str) -> io::Result<()> {
        self.run(|| {
            crate::netlink::add_veth(device, peer_device, peer)?;
            crate::netlink::set_up(device, true)
        })?;
        peer.run(|| {
            crate::netlink::set_up(peer_device, true)?;
            wait_until_operational(peer_device)
        })?;
        self.run(|| wait_until_operational(device))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

fn wait_until_operational(device: &str) -> io::Result<()> {
    for _ in 0..1000 {
        if crate::netlink::is_operational(device)? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("{device} does not become ready")))
}

fn enter_new() -> io::Result<File> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    File::open("/proc/thread-self/ns/net")
}

fn keep(job_queue: &Receiver<Job>) {
    while let Ok(job) = job_queue.recv() {
        job();
    }
}

/// A thread that cannot reach its namespace must not go on in the wrong one.
fn enter(namespace: &File) {
    if let Err(error) = setns(namespace, CloneFlags::CLONE_NEWNET) {
        panic!("entering a network namespace of our own failed: {error}");
    }
}

/// Asks the kernel to kill this process when the thread that started it ends. Survives `exec`.
pub fn die_with_parent() -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Its process identifier.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, to take its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its exit status if it has ended.
    pub fn poll_exit(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills it at once (SIGKILL) and waits.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end (SIGTERM), kills it if it has not within `patience`.
    pub fn terminate(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.await_exit(patience)
    }

    /// Waits until it ends by itself, kills it if it has not within `patience`.
    pub fn await_exit(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                self.child.kill()?;
                return self.child.wait();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
