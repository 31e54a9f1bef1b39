//! The player itself: a script that is wrong fails, and says why.

use super::runner::{Family, run};

const ESTABLISHED: &str = "
0 listen
+0 < S 0:0(0) win 65535 <mss 1460,sackOK,TS val 100 ecr 0,nop,wscale 7>
+0 > S. 0:0(0) ack 1 <mss 1460,sackOK,TS val 0 ecr 100,wscale 0>
+0.100 < . 1:1(0) ack 1 win 257 <TS val 200 ecr 0>
+0 accept
";

/// Plays the lines after a handshake.
fn after_handshake(lines: &str) -> Result<(), String> {
    let text = format!("{ESTABLISHED}{lines}");
    let [v4, v6] = [Family::V4, Family::V6].map(|family| run(&text, family));
    assert_eq!(v4.is_ok(), v6.is_ok(), "both families fail for the same reason");
    v4
}

fn fails(lines: &str, why: &str) {
    let failure = after_handshake(lines).expect_err("a wrong script fails");
    assert!(failure.contains(why), "{why:?} is not in:\n{failure}");
}

#[test]
fn a_true_script_passes() {
    let lines = "
+0 < . 1:1001(1000) ack 1 <TS val 200 ecr 0>
+0 > . 1:1(0) ack 1001 <TS val 100 ecr 200>
+0 read 1000
+0 write 100
+0 > P. 1:101(100) ack 1001 <...>
+0.020 < . 1001:1001(0) ack 101 <TS val 220 ecr 100>
+0 expect state=ESTABLISHED cwnd=10 ssthresh=none bytes_acked=100 rtt>50ms
+0 expect counter InErrs=0
+0 close
+0 > FP. 101:101(0) ack 1001
+0.020 < F. 1001:1001(0) ack 102 <TS val 240 ecr 120>
+0 > . 102:102(0) ack 1002
+0 expect state=TIME_WAIT
+0 expect closed=Done
+60 expect state=CLOSED
";
    after_handshake(lines).unwrap();
}

#[test]
fn a_wrong_acknowledgement_fails_with_expected_and_actual_packet() {
    let lines = "+0 < . 1:1001(1000) ack 1\n+0 > . 1:1(0) ack 999";
    fails(lines, "8: +0 > . 1:1(0) ack 999");
    fails(lines, "expected . 1:1(0) ack 999");
    fails(lines, "actual   . 1:1(0) ack 1001");
    fails(lines, "0.100000 < . 1:1001(1000) ack 1 win 257"); // the trace
}

#[test]
fn a_missing_packet_fails() {
    fails("+0 > . 1:1(0) ack 1", "actual   nothing was sent");
}

#[test]
fn a_packet_that_nobody_expected_fails() {
    fails("+0 write 10\n+0 < . 1:1(0) ack 1", "expected nothing\n    actual   P. 1:11(10)");
    fails("+0 write 10\n+0 expect nothing", "expected nothing");
    fails("+0 write 10", "end of the script");
}

#[test]
fn a_packet_at_the_wrong_time_fails() {
    let lines = "+0 write 10\n+0.2 > P. 1:11(10) ack 1";
    fails(lines, "expected at 0.300000\n    actual   at 0.100000");
    assert!(after_handshake("+0 write 10\n+0.0005 > P. 1:11(10) ack 1").is_ok());
}

#[test]
fn wrong_options_windows_and_ecn_fail() {
    let ack = "+0 < . 1:1001(1000) ack 1\n";
    fails(&format!("{ack}+0 > . 1:1(0) ack 1001 <TS val 7 ecr 200>"), "expected");
    fails(&format!("{ack}+0 > . 1:1(0) ack 1001 <>"), "expected");
    fails(&format!("{ack}+0 > . 1:1(0) ack 1001 win 7"), "expected");
    fails(&format!("{ack}+0 > [ce] . 1:1(0) ack 1001"), "expected");
}

#[test]
fn wrong_expectations_of_state_counters_and_ends_fail() {
    fails("+0 expect state=CLOSED", "actual   state=Established");
    fails("+0 expect cwnd>10", "actual   cwnd=10");
    fails("+0 expect counter InErrs=1", "actual   InErrs=0");
    fails("+0 expect closed=Reset", "actual   closed=None");
    fails("+0 expect end", "the peer has not finished");
    fails("+0 read 1", "only 0 octets");
    fails("+0 expect counter NoSuchThing=0", "no counter NoSuchThing");
}

#[test]
fn what_is_no_script_names_its_line() {
    for (line, why) in [
        ("+0 > X 1:1(0) ack 1", "no flag: X"),
        ("+0 > . 1:5(0) ack 1", "1 to 5 is not 0"),
        ("+0 < . 1:1(0)", "no open fields"),
        ("+0 sleep 5", "no verb"),
        ("+0x > . 1:1(0) ack 1", "no unit of time"),
    ] {
        let failure = run(line, Family::V4).unwrap_err();
        assert!(failure.starts_with("1: ") && failure.contains(why), "{failure}");
    }
    let failure = run("set speed=high", Family::V4).unwrap_err();
    assert!(failure.contains("no such setting"), "{failure}");
}
