//! The control socket's serving side: a thread that accepts, and one per client.
//!
//! A worker only ever gives a copy of what was asked for; reading requests, making JSON and waiting for slow clients
//! happen on these threads.
#![forbid(unsafe_code)]

use super::{MAX_REQUEST, Reply, Request};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Clients at a time; more are told to come back.
const MAX_CLIENTS: usize = 16;
/// A client that neither sends nor takes anything for so long is left.
const PATIENCE: Duration = Duration::from_secs(10);

/// What knows the answers. Called from several threads.
pub trait Source: Send + Sync + 'static {
    /// The answer to `request`. May wait for a worker.
    fn answer(&self, request: Request) -> Reply;
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process answers there.
    #[error("{}: another Plait answers there; stop it, or set another node.control", .0.display())]
    InUse(PathBuf),
    /// There is a file that is no socket.
    #[error("{}: exists and is not a socket; remove it, or set another node.control", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error(
        "{}: {step}: {error}; set node.control to a path in a directory that this user may write",
        path.display()
    )]
    System {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// A served control socket; it is closed and removed when this is dropped.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Serves `source` on a socket at `path` that only this user may use.
    ///
    /// # Errors
    /// If somebody else answers there, or the socket cannot be made.
    pub fn start(path: &Path, source: Arc<dyn Source>) -> Result<ControlServer, ControlError> {
        let listener = listen(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, &source, &stopped))
            .map_err(|error| {
                let _ = fs::remove_file(path);
                ControlError::System { path: path.to_owned(), step: "starting a thread", error }
            })?;
        Ok(ControlServer { path: path.to_owned(), stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes `accept`; where that fails the socket is somebody else's by now, and the thread ends with the process.
        let woken = UnixStream::connect(&self.path).is_ok();
        if let (Some(thread), true) = (self.thread.take(), woken) {
            let _ = fs::remove_file(&self.path);
            let _ = thread.join();
        }
    }
}

fn listen(path: &Path) -> Result<UnixListener, ControlError> {
    let failed = |step| move |error| ControlError::System { path: path.to_owned(), step, error };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed("making its directory"))?;
    }
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            return Err(ControlError::NotASocket(path.to_owned()));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(ControlError::InUse(path.to_owned()));
        }
        _ => {}
    }
    // Made where nobody else can look and moved into place: it is never reachable with other permissions, and a stale
    // socket is replaced at once.
    let mut private = path.as_os_str().to_owned();
    private.push(format!(".{}", std::process::id()));
    let private = PathBuf::from(private);
    let _ = fs::remove_dir_all(&private);
    DirBuilder::new().mode(0o700).create(&private).map_err(failed("making its directory"))?;
    let fresh = private.join("s");
    let made = UnixListener::bind(&fresh).and_then(|listener| {
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        fs::rename(&fresh, path)?;
        Ok(listener)
    });
    let _ = fs::remove_dir_all(&private);
    made.map_err(failed("making the socket"))
}

fn accept(listener: &UnixListener, source: &Arc<dyn Source>, stop: &AtomicBool) {
    let clients = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let Ok(stream) = stream else {
            thread::sleep(Duration::from_millis(100)); // out of descriptors, say: do not spin
            continue;
        };
        if clients.load(Ordering::Relaxed) >= MAX_CLIENTS {
            let _ = stream.set_nonblocking(true);
            let _ = write_reply(&stream, &Reply::Error("too many clients; try again".to_owned()));
            continue;
        }
        clients.fetch_add(1, Ordering::Relaxed);
        let (source, served) = (source.clone(), clients.clone());
        let started = thread::Builder::new().name("control client".to_owned()).spawn(move || {
            let _ = serve(&stream, source.as_ref());
            served.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Answers one client until it leaves or is too slow.
fn serve(stream: &UnixStream, source: &dyn Source) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        reader.by_ref().take(MAX_REQUEST).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let reason = format!("a request is one line of at most {MAX_REQUEST} octets");
            return write_reply(stream, &Reply::Error(reason));
        }
        let reply = match serde_json::from_slice(&line) {
            Ok(request) => source.answer(request),
            Err(error) => Reply::Error(format!(
                "{error}; a request is one line such as {{\"show\":\"connections\"}}"
            )),
        };
        write_reply(stream, &reply)?;
    }
}

