//! Short and interactive connections over the kernel's own sockets: HTTP requests, keystrokes.
#![forbid(unsafe_code)]

use crate::netns::Namespace;
use crate::traffic::{PATIENCE, Transport, connect, listen};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The longest request head that is read.
const HEAD: usize = 8192;

/// A server on its own threads; stops when dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers every HTTP request at `at` with `body`, and closes the connection (HTTP/1.0).
    pub fn http(namespace: &Namespace, at: SocketAddr, body: Vec<u8>) -> io::Result<Server> {
        Server::start(namespace, at, move |stream| answer_http(stream, &body))
    }

    /// Sends back what it receives at `at`, until the client closes.
    pub fn echo(namespace: &Namespace, at: SocketAddr) -> io::Result<Server> {
        Server::start(namespace, at, answer_echo)
    }

    fn start(
        namespace: &Namespace,
        at: SocketAddr,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Server> {
        let listener = namespace.run(|| listen(at, Transport::Tcp, None))?;
        listener.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, serve) = (Arc::clone(&stop), Arc::new(serve));
        let thread = namespace.spawn_thread("listener", move || {
            while !stopped.load(Ordering::Acquire) {
                let Ok((socket, _)) = listener.accept() else { continue };
                let serve = Arc::clone(&serve);
                thread::spawn(move || {
                    socket.set_read_timeout(Some(PATIENCE))?;
                    serve(socket.into())
                });
            }
        })?;
        Ok(Server { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer_http(mut stream: TcpStream, body: &[u8]) -> io::Result<()> {
    let mut head = Vec::new();
    let mut block = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let len = stream.read(&mut block)?;
        if len == 0 || head.len() > HEAD {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        head.extend_from_slice(&block[..len]);
    }
    let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(answer.as_bytes())?;
    stream.write_all(body)
}

fn answer_echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut block = [0; 4096];
    loop {
        match stream.read(&mut block)? {
            0 => return Ok(()),
            len => stream.write_all(&block[..len])?,
        }
    }
}

/// Fetches `/` from `server` on `count` new connections, one after another, and checks each body. The time of each.
pub fn fetch(
    client: &Namespace,
    server: SocketAddr,
    count: usize,
    body: &[u8],
) -> io::Result<Vec<Duration>> {
    client.run(|| (0..count).map(|_| fetch_once(server, body)).collect())
}

fn fetch_once(server: SocketAddr, body: &[u8]) -> io::Result<Duration> {
    let begun = Instant::now();
    let mut stream = TcpStream::from(connect(server, Transport::Tcp, None)?);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.0 200") && answer.ends_with(body) {
        Ok(begun.elapsed())
    } else {
        Err(io::Error::other(format!("an answer of {} octets is not as expected", answer.len())))
    }
}

/// Sends `count` single octets to an echo server, `pause` apart, each after the echo of the one before. The time of each.
pub fn type_keys(
    client: &Namespace,
    server: SocketAddr,
    count: u8,
    pause: Duration,
) -> io::Result<Vec<Duration>> {
    client.run(|| {
        let mut stream = TcpStream::from(connect(server, Transport::Tcp, None)?);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        (0..count)
            .map(|key| {
                thread::sleep(pause);
                let begun = Instant::now();
                stream.write_all(&[key])?;
                let mut echo = [!key];
                stream.read_exact(&mut echo)?;
                if echo == [key] {
                    Ok(begun.elapsed())
                } else {
                    Err(io::Error::other("wrong echo"))
                }
            })
            .collect()
    })
}
