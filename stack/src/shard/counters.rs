//! What a shard counted, under the names of the kernel's MIBs where the kernel has one.
#![forbid(unsafe_code)]

use crate::tcp::{FastOpenFate, MtuTally, Stop, TcpEvents, TooBig, Why};
use crate::wire::Malformed;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Events since the shard began, except `CurrEstab`, which is how many there are now.
        #[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
        #[allow(non_snake_case, reason = "the kernel's names, as dashboards know them")]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Adds all of `other`: the sum over shards.
            pub fn add(&mut self, other: &Counters) {
                $(self.$name += other.$name;)*
            }

            /// Names and values.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    /// Packets handed in.
    InReceives,
    /// Segments that reached a flow of ours, or were meant for an address of ours.
    InSegs,
    /// Segments sent, super-segments counted once.
    OutSegs,
    /// Segments sent again.
    RetransSegs,
    /// RSTs sent for segments of no flow and for refused SYNs.
    OutRsts,
    /// Segments that did not parse.
    InErrs,
    /// Of those: checksum wrong.
    InCsumErrors,
    /// Of those: a header or length past the end.
    InTruncated,
    /// Of those: lengths that contradict each other, or options of a SYN that do not parse.
    InBadHeader,
    /// Of those: addresses that no host has.
    InBadAddress,
    /// Fragments for addresses of ours: refused.
    InFragments,
    /// Packets given back because they are not ours.
    Passed,
    /// Segments to an address of ours that belong to no flow.
    InNoFlow,
    /// Sessions opened by a SYN.
    PassiveOpens,
    /// Far legs opened.
    ActiveOpens,
    /// Sessions that ended before both legs were up.
    AttemptFails,
    /// Sessions that ended by a reset on either leg.
    EstabResets,
    /// Sessions whose both legs are up, now.
    CurrEstab,
    /// SYNs refused by policy.
    Prohibited,
    /// SYNs dropped: as many connections as allowed.
    ListenOverflows,
    /// SYNs dropped, for whichever reason.
    ListenDrops,
    /// SYNs dropped: as many half-open connections as allowed, and none that could make room.
    TCPReqQFullDrop,
    /// SYNs answered with a cookie because there were as many half-open connections as allowed.
    TCPReqQFullDoCookies,
    /// SYNs dropped: their source has as many half-open connections as allowed.
    HalfOpenPerSource,
    /// Half-open connections that made room for a new one.
    HalfOpenEvicted,
    /// SYNs with text that a server took (RFC 7413).
    TCPFastOpenActive,
    /// SYNs with text that was not taken.
    TCPFastOpenActiveFail,
    /// Times that so many of these were lost in a row that none is sent for a while.
    TCPFastOpenBlackhole,
    /// SYNs whose text was taken because of their cookie.
    TCPFastOpenPassive,
    /// SYNs with a cookie that is not ours.
    TCPFastOpenPassiveFail,
    /// SYNs whose text was not taken: too many others' clients have not answered yet.
    TCPFastOpenListenOverflow,
    /// SYNs that asked for a cookie.
    TCPFastOpenCookieReqd,
    /// SYN cookies sent.
    SyncookiesSent,
    /// SYN cookies that came back.
    SyncookiesRecv,
    /// Segments of no flow that came while cookies were out and that are not one of them.
    SyncookiesFailed,
    /// SYNs dropped: the frame pool is nearly empty.
    MemoryPressures,
    /// Segments that were put together with the one before them, on receipt.
    TCPRcvCoalesce,
    /// Segments dropped for their text: what frames are left is kept for ACKs, which give frames back.
    TCPRcvQDrop,
    /// SYNs refused: no port or token left for the far leg.
    NoPorts,
    /// Flows that entered TIME-WAIT.
    TimeWaited,
    /// Flows forgotten early because the TIME-WAIT slab was full.
    TimeWaitOverflow,
    /// SYNs that took over a flow in TIME-WAIT.
    TimeWaitRecycled,
    /// ICMP errors about flows of ours.
    InIcmpErrors,
    /// ICMP errors sent: the server of a connection cannot be reached.
    OutIcmpErrors,
    /// ICMP errors not sent: too many at a time.
    OutIcmpRateLimit,
    /// Segments of ours that did not leave: the next hop did not answer, or there is no route.
    OutUnreachable,
    /// Of the ICMP errors: "packet too big" that was believed; segments on that path became shorter.
    PmtuReduced,
    /// The same, believed only when the segment was lost (RFC 5927 7.2); counted when it came, too.
    PmtuConfirmed,
    /// Of the ICMP errors: "packet too big" that contradicts what was delivered: it waits for the segment to be lost.
    PmtuDelayed,
    /// Of the ICMP errors: "packet too big" about nothing that is in flight.
    OutOfWindowIcmps,
    /// Of the ICMP errors: "packet too big" with an MTU that no path has.
    PmtuTooSmall,
    /// Of the ICMP errors: "packet too big" about a segment that is no larger than it allows.
    PmtuNoNews,
    /// Of the ICMP errors: "packet too big" after too many were believed.
    PmtuLimited,
    /// "Packet too big" to an address of ours, about no flow that we have.
    PmtuNoFlow,
    /// Larger segments than were known to pass did (RFC 4821).
    TCPMTUPSuccess,
    /// They did not.
    TCPMTUPFail,
    /// Large segments vanished without a word, and smaller ones are sent.
    PmtuBlackHoles,
    /// MP_JOIN SYNs with a token nobody has, to an address of ours.
    MPJoinNoTokenFound,
    /// Explicit-mode connections that ended up converted.
    ConvertEstab,
    /// A dMCP did not acknowledge the Information Elements.
    ConvertIgnored,
    /// A dMCP took the Information Elements for data.
    ConvertEaten,
    /// A dMCP answered without MP_CAPABLE.
    ConvertNoMptcp,
    /// A dMCP echoed something else.
    ConvertEchoDiffers,
    /// A dMCP did not answer at all.
    ConvertSilent,
    /// A dMCP cannot be reached.
    ConvertUnreachable,
    /// Connections sent straight to the server because their dMCP is in the negative cache.
    ConvertAvoided,
    /// SYNs at an explicit service without usable Information Elements.
    ConvertMalformed,
    /// SYNs at an explicit service that name an address or port no server has.
    ConvertBadServer,
    /// SYNs at an explicit service that name a source outside the preserved prefixes.
    ConvertBadSource,
    /// Octets relayed from client to server.
    RelayedUp,
    /// Octets relayed from server to client.
    RelayedDown,
    /// Segments dropped because their timestamp is old (RFC 7323 5.3).
    PAWSEstab,
    /// Segments dropped because no octet of them is in the window.
    OutOfWindow,
    /// RSTs dropped for the same reason.
    OutOfWindowRst,
    /// Challenge ACKs owed (RFC 5961): for a RST or SYN, or an ACK of what was never sent or is very old.
    TCPChallengeACK,
    /// Of those: for a SYN.
    TCPSYNChallenge,
    /// Of those: for a RST that is in the window but not at its start.
    TCPRSTChallenge,
    /// Of those: for an ACK of what was never sent.
    TCPAckUnsentData,
    /// Of those: for an ACK that is older than any window was.
    TCPTooOldAck,
    /// Challenge ACKs not sent: too many at a time.
    TCPACKSkippedChallenge,
    /// Segments without ACK.
    InNoAck,
    /// Segments with text after the peer's FIN.
    TextAfterFin,
    /// Segments all of whose text was here already.
    DuplicateText,
    /// Segments dropped because they would leave more holes than we keep track of.
    TCPOFODrop,
    /// Retransmission timeouts.
    TCPTimeouts,
    /// Timeouts that F-RTO found to be spurious (RFC 5682).
    TCPSpuriousRTOs,
    /// Timeouts undone, for whatever proof.
    TCPLossUndo,
    /// Fast recoveries undone when they ended: the originals had arrived (RFC 3522).
    TCPFullUndo,
    /// Fast recoveries undone half-way.
    TCPPartialUndo,
    /// Fast recoveries undone because all retransmissions were duplicates (RFC 3708).
    TCPDSACKUndo,
    /// Tail loss probes (RFC 8985 7).
    TCPLossProbes,
    /// Losses that a tail loss probe repaired unseen, and that were answered.
    TCPLossProbeRecovery,
    /// Segments sent again in fast recovery.
    TCPFastRetrans,
    /// Segments sent again after a timeout.
    TCPSlowStartRetrans,
    /// Retransmissions found lost.
    TCPLostRetransmit,
    /// Fast recoveries with SACK.
    TCPSackRecovery,
    /// Fast recoveries without.
    TCPRenoRecovery,
    /// Times a peer threw away what it had SACKed (RFC 2018 8).
    TCPSACKReneging,
    /// SACK blocks that cannot be true.
    TCPSACKDiscard,
    /// Duplicates reported below the ACK (RFC 2883 4.1).
    TCPDSACKRecv,
    /// Duplicates reported beyond a hole.
    TCPDSACKOfoRecv,
    /// Duplicate reports that cannot be true, or of more than was sent twice.
    TCPDSACKIgnoredDubious,
    /// Duplicates below rcv.nxt reported to the peer.
    TCPDSACKOldSent,
    /// Duplicates beyond a hole reported to the peer.
    TCPDSACKOfoSent,
    /// Segments received out of order.
    TCPOFOQueue,
    /// Times a path was first seen to reorder.
    TCPSACKReorder,
    /// Segments of a flow that is closed already.
    InClosed,
    /// Times a window was cut because the frame pool ran low.
    WindowShrunk,
}

