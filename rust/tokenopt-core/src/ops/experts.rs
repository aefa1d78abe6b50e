//! Routed experts: how many are touched, what is read, what is multiplied.

use super::{exp_negative, ln_from_one, roofline, Pieces};

/// The routed experts of one layer on the busiest chip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// Routed experts held by one expert-parallel rank.
    pub experts_per_rank: f64,
    /// `(1 - top_k / experts)^(-skew) - 1`: how fast experts are touched, per token.
    pub touched_per_token: f64,
    /// Shape of the distribution of popularity, `1 / skew`.
    pub popularity_shape: f64,
    /// Squared relative excess of the busiest rank's load over the mean that popularity leaves at any batch.
    pub popularity_imbalance2: f64,
    /// Token-expert pairs per row that one expert-parallel rank gets on average.
    pub pairs_per_row: f64,
    /// Strength of imbalance over ranks, `c^2 * 2 ln(ranks)` (0 with one rank).
    pub imbalance2: f64,
    /// Seconds to stream one expert's share on this chip.
    pub stream_s_per_expert: f64,
    /// Seconds of arithmetic per token-expert pair.
    pub compute_s_per_pair: f64,
    /// Rows each touched expert is padded with.
    pub tile_rows: f64,
}

/// Dimensions of the routed experts as one chip sees them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertShape {
    /// Routed experts of the layer.
    pub experts: f64,
    /// Experts per token.
    pub top_k: f64,
    /// Expert-parallel ranks.
    pub ranks: f64,
    /// Parameters of one expert on this chip (after tensor parallelism inside the expert).
    pub parameters_per_expert: f64,
    /// Bytes per parameter.
    pub bytes_per_parameter: f64,
}

impl Experts {
    /// Hoists the coefficients.
    ///
    /// Args: achieved `bytes_per_s` and `flops` (FLOP/s); `tile_rows` padding of a touched expert; `imbalance` strength;
    /// `skew` squared coefficient of variation of popularity, above 0.
    /// Source: where a token chooses an expert with chance `p`, `m` tokens leave it untouched with `(1 - p)^m`. Over
    /// experts of unlike popularity (mean `k/E`, beta distributed) the mean is `(1 + c m)^(-1/skew)`, with `c` such that
    /// one token touches `k`; towards `skew = 0` it is `(1 - k/E)^m`. A rank's load `L` then varies by
    /// `L + L^2 skew r/E`, and the busiest of `r` ranks holds about `sqrt(2 ln r)` deviations more than the mean.
    /// Assumes: tokens choose independently; trained routers are milder after balancing, hence `imbalance`.
    #[must_use]
    pub fn new(
        shape: &ExpertShape,
        bytes_per_s: f64,
        flops: f64,
        tile_rows: f64,
        imbalance: f64,
        skew: f64,
    ) -> Self {
        let extreme2 = imbalance * imbalance * 2.0 * shape.ranks.ln();
        let not_chosen = (1.0 - shape.top_k / shape.experts).max(1e-300);
        Self {
            experts_per_rank: shape.experts / shape.ranks,
            touched_per_token: not_chosen.powf(-skew) - 1.0,
            popularity_shape: 1.0 / skew,
            popularity_imbalance2: extreme2 * skew * shape.ranks / shape.experts,
            pairs_per_row: shape.top_k / shape.ranks,
            imbalance2: extreme2,
            stream_s_per_expert: shape.parameters_per_expert * shape.bytes_per_parameter
                / bytes_per_s,
            compute_s_per_pair: 2.0 * shape.parameters_per_expert / flops,
            tile_rows,
        }
    }

    /// Seconds for `rows` tokens of the whole replica.
    #[inline(always)]
    #[must_use]
    pub fn seconds(&self, rows: f64) -> f64 {
        let (memory_s, compute_s) = self.memory_and_compute(rows);
        roofline(memory_s, compute_s)
    }

    /// Share of the experts that `rows` tokens leave untouched.
    #[inline(always)]
    fn share_untouched(&self, rows: f64) -> f64 {
        exp_negative(-self.popularity_shape * ln_from_one(1.0 + rows * self.touched_per_token))
    }

    #[inline(always)]
    fn memory_and_compute(&self, rows: f64) -> (f64, f64) {
        let pairs = rows * self.pairs_per_row;
        // sqrt(L^2 + 2 ln r c^2 var L) instead of L + sqrt(..): same limits, never above what a rank can get at L -> 0.
        let busiest_pairs =
            (pairs * (pairs * (1.0 + self.popularity_imbalance2) + self.imbalance2)).sqrt();
        let touched_mean = self.experts_per_rank * (1.0 - self.share_untouched(rows));
        let touched = (touched_mean * (touched_mean + self.imbalance2))
            .sqrt()
            .min(self.experts_per_rank)
            .min(busiest_pairs.max(touched_mean));
        (
            touched * self.stream_s_per_expert,
            (busiest_pairs + self.tile_rows * touched) * self.compute_s_per_pair,
        )
    }

    /// Memory and arithmetic apart.
    #[must_use]
    pub fn pieces(&self, rows: f64) -> Pieces {
        let (memory_s, compute_s) = self.memory_and_compute(rows);
        Pieces {
            memory_s,
            compute_s,
            ..Pieces::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(ranks: f64) -> ExpertShape {
        ExpertShape {
            experts: 128.0,
            top_k: 4.0,
            ranks,
            parameters_per_expert: 1e6,
            bytes_per_parameter: 1.0,
        }
    }

    #[test]
    fn one_token_touches_top_k_experts() {
        let experts = Experts::new(&shape(1.0), 1e9, 1e30, 0.0, 1.0, 0.5);
        // 4 experts of 1 MB at 1 GB/s
        assert!((experts.seconds(1.0) - 4e-3).abs() < 1e-9);
    }

    #[test]
    fn many_tokens_touch_every_expert() {
        let experts = Experts::new(&shape(1.0), 1e9, 1e30, 0.0, 1.0, 1e-6);
        assert!((experts.seconds(10_000.0) - 0.128).abs() < 1e-9);
    }

    #[test]
    fn unlike_popularity_leaves_experts_untouched() {
        // Evenly popular, 32 tokens leave (1 - 4/128)^32 = 36.2% untouched.
        let even = Experts::new(&shape(1.0), 1e9, 1e30, 0.0, 1.0, 1e-6);
        assert!((even.share_untouched(32.0) - (31.0_f64 / 32.0).powi(32)).abs() < 1e-6);
        // Skew 1: 1 / (1 + 32 c) with c = 128/124 - 1 = 1/31, 31/63.
        let skewed = Experts::new(&shape(1.0), 1e9, 1e30, 0.0, 1.0, 1.0);
        assert!((skewed.share_untouched(32.0) - 31.0 / 63.0).abs() < 1e-12);
        // A mixture that sends every token to every expert leaves none.
        let all = ExpertShape {
            top_k: 128.0,
            ..shape(1.0)
        };
        let all = Experts::new(&all, 1e9, 1e30, 0.0, 1.0, 1.0);
        assert!((all.share_untouched(0.0) - 1.0).abs() < 1e-12 && all.share_untouched(1.0) < 1e-9);
    }

    #[test]
    fn the_busiest_rank_never_reads_more_than_it_holds() {
        let experts = Experts::new(&shape(8.0), 1e9, 1e30, 0.0, 1.0, 0.5);
        assert!(experts.seconds(100_000.0) <= 0.016 + 1e-12);
    }
}
