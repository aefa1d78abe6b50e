//! Achieved rates of one chip for one job, and the rooflines of a product and of traffic that other work hides.

use super::layer::Product;
use super::parameters::TrainingParameters;
use super::{AttentionKernel, TrainingFormat, TrainingJob};
use crate::accelerator::Accelerator;
use crate::ops::collective::Fabric;
use crate::ops::roofline;

/// Achieved rates of one chip for one job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Products in the job's format, FLOP/s at large sizes.
    pub product_flops: f64,
    /// Dimension at which such a product loses half its rate.
    pub half_rate: f64,
    /// Products in 16 bits, FLOP/s at large sizes.
    pub wide_flops: f64,
    /// Dimension at which a 16-bit product loses half its rate.
    pub wide_half_rate: f64,
    /// Attention core, FLOP/s at heads of 128.
    pub attention_flops: f64,
    /// Memory, bytes/s.
    pub memory_bytes_per_s: f64,
    /// Fabric inside and outside the scale-up domain.
    pub fabric: Fabric,
    /// Network alone, bytes/s.
    pub network_bytes_per_s: f64,
    /// Chips of a scale-up domain.
    pub domain_chips: f64,
}

/// Power per peak 16-bit FLOP/s at which `gemm_efficiency` is defined, W per 10^12 FLOP/s: 700 W over 989e12.
const REFERENCE_W_PER_TFLOPS: f64 = 0.7;
/// Beyond this the clock is no longer held by power.
const AMPLE_W_PER_TFLOPS: f64 = 0.75;
/// FLOP per byte of the chip on which `half_rate_elements` is defined.
const REFERENCE_FLOPS_PER_BYTE: f64 = 989e12 / 3.35e12;

impl Rates {
    /// Rates of `accelerator` for `job`.
    ///
    /// Source: the sustained clock of a GPU under matrix products follows its power per peak FLOP/s; dimension-wise
    /// saturation scales with the FLOP per byte that a tile must earn.
    #[must_use]
    pub fn new(
        accelerator: &Accelerator,
        parameters: &TrainingParameters,
        job: &TrainingJob,
    ) -> Self {
        let bf16 = accelerator.peak_flops.bf16;
        let clock = accelerator.clock_power_w.map_or(1.0, |power_w| {
            let ratio = (power_w / (bf16 / 1e12)).min(AMPLE_W_PER_TFLOPS) / REFERENCE_W_PER_TFLOPS;
            ratio.powf(parameters.power_exponent)
        }) * parameters.chip_factor;
        let peak = job.format.peak_flops(&accelerator.peak_flops);
        let half_rate = |flops: f64| {
            let ratio = flops / accelerator.hbm_bytes_per_s / REFERENCE_FLOPS_PER_BYTE;
            parameters.half_rate_elements * ratio.powf(parameters.half_rate_growth)
        };
        let scaling = if job.format == TrainingFormat::Fp8Rowwise {
            parameters.rowwise_factor
        } else {
            1.0
        };
        let has_newer_units = accelerator.peak_flops.fp8.is_some();
        let generation = if job.attention == AttentionKernel::Flash2 && has_newer_units {
            parameters.older_kernel_factor
        } else {
            1.0
        };
        let network_bytes_per_s =
            (accelerator.scale_out_bytes_per_s * parameters.network_efficiency).max(1.0);
        Self {
            product_flops: peak * parameters.gemm_efficiency * clock * scaling,
            half_rate: half_rate(peak),
            wide_flops: bf16 * parameters.gemm_efficiency * clock,
            wide_half_rate: half_rate(bf16),
            attention_flops: bf16 * parameters.attention_efficiency * clock * generation,
            memory_bytes_per_s: accelerator.hbm_bytes_per_s * parameters.bandwidth_efficiency,
            fabric: Fabric::with_rates(
                accelerator,
                accelerator.scale_up.bytes_per_s * parameters.link_efficiency,
                0.0,
                network_bytes_per_s,
                parameters.network_latency_s,
            ),
            network_bytes_per_s,
            domain_chips: f64::from(accelerator.scale_up.domain_chips),
        }
    }

    /// Seconds in which every chip of a group of `size` gathers (or reduces and scatters) a buffer of `bytes`, members
    /// `stride` chips apart.
    ///
    /// Source: `(n - 1) / n` of the buffer crosses each chip's links; where the group leaves the scale-up domain, the
    /// part that comes from outside is shared by the members inside, each with its own network interface.
    #[inline(always)]
    #[must_use]
    pub fn gather_s(&self, size: f64, stride: f64, bytes: f64, latency_s: f64) -> f64 {
        if size <= 1.0 {
            return 0.0;
        }
        let inside = (self.domain_chips / stride).floor().clamp(1.0, size);
        let mut seconds = 0.0;
        if inside > 1.0 {
            seconds +=
                (inside - 1.0) / inside * bytes / self.fabric.group_bytes_per_s(inside * stride);
        }
        if inside < size {
            let domains = size / inside;
            seconds += (domains - 1.0) / domains * bytes / inside / self.network_bytes_per_s
                + latency_s * domains.log2();
        }
        seconds
    }
}

/// A product's times, s.
pub(super) struct ProductTimes {
    pub(super) forward_s: f64,
    pub(super) data_gradient_s: f64,
    pub(super) weight_gradient_s: f64,
}

/// Roofline of `rows` rows through `product`.
///
/// Source: `2 M N K` FLOP against the operands once each; every dimension saturates as `1 + d / size` (tiles, waves,
/// prologue). The weight gradient accumulates in FP32: a read and a write of 4 bytes.
#[inline(always)]
pub(super) fn product_times(
    rows: f64,
    product: Product,
    flops: f64,
    half_rate: f64,
    operand_bytes: f64,
    memory_bytes_per_s: f64,
) -> ProductTimes {
    const WIDE_BYTES: f64 = 2.0;
    const ACCUMULATION_BYTES: f64 = 8.0;
    let Product { k, n } = product;
    let saturation = (1.0 + half_rate / rows) * (1.0 + half_rate / k) * (1.0 + half_rate / n);
    let compute_s = 2.0 * rows * k * n * saturation / flops;
    let weight_bytes = k * n * operand_bytes;
    let forward_bytes = rows * k * operand_bytes + weight_bytes + rows * n * WIDE_BYTES;
    let data_bytes = rows * n * operand_bytes + weight_bytes + rows * k * WIDE_BYTES;
    let gradient_bytes = rows * (k + n) * operand_bytes + k * n * ACCUMULATION_BYTES;
    ProductTimes {
        forward_s: roofline(forward_bytes / memory_bytes_per_s, compute_s),
        data_gradient_s: roofline(data_bytes / memory_bytes_per_s, compute_s),
        weight_gradient_s: roofline(gradient_bytes / memory_bytes_per_s, compute_s),
    }
}

/// Traffic of which a share `exposed` is never hidden and the rest hides behind `hiding_s` of other work.
///
/// Assumes: `comm (x + (1 - x) comm / (comm + work))`: long products hide all but `x`, short ones nothing.
#[inline(always)]
pub(super) fn exposed_s(traffic_s: f64, hiding_s: f64, exposed: f64) -> f64 {
    if traffic_s <= 0.0 {
        return 0.0;
    }
    traffic_s * (exposed + (1.0 - exposed) * traffic_s / (traffic_s + hiding_s))
}
