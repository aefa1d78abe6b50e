//! The space of layouts of one stack: described by its axes, decoded by index, never listed.

use super::problem::SpaceSpec;
use crate::accelerator::Accelerator;
use crate::model::{Ffn, ModelSpec};
use crate::serving::Layout;

/// Degrees of parallelism tried by default: what engines accept and fabrics offer.
const DEGREES: &[u32] = &[
    1, 2, 3, 4, 6, 8, 12, 16, 18, 24, 32, 36, 48, 64, 72, 128, 256,
];
const STAGES: &[u32] = &[1, 2, 4, 8];
const CHUNKS: &[u32] = &[512, 1024, 2048, 4096, 8192, 16384];

/// Axes of the layout space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutSpace {
    tp: Vec<u32>,
    pp: Vec<u32>,
    attn_dp: Vec<u32>,
    ep: Vec<u32>,
    /// Whether every degree of expert parallelism is tried: none was asked for means the usual ones of a model with
    /// experts.
    is_any_ep: bool,
    max_chips: u32,
}

impl LayoutSpace {
    /// Axes for `model` on `accelerator` within `spec`.
    #[must_use]
    pub fn new(spec: &SpaceSpec, model: &ModelSpec, accelerator: &Accelerator) -> Self {
        let has_experts = model
            .layers
            .iter()
            .any(|group| matches!(group.ffn, Ffn::Moe { .. }));
        let max_chips = spec.max_chips_per_replica;
        let degrees = |wanted: &Option<Vec<u32>>, default: &[u32], most: u32| -> Vec<u32> {
            let mut values = wanted.clone().unwrap_or_else(|| default.to_vec());
            values.retain(|degree| *degree <= most);
            values.sort_unstable();
            values.dedup();
            values
        };
        let shared = if has_experts { max_chips } else { 1 };
        Self {
            tp: degrees(
                &spec.tp,
                DEGREES,
                max_chips.min(accelerator.scale_up.domain_chips.max(1)),
            ),
            pp: degrees(&spec.pp, STAGES, max_chips),
            attn_dp: degrees(&spec.attn_dp, DEGREES, shared),
            ep: degrees(&spec.ep, DEGREES, shared),
            is_any_ep: spec.ep.is_some() || !has_experts,
            max_chips,
        }
    }

    /// Points of the product, legal or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tp.len() * self.pp.len() * self.attn_dp.len() * self.ep.len()
    }

    /// Whether an axis is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The layout at `index`.
    #[must_use]
    pub fn decode(&self, index: usize) -> Layout {
        let mut rest = index;
        let mut take = |axis: &[u32]| {
            let value = axis[rest % axis.len()];
            rest /= axis.len();
            value
        };
        Layout {
            ep: take(&self.ep),
            attn_dp: take(&self.attn_dp),
            pp: take(&self.pp),
            tp: take(&self.tp),
        }
    }

    /// The index of `layout`; None when it is not in the product.
    #[must_use]
    pub fn encode(&self, layout: Layout) -> Option<usize> {
        let at = |axis: &[u32], value: u32| axis.iter().position(|known| *known == value);
        let mut index = at(&self.tp, layout.tp)?;
        index = index * self.pp.len() + at(&self.pp, layout.pp)?;
        index = index * self.attn_dp.len() + at(&self.attn_dp, layout.attn_dp)?;
        Some(index * self.ep.len() + at(&self.ep, layout.ep)?)
    }

    /// Whether the layout is small enough, one that engines run, and legal for `model` on `accelerator`.
    ///
    /// Unless asked for, experts are either spread over all chips of a stage or cut like dense layers over two nodes of
    /// eight at most: vLLM and SGLang know nothing between, and no published recipe cuts an expert into more pieces.
    #[must_use]
    pub fn is_legal(&self, layout: Layout, model: &ModelSpec, accelerator: &Accelerator) -> bool {
        const MOST_PIECES: u32 = 16;
        let chips = layout.stage_chips();
        let is_usual = layout.ep == chips || (layout.ep == 1 && chips <= MOST_PIECES);
        layout.chips() <= self.max_chips
            && (self.is_any_ep || is_usual)
            && layout.refusal(model, accelerator).is_none()
    }
}

/// Chunk sizes to try for prompts of `prompt_tokens`: beyond the first chunk that holds several prompts, larger ones
/// change nothing but memory, so the default keeps sizes up to 16 prompts.
#[must_use]
pub fn chunk_sizes(spec: &SpaceSpec, prompt_tokens: f64) -> Vec<u32> {
    match &spec.chunk_tokens {
        Some(sizes) => {
            let mut sizes = sizes.clone();
            sizes.sort_unstable();
            sizes.dedup();
            sizes
        }
        None => CHUNKS
            .iter()
            .copied()
            .filter(|size| *size <= 2048 || f64::from(*size) <= 16.0 * prompt_tokens)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_and_encoding_are_inverse() {
        let space = LayoutSpace {
            tp: vec![1, 2, 4],
            pp: vec![1, 2],
            attn_dp: vec![1, 8],
            ep: vec![1, 2, 3, 4],
            is_any_ep: true,
            max_chips: 64,
        };
        for index in 0..space.len() {
            assert_eq!(space.encode(space.decode(index)), Some(index));
        }
    }
}
