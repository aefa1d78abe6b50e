//! What the fullest chip of a training job must hold.

use serde::Serialize;

use super::layout::{Recompute, TrainingLayout};
use super::microbatch::MicrobatchCost;
use super::parameters::TrainingParameters;
use super::pipeline::{imbalance, microbatches_kept};
use super::step::{owned_parameters, stage_parameters};
use super::TrainingJob;
use crate::accelerator::Accelerator;

/// Memory of one chip of one pipeline stage, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrainingMemory {
    /// 16-bit weights.
    pub weight_bytes: f64,
    /// Gradients.
    pub gradient_bytes: f64,
    /// Optimizer state.
    pub optimizer_bytes: f64,
    /// Activations of the micro-batches in flight.
    pub activation_bytes: f64,
    /// Working set of a layer in progress, gathered weights, logits.
    pub working_bytes: f64,
    /// What training can plan with.
    pub plannable_bytes: f64,
}

impl TrainingMemory {
    /// Sizes stage `stage` (0 = first) of `layout`.
    ///
    /// Source: 2 bytes a weight, gradients by [`super::GradientFormat`], optimizer state by
    /// [`super::OptimizerState`], activations of the micro-batches that the schedule keeps ([`microbatches_kept`] less
    /// one per later stage).
    /// Assumes: tensors of packed or padded batches are as large as full sequences; fragmentation is what
    /// `memory_share` leaves.
    #[must_use]
    pub fn of_stage(
        cost: &MicrobatchCost,
        accelerator: &Accelerator,
        parameters: &TrainingParameters,
        job: &TrainingJob,
        layout: &TrainingLayout,
        stage: u32,
    ) -> Self {
        // Frozen weights are kept in the format they are multiplied in.
        let weight_bytes = if job.recipe.is_frozen() {
            job.format.operand_bytes()
        } else {
            2.0
        };
        let pp = f64::from(layout.pp);
        let share = imbalance(cost.layers, layout.pp, layout.vpp) / pp;
        let (dense, experts) = stage_parameters(cost, layout, share);
        let weight_ranks = f64::from(layout.weight_ranks());
        let expert_replicas = f64::from(layout.expert_replicas());
        let adapters = cost.shard.adapter_parameters * share;
        let held = dense / weight_ranks + experts / weight_ranks.min(expert_replicas) + adapters;
        let is_sharded = layout.weight_ranks() > 1;
        let gradient_ranks = f64::from(layout.gradient_ranks());
        let gradient_bytes = if job.recipe.is_frozen() {
            4.0 * adapters
        } else {
            job.gradients.bytes()
                * (dense / gradient_ranks + experts / gradient_ranks.min(expert_replicas))
        };
        let optimizer_bytes =
            owned_parameters(cost, job, layout, share) * job.optimizer.bytes_per_parameter();

        let microbatches = layout.microbatches(job).max(1.0);
        let kept = (microbatches_kept(pp, f64::from(layout.vpp), microbatches) - f64::from(stage))
            .max(1.0)
            .min(microbatches);
        let shard = &cost.shard;
        let per_microbatch = share
            * match layout.recompute {
                Recompute::None => shard.kept_bytes,
                Recompute::Selective => shard.kept_selective_bytes,
                Recompute::Full => shard.kept_full_bytes,
                Recompute::Blocks(blocks) => {
                    let whole = (f64::from(blocks) / (f64::from(cost.layers) * share)).min(1.0);
                    whole * shard.kept_full_bytes + (1.0 - whole) * shard.kept_selective_bytes
                }
            };
        let mut working_bytes = match layout.recompute {
            Recompute::None => 0.1 * shard.working_bytes,
            _ => shard.working_bytes,
        };
        if is_sharded {
            // The layer in use and the one on its way, and the gradient of one.
            working_bytes += 3.0 * weight_bytes * shard.largest_layer_parameters;
        }
        if stage + 1 == layout.pp {
            working_bytes += shard.logit_bytes;
        }
        Self {
            weight_bytes: weight_bytes * held,
            gradient_bytes,
            optimizer_bytes,
            activation_bytes: kept * per_microbatch,
            working_bytes,
            plannable_bytes: accelerator.hbm_bytes * parameters.memory_share
                - parameters.reserved_bytes,
        }
    }

    /// Sizes the fullest stage: the first keeps most activations, the last the logits.
    #[must_use]
    pub fn new(
        cost: &MicrobatchCost,
        accelerator: &Accelerator,
        parameters: &TrainingParameters,
        job: &TrainingJob,
        layout: &TrainingLayout,
    ) -> Self {
        let first = Self::of_stage(cost, accelerator, parameters, job, layout, 0);
        if layout.pp == 1 {
            return first;
        }
        let last = Self::of_stage(cost, accelerator, parameters, job, layout, layout.pp - 1);
        if last.total_bytes() > first.total_bytes() {
            last
        } else {
            first
        }
    }

    /// All of it.
    #[must_use]
    pub fn total_bytes(&self) -> f64 {
        self.weight_bytes
            + self.gradient_bytes
            + self.optimizer_bytes
            + self.activation_bytes
            + self.working_bytes
    }

    /// Whether the chip can hold it.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.total_bytes() <= self.plannable_bytes
    }

    /// What alone, or with what came before it, exceeds the memory; None when all fits.
    #[must_use]
    pub fn refusal(&self) -> Option<&'static str> {
        let mut sum = self.weight_bytes;
        if sum > self.plannable_bytes {
            return Some("the weights do not fit");
        }
        sum += self.gradient_bytes + self.optimizer_bytes;
        if sum > self.plannable_bytes {
            return Some("weights, gradients and optimizer state do not fit");
        }
        if !self.fits() {
            return Some("activations do not fit beside weights and optimizer state");
        }
        None
    }
}
