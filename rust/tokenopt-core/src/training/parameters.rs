//! Parameters of the training model, in the style of [`crate::parameters`].

use serde::{Deserialize, Serialize};

use crate::error::{require_within, CoreError};
use crate::parameters::{parameters, ParameterInfo};

parameters! {
    /// Efficiencies and overheads of one training stack on one accelerator in one number format.
    TrainingParameters, TRAINING_PARAMETERS;
    /// Share of the dense peak that large matrix products reach at 0.7 W per 10^12 FLOP/s.
    gemm_efficiency = 0.70 in 0.05..0.97, "1";
    /// Share of the rate of per-tensor scales that products with a scale per row reach.
    rowwise_factor = 0.52 in 0.2..1.0, "1";
    /// Size of a product's dimension at which it loses half its rate, at 295 FLOP per byte of memory bandwidth.
    half_rate_elements = 240.0 in 0.0..1000.0, "elements";
    /// Exponent of the FLOP per byte on that size.
    half_rate_growth = 0.8 in 0.0..1.2, "1";
    /// Exponent of the chip's power per peak 16-bit FLOP/s on the rate of arithmetic.
    power_exponent = 0.45 in 0.0..1.0, "1";
    /// Share of the rate of dense products that products of grouped experts reach.
    expert_gemm_factor = 0.95 in 0.2..1.0, "1";
    /// Share of the 16-bit peak that the attention core reaches on causal pairs, heads of 128.
    attention_efficiency = 0.35 in 0.02..0.95, "1";
    /// Share of that rate that kernels of the generation before reach on chips with 8-bit products.
    older_kernel_factor = 0.63 in 0.2..1.0, "1";
    /// Share of the attention core's rate that linear attention and state-space scans reach.
    scan_factor = 0.5 in 0.02..1.0, "1";
    /// Share of peak memory bandwidth that streaming kernels reach.
    bandwidth_efficiency = 0.69 in 0.05..0.95, "1";
    /// Traffic of norms, residuals, rotary and activations over one read or write of each tensor they touch.
    elementwise_factor = 1.5 in 0.2..6.0, "1";
    /// Traffic of permuting tokens to experts and back over one read or write of each copy.
    permute_factor = 1.8 in 0.2..8.0, "1";
    /// Traffic of casts to eight and four bits over one read and one write of what is cast.
    cast_factor = 1.0 in 0.0..6.0, "1";
    /// Traffic of low-rank adapters over one pass of their unfused kernels.
    adapter_factor = 0.6 in 0.0..4.0, "1";
    /// Share of the scale-up link rate that collectives reach.
    link_efficiency = 0.71 in 0.05..0.95, "1";
    /// Share of the scale-out rate that collectives reach.
    network_efficiency = 0.85 in 0.05..0.97, "1";
    /// Latency of a collective that leaves the scale-up domain, per doubling of the domains.
    network_latency_s = 15e-6 in 0.0..1e-3, "s";
    /// Share of tensor-parallel traffic that no product hides, when the product is long.
    tensor_exposed = 0.60 in 0.0..1.0, "1";
    /// The same where products are cut so that each piece hides the traffic of the next (asynchronous tensor parallelism).
    async_tensor_exposed = 0.24 in 0.0..1.0, "1";
    /// Share of expert-parallel traffic that nothing hides.
    expert_exposed = 0.48 in 0.0..1.0, "1";
    /// Share of context-parallel traffic that attention does not hide.
    context_exposed = 0.23 in 0.0..1.0, "1";
    /// Share of the transfers between pipeline stages that nothing hides.
    pipeline_exposed = 0.25 in 0.0..1.0, "1";
    /// Share of gradient and parameter traffic that a backward pass never hides.
    data_exposed = 0.25 in 0.0..1.0, "1";
    /// Share of fully sharded parameter traffic that the layers never hide.
    sharded_exposed = 0.12 in 0.0..1.0, "1";
    /// Latency of a layer's kernels, forward and backward of one micro-batch.
    layer_overhead_s = 40e-6 in 0.0..2e-3, "s";
    /// Further latency of a mixture-of-experts layer (router, sort, synchronisation), forward and backward.
    moe_layer_overhead_s = 1.2e-3 in 0.0..20e-3, "s";
    /// Further latency per expert that a chip holds, forward and backward.
    expert_overhead_s = 0.13e-3 in 0.0..2e-3, "s";
    /// Latency of a step: data, gradient norm, logging.
    step_overhead_s = 9e-3 in 0.0..0.5, "s";
    /// Memory traffic of the optimizer per parameter it owns.
    optimizer_traffic_bytes = 30.0 in 8.0..100.0, "B";
    /// Share of the LM head and loss that the last pipeline stage is longer by.
    head_stage_share = 0.52 in 0.0..1.0, "1";
    /// Excess of the busiest expert-parallel rank over the mean, with many ranks and no token dropped.
    expert_imbalance = 0.05 in 0.0..2.0, "1";
    /// Time lost to the slowest of many nodes, per doubling of the nodes.
    jitter_per_doubling = 0.002 in 0.0..0.05, "1";
    /// Rate of arithmetic of a chip over what its data sheet and power say.
    chip_factor = 1.0 in 0.2..3.0, "1";
    /// Speed of a software stack over the mean of all.
    software_factor = 1.0 in 0.1..3.0, "1";
    /// Speed of the mixture-of-experts layers of a software release over the mean of all.
    moe_software_factor = 1.0 in 0.1..4.0, "1";
    /// Share of memory that training can plan with.
    memory_share = 0.94 in 0.3..0.99, "1";
    /// Memory outside tensors: context, communication buffers.
    reserved_bytes = 2.5e9 in 0.0..30e9, "B";
}

impl TrainingParameters {
    /// Checks every value against its physical bounds.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the parameter.
    pub fn validate(&self) -> Result<(), CoreError> {
        for (info, value) in TRAINING_PARAMETERS.iter().zip(self.to_vec()) {
            require_within(info.name, value, info.low, info.high)?;
        }
        Ok(())
    }
}
