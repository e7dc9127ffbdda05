//! NewReno (RFC 5681 §3.1).

use super::Cwnd;

/// Half, at least two.
pub fn ssthresh(w: &Cwnd) -> u32 {
    (w.cwnd / 2).max(2)
}

/// Slow start, then one segment a window.
pub fn cong_avoid(w: &mut Cwnd, acked: u32) {
    let mut left = acked;
    if w.in_slow_start() {
        left = w.slow_start(acked);
        if left == 0 {
            return;
        }
    }
    w.cong_avoid_ai(w.cwnd, left);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_below_the_threshold_then_adds_one_a_window() {
        let mut w = Cwnd { cwnd: 10, ssthresh: 20, ..Cwnd::default() };
        cong_avoid(&mut w, 10);
        assert_eq!(w.cwnd, 20);
        for _ in 0..20 {
            cong_avoid(&mut w, 1);
        }
        assert_eq!(w.cwnd, 21);
        assert_eq!(ssthresh(&w), 10);
        assert_eq!(ssthresh(&Cwnd { cwnd: 1, ..w }), 2);
    }
}
