//! Arithmetic of training by explicit counting conventions.

use serde::Serialize;

use super::TrainingJob;
use crate::count::count;
use crate::model::{Mixer, ModelSpec, Scope};
use crate::ops::attention::{Lengths, MixerWork};

/// FLOP of one trained token.
///
/// Source: forward and backward of a product take 6 FLOP per parameter a token meets; of the embeddings the head only.
/// Frozen weights (adapters) need no weight gradient: 4. Attention adds three times its forward: causal pairs once
/// (convention A), or the whole square as many papers and logs print (convention B).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrainingWork {
    /// Matrix products of parameters, forward and backward.
    pub parameter_flops: f64,
    /// Forward and backward of the mixer cores, causal pairs once and windows respected.
    pub causal_attention_flops: f64,
    /// The same as if no mask nor window saved anything.
    pub full_attention_flops: f64,
    /// What the convention adds that counts the input embedding as if it were a product.
    pub embedding_flops: f64,
    /// Forward pass again: what full recomputation executes on top.
    pub recomputed_flops: f64,
}

impl TrainingWork {
    /// Counts `job` on `model`.
    #[must_use]
    pub fn new(model: &ModelSpec, job: &TrainingJob) -> Self {
        let counts = count(model);
        let passes = if job.recipe.is_frozen() { 2.0 } else { 3.0 };
        let extra = job.recipe.extra_forwards();
        let tokens = job.document_tokens();
        let lengths = Lengths {
            isl: tokens,
            osl: 0.0,
            cached: 0.0,
        };
        let mut causal = 0.0;
        let mut full = 0.0;
        for group in &model.layers {
            let layers = f64::from(group.count);
            let work = MixerWork::new(&group.mixer, &lengths, 2.0, 1.0).prompt_flops / tokens;
            causal += layers * work;
            full += layers
                * match group.mixer {
                    Mixer::Attention {
                        heads,
                        qk_head_dim,
                        v_head_dim,
                        ..
                    } => {
                        2.0 * job.seq_len
                            * f64::from(heads)
                            * (f64::from(qk_head_dim) + f64::from(v_head_dim))
                    }
                    Mixer::Mla { .. } => 2.0 * work * job.seq_len / tokens,
                    _ => work,
                };
        }
        let head_only = counts.active_parameters_head_only;
        let forward = 2.0 * head_only;
        Self {
            parameter_flops: forward * (passes + extra),
            causal_attention_flops: causal * (3.0 + extra),
            full_attention_flops: full * (3.0 + extra),
            embedding_flops: 2.0
                * passes
                * f64::from(model.vocab)
                * f64::from(model.hidden)
                * if model.tie_embeddings { 0.0 } else { 1.0 },
            recomputed_flops: forward + causal,
        }
    }

    /// Convention A: causal pairs once.
    #[must_use]
    pub fn causal_flops(&self) -> f64 {
        self.parameter_flops + self.causal_attention_flops
    }

    /// Convention B: the whole square of attention.
    #[must_use]
    pub fn full_flops(&self) -> f64 {
        self.parameter_flops + self.full_attention_flops
    }
}

/// Share of a sequence's pairs that a causal mask (and `scope`) leaves, for tests and explanations.
#[must_use]
pub fn causal_share(seq_len: f64, scope: Scope) -> f64 {
    let lengths = Lengths {
        isl: seq_len,
        osl: 0.0,
        cached: 0.0,
    };
    lengths.prompt_pairs(scope) / (seq_len * seq_len)
}
