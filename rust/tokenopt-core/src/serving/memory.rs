//! What a chip must hold, and how many requests fit beside it.

use serde::Serialize;

use super::{DraftPlan, Layout, Stack};
use crate::accelerator::Accelerator;
use crate::count::GroupParameters;
use crate::format::NumberFormat;
use crate::model::{Ffn, ModelSpec};
use crate::ops::attention::{replicated_projection_parameters, Lengths, MixerWork};

/// Memory of the fullest chip of a replica, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// Weights.
    pub weight_bytes: f64,
    /// Cache and state of one request at its full length, all layers of the stage.
    pub request_bytes: f64,
    /// What the engine may plan with, after what it reserves.
    pub plannable_bytes: f64,
    /// Activation bytes per token of a prefill chunk.
    pub activation_bytes_per_token: f64,
}

impl MemoryPlan {
    /// Sizes the fullest stage of `layout`.
    ///
    /// Assumes: layers are spread evenly over stages, the first or last stage also holds the larger of embedding and
    /// head; activations of a chunk are a few residual streams plus the widest inner layer, in 16 bits; a request's
    /// cache is reserved at its full length, so nothing is ever evicted.
    #[must_use]
    pub fn new(
        model: &ModelSpec,
        accelerator: &Accelerator,
        stack: &Stack,
        layout: Layout,
        lengths: &Lengths,
    ) -> Self {
        let tp = f64::from(layout.tp);
        let layers: u32 = model.layers.iter().map(|group| group.count).sum();
        let stage_share = layout.stage_imbalance(layers) / f64::from(layout.pp);
        let mut layer_bytes = 0.0;
        let mut request_bytes = 0.0;
        let mut widest: f64 = 0.0;
        for group in &model.layers {
            let count = f64::from(group.count);
            let chip = ChipParameters::new(
                &GroupParameters::new(group, model.hidden),
                group,
                model,
                layout,
            );
            layer_bytes += count
                * (chip.mixer * stack.weights.mixer.bytes()
                    + chip.dense * stack.weights.dense.bytes()
                    + chip.experts * stack.weights.experts.bytes()
                    + chip.router * NumberFormat::Bf16.bytes());
            request_bytes += count
                * MixerWork::new(&group.mixer, lengths, stack.kv_precision.bytes(), tp).kept_bytes;
            widest = widest.max(match group.ffn {
                Ffn::None => 0.0,
                Ffn::Dense { dim, .. } => 2.0 * f64::from(dim) / tp,
                Ffn::Moe {
                    expert_dim, top_k, ..
                } => {
                    2.0 * f64::from(expert_dim) * f64::from(top_k) / f64::from(layout.stage_chips())
                        + f64::from(model.hidden) * f64::from(top_k)
                            / f64::from(layout.stage_chips())
                }
            });
        }
        let table = f64::from(model.vocab) * f64::from(model.hidden) / tp;
        let embedding_bytes = table * NumberFormat::Bf16.bytes();
        let head_bytes = table * stack.weights.head.bytes();
        let ends = match (layout.pp, model.tie_embeddings) {
            (1, true) => embedding_bytes,
            (1, false) => embedding_bytes + head_bytes,
            _ => embedding_bytes.max(head_bytes),
        };
        const ACTIVATION_BYTES: f64 = 2.0;
        const RESIDUAL_STREAMS: f64 = 4.0;
        Self {
            weight_bytes: layer_bytes * stage_share + ends,
            request_bytes: request_bytes * stage_share,
            plannable_bytes: accelerator.hbm_bytes * stack.parameters.memory_share
                - stack.parameters.reserved_bytes,
            activation_bytes_per_token: ACTIVATION_BYTES
                * (RESIDUAL_STREAMS * f64::from(model.hidden) + widest),
        }
    }

    /// Makes room for a draft of speculative decoding.
    #[must_use]
    pub fn with_draft(mut self, draft: &DraftPlan) -> Self {
        self.weight_bytes += draft.weight_bytes;
        self.request_bytes += draft.request_bytes;
        self
    }

    /// Bytes left for caches when chunks of `chunk_tokens` are prefilled; negative when the weights do not fit.
    #[must_use]
    pub fn cache_bytes(&self, chunk_tokens: f64) -> f64 {
        self.plannable_bytes - self.weight_bytes - self.activation_bytes_per_token * chunk_tokens
    }

    /// Requests whose full cache fits on a rank.
    #[must_use]
    pub fn capacity_requests(&self, chunk_tokens: f64) -> f64 {
        if self.request_bytes <= 0.0 {
            return f64::MAX;
        }
        (self.cache_bytes(chunk_tokens) / self.request_bytes).floor()
    }
}

/// Parameters of one layer that one chip holds, by class of weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChipParameters {
    /// Mixer projections.
    pub mixer: f64,
    /// Dense FFN or shared experts.
    pub dense: f64,
    /// Routed experts.
    pub experts: f64,
    /// Router.
    pub router: f64,
}

impl ChipParameters {
    /// Splits a layer's parameters: heads and widths over `tp`, experts over the whole stage, bottlenecks and router
    /// on every chip.
    #[must_use]
    pub fn new(
        group: &GroupParameters,
        layer: &crate::model::LayerGroup,
        model: &ModelSpec,
        layout: Layout,
    ) -> Self {
        let tp = f64::from(layout.tp);
        let replicated =
            replicated_projection_parameters(&layer.mixer, model.hidden).min(group.mixer);
        Self {
            mixer: (group.mixer - replicated) / tp + replicated,
            dense: group.dense / tp,
            experts: group.experts / f64::from(layout.stage_chips()),
            router: group.router,
        }
    }
}
