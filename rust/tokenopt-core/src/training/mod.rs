//! Training: jobs, layouts, the time of a step and the memory it needs.
//!
//! [`MicrobatchCost`] is what is expensive to work out: one micro-batch through the whole model on one chip's share. It
//! depends on tensor, context and expert parallelism and on the micro-batch only. [`TrainingStep`] and
//! [`TrainingMemory`] add pipeline, data parallelism, sharding, schedule and recomputation with straight-line
//! arithmetic, so that a search works a micro-batch out once and then goes through everything else cheaply.

mod kept;
pub mod layer;
pub mod layout;
pub mod memory;
pub mod microbatch;
pub mod parameters;
pub mod pipeline;
pub mod predict;
pub mod rates;
mod routed;
pub mod run;
pub mod search;
pub mod step;
pub mod work;

pub use layout::{ContextExchange, Recompute, Schedule, Sharding, TrainingLayout};
pub use memory::TrainingMemory;
pub use microbatch::{MicrobatchCost, Split};
pub use parameters::{TrainingParameters, TRAINING_PARAMETERS};
pub use rates::Rates;
pub use step::{StepParts, TrainingStep};
pub use work::TrainingWork;

use serde::{Deserialize, Serialize};

use crate::accelerator::PeakFlops;
use crate::error::{require_positive, CoreError};

/// What is trained, and how.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingJob {
    /// Sequence length, tokens.
    pub seq_len: f64,
    /// Sequences of one optimizer step over all chips.
    pub global_batch: f64,
    /// What is updated.
    #[serde(default)]
    pub recipe: Recipe,
    /// Format of the linear layers' arithmetic; the head, norms and the attention core stay in 16 bits.
    #[serde(default)]
    pub format: TrainingFormat,
    /// Length of the documents packed into a sequence, tokens: attention stops at their borders. Absent = one document
    /// fills the sequence.
    #[serde(default)]
    pub document_tokens: Option<f64>,
    /// Token-expert pairs an expert takes over the mean before the rest is dropped; absent = nothing is dropped.
    #[serde(default)]
    pub capacity_factor: Option<f64>,
    /// Attention kernel.
    #[serde(default)]
    pub attention: AttentionKernel,
    /// What the optimizer keeps.
    #[serde(default)]
    pub optimizer: OptimizerState,
    /// Format gradients are kept and exchanged in.
    #[serde(default)]
    pub gradients: GradientFormat,
    /// Whether every operator is a kernel of its own (no compiler, no fused norms and activations).
    #[serde(default)]
    pub is_eager: bool,
}

/// What a step updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// All weights on raw text.
    #[default]
    Pretrain,
    /// All weights on instructions.
    Sft,
    /// Low-rank adapters on every linear layer; the base is frozen.
    Lora {
        /// Rank of the adapters.
        rank: u32,
    },
    /// Low-rank adapters on the attention projections only; the base is frozen.
    LoraAttention {
        /// Rank of the adapters.
        rank: u32,
    },
    /// Direct preference optimization: all weights, with a forward pass of the frozen reference per sequence.
    Dpo,
    /// Reward model: all weights, a scalar head instead of the vocabulary.
    RewardModel,
}

impl Recipe {
    /// Whether the base weights are frozen.
    #[must_use]
    pub fn is_frozen(self) -> bool {
        matches!(self, Self::Lora { .. } | Self::LoraAttention { .. })
    }

    /// Rank of the adapters, 0 without.
    #[must_use]
    pub fn rank(self) -> u32 {
        match self {
            Self::Lora { rank } | Self::LoraAttention { rank } => rank,
            _ => 0,
        }
    }

    /// Forward passes of frozen models of the same size per trained sequence.
    #[must_use]
    pub fn extra_forwards(self) -> f64 {
        if self == Self::Dpo {
            1.0
        } else {
            0.0
        }
    }

    /// Whether logits over the vocabulary are computed.
    #[must_use]
    pub fn has_head(self) -> bool {
        self != Self::RewardModel
    }
}

/// Number format of the linear layers.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum TrainingFormat {
    /// 16-bit brain float (or FP16).
    #[default]
    Bf16,
    /// 8-bit float with one scale a tensor, or per block of 128.
    Fp8,
    /// 8-bit float with a scale a row.
    Fp8Rowwise,
    /// OCP microscaling, a scale per 32 elements.
    Mxfp8,
    /// OCP microscaling in four bits.
    Mxfp4,
    /// NVIDIA FP4.
    Nvfp4,
    /// 8-bit integers (TPU).
    Int8,
}

