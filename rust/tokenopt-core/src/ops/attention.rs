//! Token mixers: what a decode step reads and multiplies per request, what a prompt costs, what a request keeps.
//!
//! All figures are for one layer and one chip of an attention tensor-parallel group of `tp` chips.

use crate::model::{Gate, Indexer, Mixer, Scope};

/// Lengths of a request, tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lengths {
    /// Prompt.
    pub isl: f64,
    /// Output.
    pub osl: f64,
    /// Prompt tokens served from the prefix cache.
    pub cached: f64,
}

impl Lengths {
    /// Prompt tokens to compute.
    #[must_use]
    pub fn prompt_to_compute(&self) -> f64 {
        self.isl - self.cached
    }

    /// Mean number of earlier tokens that a decode step attends to, under `scope`.
    ///
    /// The context runs evenly from `isl` to `isl + osl`; a window cuts it, a chunk restarts it.
    #[must_use]
    pub fn mean_decode_context(&self, scope: Scope) -> f64 {
        match scope {
            Scope::Full => self.isl + 0.5 * self.osl,
            Scope::Sliding(window) => {
                mean_of_minimum(self.isl, self.isl + self.osl, f64::from(window))
            }
            Scope::Chunked(chunk) => {
                let chunk = f64::from(chunk);
                let longest = self.isl + self.osl;
                if longest <= chunk {
                    self.isl + 0.5 * self.osl
                } else {
                    0.5 * chunk
                }
            }
        }
    }

    /// Query-key pairs of a prompt (causal), under `scope`: tokens times the earlier tokens each attends to.
    #[must_use]
    pub fn prompt_pairs(&self, scope: Scope) -> f64 {
        let computed = self.prompt_to_compute();
        let mean_context = match scope {
            Scope::Full => self.cached + 0.5 * computed,
            Scope::Sliding(window) => mean_of_minimum(self.cached, self.isl, f64::from(window)),
            Scope::Chunked(chunk) => {
                let chunk = f64::from(chunk);
                if self.isl <= chunk {
                    self.cached + 0.5 * computed
                } else {
                    0.5 * chunk
                }
            }
        };
        computed * mean_context
    }

    /// Entries a request keeps per layer when it is complete.
    #[must_use]
    pub fn kept_entries(&self, scope: Scope) -> f64 {
        let all = self.isl + self.osl;
        match scope {
            Scope::Full => all,
            Scope::Sliding(size) | Scope::Chunked(size) => all.min(f64::from(size)),
        }
    }
}

/// Mean of `min(t, limit)` for `t` spread evenly over `from..=to`.
fn mean_of_minimum(from: f64, to: f64, limit: f64) -> f64 {
    if to <= limit {
        return 0.5 * (from + to);
    }
    if from >= limit {
        return limit;
    }
    let span = to - from;
    (0.5 * (from + limit) * (limit - from) + limit * (to - limit)) / span
}

/// Work of one layer's mixer for one request, on one chip.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MixerWork {
    /// Cache or state bytes read (and written) per decode step.
    pub decode_bytes: f64,
    /// FLOP per decode step, at the 16-bit rate.
    pub decode_flops: f64,
    /// FLOP of the mixer core over the whole prompt.
    pub prompt_flops: f64,
    /// Bytes a request keeps in memory at its full length.
    pub kept_bytes: f64,
}

