//! Elementwise kernels: activations that pass through memory between the matrix products.

use crate::model::{Ffn, LayerGroup, Mixer};

/// 16-bit activations.
const ACTIVATION_BYTES: f64 = 2.0;

/// Bytes of activations that one token of one layer moves through the memory of one chip.
///
/// Counted once written and once read: two norms with their residual (8 hidden widths), the inputs and outputs of
/// the token mixer, gate, up and activated widths of the FFN (6 inner widths), and for each routed copy of a token its
/// gathered input and scattered output (4 hidden widths). Widths split over `tp` chips, norms do not.
///
/// Source: the kernels between the products of a transformer layer, unfused except norm with residual.
/// Assumes: nothing stays in cache; at small batches it does, where the bytes are negligible anyway.
#[must_use]
pub fn activation_bytes_per_token(layer: &LayerGroup, hidden: u32, tp: f64) -> f64 {
    const NORM_PASSES: f64 = 8.0;
    const INNER_PASSES: f64 = 6.0;
    const COPY_PASSES: f64 = 4.0;
    let hidden = f64::from(hidden);
    let mixer_width = match layer.mixer {
        Mixer::None => 0.0,
        Mixer::Attention {
            heads,
            kv_heads,
            qk_head_dim,
            v_head_dim,
            ..
        } => {
            let heads = f64::from(heads);
            let kv_heads = f64::from(kv_heads);
            let (qk, v) = (f64::from(qk_head_dim), f64::from(v_head_dim));
            heads * (qk + v) + kv_heads * (qk + v)
        }
        Mixer::Mla {
            heads,
            kv_lora_rank,
            qk_rope_head_dim,
            v_head_dim,
            ..
        } => f64::from(heads) * f64::from(2 * kv_lora_rank + qk_rope_head_dim + v_head_dim),
        Mixer::CompressedAttention {
            heads, head_dim, ..
        } => 2.0 * f64::from(heads) * f64::from(head_dim),
        Mixer::GatedDeltaNet {
            key_heads,
            value_heads,
            key_head_dim,
            value_head_dim,
            ..
        } => {
            2.0 * f64::from(key_heads) * f64::from(key_head_dim)
                + 3.0 * f64::from(value_heads) * f64::from(value_head_dim)
        }
        Mixer::KimiDeltaAttention {
            heads, head_dim, ..
        } => 5.0 * f64::from(heads) * f64::from(head_dim),
        Mixer::Mamba2 {
            heads,
            head_dim,
            state,
            groups,
            ..
        } => {
            3.0 * f64::from(heads) * f64::from(head_dim)
                + 2.0 * f64::from(groups) * f64::from(state)
        }
        Mixer::Mamba1 { inner, .. } => 4.0 * f64::from(inner),
    };
    let ffn_elements = match layer.ffn {
        Ffn::None => 0.0,
        Ffn::Dense { dim, .. } => INNER_PASSES * f64::from(dim),
        Ffn::Moe {
            top_k,
            expert_dim,
            shared_dim,
            ..
        } => {
            f64::from(top_k) * (COPY_PASSES * hidden + INNER_PASSES * f64::from(expert_dim))
                + INNER_PASSES * f64::from(shared_dim)
        }
    };
    ACTIVATION_BYTES * (NORM_PASSES * hidden + (2.0 * mixer_width + ffn_elements) / tp)
}

/// Bytes that sampling one token moves: 32-bit logits written once and read three times (penalties, maximum, sum).
#[must_use]
pub fn sampling_bytes_per_token(vocab: u32, tp: f64) -> f64 {
    const LOGIT_BYTES: f64 = 4.0;
    const PASSES: f64 = 4.0;
    LOGIT_BYTES * PASSES * f64::from(vocab) / tp
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Gate, Scope};

    #[test]
    fn a_dense_layer_moves_its_widths() {
        let layer = LayerGroup {
            count: 1,
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
            small_parameters: 0,
        };
        // 2 B x (8 x 4096 + 2 x 40 x 256 + 6 x 14336)
        let expected = 2.0 * (32_768.0 + 20_480.0 + 86_016.0);
        assert!((activation_bytes_per_token(&layer, 4096, 1.0) - expected).abs() < 1e-6);
    }
}
