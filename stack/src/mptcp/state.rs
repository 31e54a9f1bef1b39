//! The connection's closing states (RFC 8684 3.3.3, Figure 22), which are TCP's with DATA_FIN for FIN.
#![forbid(unsafe_code)]

/// Data-level state of a connection whose keys are exchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataState {
    /// M_ESTAB.
    Estab,
    /// Our DATA_FIN is out.
    FinWait1,
    /// Our DATA_FIN is acknowledged, the peer may go on sending.
    FinWait2,
    /// Both DATA_FINs are out, neither side knows of the other's DATA_ACK.
    Closing,
    /// The peer's DATA_FIN came; we may go on sending.
    CloseWait,
    /// The peer's DATA_FIN came, ours is out.
    LastAck,
    /// Both are acknowledged; the subflows close.
    TimeWait,
    /// Nothing is left to do at the data level.
    Closed,
}

/// What moves a [`DataState`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataEvent {
    /// All data is mapped and our DATA_FIN goes out.
    SendDataFin,
    /// The peer's DATA_FIN arrived in order.
    ReceiveDataFin,
    /// Our DATA_FIN was acknowledged.
    DataFinAcked,
    /// The last subflow is gone.
    SubflowsGone,
}

impl DataState {
    /// The state after `event`; an event that means nothing here changes nothing.
    pub const fn after(self, event: DataEvent) -> DataState {
        use DataEvent::*;
        use DataState::*;
        match (self, event) {
            (Estab, SendDataFin) => FinWait1,
            (Estab, ReceiveDataFin) => CloseWait,
            (FinWait1, ReceiveDataFin) => Closing,
            (FinWait1, DataFinAcked) => FinWait2,
            (FinWait2, ReceiveDataFin) => TimeWait,
            (Closing, DataFinAcked) => TimeWait,
            (CloseWait, SendDataFin) => LastAck,
            (LastAck, DataFinAcked) => Closed,
            (TimeWait, SubflowsGone) => Closed,
            (state, _) => state,
        }
    }

    /// Whether both DATA_FINs are exchanged and ours acknowledged, so that subflows may close.
    pub const fn is_over(self) -> bool {
        matches!(self, DataState::TimeWait | DataState::Closed)
    }

    /// Whether our DATA_FIN is out and not acknowledged.
    pub const fn owes_data_fin(self) -> bool {
        matches!(self, DataState::FinWait1 | DataState::Closing | DataState::LastAck)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use core::fmt::Write;

    #[test]
    fn every_state_by_every_event() {
        use DataState::*;
        let mut table = String::new();
        for state in [Estab, FinWait1, FinWait2, Closing, CloseWait, LastAck, TimeWait, Closed] {
            for event in [
                DataEvent::SendDataFin,
                DataEvent::ReceiveDataFin,
                DataEvent::DataFinAcked,
                DataEvent::SubflowsGone,
            ] {
                let after = state.after(event);
                if after != state {
                    writeln!(table, "{state:?} --{event:?}--> {after:?}").unwrap();
                }
            }
        }
        insta::assert_snapshot!(table, @r"
        Estab --SendDataFin--> FinWait1
        Estab --ReceiveDataFin--> CloseWait
        FinWait1 --ReceiveDataFin--> Closing
        FinWait1 --DataFinAcked--> FinWait2
        FinWait2 --ReceiveDataFin--> TimeWait
        Closing --DataFinAcked--> TimeWait
        CloseWait --SendDataFin--> LastAck
        LastAck --DataFinAcked--> Closed
        TimeWait --SubflowsGone--> Closed
        ");
    }
}
