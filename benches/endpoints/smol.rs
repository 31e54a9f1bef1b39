//! The rival: smoltcp, with a device that is a queue.
#![forbid(unsafe_code)]

use super::Meter;
use plait_benches::ends::{Setting, WRITE, address};
use plait_benches::queue::Queue;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

#[derive(Default)]
struct Queues {
    rx: Queue,
    tx: Queue,
}

struct Rx<'a>(Vec<u8>, &'a mut Queue);
struct Tx<'a>(&'a mut Queue);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(&self.0);
        self.1.reuse(self.0);
        result
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut octets = self.0.buffer();
        octets.resize(len, 0);
        let result = f(&mut octets);
        self.0.push(octets, 0);
        result
    }
}

impl Device for Queues {
    type RxToken<'a> = Rx<'a>;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        let packet = self.rx.pop()?;
        Some((Rx(packet.octets, &mut self.rx), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

/// One end.
struct End {
    device: Queues,
    iface: Interface,
    sockets: SocketSet<'static>,
    handles: Vec<SocketHandle>,
}

impl End {
    fn new(side: u8, setting: Setting) -> End {
        let mut device = Queues::default();
        let config = Config::new(HardwareAddress::Ip);
        let mut iface = Interface::new(config, &mut device, Instant::ZERO);
        iface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::from(address(side, 1)), 24));
        });
        let mut sockets = SocketSet::new(vec![]);
        let buffer = || tcp::SocketBuffer::new(vec![0; setting.buffer() as usize]);
        let socket = || tcp::Socket::new(buffer(), buffer());
        let handles = (0..setting.connections).map(|_| sockets.add(socket())).collect();
        End { device, iface, sockets, handles }
    }

    fn poll(&mut self, now: Instant, other: &mut End) {
        self.iface.poll(now, &mut self.device, &mut self.sockets);
        self.device.tx.hand_over(&mut other.device.rx);
    }
}

/// Nanoseconds per 1,448 octets from one end to the other.
pub fn run(setting: Setting, octets: u64) -> f64 {
    let (mut near, mut far) = (End::new(1, setting), End::new(2, setting));
    let remote = (IpAddress::from(address(2, 1)), 80);
    for (i, handle) in (0..).zip(&near.handles) {
        let socket = near.sockets.get_mut::<tcp::Socket<'_>>(*handle);
        socket.connect(near.iface.context(), remote, 4000 + i).expect("an address");
    }
    for handle in &far.handles {
        far.sockets.get_mut::<tcp::Socket<'_>>(*handle).listen(80).expect("a port");
    }
    let (written, mut buffer) = ([7; WRITE], vec![0; setting.buffer() as usize]);
    let (mut meter, mut read) = (Meter::new(octets), 0);
    let mut now = Instant::from_secs(1);
    while now < Instant::from_secs(600) {
        for handle in &near.handles {
            let socket = near.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            while socket.can_send()
                && socket.send_capacity() - socket.send_queue() >= WRITE
                && socket.send_slice(&written).is_ok()
            {}
        }
        near.poll(now, &mut far);
        far.poll(now, &mut near);
        for handle in &far.handles {
            let socket = far.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            while socket.can_recv() {
                read += socket.recv_slice(&mut buffer).map_or(0, |n| n as u64);
            }
        }
        far.poll(now, &mut near);
        now += Duration::from_micros(50);
        if let Some(time) = meter.on_read(read) {
            return time;
        }
    }
    panic!("it stands still");
}