impl Counters {
    /// Counts a packet that did not parse.
    pub fn on_malformed(&mut self, why: Malformed) {
        self.InErrs += 1;
        match why {
            Malformed::BadChecksum => self.InCsumErrors += 1,
            Malformed::Truncated => self.InTruncated += 1,
            Malformed::BadAddress => self.InBadAddress += 1,
            _ => self.InBadHeader += 1,
        }
    }

    /// Counts what a flow did when something went wrong.
    pub fn on_events(&mut self, events: &TcpEvents) {
        macro_rules! add {
            ($($name:ident),*) => {{ $(self.$name += u64::from(events.$name);)* }};
        }
        add!(
            TCPTimeouts,
            TCPSpuriousRTOs,
            TCPLossUndo,
            TCPFullUndo,
            TCPPartialUndo,
            TCPDSACKUndo,
            TCPLossProbes,
            TCPLossProbeRecovery,
            TCPFastRetrans,
            TCPSlowStartRetrans,
            TCPLostRetransmit,
            TCPSackRecovery,
            TCPRenoRecovery,
            TCPSACKReneging,
            TCPSACKDiscard,
            TCPDSACKRecv,
            TCPDSACKOfoRecv,
            TCPDSACKIgnoredDubious,
            TCPDSACKOldSent,
            TCPDSACKOfoSent,
            TCPOFOQueue,
            TCPSACKReorder
        );
    }

