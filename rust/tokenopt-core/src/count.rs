//! Parameter counts from the architecture.
//!
//! Source for every formula: the published model configurations and the audit of their totals; see each item. MTP
//! modules and vision towers are not counted.

use serde::Serialize;

use crate::format::NumberFormat;
use crate::model::{Ffn, Gate, Indexer, LayerGroup, Mixer, ModelSpec, Scope};
use crate::ops::attention::{Lengths, MixerWork};

/// Counts of a whole model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ModelCounts {
    /// All parameters, embeddings and head included.
    pub total_parameters: f64,
    /// Parameters a token meets, all embeddings included.
    pub active_parameters: f64,
    /// Parameters a token meets, of the embeddings the head only.
    pub active_parameters_head_only: f64,
    /// Parameters a token meets, no embeddings and no head.
    pub active_parameters_no_embedding: f64,
    /// Weights in the checkpoint's native formats, bytes.
    pub weight_bytes: f64,
    /// Cache of one more token in 16 bits, bytes (long context: windows are full).
    pub kv_bytes_per_token: f64,
    /// Recurrent state and full windows of one request in 16 bits, bytes.
    pub state_bytes_per_request: f64,
    /// Layers.
    pub layers: u32,
}

/// Parameters of one layer by class of weights.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GroupParameters {
    /// Mixer projections.
    pub mixer: f64,
    /// Dense FFN, shared experts, and projections into and out of a latent expert space.
    pub dense: f64,
    /// All routed experts.
    pub experts: f64,
    /// Share of the routed experts that a token meets, 0..1.
    pub active_share: f64,
    /// Router.
    pub router: f64,
    /// Norms, biases and the like.
    pub small: f64,
}

impl GroupParameters {
    /// Counts one layer of `group` in a model of width `hidden`.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "parameter counts stay below 2^53"
    )]
    pub fn new(group: &LayerGroup, hidden: u32) -> Self {
        let mut counts = Self {
            mixer: projection_parameters(&group.mixer, hidden),
            small: group.small_parameters as f64,
            ..Self::default()
        };
        let width = f64::from(hidden);
        match group.ffn {
            Ffn::None => {}
            Ffn::Dense { dim, matrices } => {
                counts.dense = f64::from(matrices) * width * f64::from(dim);
            }
            Ffn::Moe {
                experts,
                top_k,
                expert_dim,
                matrices,
                shared_dim,
                latent_dim,
                router_bias,
            } => {
                let inner = if latent_dim > 0 {
                    f64::from(latent_dim)
                } else {
                    width
                };
                let experts = f64::from(experts);
                counts.experts = experts * f64::from(matrices) * inner * f64::from(expert_dim);
                counts.active_share = f64::from(top_k) / experts;
                counts.dense = f64::from(matrices) * width * f64::from(shared_dim)
                    + 2.0 * width * f64::from(latent_dim);
                counts.router = width * experts + if router_bias { experts } else { 0.0 };
            }
        }
        counts
    }

    /// All parameters of the layer.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.mixer + self.dense + self.experts + self.router + self.small
    }

    /// Parameters of the layer that a token meets.
    #[must_use]
    pub fn active(&self) -> f64 {
        self.total() - self.experts * (1.0 - self.active_share)
    }
}

