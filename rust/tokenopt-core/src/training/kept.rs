//! What a layer keeps of a micro-batch until its backward pass.

use super::layer::{dense_ffn, MixerWidths};
use super::microbatch::{Shape, ACTIVATION_BYTES};
use super::routed::ExpertLayer;
use super::{AttentionKernel, Recipe, TrainingJob};
use crate::model::{Ffn, LayerGroup, Mixer};

/// Activation bytes of one layer and micro-batch by recomputation.
pub(super) struct Kept {
    pub(super) all: f64,
    pub(super) selective: f64,
    pub(super) full: f64,
    pub(super) transient: f64,
}

impl Kept {
    /// Source: the inputs that backward operators read (Korthikanti et al. 2022, section 4, without dropout and with
    /// gated FFNs): norm input and output, queries, keys, values, core output, inner FFN tensors. Casts keep their
    /// operands in the narrow format.
    pub(super) fn new(
        group: &LayerGroup,
        job: &TrainingJob,
        shape: &Shape,
        mixer: &MixerWidths,
        tp: f64,
    ) -> Self {
        let operand = job.format.operand_bytes().max(1.0);
        let residual = shape.hidden / shape.sequence_split;
        let (ffn_dim, matrices) = dense_ffn(&group.ffn);
        let inner = ffn_dim / tp;
        // A frozen product needs its input only where an adapter reads it too.
        let ffn_input = match job.recipe {
            Recipe::LoraAttention { .. } => 0.0,
            _ => operand,
        };
        let mut all = 0.0;
        let mut selective = 0.0;
        if group.mixer != Mixer::None {
            selective += ACTIVATION_BYTES * (residual + mixer.inner) + operand * mixer.out;
            all += operand * residual;
        }
        if group.ffn != Ffn::None {
            selective += ACTIVATION_BYTES * (residual + (matrices - 1.0).max(0.0) * inner);
            all += ffn_input * (residual + inner);
        }
        all += selective;
        if job.attention == AttentionKernel::Materialised {
            all += 5.0 * mixer.heads * job.document_tokens();
        }
        Self {
            all: all * shape.tokens,
            selective: selective * shape.tokens,
            full: ACTIVATION_BYTES * residual * shape.tokens,
            transient: 0.0,
        }
    }

    pub(super) fn add_experts(&mut self, experts: &ExpertLayer, job: &TrainingJob, shape: &Shape) {
        let operand = job.format.operand_bytes().max(1.0);
        let pairs = experts.pairs;
        let inner = experts.expert_dim;
        let selective =
            ACTIVATION_BYTES * (experts.matrices - 1.0) * inner + operand * shape.hidden;
        self.selective += pairs * selective;
        self.all += pairs * (selective + operand * inner + ACTIVATION_BYTES * shape.hidden);
        // Buffers of dispatch and combine.
        self.transient += 2.0 * ACTIVATION_BYTES * pairs * shape.hidden;
    }
}