impl MixerWork {
    /// Work of `mixer` for one request of `lengths`, KV elements of `kv_bytes`, heads split over `tp` chips.
    ///
    /// Source: 2 FLOP per multiply-add for scores and for values (causal pairs counted once). MLA decodes absorbed:
    /// scores over `kv_lora + rope` and values over `kv_lora` per head, one shared cache entry that tensor parallelism
    /// does not split. Linear attention and state-space layers read and write a recurrent state whose size does not
    /// grow; their chunked prefill costs about 4 state products per token.
    /// Assumes: recurrent state in 16 bits; indexer keys in 8 bits; softmax is hidden behind the products.
    #[must_use]
    pub fn new(mixer: &Mixer, lengths: &Lengths, kv_bytes: f64, tp: f64) -> Self {
        match *mixer {
            Mixer::None => Self::default(),
            Mixer::Attention {
                heads,
                kv_heads,
                qk_head_dim,
                v_head_dim,
                scope,
                gate: _,
                shared_kv,
            } => {
                let local_heads = f64::from(heads) / tp;
                let local_kv_heads = (f64::from(kv_heads) / tp).max(1.0);
                let head_width = f64::from(qk_head_dim) + f64::from(v_head_dim);
                let entry_width = if shared_kv {
                    f64::from(qk_head_dim)
                } else {
                    head_width
                };
                let entry_bytes = local_kv_heads * entry_width * kv_bytes;
                let flops_per_pair = 2.0 * local_heads * head_width;
                Self {
                    decode_bytes: lengths.mean_decode_context(scope) * entry_bytes,
                    decode_flops: lengths.mean_decode_context(scope) * flops_per_pair,
                    prompt_flops: lengths.prompt_pairs(scope) * flops_per_pair,
                    kept_bytes: lengths.kept_entries(scope) * entry_bytes,
                }
            }
            Mixer::Mla {
                heads,
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
                indexer,
                ..
            } => {
                let local_heads = f64::from(heads) / tp;
                let latent = f64::from(kv_lora_rank);
                let rope = f64::from(qk_rope_head_dim);
                let entry_bytes = (latent + rope) * kv_bytes;
                let absorbed = 2.0 * local_heads * (2.0 * latent + rope);
                let expanded = 2.0
                    * local_heads
                    * (f64::from(qk_nope_head_dim) + rope + f64::from(v_head_dim));
                let context = lengths.mean_decode_context(Scope::Full);
                let mut work = Self {
                    decode_bytes: context * entry_bytes,
                    decode_flops: context * absorbed,
                    prompt_flops: lengths.prompt_pairs(Scope::Full) * expanded,
                    kept_bytes: lengths.kept_entries(Scope::Full) * entry_bytes,
                };
                if let Some(indexer) = indexer {
                    let chosen = f64::from(indexer.top_k).min(context);
                    work.decode_bytes = chosen * entry_bytes;
                    work.decode_flops = chosen * absorbed;
                    // Sparse prefill runs absorbed over the chosen entries.
                    work.prompt_flops = (lengths.prompt_pairs(Scope::Sliding(indexer.top_k))
                        * absorbed)
                        .min(work.prompt_flops);
                    work.add_indexer(&indexer, lengths, 1.0);
                }
                work
            }
            Mixer::CompressedAttention {
                heads,
                head_dim,
                compression,
                window,
                indexer,
                ..
            } => {
                let local_heads = f64::from(heads) / tp;
                let width = f64::from(head_dim);
                let entry_bytes = width * kv_bytes;
                let flops_per_pair = 4.0 * local_heads * width;
                let ratio = f64::from(compression).max(1.0);
                let compressed = lengths.mean_decode_context(Scope::Full) / ratio;
                let local = lengths.mean_decode_context(Scope::Sliding(window));
                let attended = match indexer {
                    Some(indexer) => compressed.min(f64::from(indexer.top_k)),
                    None => compressed,
                } + local;
                let prompt_entries = match indexer {
                    Some(indexer) => (lengths.prompt_pairs(Scope::Full) / ratio)
                        .min(lengths.prompt_to_compute() * f64::from(indexer.top_k)),
                    None => lengths.prompt_pairs(Scope::Full) / ratio,
                } + lengths.prompt_pairs(Scope::Sliding(window));
                let mut work = Self {
                    decode_bytes: attended * entry_bytes,
                    decode_flops: attended * flops_per_pair,
                    prompt_flops: prompt_entries * flops_per_pair,
                    kept_bytes: (lengths.kept_entries(Scope::Full) / ratio
                        + lengths.kept_entries(Scope::Sliding(window)))
                        * entry_bytes,
                };
                if let Some(indexer) = indexer {
                    work.add_indexer(&indexer, lengths, ratio);
                }
                work
            }
            Mixer::GatedDeltaNet {
                key_heads,
                value_heads,
                key_head_dim,
                value_head_dim,
                conv_kernel,
            } => {
                let state =
                    f64::from(value_heads) * f64::from(key_head_dim) * f64::from(value_head_dim);
                let conv = (2.0 * f64::from(key_heads) * f64::from(key_head_dim)
                    + f64::from(value_heads) * f64::from(value_head_dim))
                    * f64::from(conv_kernel.saturating_sub(1));
                Self::recurrent(state, conv, lengths, tp)
            }
            Mixer::KimiDeltaAttention {
                heads,
                head_dim,
                conv_kernel,
            } => {
                let width = f64::from(head_dim);
                let state = f64::from(heads) * width * width;
                let conv =
                    3.0 * f64::from(heads) * width * f64::from(conv_kernel.saturating_sub(1));
                Self::recurrent(state, conv, lengths, tp)
            }
            Mixer::Mamba2 {
                heads,
                head_dim,
                state,
                groups,
                conv_kernel,
            } => {
                let inner = f64::from(heads) * f64::from(head_dim);
                let conv = (inner + 2.0 * f64::from(groups) * f64::from(state))
                    * f64::from(conv_kernel.saturating_sub(1));
                Self::recurrent(inner * f64::from(state), conv, lengths, tp)
            }
            Mixer::Mamba1 {
                inner,
                state,
                conv_kernel,
                ..
            } => Self::recurrent(
                f64::from(inner) * f64::from(state),
                f64::from(inner) * f64::from(conv_kernel.saturating_sub(1)),
                lengths,
                tp,
            ),
        }
    }