/// Parameters of a mixer's projections (biases and norms are small parameters of the layer).
///
/// Source: grouped-query attention `h H d + 2 h Hkv d + H d h`; MLA `h q + q H (n + r) + h (c + r) + c H (n + v) + H v h`;
/// its indexer `q Hi di + h di + h Hi`; Mamba-2 `h (2 D + 2 G N + heads) + conv (D + 2 G N) + D h`; gated DeltaNet
/// `h (2 Hk dk + 2 Hv dv + 2 Hv) + conv (2 Hk dk + Hv dv) + Hv dv h`; KDA with two rank-128 gates.
#[must_use]
pub fn projection_parameters(mixer: &Mixer, hidden: u32) -> f64 {
    let h = f64::from(hidden);
    let gate_parameters = |gate: Gate, heads: f64, v_head_dim: f64| match gate {
        Gate::None => 0.0,
        Gate::PerHead => h * heads,
        Gate::PerChannel => h * heads * v_head_dim,
    };
    let indexer_parameters = |indexer: &Option<Indexer>, query_width: f64| {
        indexer.as_ref().map_or(0.0, |indexer| {
            let heads = f64::from(indexer.heads);
            let width = f64::from(indexer.head_dim);
            query_width * heads * width + h * width + h * heads
        })
    };
    match *mixer {
        Mixer::None => 0.0,
        Mixer::Attention {
            heads,
            kv_heads,
            qk_head_dim,
            v_head_dim,
            gate,
            shared_kv,
            ..
        } => {
            let heads = f64::from(heads);
            let qk = f64::from(qk_head_dim);
            let v = f64::from(v_head_dim);
            let kv_width = if shared_kv { qk } else { qk + v };
            h * heads * qk
                + h * f64::from(kv_heads) * kv_width
                + heads * v * h
                + gate_parameters(gate, heads, v)
        }
        Mixer::Mla {
            heads,
            q_lora_rank,
            kv_lora_rank,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
            gate,
            ref indexer,
        } => {
            let heads = f64::from(heads);
            let query = f64::from(q_lora_rank);
            let latent = f64::from(kv_lora_rank);
            let nope = f64::from(qk_nope_head_dim);
            let rope = f64::from(qk_rope_head_dim);
            let v = f64::from(v_head_dim);
            let queries = if q_lora_rank == 0 {
                h * heads * (nope + rope)
            } else {
                h * query + query * heads * (nope + rope)
            };
            let query_width = if q_lora_rank == 0 { h } else { query };
            queries
                + h * (latent + rope)
                + latent * heads * (nope + v)
                + heads * v * h
                + gate_parameters(gate, heads, v)
                + indexer_parameters(indexer, query_width)
        }
        Mixer::CompressedAttention {
            heads,
            head_dim,
            q_lora_rank,
            o_lora_rank,
            o_groups,
            ref indexer,
            ..
        } => {
            let heads = f64::from(heads);
            let width = f64::from(head_dim);
            let query = f64::from(q_lora_rank);
            let output = f64::from(o_lora_rank);
            h * query
                + query * heads * width
                + h * width
                + heads * width * output
                + f64::from(o_groups) * output * h
                + indexer_parameters(indexer, query)
        }
        Mixer::GatedDeltaNet {
            key_heads,
            value_heads,
            key_head_dim,
            value_head_dim,
            conv_kernel,
        } => {
            let keys = f64::from(key_heads) * f64::from(key_head_dim);
            let values = f64::from(value_heads) * f64::from(value_head_dim);
            h * (2.0 * keys + 2.0 * values + 2.0 * f64::from(value_heads))
                + f64::from(conv_kernel) * (2.0 * keys + values)
                + values * h
        }
        Mixer::KimiDeltaAttention {
            heads,
            head_dim,
            conv_kernel,
        } => {
            const GATE_RANK: f64 = 128.0;
            let heads = f64::from(heads);
            let inner = heads * f64::from(head_dim);
            3.0 * h * inner
                + 3.0 * f64::from(conv_kernel) * inner
                + h * GATE_RANK
                + GATE_RANK * inner
                + h * heads
                + h * inner
                + inner * h
        }
        Mixer::Mamba2 {
            heads,
            head_dim,
            state,
            groups,
            conv_kernel,
        } => {
            let inner = f64::from(heads) * f64::from(head_dim);
            let shared = 2.0 * f64::from(groups) * f64::from(state);
            h * (2.0 * inner + shared + f64::from(heads))
                + f64::from(conv_kernel) * (inner + shared)
                + inner * h
        }
        Mixer::Mamba1 {
            inner,
            state,
            dt_rank,
            conv_kernel,
        } => {
            let inner = f64::from(inner);
            let state = f64::from(state);
            let rank = f64::from(dt_rank);
            h * 2.0 * inner
                + f64::from(conv_kernel) * inner
                + inner * (rank + 2.0 * state)
                + rank * inner
                + inner * state
                + inner * h
        }
    }
}

/// Counts a whole model.
///
/// Source: `V h (2 - tied)` embeddings, learned positions, final norm, and the layers.
#[must_use]
pub fn count(model: &ModelSpec) -> ModelCounts {
    let table = f64::from(model.vocab) * f64::from(model.hidden);
    let tables = if model.tie_embeddings { 1.0 } else { 2.0 };
    let ends =
        f64::from(model.hidden) + f64::from(model.learned_positions) * f64::from(model.hidden);
    let formats = model.native_formats;
    let mut layer_parameters = 0.0;
    let mut active = 0.0;
    let mut bytes = (table + ends) * NumberFormat::Bf16.bytes();
    if !model.tie_embeddings {
        bytes += table * formats.head.bytes();
    }
    let mut layers = 0;
    let mut per_token = 0.0;
    let mut per_request = 0.0;
    for group in &model.layers {
        let count = f64::from(group.count);
        let one = GroupParameters::new(group, model.hidden);
        layers += group.count;
        layer_parameters += count * one.total();
        active += count * one.active();
        bytes += count
            * (one.mixer * formats.mixer.bytes()
                + one.dense * formats.dense.bytes()
                + one.experts * formats.experts.bytes()
                + (one.router + one.small) * NumberFormat::Bf16.bytes());
        let (growing, fixed) = kept_bytes(&group.mixer);
        per_token += count * growing;
        per_request += count * fixed;
    }
    ModelCounts {
        total_parameters: table * tables + ends + layer_parameters,
        active_parameters: table * tables + ends + active,
        active_parameters_head_only: table + ends + active,
        active_parameters_no_embedding: ends + active,
        weight_bytes: bytes,
        kv_bytes_per_token: per_token,
        state_bytes_per_request: per_request,
        layers,
    }
}

