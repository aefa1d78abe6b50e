//! The physical parameters that calibration fits: one table, from which the struct, its names, bounds and priors come.

use serde::{Deserialize, Serialize};

use crate::error::{require_within, CoreError};

/// What is known of a parameter before any fit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ParameterInfo {
    /// Name, as in the calibration file.
    pub name: &'static str,
    /// Start value and centre of the prior.
    pub prior: f64,
    /// Smallest physical value.
    pub low: f64,
    /// Largest physical value.
    pub high: f64,
    /// Unit.
    pub unit: &'static str,
    /// What it is.
    pub meaning: &'static str,
}

/// Declares a struct of parameters and the table that describes it, from one list.
macro_rules! parameters {
    ($(#[doc = $about:literal])+ $set:ident, $table:ident;
     $($(#[doc = $doc:literal])+ $name:ident = $prior:literal in $low:literal .. $high:literal, $unit:literal;)+) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $set { $($(#[doc = $doc])+ pub $name: f64,)+ }

        /// Every parameter, in the order of `from_slice`.
        pub const $table: &[ParameterInfo] = &[$(ParameterInfo {
            name: stringify!($name), prior: $prior, low: $low, high: $high, unit: $unit,
            meaning: concat!($($doc),+),
        },)+];

        impl Default for $set {
            fn default() -> Self { Self { $($name: $prior,)+ } }
        }

        impl $set {
            /// Reads parameters in the order of the table.
            ///
            /// # Errors
            /// [`CoreError::BadInput`] when the number of values is wrong.
            pub fn from_slice(values: &[f64]) -> Result<Self, CoreError> {
                let mut rest = values.iter().copied();
                let mut next = || rest.next().ok_or_else(|| CoreError::bad_input(
                    "number of parameters", values.len(), format!("expected {}", $table.len())));
                Ok(Self { $($name: next()?,)+ })
            }

            /// The values in the order of the table.
            #[must_use]
            pub fn to_vec(&self) -> Vec<f64> { vec![$(self.$name,)+] }
        }
    };
}
pub(crate) use parameters;

parameters! {
    /// Efficiencies and overheads of one engine on one accelerator family in one number format.
    EngineParameters, PARAMETERS;
    /// Share of peak memory bandwidth that streaming dense weights reaches.
    weight_bandwidth_efficiency = 0.81 in 0.05..0.97, "1";
    /// Share of peak memory bandwidth that streaming routed experts reaches.
    expert_bandwidth_efficiency = 0.85 in 0.05..0.97, "1";
    /// Share of peak memory bandwidth that reading the KV cache reaches.
    kv_bandwidth_efficiency = 0.65 in 0.05..0.97, "1";
    /// Share of peak memory bandwidth that elementwise kernels (norms, activations, gather, scatter, sampling) reach.
    elementwise_bandwidth_efficiency = 0.55 in 0.05..0.97, "1";
    /// Factor on the bandwidth of dense weights stored in four bits (unpacking, scales).
    four_bit_dense_bandwidth = 0.62 in 0.2..1.0, "1";
    /// Share of the achieved arithmetic rate that is left where products unpack 4-bit weights to 16 bits on the way.
    unpacking_compute_share = 1.0 in 0.05..1.0, "1";
    /// Share of the dense peak that matrix products of decode steps reach.
    decode_compute_efficiency = 0.47 in 0.02..0.95, "1";
    /// Share of the dense peak that matrix products of prefill reach.
    prefill_compute_efficiency = 0.52 in 0.02..0.95, "1";
    /// Width of an expert, `1 / (1/hidden + 1/intermediate)`, at which grouped products reach half of the rate of dense ones
    /// in 8 or 4 bits; in 16 bits they reach the square root of that share.
    expert_half_rate_width = 1500.0 in 50.0..12000.0, "1";
    /// Share of the peak that decode attention reaches.
    attention_compute_efficiency = 0.45 in 0.02..0.95, "1";
    /// Share of the peak that attention of prefill reaches.
    prefill_attention_efficiency = 0.5 in 0.02..0.95, "1";
    /// Rows a dense product is padded with: work per product grows as tokens + this.
    dense_tile_tokens = 8.0 in 0.0..128.0, "tokens";
    /// Rows each touched expert is padded with.
    expert_tile_tokens = 44.0 in 0.0..256.0, "tokens";
    /// Strength of expert load imbalance over expert-parallel ranks (1 = random routing, 0 = perfect balance).
    expert_imbalance = 0.5 in 0.0..3.0, "1";
    /// Squared coefficient of variation of how popular experts are (0 = every expert as likely as the next).
    expert_skew = 0.5 in 0.01..6.0, "1";
    /// Share of the scale-up link rate that collectives reach.
    link_efficiency = 0.50 in 0.05..0.95, "1";
    /// Latency of one collective inside a scale-up domain.
    collective_latency_s = 10e-6 in 1e-6..200e-6, "s";
    /// Share of the scale-out rate that collectives reach.
    network_efficiency = 0.60 in 0.05..0.95, "1";
    /// Latency of one collective across the scale-out network.
    network_latency_s = 25e-6 in 2e-6..500e-6, "s";
    /// Latency-bound kernels of a layer (launch, norms, rotary, residual).
    layer_overhead_s = 28e-6 in 1e-6..500e-6, "s";
    /// Further latency of a mixture-of-experts layer (router, sort, gather, scatter).
    moe_layer_overhead_s = 27e-6 in 0.0..500e-6, "s";
    /// Further latency of a multi-head-latent-attention layer.
    mla_layer_overhead_s = 23e-6 in 0.0..500e-6, "s";
    /// Further latency of an indexer, linear-attention or state-space layer.
    linear_layer_overhead_s = 20e-6 in 0.0..500e-6, "s";
    /// Scheduler and sampling latency of a step.
    step_overhead_s = 85e-6 in 0.0..0.02, "s";
    /// Host time per running request and step.
    request_overhead_s = 5e-6 in 0.0..1e-3, "s";
    /// Share of prompts that arrive together and prefill before any of them decodes.
    burst_share = 0.13 in 0.0..0.9, "1";
    /// Decode steps a prompt waits for its first token.
    first_token_steps = 5.0 in 0.0..60.0, "steps";
    /// Fixed latency before the first token (tokenisation, HTTP, scheduling).
    first_token_overhead_s = 0.032 in 0.0..0.5, "s";
    /// Host time per prompt.
    prompt_overhead_s = 0.006 in 0.0..0.1, "s";
    /// Share of prefill work of one attention-data-parallel rank that the other ranks wait for.
    rank_desynchronisation = 0.1 in 0.0..1.0, "1";
    /// Share of weight streaming and launch latency that a mixed step saves because decode pays it already.
    fused_share = 0.7 in 0.0..1.0, "1";
    /// Factor on decode steps that a user's own measurements of a stack ask for (1 = none).
    decode_anchor = 1.0 in 0.33..3.0, "1";
    /// Factor on prefill that a user's own measurements of a stack ask for (1 = none).
    prefill_anchor = 1.0 in 0.33..3.0, "1";
    /// Share of memory the engine plans with.
    memory_share = 0.95 in 0.3..0.99, "1";
    /// Memory outside weights, KV cache and activations: context, graphs, communication buffers.
    reserved_bytes = 2e9 in 0.0..16e9, "B";
}

impl ParameterInfo {
    /// The value when deviations from the prior add up to `log_factor`; stays inside the physical bounds.
    ///
    /// `exp(log_factor)` times the prior to first order; further away the value approaches a bound without reaching it
    /// (a logistic curve between the bounds), so that a fit sees no kink and a sum of deviations cannot leave physics.
    #[must_use]
    pub fn value_at(&self, log_factor: f64) -> f64 {
        let range = self.high - self.low;
        if self.prior <= self.low || self.prior >= self.high {
            return self.prior;
        }
        let z = self.log_odds(self.prior) + self.odds_per_factor() * log_factor;
        self.low + range / (1.0 + (-z).exp())
    }

    /// The inverse of [`Self::value_at`]; values at or beyond a bound count as just inside it.
    #[must_use]
    pub fn log_factor_of(&self, value: f64) -> f64 {
        const MARGIN: f64 = 1e-9;
        if self.prior <= self.low || self.prior >= self.high {
            return 0.0;
        }
        let margin = MARGIN * (self.high - self.low);
        let inside = value.clamp(self.low + margin, self.high - margin);
        (self.log_odds(inside) - self.log_odds(self.prior)) / self.odds_per_factor()
    }

    fn log_odds(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - value)).ln()
    }

    /// Change of the log odds for a relative change of the value, at the prior.
    fn odds_per_factor(&self) -> f64 {
        self.prior * (self.high - self.low) / ((self.prior - self.low) * (self.high - self.prior))
    }
}

impl EngineParameters {
    /// Checks every value against its physical bounds.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the parameter.
    pub fn validate(&self) -> Result<(), CoreError> {
        for (info, value) in PARAMETERS.iter().zip(self.to_vec()) {
            require_within(info.name, value, info.low, info.high)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: ParameterInfo = ParameterInfo {
        name: "share",
        prior: 0.5,
        low: 0.0,
        high: 1.0,
        unit: "1",
        meaning: "",
    };

    #[test]
    fn a_factor_acts_like_itself_near_the_prior_and_never_leaves_the_bounds() {
        // Odds 1 at the prior, 2 log odds for a log factor: exp(0.02) / (1 + exp(0.02)) = 0.505.
        assert!((SHARE.value_at(0.01) - 0.504_999_833).abs() < 1e-8);
        assert!(SHARE.value_at(50.0) <= 1.0 && SHARE.value_at(-50.0) >= 0.0);
        for info in PARAMETERS {
            let value = info.value_at(0.3);
            assert!(value >= info.low && value <= info.high, "{}", info.name);
            let is_inside = info.prior > info.low && info.prior < info.high;
            let expected = if is_inside { 0.3 } else { 0.0 };
            assert!(
                (info.log_factor_of(value) - expected).abs() < 1e-6,
                "{}",
                info.name
            );
        }
    }
}
