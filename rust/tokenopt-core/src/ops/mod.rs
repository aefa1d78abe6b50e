//! Operators of a step and the time each takes.
//!
//! An [`Operator`] holds coefficients hoisted out of the hot loop: everything that depends on chip, layout, format and
//! context, but not on how many tokens the step carries. [`Operator::seconds`] is the one formula; the vectorised scan
//! ([`Operator::add_seconds`]) and the breakdown ([`Operator::pieces`]) call the same inlined functions.

pub mod activations;
pub mod attention;
pub mod collective;
pub mod experts;
pub mod gemm;

/// What an operator does, for breakdowns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorName {
    /// Projections into and out of the token mixer.
    MixerProjections,
    /// Attention or state update proper.
    MixerCore,
    /// Dense FFN.
    DenseFfn,
    /// Router of a mixture of experts.
    Router,
    /// Shared experts.
    SharedExperts,
    /// Routed experts.
    RoutedExperts,
    /// All-reduce after mixer or FFN.
    AllReduce,
    /// Norms, residuals, activations, gather and scatter of expert inputs.
    Elementwise,
    /// Dispatch and combine of expert parallelism, or gather and scatter of attention data parallelism.
    ExpertExchange,
    /// Send and receive between pipeline stages.
    PipelineTransfer,
    /// LM head and sampling.
    Head,
    /// Launch and host latency.
    Overhead,
}

/// Time of an operator by what it waits for; the operator's seconds are the roofline of memory and compute plus the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Pieces {
    /// Memory traffic alone, s.
    pub memory_s: f64,
    /// Arithmetic alone, s.
    pub compute_s: f64,
    /// Fabric and network, s.
    pub network_s: f64,
    /// Launches, host, synchronisation, s.
    pub latency_s: f64,
}

impl Pieces {
    /// All of them `factor` times.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            memory_s: self.memory_s * factor,
            compute_s: self.compute_s * factor,
            network_s: self.network_s * factor,
            latency_s: self.latency_s * factor,
        }
    }
}

/// Coefficients of one kind of operator, per occurrence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cost {
    /// Constant latency, s.
    Fixed(f64),
    /// Linear in rows.
    PerRow(PerRow),
    /// Dense matrix product.
    Gemm(gemm::Gemm),
    /// Routed experts.
    Experts(experts::Experts),
    /// Collective communication.
    Collective(collective::Collective),
}

/// An operator linear in rows whose memory and arithmetic overlap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerRow {
    /// Memory seconds per row.
    pub memory_s: f64,
    /// Arithmetic seconds per row.
    pub compute_s: f64,
    /// Latency seconds per row.
    pub latency_s: f64,
}

impl PerRow {
    /// Seconds for `rows` rows. The roofline of two linear terms is itself linear.
    #[inline(always)]
    #[must_use]
    pub fn seconds(&self, rows: f64) -> f64 {
        rows * self.seconds_per_row()
    }

    fn seconds_per_row(&self) -> f64 {
        roofline(self.memory_s, self.compute_s) + self.latency_s
    }
}

/// One operator: how often it occurs in a step and what one occurrence costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operator {
    /// What it is.
    pub name: OperatorName,
    /// Occurrences in a step.
    pub count: f64,
    /// Rows it sees per token of one attention rank: 1, or the number of ranks whose tokens meet here.
    pub rows_per_token: f64,
    /// What one occurrence costs.
    pub cost: Cost,
}

impl Operator {
    /// Seconds of all occurrences when each attention rank carries `tokens` tokens.
    #[must_use]
    pub fn seconds(&self, tokens: f64) -> f64 {
        let rows = tokens * self.rows_per_token;
        self.count
            * match &self.cost {
                Cost::Fixed(seconds) => *seconds,
                Cost::PerRow(op) => op.seconds(rows),
                Cost::Gemm(op) => op.seconds(rows),
                Cost::Experts(op) => op.seconds(rows),
                Cost::Collective(op) => op.seconds(rows),
            }
    }

    /// Adds the seconds for each of `tokens` to `step_s`; one tight loop per kind of operator so that it vectorises.
    #[inline(always)]
    pub fn add_seconds(&self, tokens: &[f64; LANES], step_s: &mut [f64; LANES]) {
        let scale = self.rows_per_token;
        let count = self.count;
        macro_rules! accumulate {
            ($op:expr) => {{
                let op = $op;
                for lane in 0..LANES {
                    step_s[lane] += count * op.seconds(tokens[lane] * scale);
                }
            }};
        }
        match self.cost {
            Cost::Fixed(seconds) => step_s
                .iter_mut()
                .for_each(|total| *total += count * seconds),
            Cost::PerRow(op) => accumulate!(op),
            Cost::Gemm(op) => accumulate!(op),
            Cost::Experts(op) => accumulate!(op),
            Cost::Collective(op) => accumulate!(op),
        }
    }