/// 16-bit bytes that one layer keeps: per further token, and once per request.
fn kept_bytes(mixer: &Mixer) -> (f64, f64) {
    // Beyond every window, so that what still grows is what grows without bound.
    const LONG: f64 = 16_777_216.0;
    let kept = |tokens: f64| {
        let lengths = Lengths {
            isl: tokens,
            osl: 0.0,
            cached: 0.0,
        };
        MixerWork::new(mixer, &lengths, NumberFormat::Bf16.bytes(), 1.0).kept_bytes
    };
    let slope = (kept(2.0 * LONG) - kept(LONG)) / LONG;
    let fixed = match mixer {
        Mixer::Attention {
            scope: Scope::Full, ..
        }
        | Mixer::Mla { .. }
        | Mixer::None => 0.0,
        _ => (kept(LONG) - slope * LONG).max(0.0),
    };
    (slope, fixed)
}

impl ModelSpec {
    /// Refuses zero and absurd sizes.
    ///
    /// # Errors
    /// One sentence that names the field.
    pub fn validate(&self) -> Result<(), String> {
        const WIDEST: u32 = 1 << 20;
        let within = |name: &str, value: u32, least: u32, most: u32| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} is {value}, expected {least} to {most}"))
            }
        };
        within("hidden", self.hidden, 1, WIDEST)?;
        within("vocab", self.vocab, 1, 1 << 24)?;
        within("max_context", self.max_context, 1, 1 << 30)?;
        if self.layers.is_empty() {
            return Err("layers is empty, expected at least one layer group".to_owned());
        }
        for group in &self.layers {
            within("count of a layer group", group.count, 1, 10_000)?;
            match group.ffn {
                Ffn::None => {}
                Ffn::Dense { dim, matrices } => {
                    within("ffn dim", dim, 1, 1 << 24)?;
                    within("ffn matrices", matrices, 1, 4)?;
                }
                Ffn::Moe {
                    experts,
                    top_k,
                    expert_dim,
                    matrices,
                    ..
                } => {
                    within("experts", experts, 1, 1 << 16)?;
                    within("top_k", top_k, 1, experts)?;
                    within("expert_dim", expert_dim, 1, WIDEST)?;
                    within("expert matrices", matrices, 1, 4)?;
                }
            }
            if let Mixer::Attention {
                heads,
                kv_heads,
                qk_head_dim,
                v_head_dim,
                ..
            } = group.mixer
            {
                within("heads", heads, 1, 1 << 16)?;
                within("kv_heads", kv_heads, 1, heads)?;
                within("qk_head_dim", qk_head_dim, 1, 1 << 16)?;
                within("v_head_dim", v_head_dim, 1, 1 << 16)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::WeightFormats;

    #[test]
    fn llama_3_1_8b_has_8_03_billion_parameters() {
        let formats = WeightFormats {
            mixer: NumberFormat::Bf16,
            dense: NumberFormat::Bf16,
            experts: NumberFormat::Bf16,
            head: NumberFormat::Bf16,
        };
        let model = ModelSpec {
            key: "llama-3.1-8b".to_owned(),
            hidden: 4096,
            vocab: 128_256,
            tie_embeddings: false,
            learned_positions: 0,
            max_context: 131_072,
            native_formats: formats,
            layers: vec![LayerGroup {
                count: 32,
                mixer: Mixer::Attention {
                    heads: 32,
                    kv_heads: 8,
                    qk_head_dim: 128,
                    v_head_dim: 128,
                    scope: Scope::Full,
                    gate: Gate::None,
                    shared_kv: false,
                },
                ffn: Ffn::Dense {
                    dim: 14_336,
                    matrices: 3,
                },
                small_parameters: 8192,
            }],
            mtp_layers: 0,
        };
        let counts = count(&model);
        assert!((counts.total_parameters - 8_030_261_248.0).abs() < 1.0);
        // 2 x 8 heads x 128 x 2 bytes x 32 layers
        assert!((counts.kv_bytes_per_token - 131_072.0).abs() < 1.0);
    }
}
