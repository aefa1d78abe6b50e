//! Pipeline schedules: how long the stages wait, how many micro-batches they keep, how even they are.

use super::layout::Schedule;

/// One micro-batch through one stage, s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageTimes {
    /// Forward.
    pub forward_s: f64,
    /// Backward, weight gradients and recomputation included.
    pub backward_s: f64,
    /// Weight gradients alone: what a zero-bubble schedule can move.
    pub weight_gradient_s: f64,
}

/// Time a stage waits in a step, s.
///
/// Source: 1F1B `(p - 1)(F + B)`, interleaved over `v` chunks `(p - 1)(F + B) / v` (Narayanan et al. 2021, eq. 2 and 3);
/// ZB-H1 `(p - 1)(F + B - 2 W)` with B the whole backward (Qi et al. 2023, table 1: `F + B_input - W`).
#[inline(always)]
#[must_use]
pub fn bubble_s(schedule: Schedule, pp: f64, vpp: f64, stage: &StageTimes) -> f64 {
    let both_s = stage.forward_s + stage.backward_s;
    match schedule {
        Schedule::OneForwardOneBackward => (pp - 1.0) / vpp * both_s,
        Schedule::ZeroBubble => {
            (pp - 1.0) / vpp * (both_s - 2.0 * stage.weight_gradient_s).max(0.0)
        }
    }
}

/// Micro-batches whose activations the first stage keeps.
///
/// Source: `p` for 1F1B, `p (1 + (p - 1) / (p v))` interleaved (Korthikanti et al. 2022, section 4.2.3).
#[inline(always)]
#[must_use]
pub fn microbatches_kept(pp: f64, vpp: f64, microbatches: f64) -> f64 {
    let interleaved = if vpp > 1.0 {
        1.0 + (pp - 1.0) / (pp * vpp)
    } else {
        1.0
    };
    (pp * interleaved).min(microbatches)
}

/// How much longer the slowest stage is than an even split of `layers` over `pp` stages of `vpp` chunks.
///
/// Assumes: where layers do not divide, embedding and head take the place of a layer each if that divides, and chunks
/// are otherwise rounded up over stages, not over chunks.
#[inline(always)]
#[must_use]
pub fn imbalance(layers: u32, pp: u32, vpp: u32) -> f64 {
    let slots = if layers % (pp * vpp) == 0 {
        return 1.0;
    } else if ends_take_slots(layers, pp, vpp) {
        layers + 2
    } else {
        layers.div_ceil(pp) * pp
    };
    f64::from(slots) / f64::from(layers)
}

/// Whether embedding and head each take the place of a layer, because layers alone do not divide and with them they do.
#[inline(always)]
#[must_use]
pub fn ends_take_slots(layers: u32, pp: u32, vpp: u32) -> bool {
    layers % (pp * vpp) != 0 && (layers + 2) % (pp * vpp) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGE: StageTimes = StageTimes {
        forward_s: 1.0,
        backward_s: 2.0,
        weight_gradient_s: 1.0,
    };

    #[test]
    fn bubbles_follow_the_published_formulas() {
        let plain = Schedule::OneForwardOneBackward;
        // 3 x (1 + 2)
        assert!((bubble_s(plain, 4.0, 1.0, &STAGE) - 9.0).abs() < 1e-12);
        assert!((bubble_s(plain, 4.0, 3.0, &STAGE) - 3.0).abs() < 1e-12);
        // 3 x (1 + 2 - 2)
        assert!((bubble_s(Schedule::ZeroBubble, 4.0, 1.0, &STAGE) - 3.0).abs() < 1e-12);
        assert!(bubble_s(plain, 1.0, 1.0, &STAGE).abs() < 1e-12);
    }

    #[test]
    fn interleaving_keeps_more() {
        assert!((microbatches_kept(8.0, 1.0, 64.0) - 8.0).abs() < 1e-12);
        // 8 x (1 + 7 / 24)
        assert!((microbatches_kept(8.0, 3.0, 64.0) - (8.0 + 7.0 / 3.0)).abs() < 1e-12);
        assert!((microbatches_kept(8.0, 3.0, 2.0) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn layers_that_do_not_divide_cost_the_slowest_stage() {
        assert!((imbalance(80, 8, 5) - 1.0).abs() < 1e-12);
        // 126 + 2 over 16
        assert!((imbalance(126, 16, 8) - 128.0 / 126.0).abs() < 1e-12);
        assert!(
            ends_take_slots(126, 16, 8) && !ends_take_slots(80, 8, 5) && !ends_take_slots(61, 8, 1)
        );
        // 61 over 8: the longest stage has 8
        assert!((imbalance(61, 8, 1) - 64.0 / 61.0).abs() < 1e-12);
    }
}
