//! How the end of one leg shows on the other: one table.
#![forbid(unsafe_code)]

use crate::tcp::CloseReason;

/// Which leg.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The client's: we answered its SYN.
    Near,
    /// The server's: we sent the SYN.
    Far,
}

/// How far the connection is when the end comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The client's SYN is held: the far leg is not up.
    Held,
    /// It was answered.
    Answered,
}

/// How a leg ended, or half of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// FIN or DATA_FIN, and everything before it was taken.
    Finished,
    /// All of it, for the reason given.
    Closed(CloseReason),
}

/// What the other leg does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    /// Nothing.
    Nothing,
    /// FIN or DATA_FIN behind what is queued; it still receives.
    Finish,
    /// RST or MP_FASTCLOSE.
    Abort(CloseReason),
    /// RST to the held SYN.
    Refuse,
    /// ICMP destination unreachable to the held SYN, and it is forgotten.
    TellUnreachable,
    /// It is forgotten without a word.
    Vanish,
}

/// What the leg on the other side does when the leg on `side` comes to `end`.
///
/// RST on one subflow is not an end of its leg (RFC 8803 5.1): an MPTCP leg ends by MP_FASTCLOSE, DATA_FIN, or when all
/// its subflows are gone for good.
pub const fn follow(progress: Progress, side: Side, end: End) -> Follow {
    use CloseReason::{Aborted, Done, Refused, Reset, TimedOut, Unreachable};
    match (progress, side, end) {
        // The server's answer is the client's answer: refused stays refused, silent stays silent, and what a router says
        // of the server's SYN is said of the client's (a RST would be read as "refused").
        (Progress::Held, Side::Far, End::Closed(TimedOut)) => Follow::Vanish,
        (Progress::Held, Side::Far, End::Closed(Unreachable)) => Follow::TellUnreachable,
        (Progress::Held, Side::Far, End::Closed(_)) => Follow::Refuse,
        (Progress::Held, Side::Far, End::Finished) => Follow::Nothing,
        (Progress::Held, Side::Near, End::Closed(Done)) => Follow::Abort(Aborted),
        // Half-close passes: the other direction goes on.
        (_, _, End::Finished) => Follow::Finish,
        // Both directions were finished before; the other leg still delivers what it has and then ends as well.
        (_, _, End::Closed(Done)) => Follow::Finish,
        (_, _, End::Closed(why @ (Reset | TimedOut | Unreachable | Refused | Aborted))) => {
            Follow::Abort(why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use core::fmt::Write;

    #[test]
    fn the_table() {
        let ends = [
            End::Finished,
            End::Closed(CloseReason::Done),
            End::Closed(CloseReason::Reset),
            End::Closed(CloseReason::Refused),
            End::Closed(CloseReason::TimedOut),
            End::Closed(CloseReason::Unreachable),
            End::Closed(CloseReason::Aborted),
        ];
        let mut table = String::new();
        for progress in [Progress::Held, Progress::Answered] {
            for side in [Side::Near, Side::Far] {
                for end in ends {
                    let other = follow(progress, side, end);
                    let row = alloc::format!("{progress:?} {side:?} {end:?}");
                    writeln!(table, "{row:<36} -> {other:?}").unwrap();
                }
            }
        }
        insta::assert_snapshot!(table);
    }
}
