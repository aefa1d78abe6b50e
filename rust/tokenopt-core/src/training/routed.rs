//! Routed experts of a layer in training: grouped products, permutation, dispatch and combine.

use super::layer::Product;
use super::microbatch::{PassTimes, Shape, Split, ACTIVATION_BYTES};
use super::parameters::TrainingParameters;
use super::rates::{product_times, Rates};
use super::TrainingJob;
use crate::model::Ffn;

/// Routed experts of one layer on one chip.
pub(super) struct ExpertLayer {
    local_experts: f64,
    rows: f64,
    /// Token-expert pairs that the chip computes.
    pub(super) pairs: f64,
    /// Token-expert pairs that leave the chip.
    sent_pairs: f64,
    top_k: f64,
    width: f64,
    pub(super) expert_dim: f64,
    pub(super) matrices: f64,
}

impl ExpertLayer {
    /// Source: `T k ep etp / (E tp)` rows an expert on average; the busiest rank has `expert_imbalance` more, with
    /// token dropping the capacity.
    pub(super) fn new(
        ffn: &Ffn,
        job: &TrainingJob,
        parameters: &TrainingParameters,
        split: &Split,
        shape: &Shape,
    ) -> Option<Self> {
        let Ffn::Moe {
            experts,
            top_k,
            expert_dim,
            matrices,
            latent_dim,
            ..
        } = *ffn
        else {
            return None;
        };
        let ranks = f64::from(split.ep);
        let local_experts = f64::from(experts) / ranks;
        let etp = f64::from(split.etp);
        let own_tokens = shape.tokens / shape.tp;
        let mean = own_tokens * f64::from(top_k) * ranks * etp / f64::from(experts);
        let excess = match job.capacity_factor {
            Some(factor) => factor.max(1.0),
            None => 1.0 + parameters.expert_imbalance * (1.0 - 1.0 / ranks),
        };
        let rows = mean * excess;
        Some(Self {
            local_experts,
            rows,
            pairs: rows * local_experts,
            sent_pairs: own_tokens * f64::from(top_k),
            top_k: f64::from(top_k),
            width: if latent_dim > 0 {
                f64::from(latent_dim)
            } else {
                shape.hidden
            },
            expert_dim: f64::from(expert_dim) / etp,
            matrices: f64::from(matrices),
        })
    }

    pub(super) fn parameters_on_chip(&self) -> f64 {
        self.local_experts * self.matrices * self.width * self.expert_dim
    }

    /// Weight-gradient seconds, forward and backward times of the routed part.
    pub(super) fn times(
        &self,
        job: &TrainingJob,
        rates: &Rates,
        parameters: &TrainingParameters,
        split: &Split,
        shape: &Shape,
    ) -> (f64, PassTimes, PassTimes) {
        let faster = 1.0 / parameters.moe_software_factor;
        let mut forward = PassTimes::default();
        let mut backward = PassTimes::default();
        let mut weight_gradient_s = 0.0;
        let mut widths = 0.0;
        for product in [
            Product {
                k: self.width,
                n: (self.matrices - 1.0) * self.expert_dim,
            },
            Product {
                k: self.expert_dim,
                n: self.width,
            },
        ] {
            let times = product_times(
                self.rows,
                product,
                rates.product_flops * parameters.expert_gemm_factor,
                rates.half_rate,
                job.format.operand_bytes(),
                rates.memory_bytes_per_s,
            );
            let gradient_s = if job.recipe.is_frozen() {
                0.0
            } else {
                times.weight_gradient_s
            };
            forward.experts_s += self.local_experts * times.forward_s * faster;
            backward.experts_s +=
                self.local_experts * (times.data_gradient_s + gradient_s) * faster;
            weight_gradient_s += self.local_experts * gradient_s * faster;
            widths += product.k + product.n;
        }
        // Permutation there and back, and the activation between the products.
        let streamed = 4.0 * shape.hidden + 3.0 * self.expert_dim;
        let pass_s = ACTIVATION_BYTES * self.pairs * streamed * parameters.permute_factor
            / rates.memory_bytes_per_s
            * faster;
        forward.elementwise_s = pass_s;
        backward.elementwise_s = 2.0 * pass_s;
        if job.format.is_cast() {
            const CAST_BYTES: f64 = 4.0 / 3.0;
            let cast_s = CAST_BYTES
                * job.format.cast_weight()
                * parameters.cast_factor
                * self.pairs
                * widths
                / rates.memory_bytes_per_s
                * faster;
            forward.cast_s = cast_s;
            backward.cast_s = 2.0 * cast_s;
        }
        let overhead_s = (parameters.moe_layer_overhead_s
            + parameters.expert_overhead_s * self.local_experts)
            * faster;
        forward.overhead_s = overhead_s / 3.0;
        backward.overhead_s = overhead_s * 2.0 / 3.0;
        let exchange_s = self.exchange_s(rates, split) * parameters.expert_exposed * faster;
        forward.expert_exchange_s = exchange_s;
        backward.expert_exchange_s = exchange_s;
        (weight_gradient_s, forward, backward)
    }

    /// Dispatch and combine of one pass, s.
    ///
    /// Source: a token reaches each of the `n (1 - (1 - 1/n)^k)` domains that hold one of its experts once over the
    /// network, and each expert once over the scale-up fabric.
    /// Assumes: routing is not limited to groups of nodes.
    fn exchange_s(&self, rates: &Rates, split: &Split) -> f64 {
        let chips = f64::from(split.ep) * f64::from(split.etp);
        if chips <= 1.0 {
            return 0.0;
        }
        let tokens = self.sent_pairs / self.top_k;
        let token_bytes = ACTIVATION_BYTES * self.width;
        let inside = chips.min(rates.domain_chips);
        let copies = self.top_k * f64::from(split.etp);
        let local_s = tokens * token_bytes * copies * (chips - 1.0)
            / chips
            / rates.fabric.group_bytes_per_s(inside.max(2.0));
        let domains = (chips / rates.domain_chips).ceil();
        let remote_s = if domains > 1.0 {
            let reached = domains * (1.0 - (1.0 - 1.0 / domains).powf(self.top_k));
            tokens * token_bytes * reached * (domains - 1.0) / domains / rates.network_bytes_per_s
        } else {
            0.0
        };
        2.0 * (local_s + remote_s)
    }
}
