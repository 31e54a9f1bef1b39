//! A capture file as a port: its frames are received once, frames sent go to another file.
#![forbid(unsafe_code)]

use super::memory::linearize;
use super::{BURST, Capabilities, Medium, Port, PortError, PortStats, RxFrame, TxFrame};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::{DataLink, PcapError};
use stack::buf::{Chain, Pool};
use stack::wire::RxChecksum;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::os::fd::RawFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const HEADROOM: u16 = 128;

/// Reads one pcap file and writes another.
pub struct PcapPort {
    reader: Option<PcapReader<BufReader<File>>>,
    writer: PcapWriter<BufWriter<File>>,
    /// Read, but the pool had no frame for it yet.
    waiting: Option<Vec<u8>>,
    medium: Medium,
    mac: [u8; 6],
    stats: PortStats,
}

impl PcapPort {
    /// Frames of `input` arrive as fast as they are asked for; frames sent are appended to `output`. The link type of
    /// `input` (Ethernet or raw IP) decides the medium.
    ///
    /// # Errors
    /// If a file cannot be opened, or `input` is no pcap file of those link types.
    pub fn open(input: &Path, output: &Path, mac: [u8; 6]) -> Result<PcapPort, PortError> {
        let failed = |path: &Path, step, error| PortError::System {
            device: path.display().to_string(),
            step,
            error,
        };
        let bad = |e: PcapError| std::io::Error::new(std::io::ErrorKind::InvalidData, e);
        let file = File::open(input).map_err(|e| failed(input, "opening the capture", e))?;
        let reader = PcapReader::new(BufReader::new(file))
            .map_err(|e| failed(input, "reading the capture", bad(e)))?;
        let datalink = reader.header().datalink;
        let medium = match datalink {
            DataLink::ETHERNET => Medium::Ethernet,
            DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => Medium::Ip,
            other => {
                let kind = std::io::Error::other(format!("link type {other:?} is not supported"));
                return Err(failed(input, "reading the capture", kind));
            }
        };
        let file = File::create(output).map_err(|e| failed(output, "creating the capture", e))?;
        let header = PcapHeader { datalink, snaplen: 262_144, ..PcapHeader::default() };
        let writer = PcapWriter::with_header(BufWriter::new(file), header)
            .map_err(|e| failed(output, "writing the capture", bad(e)))?;
        let stats = PortStats::default();
        Ok(PcapPort { reader: Some(reader), writer, waiting: None, medium, mac, stats })
    }

    /// Whether every frame of the input has been handed up.
    pub fn is_finished(&self) -> bool {
        self.reader.is_none() && self.waiting.is_none()
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(frame) = self.waiting.take() {
            return Some(frame);
        }
        match self.reader.as_mut()?.next_packet() {
            Some(Ok(packet)) => Some(packet.data.into_owned()),
            _ => {
                self.reader = None; // the end, or no longer a capture
                None
            }
        }
    }
}

impl Port for PcapPort {
    fn receive(&mut self, pool: &Pool, rx: &mut Vec<RxFrame>) {
        for _ in 0..BURST {
            let Some(frame) = self.next() else { return };
            let Some(octets) = Chain::copy_from(pool, HEADROOM, &frame) else {
                self.waiting = Some(frame);
                return;
            };
            self.stats.rx_frames += 1;
            self.stats.rx_octets += frame.len() as u64;
            rx.push(RxFrame { octets, checksum: RxChecksum::MaybePartial, gso_size: 0 });
        }
    }

    fn transmit(&mut self, tx: &mut Vec<TxFrame>) {
        for frame in tx.drain(..) {
            let octets = linearize(frame);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let packet = PcapPacket::new(now, octets.len() as u32, &octets);
            match self.writer.write_packet(&packet) {
                Ok(_) => {
                    self.stats.tx_frames += 1;
                    self.stats.tx_octets += octets.len() as u64;
                }
                Err(_) => self.stats.tx_dropped += 1,
            }
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            medium: self.medium,
            mtu: 65_535,
            segmentation: false,
            checksum_offload: true,
            super_frames_in: true,
            zero_copy: false,
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn fds(&self) -> &[RawFd] {
        &[]
    }

    fn stats(&self) -> PortStats {
        self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::TxBody;

    #[test]
    fn frames_written_are_frames_read() {
        let dir = std::env::temp_dir().join(format!("plait-pcap-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (empty, one, two) = (dir.join("empty"), dir.join("one"), dir.join("two"));
        let header = PcapHeader { datalink: DataLink::ETHERNET, ..PcapHeader::default() };
        drop(PcapWriter::with_header(File::create(&empty).unwrap(), header).unwrap());
        let pool = Pool::new(200, 256);
        let mut port = PcapPort::open(&empty, &one, [0; 6]).unwrap();
        let mut tx = (0..100u8)
            .map(|i| {
                let body = TxBody::Whole(Chain::copy_from(&pool, 0, &[i; 100]).unwrap());
                TxFrame { link: [i; 14].into(), body }
            })
            .collect();
        port.transmit(&mut tx);
        assert_eq!((tx.len(), port.stats().tx_frames), (0, 100));
        drop(port);
        let mut port = PcapPort::open(&one, &two, [0; 6]).unwrap();
        let mut rx = Vec::new();
        while !port.is_finished() {
            port.receive(&pool, &mut rx);
        }
        assert_eq!(rx.len(), 100);
        assert_eq!(rx[7].octets.to_vec(), [7; 114]);
        assert!(PcapPort::open(&dir.join("none"), &two, [0; 6]).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