    /// What the operator waits for, all occurrences together.
    #[must_use]
    pub fn pieces(&self, tokens: f64) -> Pieces {
        let rows = tokens * self.rows_per_token;
        let one = match &self.cost {
            Cost::Fixed(seconds) => Pieces {
                latency_s: *seconds,
                ..Pieces::default()
            },
            Cost::PerRow(op) => Pieces {
                memory_s: op.memory_s * rows,
                compute_s: op.compute_s * rows,
                latency_s: op.latency_s * rows,
                ..Pieces::default()
            },
            Cost::Gemm(op) => op.pieces(rows),
            Cost::Experts(op) => op.pieces(rows),
            Cost::Collective(op) => op.pieces(rows),
        };
        Pieces {
            memory_s: one.memory_s * self.count,
            compute_s: one.compute_s * self.count,
            network_s: one.network_s * self.count,
            latency_s: one.latency_s * self.count,
        }
    }
}

/// Batches evaluated together by the scan.
pub const LANES: usize = 32;

/// Time of work whose memory traffic and arithmetic overlap: a smooth maximum, never below either.
///
/// `(memory^4 + compute^4)^(1/4)`: 19% above the sharp roofline at its ridge, within 1% a factor 2.3 away from it.
/// Source: fits to measured serving curves do not distinguish exponents 1 to 8; 4 costs two square roots.
#[inline(always)]
#[must_use]
pub fn roofline(memory_s: f64, compute_s: f64) -> f64 {
    let memory2 = memory_s * memory_s;
    let compute2 = compute_s * compute_s;
    (memory2 * memory2 + compute2 * compute2).sqrt().sqrt()
}

/// `exp(x)` for `x <= 0`, to 1e-12 relative, in straight-line arithmetic that vectorises; 0 below -700.
///
/// Source: range reduction to `2^n * 2^f` with `|f| <= 1/2` and the Taylor polynomial of `2^f`, degree 11.
#[inline(always)]
#[must_use]
pub fn exp_negative(x: f64) -> f64 {
    // Adding 1.5 * 2^52 rounds to the nearest integer and leaves it in the low bits of the mantissa.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const LN2: f64 = std::f64::consts::LN_2;
    let scaled = x.max(-700.0) * std::f64::consts::LOG2_E;
    let rounded = scaled + ROUND;
    let fraction = (scaled - (rounded - ROUND)) * LN2;
    let mut sum = 1.0 / 39_916_800.0;
    for factorial in [
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
        1.0,
        1.0,
    ] {
        sum = sum * fraction + 1.0 / factorial;
    }
    f64::from_bits(sum.to_bits().wrapping_add(rounded.to_bits() << 52))
}

/// `ln(x)` for finite `x >= 1`, to 1e-14 relative, in straight-line arithmetic that vectorises.
///
/// Source: range reduction to `2^n * m` with `m` in `[sqrt(1/2), sqrt(2))` and the series of `2 artanh((m - 1)/(m + 1))`,
/// to the power 17.
#[inline(always)]
#[must_use]
pub fn ln_from_one(x: f64) -> f64 {
    const SQRT_HALF_BITS: u64 = 0x3fe6_a09e_667f_3bcd;
    const EXPONENT_MASK: u64 = 0xfff0_0000_0000_0000;
    // A small integer in the low bits of the mantissa of 2^52 reads as 2^52 plus it.
    const TWO_52: f64 = 4_503_599_627_370_496.0;
    let bits = x.to_bits();
    let above = bits.wrapping_sub(SQRT_HALF_BITS);
    let exponent = f64::from_bits((above >> 52) | TWO_52.to_bits()) - TWO_52;
    let mantissa = f64::from_bits(bits.wrapping_sub(above & EXPONENT_MASK));
    let ratio = (mantissa - 1.0) / (mantissa + 1.0);
    let square = ratio * ratio;
    let mut sum = 1.0 / 17.0;
    for odd in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = sum * square + 1.0 / odd;
    }
    exponent * std::f64::consts::LN_2 + 2.0 * ratio * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_from_one_matches_the_standard_library() {
        assert!(ln_from_one(1.0).abs() < 1e-15);
        for step in 1..5000 {
            let x = 1.0 + 1e-6 * f64::from(step).powi(4);
            let exact = x.ln();
            assert!(
                (ln_from_one(x) - exact).abs() <= 1e-14 * exact.max(0.01),
                "{x}"
            );
        }
    }

    #[test]
    fn roofline_is_never_below_either_side() {
        assert!((roofline(3.0, 0.0) - 3.0).abs() < 1e-12);
        assert!((roofline(0.0, 2.0) - 2.0).abs() < 1e-12);
        // (1 + 1)^(1/4)
        assert!((roofline(1.0, 1.0) - 1.189_207_115_002_721).abs() < 1e-12);
    }

    #[test]
    fn exp_negative_matches_the_standard_library() {
        for step in 0..7000 {
            let x = -f64::from(step) * 0.1;
            let exact = x.exp();
            assert!((exp_negative(x) - exact).abs() <= 1e-12 * exact, "{x}");
        }
        assert!(exp_negative(-1e9) < 1e-300);
    }
}
