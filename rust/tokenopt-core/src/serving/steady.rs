//! Steady state of continuous batching: what a request sees when the replica runs a given batch.

use super::step::Prefill;
use super::Layout;
use crate::parameters::EngineParameters;

/// Coefficients that turn a decode-step time into latencies and throughput, for one layout and chunk size.
///
/// A replica serves a closed loop of requests. Decode steps are stretched by the prompts that prefill between them;
/// a share `s` of the prompts comes in bursts and waits in the time to first token instead:
///
/// ```text
/// tpot = T_d + (1 - s) m T_m / osl
/// ttft = t0 + (w + chunks - 1) T_d + T_1 + s (m pp - 1) T_m / pp
/// ```
///
/// (with speculative decoding a step yields several tokens: `T_d` over that many in the time per token)
/// with `m` running requests per attention rank and pipeline slot, `T_1` one prompt alone, `T_m` one more prompt in
/// shared chunks. Source: fits to closed-loop serving curves; conservation of work makes `ttft + osl tpot` independent
/// of `s`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SteadyState {
    /// Output tokens after the first.
    tokens_after_first: f64,
    /// Decode steps per output token of a request.
    steps_per_token: f64,
    tpot_per_request_s: f64,
    ttft_fixed_s: f64,
    ttft_steps: f64,
    ttft_per_request_s: f64,
    decoding_share_lost: f64,
    prompt_s: f64,
    ranks: f64,
    osl: f64,
}

/// What a request sees, and what the replica delivers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operation {
    /// Time per output token after the first, s.
    pub tpot_s: f64,
    /// Time to first token, s.
    pub ttft_s: f64,
    /// Whole request, s.
    pub e2e_s: f64,
    /// Requests in flight on the replica.
    pub in_flight: f64,
    /// Output tokens/s of the replica.
    pub output_tps: f64,
}

/// How much longer a prompt holds up the attention ranks together than the one it prefills on.
///
/// Ranks meet at every layer: what one prefills while the others decode, they wait for.
#[must_use]
pub fn rank_waiting(parameters: &EngineParameters, layout: Layout) -> f64 {
    1.0 + parameters.rank_desynchronisation * (f64::from(layout.attn_dp) - 1.0)
}

impl SteadyState {
    /// Hoists the coefficients of one layout and chunk size.
    #[must_use]
    pub fn new(parameters: &EngineParameters, layout: Layout, prefill: &Prefill, osl: f64) -> Self {
        let stages = f64::from(layout.pp);
        let burst = parameters.burst_share;
        let marginal_s = prefill.marginal_s * rank_waiting(parameters, layout);
        let burst_wait_s = burst * marginal_s;
        Self {
            tokens_after_first: (osl - 1.0).max(0.0),
            steps_per_token: 1.0,
            tpot_per_request_s: (1.0 - burst) * marginal_s / osl,
            ttft_fixed_s: parameters.first_token_overhead_s + prefill.alone_s
                - burst_wait_s / stages,
            ttft_steps: parameters.first_token_steps + prefill.chunks - 1.0,
            ttft_per_request_s: burst_wait_s,
            decoding_share_lost: 1.0 - burst,
            prompt_s: marginal_s,
            ranks: stages * f64::from(layout.attn_dp),
            osl,
        }
    }

    /// The same when a request gains `tokens` output tokens in a step.
    #[must_use]
    pub fn with_tokens_per_step(mut self, tokens: f64) -> Self {
        self.steps_per_token = 1.0 / tokens;
        self
    }

    /// Operation when each rank and pipeline slot runs `batch` requests and a decode step takes `step_s`.
    ///
    /// Both latencies rise with `batch` and with `step_s`, which the search's bounds rely on.
    #[inline(always)]
    #[must_use]
    pub fn operation(&self, batch: f64, step_s: f64) -> Operation {
        let token_s = step_s * self.steps_per_token;
        let tpot_s = token_s + self.tpot_per_request_s * batch;
        let ttft_s = self.ttft_fixed_s + self.ttft_steps * step_s + self.ttft_per_request_s * batch;
        let e2e_s = ttft_s + tpot_s * self.tokens_after_first;
        // Requests waiting for their first token hold no decode slot, except the share that overlaps with decoding.
        // No request can take less of the replica than its own prefill and its share of the decode steps.
        let decoding_s = (e2e_s - self.decoding_share_lost * ttft_s)
            .max(self.prompt_s * batch + self.tokens_after_first * token_s);
        let completed_per_s = self.ranks * batch / decoding_s;
        Operation {
            tpot_s,
            ttft_s,
            e2e_s,
            in_flight: completed_per_s * e2e_s,
            output_tps: completed_per_s * self.osl,
        }
    }

    /// Ranks times pipeline slots: how many independent batches the replica runs.
    #[must_use]
    pub fn batches(&self) -> f64 {
        self.ranks
    }
}

/// Where the increasing `function`, 0 at 0, reaches `target` within `0..=most`; `most` when it does not.
///
/// The root is bracketed and found by false position with the Illinois rule, to 1e-12 of the bracket: about a fourth of
/// the evaluations that halving would need.
#[must_use]
pub fn increasing_root(most: f64, target: f64, function: impl Fn(f64) -> f64) -> f64 {
    const MOST_EVALUATIONS: u32 = 60;
    const TOLERANCE: f64 = 1e-12;
    let mut low = 0.0;
    let mut high = most;
    let mut excess_low = -target;
    let mut excess_high = function(high) - target;
    if excess_high <= 0.0 {
        return high;
    }
    let mut kept = 0;
    for _ in 0..MOST_EVALUATIONS {
        let guess =
            (high - excess_high * (high - low) / (excess_high - excess_low)).clamp(low, high);
        let excess = function(guess) - target;
        if excess.abs() <= TOLERANCE * target || high - low <= TOLERANCE * most {
            return guess;
        }
        if excess < 0.0 {
            low = guess;
            excess_low = excess;
            // The same end kept twice: halve its value, so that it moves too.
            if kept == 1 {
                excess_high *= 0.5;
            }
            kept = 1;
        } else {
            high = guess;
            excess_high = excess;
            if kept == -1 {
                excess_low *= 0.5;
            }
            kept = -1;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_an_increasing_function_is_found() {
        // x^2 = 2, and a function that stays below its target.
        assert!((increasing_root(10.0, 2.0, |x| x * x) - 2f64.sqrt()).abs() < 1e-10);
        assert!((increasing_root(3.0, 5.0, |x| x) - 3.0).abs() < 1e-12);
    }
}
