//! The matrix products and tensors of one layer, as one chip of a tensor-parallel group sees them.

use crate::model::{Ffn, Gate, Mixer};

/// A product of tokens with a weight matrix: `k` values in, `n` values out per token, on this chip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    /// Inner dimension.
    pub k: f64,
    /// Outer dimension.
    pub n: f64,
}

/// Calls `visit` with every projection of `mixer` in a model of width `hidden`, heads split over `tp` chips.
///
/// Source: the projections of [`crate::count::projection_parameters`], query, key and value fused; bottlenecks of latent
/// attention are repeated on every chip. Convolutions, per-head gates and indexers are left out: they are under 2% of
/// the weights of every catalogued model.
pub fn mixer_products(mixer: &Mixer, hidden: u32, tp: f64, mut visit: impl FnMut(Product)) {
    let h = f64::from(hidden);
    let mut product = |k: f64, n: f64| {
        if k > 0.0 && n > 0.0 {
            visit(Product { k, n });
        }
    };
    let gate_width = |gate: Gate, width: f64| match gate {
        Gate::PerChannel => width,
        Gate::None | Gate::PerHead => 0.0,
    };
    match *mixer {
        Mixer::None => {}
        Mixer::Attention {
            heads,
            kv_heads,
            qk_head_dim,
            v_head_dim,
            gate,
            shared_kv,
            ..
        } => {
            let out = f64::from(heads) * f64::from(v_head_dim) / tp;
            let kv_heads = (f64::from(kv_heads) / tp).max(1.0);
            let kv_width = if shared_kv {
                f64::from(qk_head_dim)
            } else {
                f64::from(qk_head_dim) + f64::from(v_head_dim)
            };
            let queries = f64::from(heads) * f64::from(qk_head_dim) / tp;
            product(h, queries + kv_heads * kv_width + gate_width(gate, out));
            product(out, h);
        }
        Mixer::Mla {
            heads,
            q_lora_rank,
            kv_lora_rank,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
            gate,
            ..
        } => {
            let heads = f64::from(heads) / tp;
            let query_width = heads * (f64::from(qk_nope_head_dim) + f64::from(qk_rope_head_dim));
            let latent = f64::from(kv_lora_rank);
            let out = heads * f64::from(v_head_dim);
            let down = latent + f64::from(qk_rope_head_dim) + gate_width(gate, out);
            if q_lora_rank == 0 {
                product(h, down + query_width);
            } else {
                product(h, down + f64::from(q_lora_rank));
                product(f64::from(q_lora_rank), query_width);
            }
            product(
                latent,
                heads * (f64::from(qk_nope_head_dim) + f64::from(v_head_dim)),
            );
            product(out, h);
        }
        Mixer::CompressedAttention {
            heads,
            head_dim,
            q_lora_rank,
            o_lora_rank,
            o_groups,
            ..
        } => {
            let width = f64::from(heads) * f64::from(head_dim) / tp;
            let groups = (f64::from(o_groups) / tp).max(1.0);
            product(h, f64::from(q_lora_rank) + f64::from(head_dim));
            product(f64::from(q_lora_rank), width);
            product(width / groups, groups * f64::from(o_lora_rank));
            product(groups * f64::from(o_lora_rank), h);
        }
        Mixer::GatedDeltaNet {
            key_heads,
            value_heads,
            key_head_dim,
            value_head_dim,
            ..
        } => {
            let keys = f64::from(key_heads) * f64::from(key_head_dim) / tp;
            let values = f64::from(value_heads) * f64::from(value_head_dim) / tp;
            product(
                h,
                2.0 * keys + 2.0 * values + 2.0 * f64::from(value_heads) / tp,
            );
            product(values, h);
        }
        Mixer::KimiDeltaAttention {
            heads, head_dim, ..
        } => {
            let inner = f64::from(heads) * f64::from(head_dim) / tp;
            product(h, 4.0 * inner + f64::from(heads) / tp);
            product(inner, h);
        }
        Mixer::Mamba2 {
            heads,
            head_dim,
            state,
            groups,
            ..
        } => {
            let inner = f64::from(heads) * f64::from(head_dim) / tp;
            let shared = 2.0 * (f64::from(groups) / tp).max(1.0) * f64::from(state);
            product(h, 2.0 * inner + shared + f64::from(heads) / tp);
            product(inner, h);
        }
        Mixer::Mamba1 {
            inner,
            state,
            dt_rank,
            ..
        } => {
            let inner = f64::from(inner) / tp;
            product(h, 2.0 * inner);
            product(inner, f64::from(dt_rank) + 2.0 * f64::from(state));
            product(f64::from(dt_rank), inner);
            product(inner, h);
        }
    }
}

/// Widths of the tensors between a mixer's projections, values per token on this chip.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MixerWidths {
    /// Queries, keys and values (or the inputs of a scan) together.
    pub inner: f64,
    /// Keys and values alone: what context parallelism passes round.
    pub kv: f64,
    /// Output of the core.
    pub out: f64,
    /// Mean width of a head; 0 for scans, whose kernels do not depend on it.
    pub head: f64,
    /// Query heads on this chip; 0 for scans.
    pub heads: f64,
}