    /// A recurrent state of `state` elements (and `conv` elements of convolution history) split over `tp` chips.
    fn recurrent(state: f64, conv: f64, lengths: &Lengths, tp: f64) -> Self {
        const STATE_BYTES: f64 = 2.0;
        const PRODUCTS_PER_TOKEN: f64 = 4.0;
        let local_state = state / tp;
        let kept_bytes = (local_state + conv / tp) * STATE_BYTES;
        Self {
            decode_bytes: 2.0 * kept_bytes,
            decode_flops: 2.0 * PRODUCTS_PER_TOKEN * local_state,
            prompt_flops: 2.0 * PRODUCTS_PER_TOKEN * local_state * lengths.prompt_to_compute(),
            kept_bytes,
        }
    }

    /// Adds an indexer that scores every cached entry (one per `ratio` tokens) and is not split by tensor parallelism.
    fn add_indexer(&mut self, indexer: &Indexer, lengths: &Lengths, ratio: f64) {
        const KEY_BYTES: f64 = 1.0;
        let width = f64::from(indexer.head_dim);
        let flops_per_pair = 2.0 * f64::from(indexer.heads) * width;
        let context = lengths.mean_decode_context(Scope::Full) / ratio;
        self.decode_bytes += context * width * KEY_BYTES;
        self.decode_flops += context * flops_per_pair;
        self.prompt_flops += lengths.prompt_pairs(Scope::Full) / ratio * flops_per_pair;
        self.kept_bytes += lengths.kept_entries(Scope::Full) / ratio * width * KEY_BYTES;
    }
}

