//! The time of a training step.

use serde::Serialize;

use super::layout::{Recompute, TrainingLayout};
use super::microbatch::MicrobatchCost;
use super::parameters::TrainingParameters;
use super::pipeline::{bubble_s, ends_take_slots, imbalance, StageTimes};
use super::work::TrainingWork;
use super::TrainingJob;
use crate::accelerator::Accelerator;

/// Time of one optimizer step, and what it consists of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrainingStep {
    /// Whole step, s.
    pub step_s: f64,
    /// Micro-batches through each pipeline.
    pub microbatches: f64,
    /// One micro-batch through the longest stage, forward, s.
    pub stage_forward_s: f64,
    /// One micro-batch through the longest stage, backward with recomputation, s.
    pub stage_backward_s: f64,
    /// Recomputation of all micro-batches, s.
    pub recompute_s: f64,
    /// Transfers between stages that nothing hides, s.
    pub pipeline_transfer_s: f64,
    /// Waiting in the pipeline, s.
    pub bubble_s: f64,
    /// Gradient and parameter traffic that nothing hides, s.
    pub data_s: f64,
    /// Optimizer, s.
    pub optimizer_s: f64,
    /// Constant latency and the wait for the slowest node, s.
    pub overhead_s: f64,
}

/// Seconds of a step by what takes them; they add up to the step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepParts {
    /// Dense matrix products.
    pub gemm_s: f64,
    /// Products of routed experts.
    pub experts_s: f64,
    /// Attention core and scans.
    pub attention_s: f64,
    /// Norms, activations, permutations, adapters.
    pub elementwise_s: f64,
    /// Casts.
    pub cast_s: f64,
    /// Head and loss.
    pub head_s: f64,
    /// Exposed tensor-parallel traffic.
    pub tensor_s: f64,
    /// Exposed expert-parallel traffic.
    pub expert_exchange_s: f64,
    /// Exposed context-parallel traffic.
    pub context_s: f64,
    /// Exposed pipeline transfers.
    pub pipeline_s: f64,
    /// Exposed data-parallel traffic.
    pub data_s: f64,
    /// Pipeline bubble.
    pub bubble_s: f64,
    /// Forward work done again.
    pub recompute_s: f64,
    /// Optimizer.
    pub optimizer_s: f64,
    /// Launches, synchronisation, jitter.
    pub overhead_s: f64,
}

/// Bytes of a 16-bit parameter on the wire.
const PARAMETER_BYTES: f64 = 2.0;

impl TrainingStep {
    /// Times one step of `job` on `layout`, given its micro-batch.
    ///
    /// Source: `m (stage + transfer) + bubble + data + optimizer + overhead`; see [`super::pipeline::bubble_s`]. ZeRO-1
    /// and -2 reduce-scatter gradients and gather 16-bit weights once a step; without sharding an all-reduce moves
    /// the same; full sharding gathers weights twice and reduces gradients once for every micro-batch.
    /// Assumes: stages hold equal shares of the layers but for [`imbalance`]; `microbatches` may be a fraction when the
    /// layout was not checked.
    #[must_use]
    pub fn new(
        cost: &MicrobatchCost,
        accelerator: &Accelerator,
        parameters: &TrainingParameters,
        job: &TrainingJob,
        layout: &TrainingLayout,
    ) -> Self {
        let pp = f64::from(layout.pp);
        let vpp = f64::from(layout.vpp);
        let microbatches = layout.microbatches(job).max(1.0);
        let share = imbalance(cost.layers, layout.pp, layout.vpp) / pp;
        let head_share = head_share(cost, parameters, layout);

        let layers_forward_s = cost.forward.total_s() * share;
        let layers_backward_s = cost.backward.total_s() * share;
        let repeated_s = match layout.recompute {
            Recompute::None => 0.0,
            Recompute::Selective => cost.selective_s * share,
            Recompute::Full => layers_forward_s,
            Recompute::Blocks(blocks) => {
                let whole = (f64::from(blocks) / (f64::from(cost.layers) * share)).min(1.0);
                whole * layers_forward_s + (1.0 - whole) * cost.selective_s * share
            }
        };
        let extra_s =
            job.recipe.extra_forwards() * (layers_forward_s + cost.head_forward_s * head_share);
        let stage_forward_s = layers_forward_s + cost.head_forward_s * head_share + extra_s;
        let stage_backward_s = layers_backward_s + cost.head_backward_s * head_share + repeated_s;

        // Each chunk's boundary is crossed once forward and once backward.
        let pipeline_transfer_s = if layout.pp > 1 {
            let stride = f64::from(layout.tp) * f64::from(layout.cp) * f64::from(layout.dp);
            let domain = cost.rates.domain_chips;
            // Stages follow each other with all ranks of a stage between them: of the stages that fill a domain, one
            // boundary leaves it.
            let crossing = if stride * pp <= domain {
                0.0
            } else {
                (stride / domain).min(1.0)
            };
            let seconds_per_byte = crossing / cost.rates.network_bytes_per_s
                + (1.0 - crossing) / cost.rates.fabric.group_bytes_per_s(domain);
            2.0 * vpp * cost.boundary_bytes * seconds_per_byte * parameters.pipeline_exposed
        } else {
            0.0
        };
        let bubble = bubble_s(
            layout.schedule,
            pp,
            vpp,
            &StageTimes {
                forward_s: stage_forward_s,
                backward_s: stage_backward_s + pipeline_transfer_s,
                weight_gradient_s: cost.weight_gradient_s * share,
            },
        );
        let busy_s = microbatches * (stage_forward_s + stage_backward_s + pipeline_transfer_s);
        let data_s = data_traffic_s(cost, parameters, job, layout, share, busy_s / microbatches)
            / parameters.software_factor;
        let optimizer_s = optimizer_s(cost, accelerator, parameters, job, layout, share)
            / parameters.software_factor;
        let chips = pp * f64::from(layout.tp) * f64::from(layout.replicas());
        let nodes = (chips / f64::from(accelerator.chips_per_node)).max(1.0);
        let before_jitter_s = busy_s + bubble + data_s + optimizer_s;
        let overhead_s = parameters.step_overhead_s
            + before_jitter_s * parameters.jitter_per_doubling * nodes.log2();
        Self {
            step_s: before_jitter_s + overhead_s,
            microbatches,
            stage_forward_s,
            stage_backward_s,
            recompute_s: microbatches * repeated_s,
            pipeline_transfer_s: microbatches * pipeline_transfer_s,
            bubble_s: bubble,
            data_s,
            optimizer_s,
            overhead_s,
        }
    }

