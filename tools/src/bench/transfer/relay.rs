//! The kernel in Plait's place: accepts on one side, connects on the other, and copies.
#![forbid(unsafe_code)]

use pcap_tests::netns::Namespace;
use pcap_tests::traffic::{Transport, connect, listen};
use socket2::Socket;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Relays one connection.
#[derive(Debug)]
pub struct KernelRelay {
    thread: JoinHandle<io::Result<Duration>>,
}

impl KernelRelay {
    /// Listens at `at` and connects to `to` as soon as somebody has connected.
    pub fn start(
        namespace: &Namespace,
        at: SocketAddr,
        to: SocketAddr,
        congestion: &'static str,
    ) -> io::Result<KernelRelay> {
        let listener = namespace.run(|| listen(at, Transport::Tcp, Some(congestion)))?;
        let thread = namespace.spawn_thread("relay", move || relay(&listener, to, congestion))?;
        Ok(KernelRelay { thread })
    }

    /// Waits until both directions are over; how long the connection to the server took to come up.
    pub fn finish(self) -> io::Result<Duration> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the relay's thread died")))
    }
}

fn relay(listener: &Socket, to: SocketAddr, congestion: &'static str) -> io::Result<Duration> {
    let near = TcpStream::from(listener.accept()?.0);
    let begun = Instant::now();
    let far = TcpStream::from(connect(to, Transport::Tcp, Some(congestion))?);
    let took = begun.elapsed();
    let (near_too, far_too) = (near.try_clone()?, far.try_clone()?);
    let up = std::thread::Builder::new().spawn(move || copy(near_too, far_too))?;
    copy(far, near)?;
    up.join().unwrap_or_else(|_| Err(io::Error::other("the relay's thread died")))?;
    Ok(took)
}

fn copy(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let mut block = vec![0; 256 << 10];
    loop {
        match from.read(&mut block)? {
            0 => return to.shutdown(Shutdown::Write),
            len => to.write_all(&block[..len])?,
        }
    }
}