/// Parameters of a mixer's projections that every chip of a tensor-parallel group holds whole: the latent bottlenecks of
/// MLA and of compressed attention, and indexers.
///
/// Source: the down-projections produce one vector shared by all heads, so engines replicate them.
#[must_use]
pub fn replicated_projection_parameters(mixer: &Mixer, hidden: u32) -> f64 {
    let hidden = f64::from(hidden);
    let indexer_parameters = |indexer: &Option<Indexer>, q_lora_rank: u32| match indexer {
        Some(indexer) => {
            f64::from(q_lora_rank) * f64::from(indexer.heads) * f64::from(indexer.head_dim)
                + hidden * f64::from(indexer.head_dim)
                + hidden * f64::from(indexer.heads)
        }
        None => 0.0,
    };
    match mixer {
        Mixer::Mla {
            q_lora_rank,
            kv_lora_rank,
            qk_rope_head_dim,
            indexer,
            ..
        } => {
            hidden
                * (f64::from(*q_lora_rank)
                    + f64::from(*kv_lora_rank)
                    + f64::from(*qk_rope_head_dim))
                + indexer_parameters(indexer, *q_lora_rank)
        }
        Mixer::CompressedAttention {
            head_dim,
            q_lora_rank,
            indexer,
            ..
        } => {
            hidden * (f64::from(*q_lora_rank) + f64::from(*head_dim))
                + indexer_parameters(indexer, *q_lora_rank)
        }
        _ => 0.0,
    }
}

/// Query heads that tensor parallelism splits; None where nothing has to divide.
#[must_use]
pub fn split_heads(mixer: &Mixer) -> Option<u32> {
    match *mixer {
        Mixer::None => None,
        Mixer::Attention { heads, .. }
        | Mixer::Mla { heads, .. }
        | Mixer::CompressedAttention { heads, .. }
        | Mixer::KimiDeltaAttention { heads, .. }
        | Mixer::Mamba2 { heads, .. } => Some(heads),
        Mixer::GatedDeltaNet { key_heads, .. } => Some(key_heads),
        Mixer::Mamba1 { inner, .. } => Some(inner),
    }
}

/// Whether the mixer has an output gate that needs its own small kernel.
#[must_use]
pub fn is_gated(mixer: &Mixer) -> bool {
    matches!(
        mixer,
        Mixer::Attention { gate, .. } | Mixer::Mla { gate, .. } if *gate != Gate::None
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: Lengths = Lengths {
        isl: 1000.0,
        osl: 1000.0,
        cached: 0.0,
    };

    #[test]
    fn a_window_cuts_the_context() {
        assert!((LENGTHS.mean_decode_context(Scope::Full) - 1500.0).abs() < 1e-9);
        assert!((LENGTHS.mean_decode_context(Scope::Sliding(128)) - 128.0).abs() < 1e-9);
        // 1000..1500 rises evenly, then 500 tokens at 1500: (1250 * 500 + 1500 * 500) / 1000
        assert!((LENGTHS.mean_decode_context(Scope::Sliding(1500)) - 1375.0).abs() < 1e-9);
    }

    #[test]
    fn grouped_query_attention_reads_both_caches() {
        let mixer = Mixer::Attention {
            heads: 64,
            kv_heads: 8,
            qk_head_dim: 128,
            v_head_dim: 128,
            scope: Scope::Full,
            gate: Gate::None,
            shared_kv: false,
        };
        let work = MixerWork::new(&mixer, &LENGTHS, 2.0, 1.0);
        // 1500 tokens x 8 heads x 256 elements x 2 bytes
        assert!((work.decode_bytes - 6_144_000.0).abs() < 1e-6);
        // 4 FLOP per pair, head and element
        assert!((work.decode_flops - 1500.0 * 4.0 * 64.0 * 128.0).abs() < 1e-6);
        // beyond 8 chips the KV heads are repeated, not split further
        let split = MixerWork::new(&mixer, &LENGTHS, 2.0, 16.0);
        assert!((split.decode_bytes - 768_000.0).abs() < 1e-6);
    }

    #[test]
    fn latent_attention_caches_576_values_whatever_the_split() {
        let mixer = Mixer::Mla {
            heads: 128,
            q_lora_rank: 1536,
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            gate: Gate::None,
            indexer: None,
        };
        for tp in [1.0, 8.0] {
            let work = MixerWork::new(&mixer, &LENGTHS, 1.0, tp);
            assert!((work.kept_bytes - 2000.0 * 576.0).abs() < 1e-6);
        }
    }
}