    /// Counts how a SYN fared that tried Fast Open.
    pub fn on_fast_open(&mut self, fate: FastOpenFate) {
        match fate {
            FastOpenFate::TextTaken => self.TCPFastOpenActive += 1,
            FastOpenFate::TextRefused | FastOpenFate::Lost => self.TCPFastOpenActiveFail += 1,
            FastOpenFate::Asked => {}
        }
    }

    /// Counts a segment that TCP did not process to its end. One that ended its connection counts as that.
    pub fn on_stop(&mut self, stop: Stop) {
        let why = match stop {
            Stop::Silent(why) | Stop::Ack(why) => why,
            Stop::Closed(_) => return,
        };
        let counter = match why {
            Why::OutsideWindow => &mut self.OutOfWindow,
            Why::Paws => &mut self.PAWSEstab,
            Why::ResetOutOfOrder => &mut self.TCPRSTChallenge,
            Why::ResetOutsideWindow => &mut self.OutOfWindowRst,
            Why::Syn => &mut self.TCPSYNChallenge,
            Why::NoAck => &mut self.InNoAck,
            Why::AckOfUnsent => &mut self.TCPAckUnsentData,
            Why::AckTooOld => &mut self.TCPTooOldAck,
            Why::TextAfterFin => &mut self.TextAfterFin,
            Why::DuplicateText => &mut self.DuplicateText,
            Why::TooManyHoles => &mut self.TCPOFODrop,
            Why::ChallengeLimit => &mut self.TCPACKSkippedChallenge,
            Why::Closed => &mut self.InClosed,
        };
        *counter += 1;
        self.TCPChallengeACK += u64::from(matches!(
            why,
            Why::ResetOutOfOrder | Why::Syn | Why::AckOfUnsent | Why::AckTooOld
        ));
    }