fn write_reply(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::super::{ConnectionRow, Page, Show, SocketRow, ask, ask_connections};
    use super::*;
    use std::collections::BTreeMap;

    /// A worker with three connections that gives two per page.
    struct Fake;

    impl Source for Fake {
        fn answer(&self, request: Request) -> Reply {
            match request.show {
                Show::Connections => {
                    let row = |id: u64| ConnectionRow { id, ..row() };
                    let rows: Vec<_> = (request.offset..3).map(row).take(2).collect();
                    let end = request.offset + rows.len() as u64;
                    Reply::Connections(Page { rows, next: (end < 3).then_some(end) })
                }
                Show::Counters => Reply::Counters(BTreeMap::from([("InSegs".to_owned(), 7)])),
                _ => Reply::Error("the worker has ended".to_owned()),
            }
        }
    }

    fn row() -> ConnectionRow {
        ConnectionRow {
            id: 0,
            worker: 0,
            rule: "lan".to_owned(),
            mode: "convert".to_owned(),
            state: "open".to_owned(),
            client: "192.168.1.2:40000".to_owned(),
            server: "192.168.9.2:80".to_owned(),
            age_ms: 1,
            bytes_up: 2,
            bytes_down: 3,
            near: SocketRow::default(),
            far: SocketRow::default(),
        }
    }

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("plait-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    fn serve_in(name: &str) -> (PathBuf, ControlServer) {
        let directory = directory(name);
        let server = ControlServer::start(&directory.join("s.sock"), Arc::new(Fake)).unwrap();
        (directory, server)
    }

    fn counters() -> Request {
        Request { show: Show::Counters, offset: 0 }
    }

    /// What comes back for octets that `ask` would never send.
    fn raw(path: &Path, octets: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(octets).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    #[test]
    fn questions_are_answered_page_by_page() {
        let (directory, server) = serve_in("pages");
        let rows = ask_connections(server.path()).unwrap();
        let ids: Vec<u64> = rows.iter().map(|row| row.id).collect();
        assert_eq!(ids, [0, 1, 2]);
        let Reply::Counters(counters) = ask(server.path(), counters()).unwrap() else { panic!() };
        assert_eq!(counters["InSegs"], 7);
        let refused = ask(server.path(), Request { show: Show::Ports, offset: 0 }).unwrap_err();
        assert!(refused.to_string().ends_with("the worker has ended"), "{refused}");
        drop(server);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn only_the_owner_may_use_the_socket_and_it_goes_with_the_server() {
        let (directory, server) = serve_in("mode");
        let path = server.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(server);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        let error = ask(&path, counters()).unwrap_err().to_string();
        assert!(error.contains("is `plait run` up?"), "{error}");
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let (directory, server) = serve_in("stale");
        let path = server.path().to_owned();
        let second = ControlServer::start(&path, Arc::new(Fake)).unwrap_err();
        assert!(matches!(second, ControlError::InUse(_)), "{second}");
        assert!(ask(&path, counters()).is_ok(), "the first one still answers");
        drop(server);
        drop(UnixListener::bind(&path).unwrap()); // as a killed process leaves it
        assert!(path.exists());
        let server = ControlServer::start(&path, Arc::new(Fake)).unwrap();
        assert!(ask(&path, counters()).is_ok());
        drop(server);
        fs::write(&path, "precious").unwrap();
        let file = ControlServer::start(&path, Arc::new(Fake)).unwrap_err();
        assert!(matches!(file, ControlError::NotASocket(_)), "{file}");
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn nonsense_is_answered_and_too_much_of_it_ends_the_conversation() {
        let (directory, server) = serve_in("nonsense");
        let error = |octets: &[u8]| raw(server.path(), octets);
        assert!(error(b"{}\n").contains("missing field `show`"));
        assert!(error(b"{\"show\":\"keys\"}\n").contains("unknown variant"));
        assert!(error(&[b'x'; MAX_REQUEST as usize]).contains("at most 4096 octets"));
        drop(server);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn silent_clients_delay_nobody() {
        let (directory, server) = serve_in("silent");
        let silent: Vec<UnixStream> =
            (1..MAX_CLIENTS).map(|_| UnixStream::connect(server.path()).unwrap()).collect();
        assert!(ask(server.path(), counters()).is_ok());
        drop((silent, server));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn more_clients_than_allowed_are_told_so() {
        let (directory, server) = serve_in("many");
        let silent: Vec<UnixStream> =
            (0..MAX_CLIENTS).map(|_| UnixStream::connect(server.path()).unwrap()).collect();
        let mut line = String::new();
        BufReader::new(UnixStream::connect(server.path()).unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("too many clients"), "{line}");
        drop((silent, server));
        fs::remove_dir_all(directory).unwrap();
    }
}
