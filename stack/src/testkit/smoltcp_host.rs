//! A host that runs smoltcp's TCP: an implementation that is not ours, as client and as server.
#![forbid(unsafe_code)]

use super::{App, End, Host, Node, Outbox, Plan, Socket};
use crate::rng::Rng;
use crate::time::{Instant, earliest};
use crate::wire::Endpoint;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint};

/// Octets; it has no congestion control (as built here), so what it keeps under way must fit in queues.
const BUFFER: usize = 32 << 10;

/// A host with one interface and smoltcp sockets.
pub struct SmoltcpHost {
    device: Queues,
    iface: Interface,
    sockets: SocketSet<'static>,
    apps: Vec<(SocketHandle, App)>,
    listening: Vec<(SocketHandle, u16, Plan)>,
    next_port: u16,
    deadline: Option<Instant>,
}

#[derive(Default)]
struct Queues {
    rx: VecDeque<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
}

fn timestamp(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(now.as_micros() as i64)
}

fn socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket
}

impl SmoltcpHost {
    /// A host with one address; everything else is behind its interface 0.
    pub fn new(address: IpAddr, rng: &mut Rng) -> SmoltcpHost {
        let mut device = Queues::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = rng.u64();
        let mut iface = Interface::new(config, &mut device, timestamp(Instant::ZERO));
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        iface.update_ip_addrs(|addrs| {
            let _ = addrs.push(IpCidr::new(IpAddress::from(address), prefix));
        });
        match address {
            IpAddr::V4(address) => drop(iface.routes_mut().add_default_ipv4_route(address)),
            IpAddr::V6(address) => drop(iface.routes_mut().add_default_ipv6_route(address)),
        }
        SmoltcpHost {
            device,
            iface,
            sockets: SocketSet::new(vec![]),
            apps: Vec::new(),
            listening: Vec::new(),
            next_port: 49_152,
            deadline: Some(Instant::ZERO),
        }
    }

    fn listen_once(&mut self, port: u16, plan: Plan) {
        let mut socket = socket();
        if socket.listen(IpListenEndpoint { addr: None, port }).is_ok() {
            let handle = self.sockets.add(socket);
            self.listening.push((handle, port, plan));
        }
    }

    /// A program, in the order in which they began.
    pub fn app(&self, index: usize) -> &App {
        &self.apps[index].1
    }

    fn run_apps(&mut self, now: Instant) {
        for index in (0..self.listening.len()).rev() {
            let (handle, port, plan) = self.listening[index];
            if self.sockets.get::<tcp::Socket<'_>>(handle).is_active() {
                self.listening.swap_remove(index);
                self.apps.push((handle, App::new(plan)));
                self.listen_once(port, plan);
            }
        }
        for (handle, app) in &mut self.apps {
            if app.end.is_some() {
                continue;
            }
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            let opening = matches!(socket.state(), tcp::State::SynSent | tcp::State::SynReceived);
            if !opening {
                app.run(socket, now);
            }
            app.end = match socket.state() {
                tcp::State::TimeWait => Some(End::Done),
                tcp::State::Closed if app.saw_end => Some(End::Done),
                tcp::State::Closed => Some(End::Reset),
                _ => None,
            };
        }
    }
}

impl Host for SmoltcpHost {
    fn listen(&mut self, port: u16, plan: Plan, backlog: usize) {
        for _ in 0..backlog {
            self.listen_once(port, plan);
        }
    }

    fn connect(&mut self, to: Endpoint, plan: Plan, _now: Instant) -> usize {
        let handle = self.sockets.add(socket());
        let to = IpEndpoint::from(SocketAddr::new(to.addr, to.port));
        let cx = self.iface.context();
        let connecting = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let connected = connecting.connect(cx, to, self.next_port);
        self.next_port = self.next_port.checked_add(1).unwrap_or(49_152);
        let mut app = App::new(plan);
        if connected.is_err() {
            app.end = Some(End::Unreachable);
        }
        self.apps.push((handle, app));
        self.apps.len() - 1
    }

    fn apps(&self) -> Vec<&App> {
        self.apps.iter().map(|(_, app)| app).collect()
    }

    fn open(&self) -> usize {
        let idle = [tcp::State::Listen, tcp::State::Closed, tcp::State::TimeWait];
        let sockets =
            self.apps.iter().map(|(handle, _)| self.sockets.get::<tcp::Socket<'_>>(*handle));
        sockets.filter(|socket| !idle.contains(&socket.state())).count()
    }
}

impl Node for SmoltcpHost {
    fn receive(&mut self, _iface: usize, packet: Vec<u8>, _now: Instant) {
        self.device.rx.push_back(packet);
    }

    fn poll(&mut self, now: Instant, out: &mut Outbox) {
        self.iface.poll(timestamp(now), &mut self.device, &mut self.sockets);
        self.run_apps(now);
        self.iface.poll(timestamp(now), &mut self.device, &mut self.sockets);
        out.extend(self.device.tx.drain(..).map(|packet| (0, packet)));
        let delay = self.iface.poll_delay(timestamp(now), &self.sockets);
        // Its clock counts microseconds: never wake it before it sees a new one.
        let next = delay.map(|d| now + core::time::Duration::from_micros(d.total_micros().max(1)));
        let apps = self.apps.iter().fold(None, |at, (_, app)| earliest(at, app.deadline()));
        self.deadline = earliest(next, apps);
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

impl Socket for tcp::Socket<'static> {
    fn may_send(&self) -> bool {
        tcp::Socket::may_send(self)
    }

    fn room(&self) -> usize {
        self.send_capacity() - self.send_queue()
    }

    fn send(&mut self, text: &[u8]) -> usize {
        self.send_slice(text).unwrap_or(0)
    }

    fn recv(&mut self, limit: usize, sink: &mut dyn FnMut(&[u8])) -> usize {
        let mut taken = 0;
        while taken < limit && self.can_recv() {
            let n = tcp::Socket::recv(self, |octets| {
                let n = octets.len().min(limit - taken);
                sink(&octets[..n]);
                (n, n)
            });
            match n {
                Ok(n) if n > 0 => taken += n,
                _ => break,
            }
        }
        taken
    }

    fn recv_finished(&self) -> bool {
        let closed =
            [tcp::State::CloseWait, tcp::State::LastAck, tcp::State::Closing, tcp::State::TimeWait];
        closed.contains(&self.state()) && !self.can_recv()
    }

    fn close(&mut self) {
        tcp::Socket::close(self);
    }

    fn abort(&mut self) {
        tcp::Socket::abort(self);
    }
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.rx.pop_front()?;
        Some((Received(packet), Sending(&mut self.tx)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1_500;
        capabilities
    }
}
