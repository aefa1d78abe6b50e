//! Number formats of weights, caches and arithmetic.

use serde::{Deserialize, Serialize};

/// A number format, with what one element costs in memory once its block scales are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NumberFormat {
    /// 16-bit brain float; also stands for FP16, which costs the same.
    Bf16,
    /// 8-bit float, per-tensor or per-block scales (128 x 128 blocks cost nothing visible).
    Fp8,
    /// 8-bit integer weights.
    Int8,
    /// OCP microscaling FP4: one 8-bit scale per 32 elements.
    Mxfp4,
    /// NVIDIA FP4: one FP8 scale per 16 elements.
    Nvfp4,
    /// 4-bit integer weights, groups of 128 with a 16-bit scale and zero point.
    Int4,
}

impl NumberFormat {
    /// Bytes per element, block scales included.
    ///
    /// Source: OCP Microscaling Formats v1.0 (4 + 8/32 bits), NVIDIA NVFP4 (4 + 8/16 bits), GPTQ/AWQ group size 128
    /// (4 + 20/128 bits).
    #[must_use]
    pub fn bytes(self) -> f64 {
        match self {
            Self::Bf16 => 2.0,
            Self::Fp8 | Self::Int8 => 1.0,
            Self::Mxfp4 => (4.0 + 8.0 / 32.0) / 8.0,
            Self::Nvfp4 => (4.0 + 8.0 / 16.0) / 8.0,
            Self::Int4 => (4.0 + 20.0 / 128.0) / 8.0,
        }
    }

    /// Whether the format stores an element in four bits.
    #[must_use]
    pub fn is_four_bit(self) -> bool {
        matches!(self, Self::Mxfp4 | Self::Nvfp4 | Self::Int4)
    }
}
