//! How one training job is split over chips.

use serde::{Deserialize, Serialize};

use super::TrainingJob;
use crate::accelerator::{Accelerator, Topology};
use crate::model::{Ffn, ModelSpec};
use crate::ops::attention::split_heads;

/// Who holds which part of weights, gradients and optimizer state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharding {
    /// Every data-parallel rank holds everything.
    Zero0,
    /// Optimizer state is spread over the data-parallel ranks.
    Zero1,
    /// Optimizer state and gradients are spread.
    Zero2,
    /// Weights too: gathered for each layer of each micro-batch (ZeRO-3, fully sharded data parallelism).
    Zero3,
    /// Weights, gradients and optimizer state are spread over groups of so many ranks and repeated in each group.
    Hybrid(u32),
}

impl Sharding {
    /// Ranks over which weights are spread.
    #[must_use]
    pub fn weight_ranks(self, dp: u32) -> u32 {
        match self {
            Self::Zero0 | Self::Zero1 | Self::Zero2 => 1,
            Self::Zero3 => dp,
            Self::Hybrid(ranks) => ranks.min(dp),
        }
    }

    /// Ranks over which the optimizer state is spread.
    #[must_use]
    pub fn optimizer_ranks(self, dp: u32) -> u32 {
        match self {
            Self::Zero0 => 1,
            Self::Zero1 | Self::Zero2 | Self::Zero3 => dp,
            Self::Hybrid(ranks) => ranks.min(dp),
        }
    }

    /// Ranks over which gradients are spread.
    #[must_use]
    pub fn gradient_ranks(self, dp: u32) -> u32 {
        match self {
            Self::Zero0 | Self::Zero1 => 1,
            Self::Zero2 | Self::Zero3 => dp,
            Self::Hybrid(ranks) => ranks.min(dp),
        }
    }
}

/// What is computed again in the backward pass instead of being kept.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// Norms, activations and the scores of attention: cheap to redo, large to keep.
    Selective,
    /// Every layer: only its input is kept.
    Full,
    /// The first so many layers of each stage wholly, the others selectively.
    Blocks(u32),
}

/// Order of the micro-batches in the pipeline.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// One forward, one backward; interleaved when a stage holds several chunks (`vpp` > 1).
    #[default]
    OneForwardOneBackward,
    /// Weight gradients fill the bubble (ZB-H1: the memory of 1F1B).
    ZeroBubble,
}

/// How context parallelism brings queries and keys together.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum ContextExchange {
    /// Keys and values travel round a ring.
    #[default]
    Ring,
    /// Sequence shards are exchanged for head shards and back.
    AllToAll,
}

/// Parallel layout of a training job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingLayout {
    /// Tensor parallelism.
    pub tp: u32,
    /// Whether norms and residuals are split over the tensor-parallel group along the sequence.
    pub sequence_parallel: bool,
    /// Pipeline stages.
    pub pp: u32,
    /// Chunks of layers a stage holds.
    pub vpp: u32,
    /// Context parallelism.
    pub cp: u32,
    /// Expert parallelism.
    pub ep: u32,
    /// Tensor parallelism inside an expert.
    pub etp: u32,
    /// Data parallelism.
    pub dp: u32,
    /// Sharding over the data-parallel ranks (context-parallel ranks included, as they hold the same weights).
    pub sharding: Sharding,
    /// Sequences of a micro-batch.
    pub micro_batch: u32,
    /// What is computed twice.
    pub recompute: Recompute,
    /// Pipeline schedule.
    #[serde(default)]
    pub schedule: Schedule,
    /// Whether products are cut so that they hide tensor-parallel traffic.
    #[serde(default)]
    pub async_tensor: bool,
    /// How context parallelism exchanges.
    #[serde(default)]
    pub context_exchange: ContextExchange,
}

impl Default for TrainingLayout {
    fn default() -> Self {
        Self {
            tp: 1,
            sequence_parallel: true,
            pp: 1,
            vpp: 1,
            cp: 1,
            ep: 1,
            etp: 1,
            dp: 1,
            sharding: Sharding::Zero1,
            micro_batch: 1,
            recompute: Recompute::None,
            schedule: Schedule::OneForwardOneBackward,
            async_tensor: false,
            context_exchange: ContextExchange::Ring,
        }
    }
}

impl TrainingLayout {
    /// Whether every degree is at least 1.
    #[must_use]
    pub fn has_no_zero(&self) -> bool {
        ![
            self.tp,
            self.pp,
            self.vpp,
            self.cp,
            self.ep,
            self.etp,
            self.dp,
            self.micro_batch,
        ]
        .contains(&0)
    }

    /// Chips of the job.
    #[must_use]
    pub fn chips(&self) -> u64 {
        self.model_chips() * u64::from(self.dp)
    }