    /// Training tokens/s per chip.
    #[must_use]
    pub fn tokens_per_s_per_chip(&self, job: &TrainingJob, layout: &TrainingLayout) -> f64 {
        let chips = f64::from(layout.pp) * f64::from(layout.tp) * f64::from(layout.replicas());
        job.step_tokens() / self.step_s / chips
    }

    /// Model FLOP utilisation against `peak_flops`: convention A, causal pairs once, nothing for recomputation.
    #[must_use]
    pub fn mfu(&self, work: &TrainingWork, tokens_per_s_per_chip: f64, peak_flops: f64) -> f64 {
        work.causal_flops() * tokens_per_s_per_chip / peak_flops
    }

    /// Hardware FLOP utilisation: as [`Self::mfu`], with what is computed again.
    #[must_use]
    pub fn hfu(
        &self,
        work: &TrainingWork,
        tokens_per_s_per_chip: f64,
        peak_flops: f64,
        recomputed_share: f64,
    ) -> f64 {
        (work.causal_flops() + recomputed_share * work.recomputed_flops) * tokens_per_s_per_chip
            / peak_flops
    }

    /// The step by what takes its time.
    #[must_use]
    pub fn parts(
        &self,
        cost: &MicrobatchCost,
        parameters: &TrainingParameters,
        layout: &TrainingLayout,
        job: &TrainingJob,
    ) -> StepParts {
        let pp = f64::from(layout.pp);
        let share = imbalance(cost.layers, layout.pp, layout.vpp) / pp * self.microbatches;
        let head_share = head_share(cost, parameters, layout);
        let forwards = 1.0 + job.recipe.extra_forwards();
        let (forward, backward) = (&cost.forward, &cost.backward);
        let both = |forward_s: f64, backward_s: f64| share * (forwards * forward_s + backward_s);
        StepParts {
            gemm_s: both(forward.gemm_s, backward.gemm_s),
            experts_s: both(forward.experts_s, backward.experts_s),
            attention_s: both(forward.attention_s, backward.attention_s),
            elementwise_s: both(
                forward.elementwise_s + forward.adapter_s,
                backward.elementwise_s + backward.adapter_s,
            ),
            cast_s: both(forward.cast_s, backward.cast_s),
            head_s: self.microbatches
                * head_share
                * (forwards * cost.head_forward_s + cost.head_backward_s),
            tensor_s: both(forward.tensor_s, backward.tensor_s),
            expert_exchange_s: both(forward.expert_exchange_s, backward.expert_exchange_s),
            context_s: both(forward.context_s, backward.context_s),
            pipeline_s: self.pipeline_transfer_s,
            data_s: self.data_s,
            bubble_s: self.bubble_s,
            recompute_s: self.recompute_s,
            optimizer_s: self.optimizer_s,
            overhead_s: self.overhead_s + both(forward.overhead_s, backward.overhead_s),
        }
    }
}

/// Share of head and loss by which every stage is longer.
///
/// Source: the mean over the stages, and a part of what the last stage takes longer. Where the head has the place of a
/// layer, only what it takes longer than that layer counts.
#[inline(always)]
fn head_share(
    cost: &MicrobatchCost,
    parameters: &TrainingParameters,
    layout: &TrainingLayout,
) -> f64 {
    let pp = f64::from(layout.pp);
    let of_last = parameters.head_stage_share * (1.0 - 1.0 / pp);
    if !ends_take_slots(cost.layers, layout.pp, layout.vpp) {
        return 1.0 / pp + of_last;
    }
    let head_s = cost.head_forward_s + cost.head_backward_s;
    let layer_s = (cost.forward.total_s() + cost.backward.total_s()) / f64::from(cost.layers);
    if head_s > layer_s {
        of_last * (1.0 - layer_s / head_s)
    } else {
        0.0
    }
}

