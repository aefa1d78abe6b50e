//! How one replica is split over chips.

use serde::{Deserialize, Serialize};

use crate::accelerator::{Accelerator, Topology};
use crate::model::{Ffn, ModelSpec};
use crate::ops::attention::split_heads;

/// Parallel layout of one aggregated replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Tensor parallelism of attention.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Expert parallelism; the experts of a layer live on `tp * attn_dp` chips.
    pub ep: u32,
    /// Attention data parallelism: ranks that keep their own requests and meet at the experts.
    pub attn_dp: u32,
}

impl Layout {
    /// Chips of the replica.
    #[must_use]
    pub fn chips(&self) -> u32 {
        self.tp * self.pp * self.attn_dp
    }

    /// Chips of one pipeline stage, over which the experts are spread.
    #[must_use]
    pub fn stage_chips(&self) -> u32 {
        self.tp * self.attn_dp
    }

    /// Tensor parallelism inside an expert.
    #[must_use]
    pub fn expert_tp(&self) -> u32 {
        self.stage_chips() / self.ep
    }

    /// Why this layout cannot run `model` on `accelerator`; None when it can (memory aside).
    ///
    /// Tensor parallelism stays inside the scale-up domain and divides the heads; expert parallelism divides the
    /// experts; attention data parallelism only makes sense where experts bring the ranks together.
    #[must_use]
    pub fn refusal(&self, model: &ModelSpec, accelerator: &Accelerator) -> Option<&'static str> {
        if self.tp == 0 || self.pp == 0 || self.ep == 0 || self.attn_dp == 0 {
            return Some("every degree of parallelism must be at least 1");
        }
        if self.tp > 1 && self.tp > accelerator.scale_up.domain_chips {
            return Some("tensor parallelism leaves the scale-up domain");
        }
        if self.chips() > 1 && accelerator.scale_up.topology == Topology::Single {
            return Some("the accelerator has no fabric to a second chip");
        }
        let layers: u32 = model.layers.iter().map(|group| group.count).sum();
        if self.pp > layers {
            return Some("more pipeline stages than layers");
        }
        if self.stage_chips() % self.ep != 0 {
            return Some("expert parallelism does not divide tp x attn_dp");
        }
        let mut has_experts = false;
        for group in &model.layers {
            if split_heads(&group.mixer).is_some_and(|heads| heads % self.tp != 0) {
                return Some("tensor parallelism does not divide the heads");
            }
            if let Ffn::Moe {
                experts,
                expert_dim,
                ..
            } = group.ffn
            {
                has_experts = true;
                if experts % self.ep != 0 {
                    return Some("expert parallelism does not divide the experts");
                }
                if expert_dim % self.expert_tp() != 0 {
                    return Some("tensor parallelism does not divide the experts' width");
                }
            }
        }
        if !has_experts && (self.ep > 1 || self.attn_dp > 1) {
            return Some("the model has no experts to share");
        }
        None
    }

    /// How much longer the slowest pipeline stage is than an even split.
    #[must_use]
    pub fn stage_imbalance(&self, layers: u32) -> f64 {
        f64::from(layers.div_ceil(self.pp) * self.pp) / f64::from(layers)
    }
}
