//! Dense matrix products of a step: weights that every token meets.

use super::{roofline, Pieces};

/// A product of `rows` activations with weights that stay in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    /// Seconds to stream the weights once.
    pub stream_s: f64,
    /// Seconds of arithmetic per row.
    pub compute_s_per_row: f64,
    /// Rows the product is padded with (tile quantisation, on average).
    pub tile_rows: f64,
}

impl Gemm {
    /// Hoists the coefficients.
    ///
    /// Args: `parameters` weights on this chip; `bytes_per_parameter`; achieved `bytes_per_s` and `flops` (FLOP/s);
    /// `tile_rows` padding.
    /// Source: roofline of 2 FLOP per parameter and row against one pass over the weights.
    /// Assumes: activations stay in cache (they are under 2% of the weight bytes at serving batches).
    #[must_use]
    pub fn new(
        parameters: f64,
        bytes_per_parameter: f64,
        bytes_per_s: f64,
        flops: f64,
        tile_rows: f64,
    ) -> Self {
        Self {
            stream_s: parameters * bytes_per_parameter / bytes_per_s,
            compute_s_per_row: 2.0 * parameters / flops,
            tile_rows,
        }
    }

    /// Seconds for `rows` rows.
    #[inline(always)]
    #[must_use]
    pub fn seconds(&self, rows: f64) -> f64 {
        roofline(self.stream_s, self.compute_s(rows))
    }

    #[inline(always)]
    fn compute_s(&self, rows: f64) -> f64 {
        self.compute_s_per_row * (rows + self.tile_rows)
    }

    /// Memory and arithmetic apart.
    #[must_use]
    pub fn pieces(&self, rows: f64) -> Pieces {
        Pieces {
            memory_s: self.stream_s,
            compute_s: self.compute_s(rows),
            ..Pieces::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_batches_wait_for_memory_and_large_ones_for_arithmetic() {
        // 1e9 parameters of 2 bytes at 1 TB/s: 2 ms; 2e9 FLOP per row at 1 PFLOP/s: 2 us per row.
        let product = Gemm::new(1e9, 2.0, 1e12, 1e15, 0.0);
        assert!((product.seconds(1.0) - 2e-3).abs() < 1e-9);
        assert!((product.seconds(100_000.0) - 0.2).abs() < 1e-6);
    }
}