/// Parameters that a chip of the longest stage holds before sharding over replicas: outside experts, and of experts.
pub(super) fn stage_parameters(
    cost: &MicrobatchCost,
    layout: &TrainingLayout,
    share: f64,
) -> (f64, f64) {
    let ends = if layout.pp == 1 {
        cost.shard.embedding_parameters + cost.shard.head_parameters
    } else {
        cost.shard
            .embedding_parameters
            .max(cost.shard.head_parameters)
    };
    (
        cost.shard.layer_parameters * share + ends,
        cost.shard.expert_parameters * share,
    )
}

/// Gradient and parameter traffic that nothing hides, s.
#[inline(always)]
fn data_traffic_s(
    cost: &MicrobatchCost,
    parameters: &TrainingParameters,
    job: &TrainingJob,
    layout: &TrainingLayout,
    share: f64,
    microbatch_s: f64,
) -> f64 {
    let replicas = f64::from(layout.replicas());
    let expert_replicas = f64::from(layout.expert_replicas());
    if replicas <= 1.0 && expert_replicas <= 1.0 {
        return 0.0;
    }
    let (dense, experts) = stage_parameters(cost, layout, share);
    let tp = f64::from(layout.tp);
    let expert_stride = f64::from(layout.ep) * f64::from(layout.etp);
    let latency_s = parameters.network_latency_s;
    let gather_s =
        |bytes: f64, replicas: f64| cost.rates.gather_s(replicas, tp, dense * bytes, latency_s);
    let gather_experts_s = |bytes: f64, replicas: f64| {
        cost.rates
            .gather_s(replicas, expert_stride, experts * bytes, latency_s)
    };
    if layout.weight_ranks() > 1 {
        let ranks = f64::from(layout.weight_ranks());
        let expert_ranks = ranks.min(expert_replicas);
        let gradients = if job.recipe.is_frozen() { 0.0 } else { 1.0 };
        let passes = PARAMETER_BYTES * (2.0 + gradients);
        let each_s = gather_s(passes, ranks) + gather_experts_s(passes, expert_ranks);
        let microbatches = layout.microbatches(job).max(1.0);
        // Traffic of one layer hides behind the work of the one before it.
        const HIDING_SHARE: f64 = 0.9;
        let sharded_s = microbatches
            * (parameters.sharded_exposed * each_s
                + (each_s - HIDING_SHARE * microbatch_s).max(0.0));
        let groups = replicas / ranks;
        let between_s = if groups > 1.0 {
            // Gradients of each shard are reduced between groups once a step.
            parameters.data_exposed
                * 2.0
                * cost.rates.gather_s(
                    groups,
                    tp * ranks,
                    (dense + experts) * job.gradients.bytes() / ranks,
                    latency_s,
                )
        } else {
            0.0
        };
        return sharded_s + between_s;
    }
    let trained = if job.recipe.is_frozen() {
        // Only the adapters' gradients move.
        let bytes =
            cost.shard.adapter_parameters * share * (job.gradients.bytes() + PARAMETER_BYTES);
        cost.rates.gather_s(replicas, tp, bytes, latency_s)
    } else {
        let bytes = job.gradients.bytes() + PARAMETER_BYTES;
        gather_s(bytes, replicas) + gather_experts_s(bytes, expert_replicas)
    };
    // All but the first and last buckets travel behind the last backward and the next forward pass.
    parameters.data_exposed * trained
        + ((1.0 - parameters.data_exposed) * trained - microbatch_s).max(0.0)
}

/// Time of the optimizer, s.
#[inline(always)]
fn optimizer_s(
    cost: &MicrobatchCost,
    accelerator: &Accelerator,
    parameters: &TrainingParameters,
    job: &TrainingJob,
    layout: &TrainingLayout,
    share: f64,
) -> f64 {
    let owned = owned_parameters(cost, job, layout, share);
    let bytes_per_s = if job.optimizer == super::OptimizerState::HostAdam32 {
        // Gradients and weights cross the host link; the host's memory and cores bound the rest.
        const HOST_BYTES_PER_S: f64 = 20e9;
        HOST_BYTES_PER_S
    } else {
        accelerator.hbm_bytes_per_s * parameters.bandwidth_efficiency
    };
    owned * parameters.optimizer_traffic_bytes / bytes_per_s
}

/// Parameters whose optimizer state one chip owns.
pub(super) fn owned_parameters(
    cost: &MicrobatchCost,
    job: &TrainingJob,
    layout: &TrainingLayout,
    share: f64,
) -> f64 {
    let ranks = f64::from(layout.sharding.optimizer_ranks(layout.replicas()));
    if job.recipe.is_frozen() {
        return cost.shard.adapter_parameters * share / ranks;
    }
    let (dense, experts) = stage_parameters(cost, layout, share);
    let expert_ranks = ranks.min(f64::from(layout.expert_replicas()));
    dense / ranks + experts / expert_ranks
}