impl TrainingFormat {
    /// Dense peak the products run at; the 16-bit peak where the chip has no fast path. FLOP/s.
    #[must_use]
    pub fn peak_flops(self, peaks: &PeakFlops) -> f64 {
        match self {
            Self::Bf16 => peaks.bf16,
            Self::Fp8 | Self::Fp8Rowwise | Self::Mxfp8 => peaks.fp8.unwrap_or(peaks.bf16),
            Self::Mxfp4 | Self::Nvfp4 => peaks.fp4.or(peaks.fp8).unwrap_or(peaks.bf16),
            Self::Int8 => peaks.int8.or(peaks.fp8).unwrap_or(peaks.bf16),
        }
    }

    /// Bytes of an operand of a product.
    #[must_use]
    pub fn operand_bytes(self) -> f64 {
        match self {
            Self::Bf16 => 2.0,
            Self::Fp8 | Self::Fp8Rowwise | Self::Int8 => 1.0,
            // 8 + 8/32, 4 + 8/32 and 4 + 8/16 bits.
            Self::Mxfp8 => 1.031_25,
            Self::Mxfp4 => 0.531_25,
            Self::Nvfp4 => 0.562_5,
        }
    }

    /// Whether operands are cast from 16 bits.
    #[must_use]
    pub fn is_cast(self) -> bool {
        self != Self::Bf16
    }

    /// Traffic of a cast over that of one per-tensor scale: block scales are found and written along both directions.
    #[must_use]
    pub fn cast_weight(self) -> f64 {
        match self {
            Self::Bf16 => 0.0,
            Self::Fp8 | Self::Fp8Rowwise | Self::Int8 => 1.0,
            Self::Mxfp8 | Self::Mxfp4 | Self::Nvfp4 => 1.5,
        }
    }
}

/// How the attention core keeps its scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKernel {
    /// Scores never leave the chip; masked blocks are skipped.
    #[default]
    Flash,
    /// The same with kernels tuned for the generation before 8-bit products (FlashAttention-2).
    Flash2,
    /// The whole score matrix is computed and written (before 2023).
    Materialised,
}

/// What the optimizer keeps per parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerState {
    /// FP32 master weights and two FP32 moments: 12 bytes.
    #[default]
    Adam32,
    /// FP32 master weights and two 16-bit moments: 8 bytes.
    Adam16,
    /// FP32 master weights and two 8-bit moments: 6 bytes.
    Adam8,
    /// FP32 master weights and one FP32 moment (Muon and other momentum methods): 8 bytes.
    Momentum,
    /// 12 bytes in host memory: nothing on the chip.
    HostAdam32,
}

/// Format of the gradients between backward pass and optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientFormat {
    /// 4 bytes.
    #[default]
    Fp32,
    /// 2 bytes.
    Bf16,
}

impl GradientFormat {
    /// Bytes of a gradient.
    #[must_use]
    pub fn bytes(self) -> f64 {
        match self {
            Self::Fp32 => 4.0,
            Self::Bf16 => 2.0,
        }
    }
}

impl OptimizerState {
    /// Bytes on the chip per owned parameter, master weights included.
    #[must_use]
    pub fn bytes_per_parameter(self) -> f64 {
        match self {
            Self::Adam32 => 12.0,
            Self::Adam16 | Self::Momentum => 8.0,
            Self::Adam8 => 6.0,
            Self::HostAdam32 => 0.0,
        }
    }
}

impl TrainingJob {
    /// Tokens of one optimizer step.
    #[must_use]
    pub fn step_tokens(&self) -> f64 {
        self.seq_len * self.global_batch
    }

    /// Length over which a token of the sequence attends, tokens.
    #[must_use]
    pub fn document_tokens(&self) -> f64 {
        self.document_tokens
            .unwrap_or(self.seq_len)
            .min(self.seq_len)
    }

    /// Checks every figure.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        require_positive("seq_len", self.seq_len)?;
        require_positive("global_batch", self.global_batch)?;
        if let Some(tokens) = self.document_tokens {
            require_positive("document_tokens", tokens)?;
        }
        if let Some(factor) = self.capacity_factor {
            require_positive("capacity_factor", factor)?;
        }
        Ok(())
    }
}