    /// Chips of one copy of the model with its context-parallel ranks.
    #[must_use]
    pub fn model_chips(&self) -> u64 {
        u64::from(self.tp) * u64::from(self.pp) * u64::from(self.cp)
    }

    /// Ranks that hold the same non-expert weights: data times context parallelism.
    #[must_use]
    pub fn replicas(&self) -> u32 {
        self.dp * self.cp
    }

    /// Ranks that hold the same experts.
    #[must_use]
    pub fn expert_replicas(&self) -> u32 {
        (self.tp * self.cp * self.dp / (self.ep * self.etp)).max(1)
    }

    /// Ranks over which weights are spread while a step runs. In a pipeline every stage keeps its gathered weights from the
    /// first to the last micro-batch: gathering them for each would cost more than the memory is worth.
    #[must_use]
    pub fn weight_ranks(&self) -> u32 {
        if self.pp > 1 {
            1
        } else {
            self.sharding.weight_ranks(self.replicas())
        }
    }

    /// Ranks over which gradients are spread while a step runs; a pipeline adds them up before it spreads them.
    #[must_use]
    pub fn gradient_ranks(&self) -> u32 {
        if self.pp > 1 {
            1
        } else {
            self.sharding.gradient_ranks(self.replicas())
        }
    }

    /// Micro-batches of a step through each pipeline; not whole when the batch does not divide.
    #[must_use]
    pub fn microbatches(&self, job: &TrainingJob) -> f64 {
        job.global_batch / (f64::from(self.dp) * f64::from(self.micro_batch))
    }

    /// Why this layout cannot train `model` on `accelerator`; None when it can (memory aside).
    ///
    /// Tensor parallelism stays inside the scale-up domain and divides heads and widths; context parallelism cuts a
    /// sequence into twice as many pieces (causal balance); expert parallelism divides the experts and the chips of a
    /// stage; the batch divides over ranks and micro-batches; interleaving needs chunks of whole layers and at least
    /// as many micro-batches as stages.
    #[must_use]
    pub fn refusal(
        &self,
        model: &ModelSpec,
        accelerator: &Accelerator,
        job: &TrainingJob,
    ) -> Option<&'static str> {
        if !self.has_no_zero() {
            return Some("every degree of parallelism must be at least 1");
        }
        if self.tp > 1 && self.tp > accelerator.scale_up.domain_chips {
            return Some("tensor parallelism leaves the scale-up domain");
        }
        if self.chips() > 1 && accelerator.scale_up.topology == Topology::Single {
            return Some("the accelerator has no fabric to a second chip");
        }
        let layers: u32 = model.layers.iter().map(|group| group.count).sum();
        // Embedding and head may count as a layer each, so that the first and last stages hold one layer less.
        if u64::from(self.pp) * u64::from(self.vpp) > u64::from(layers) + 2 {
            return Some("more pipeline chunks than layers");
        }
        if self.vpp > 1 && self.pp == 1 {
            return Some("interleaving needs a pipeline");
        }
        if self.cp > 1 && job.seq_len % (2.0 * f64::from(self.cp)) != 0.0 {
            return Some("context parallelism does not cut the sequence into equal pieces");
        }
        let stage_ranks = self.tp * self.cp * self.dp;
        if stage_ranks % (self.ep * self.etp) != 0 {
            return Some("expert parallelism does not divide tp x cp x dp");
        }
        let mut has_experts = false;
        for group in &model.layers {
            if split_heads(&group.mixer).is_some_and(|heads| heads % self.tp != 0) {
                return Some("tensor parallelism does not divide the heads");
            }
            match group.ffn {
                Ffn::None => {}
                Ffn::Dense { dim, .. } => {
                    if dim % self.tp != 0 {
                        return Some("tensor parallelism does not divide the width of the FFN");
                    }
                }
                Ffn::Moe {
                    experts,
                    expert_dim,
                    ..
                } => {
                    has_experts = true;
                    if experts % self.ep != 0 {
                        return Some("expert parallelism does not divide the experts");
                    }
                    if expert_dim % self.etp != 0 {
                        return Some("tensor parallelism does not divide the experts' width");
                    }
                }
            }
        }
        if !has_experts && (self.ep > 1 || self.etp > 1) {
            return Some("the model has no experts to share");
        }
        let microbatches = self.microbatches(job);
        if microbatches < 1.0 || microbatches.fract() != 0.0 {
            return Some("data parallelism and micro-batch do not divide the global batch");
        }
        if self.vpp > 1 && microbatches % f64::from(self.pp) != 0.0 {
            return Some("interleaving needs a multiple of pp micro-batches");
        }
        if let Sharding::Hybrid(ranks) = self.sharding {
            if ranks == 0 || self.replicas() % ranks != 0 {
                return Some("the sharding group does not divide the ranks");
            }
        }
        None
    }
}