    /// Counts an ICMP "packet too big" about a flow of ours.
    pub fn on_too_big(&mut self, verdict: TooBig) {
        let counter = match verdict {
            TooBig::Believed(_) => &mut self.PmtuReduced,
            TooBig::Delayed => &mut self.PmtuDelayed,
            TooBig::OutOfWindow => &mut self.OutOfWindowIcmps,
            TooBig::TooSmall => &mut self.PmtuTooSmall,
            TooBig::NoNews => &mut self.PmtuNoNews,
            TooBig::Limited => &mut self.PmtuLimited,
        };
        *counter += 1;
    }

    /// Counts what flows found out about their paths.
    pub fn on_mtu_tally(&mut self, tally: MtuTally) {
        self.TCPMTUPSuccess += u64::from(tally.success);
        self.TCPMTUPFail += u64::from(tally.fail);
        self.PmtuConfirmed += u64::from(tally.believed);
        self.PmtuBlackHoles += u64::from(tally.black_holes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_reason_to_drop_a_segment_has_a_counter() {
        let challenges = [Why::ResetOutOfOrder, Why::Syn, Why::AckOfUnsent, Why::AckTooOld];
        let others = [
            Why::OutsideWindow,
            Why::Paws,
            Why::ResetOutsideWindow,
            Why::NoAck,
            Why::TextAfterFin,
            Why::DuplicateText,
            Why::TooManyHoles,
            Why::ChallengeLimit,
            Why::Closed,
        ];
        let mut counters = Counters::default();
        others.into_iter().for_each(|why| counters.on_stop(Stop::Silent(why)));
        assert_eq!(counters.entries().filter(|(_, n)| *n == 1).count(), others.len());
        challenges.into_iter().for_each(|why| counters.on_stop(Stop::Ack(why)));
        assert_eq!(counters.TCPChallengeACK, 4);
        let all = others.len() + challenges.len();
        assert_eq!(counters.entries().filter(|(_, n)| *n == 1).count(), all);
    }

    #[test]
    fn every_verdict_about_a_packet_too_big_has_a_counter() {
        let all = [
            TooBig::Believed(1_400),
            TooBig::Delayed,
            TooBig::OutOfWindow,
            TooBig::TooSmall,
            TooBig::NoNews,
            TooBig::Limited,
        ];
        let mut counters = Counters::default();
        all.into_iter().for_each(|verdict| counters.on_too_big(verdict));
        counters.on_mtu_tally(MtuTally { success: 1, fail: 1, believed: 1, black_holes: 1 });
        assert_eq!(counters.entries().filter(|(_, n)| *n == 1).count(), all.len() + 4);
    }

    #[test]
    fn every_event_of_a_flow_has_a_counter() {
        let mut counters = Counters::default();
        let events = TcpEvents { TCPTimeouts: 2, TCPSACKReorder: 3, ..Default::default() };
        counters.on_events(&events);
        assert_eq!((counters.TCPTimeouts, counters.TCPSACKReorder), (2, 3));
        let names: Vec<_> = counters.entries().map(|(name, _)| name).collect();
        assert!(events.entries().all(|(name, _)| names.contains(&name)));
    }

    #[test]
    fn every_parse_error_has_a_reason() {
        let mut counters = Counters::default();
        let all = [
            Malformed::BadChecksum,
            Malformed::Truncated,
            Malformed::BadAddress,
            Malformed::BadFlags,
            Malformed::BadLength,
        ];
        for why in all {
            counters.on_malformed(why);
        }
        let c = &counters;
        assert_eq!(c.InErrs, 5);
        assert_eq!(c.InCsumErrors + c.InTruncated + c.InBadAddress + c.InBadHeader, 5);
        assert_eq!(c.entries().filter(|(_, n)| *n > 0).count(), 5);
    }
}