/// Tensor widths of `mixer`, heads split over `tp` chips.
#[must_use]
pub fn mixer_widths(mixer: &Mixer, tp: f64) -> MixerWidths {
    let scan = |inner: f64, out: f64| MixerWidths {
        inner: inner / tp,
        out: out / tp,
        ..MixerWidths::default()
    };
    match *mixer {
        Mixer::None => MixerWidths::default(),
        Mixer::Attention {
            heads,
            kv_heads,
            qk_head_dim,
            v_head_dim,
            ..
        } => {
            let heads = f64::from(heads) / tp;
            let (qk, v) = (f64::from(qk_head_dim), f64::from(v_head_dim));
            let kv = (f64::from(kv_heads) / tp).max(1.0) * (qk + v);
            MixerWidths {
                inner: heads * qk + kv,
                kv,
                out: heads * v,
                head: 0.5 * (qk + v),
                heads,
            }
        }
        Mixer::Mla {
            heads,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
            ..
        } => {
            // Training expands the latent: every head has keys and values of its own.
            let heads = f64::from(heads) / tp;
            let qk = f64::from(qk_nope_head_dim) + f64::from(qk_rope_head_dim);
            let v = f64::from(v_head_dim);
            MixerWidths {
                inner: heads * (2.0 * qk + v),
                kv: heads * (qk + v),
                out: heads * v,
                head: 0.5 * (qk + v),
                heads,
            }
        }
        Mixer::CompressedAttention {
            heads, head_dim, ..
        } => {
            let heads = f64::from(heads) / tp;
            let width = f64::from(head_dim);
            MixerWidths {
                inner: heads * width + width,
                kv: width,
                out: heads * width,
                head: width,
                heads,
            }
        }
        Mixer::GatedDeltaNet {
            key_heads,
            value_heads,
            key_head_dim,
            value_head_dim,
            ..
        } => {
            let keys = f64::from(key_heads) * f64::from(key_head_dim);
            let values = f64::from(value_heads) * f64::from(value_head_dim);
            scan(2.0 * keys + 2.0 * values, values)
        }
        Mixer::KimiDeltaAttention {
            heads, head_dim, ..
        } => {
            let inner = f64::from(heads) * f64::from(head_dim);
            scan(4.0 * inner, inner)
        }
        Mixer::Mamba2 {
            heads,
            head_dim,
            state,
            groups,
            ..
        } => {
            let inner = f64::from(heads) * f64::from(head_dim);
            scan(
                2.0 * inner + 2.0 * f64::from(groups) * f64::from(state),
                inner,
            )
        }
        Mixer::Mamba1 { inner, .. } => {
            let inner = f64::from(inner);
            scan(2.0 * inner, inner)
        }
    }
}

/// Inner width and number of matrices of the dense (or shared) feed-forward part, whole model width; zeros without one.
#[must_use]
pub fn dense_ffn(ffn: &Ffn) -> (f64, f64) {
    match *ffn {
        Ffn::None => (0.0, 0.0),
        Ffn::Dense { dim, matrices } => (f64::from(dim), f64::from(matrices)),
        Ffn::Moe {
            shared_dim,
            matrices,
            ..
        } => (f64::from(shared_dim), f64::from(matrices)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count::projection_parameters;
    use crate::model::Scope;

    fn weights(mixer: &Mixer, hidden: u32, tp: f64) -> f64 {
        let mut sum = 0.0;
        mixer_products(mixer, hidden, tp, |product| sum += product.k * product.n);
        sum
    }

    #[test]
    fn products_hold_the_weights_that_are_counted() {
        let grouped = Mixer::Attention {
            heads: 64,
            kv_heads: 8,
            qk_head_dim: 128,
            v_head_dim: 128,
            scope: Scope::Full,
            gate: Gate::None,
            shared_kv: false,
        };
        let latent = Mixer::Mla {
            heads: 128,
            q_lora_rank: 1536,
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            gate: Gate::None,
            indexer: None,
        };
        let scan = Mixer::Mamba2 {
            heads: 256,
            head_dim: 64,
            state: 256,
            groups: 8,
            conv_kernel: 4,
        };
        for mixer in [grouped, latent, scan] {
            let counted = projection_parameters(&mixer, 8192);
            let visited = weights(&mixer, 8192, 1.0);
            assert!(
                (visited / counted - 1.0).abs() < 0.01,
                "{visited} {counted}"
            );
        }
    }

    #[test]
    fn heads_split_over_chips_and_key_heads_repeat() {
        let mixer = Mixer::Attention {
            heads: 64,
            kv_heads: 8,
            qk_head_dim: 128,
            v_head_dim: 128,
            scope: Scope::Full,
            gate: Gate::None,
            shared_kv: false,
        };
        // 8192 x (4 heads x 128 + 1 x 256) + 4 x 128 x 8192
        assert!((weights(&mixer, 8192, 16.0) - 8192.0 * (512.0 + 256.0 + 512.0)).abs() < 1e-6);
    }
}
