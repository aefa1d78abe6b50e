//! A closed loop of clients on fixed prefill and decode pools: what a benchmark of a disaggregated deployment measures.

use super::steady::increasing_root;
use super::{Layout, StepModel};
use crate::parameters::EngineParameters;

/// One pool: equal workers, each on one layout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pool<'a> {
    /// Layout of a worker.
    pub layout: Layout,
    /// Workers.
    pub workers: f64,
    /// Step times of a worker.
    pub step: &'a StepModel,
}

impl Pool<'_> {
    /// Attention ranks times pipeline slots of all workers.
    fn slots(&self) -> f64 {
        self.workers * f64::from(self.layout.attn_dp) * f64::from(self.layout.pp)
    }

    /// Chips of all workers.
    #[must_use]
    pub fn chips(&self) -> f64 {
        self.workers * f64::from(self.layout.chips())
    }
}

/// What a client of the pools sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PoolOperation {
    /// Time per output token after the first, s.
    pub tpot_s: f64,
    /// Time to first token, s.
    pub ttft_s: f64,
    /// Output tokens/s of the deployment.
    pub output_tps: f64,
    /// Requests that decode on each rank and pipeline slot.
    pub batch: f64,
}

/// Operation under `clients` requests in flight, of `osl` output tokens, with at most `most_running` on a decode slot.
///
/// ```text
/// tpot = T_d(b) / tokens gained a step
/// ttft = max(t0 + w T_d + T_1 + s (n / p - 1) T_m, n T_m / p - osl tpot)
/// b d (ttft + osl tpot) = n osl tpot
/// ```
///
/// with `n` clients, `p` prefill and `d` decode slots, `T_1` one prompt alone and `T_m` one more prompt: nothing prefills
/// between decode steps, a share `s` of the clients arrives together, and prefill cannot fall behind decode for ever.
/// Source: Little's law on both pools.
/// Assumes: the cache crosses while prefill still runs; workers are loaded evenly.
#[must_use]
pub fn closed_pools(
    prefill: Pool<'_>,
    decode: Pool<'_>,
    parameters: &EngineParameters,
    chunk_tokens: f64,
    osl: f64,
    clients: f64,
    most_running: f64,
) -> PoolOperation {
    let prompt = prefill.step.prefill_alone(chunk_tokens);
    let queued = clients / prefill.slots();
    let ttft_s = |tpot_s: f64| {
        let calm = parameters.first_token_overhead_s
            + parameters.first_token_steps * tpot_s
            + prompt.alone_s
            + parameters.burst_share * (queued - 1.0).max(0.0) * prompt.marginal_s;
        calm.max(queued * prompt.marginal_s - osl * tpot_s)
    };
    let tpot_at = |batch: f64| decode.step.decode_step_s(batch) / decode.step.tokens_per_step;
    let in_flight = |batch: f64| {
        let tpot_s = tpot_at(batch);
        batch * decode.slots() * (1.0 + ttft_s(tpot_s) / (osl * tpot_s))
    };
    let batch = increasing_root(clients / decode.slots(), clients, in_flight).min(most_running);
    let tpot_s = tpot_at(batch);
    let waiting_s = (clients / in_flight(batch) - 1.0).max(0.0) * osl * tpot_s;
    let ttft_s = ttft_s(tpot_s) + waiting_s;
    PoolOperation {
        tpot_s,
        ttft_s,
        output_tps: clients * osl / (ttft_s + (osl - 1.0).max(0.0) * tpot_s),
        batch,
    }
}
