//! Work that is all there at the start: the offline maximum, bursts that ramp up and drain, static batches, and the
//! largest load under latency limits.

use super::{Layout, StepModel};
use crate::ops::{Cost, Operator, OperatorName};

/// What a replica delivers when nothing waits for arrivals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Delivery {
    /// Time per output token that a running request sees, s.
    pub tpot_s: f64,
    /// Mean time to first token, waiting in the queue included, s.
    pub ttft_s: f64,
    /// Output tokens/s of the replica.
    pub output_tps: f64,
    /// Decode step without any prefill, s.
    pub decode_step_s: f64,
}

/// Coefficients of a replica that always has work: step times, lengths and the batch it may run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Saturated<'a> {
    step: &'a StepModel,
    osl: f64,
    slots: f64,
    chunk_tokens: f64,
}

impl<'a> Saturated<'a> {
    /// Args: `osl` mean output tokens; `chunk_tokens` prompt tokens of one step.
    #[must_use]
    pub fn new(step: &'a StepModel, layout: Layout, osl: f64, chunk_tokens: f64) -> Self {
        Self {
            step,
            osl,
            slots: f64::from(layout.pp * layout.attn_dp),
            chunk_tokens,
        }
    }

    /// Seconds of one fused step in which each attention rank decodes `batch` requests and prefills the prompts that
    /// take the place of those that end.
    ///
    /// Every product sees `batch (1 + isl / osl)` tokens and reads its weights once; attention reads the caches of the
    /// batch, and prompts attend to themselves. Products reach the mean of decode and prefill efficiency by tokens.
    /// Attention ranks meet at every layer: they wait for a share of the prompts that one of them prefills, as in a
    /// closed loop; the more prompts a step holds, the more alike are the ranks (Poisson: as one over the root).
    /// Source: the published maximum-throughput tables, dense and expert models, prefill- and decode-bound alike.
    /// Assumes: host work on prompts (tokenisation) overlaps with the steps.
    #[must_use]
    pub fn fused_step_s(&self, batch: f64) -> f64 {
        let prompts = batch / self.osl;
        let tokens = batch + prompts * self.step.prompt_tokens;
        let decode_share = batch / tokens;
        let (mut on_batch, mut on_tokens) = (0.0, 0.0);
        for operator in &self.step.decode {
            if is_per_running_request(operator) {
                on_batch += operator.seconds(batch);
            } else {
                on_tokens += operator.seconds(tokens);
            }
        }
        on_batch
            + decode_share * on_tokens
            + (1.0 - decode_share) * self.step.chunk_s(tokens)
            + prompts * self.step.prompt_core_s
            + (self.step.rank_waiting - 1.0) * prompts / (1.0 + prompts).sqrt() * self.prompt_s()
    }

    /// Prefill seconds that one more prompt adds, host work excluded.
    fn prompt_s(&self) -> f64 {
        (self.step.prefill(self.chunk_tokens).marginal_s - self.step.prompt_overhead_s).max(0.0)
    }

    /// Throughput with `batch` requests on each rank and pipeline slot and more waiting than will ever be served.
    #[must_use]
    pub fn endless(&self, batch: f64) -> Delivery {
        let step_s = self.fused_step_s(batch);
        Delivery {
            tpot_s: step_s,
            ttft_s: self.prompt_s() * batch,
            output_tps: self.slots * batch / step_s,
            decode_step_s: self.step.decode_step_s(batch),
        }
    }

    /// `requests` queued at once on the replica, of which each rank and slot runs at most `batch`; the time until the
    /// last one ends counts.
    ///
    /// What does not fit runs at the endless rate; the last batch is prefilled, then thins out while the longest answer
    /// (`longest_osl`) still decodes, so that its mean batch is `batch osl / longest`.
    /// Assumes: step time is linear in the batch over the drain, which makes the order in which requests end irrelevant.
    #[must_use]
    pub fn burst(&self, requests: f64, batch: f64, longest_osl: f64) -> Delivery {
        let per_slot = (requests / self.slots).max(1.0);
        let running = batch.min(per_slot);
        let endless = self.endless(running);
        let queued_s = (per_slot - running) * self.osl * endless.tpot_s / running;
        let longest = longest_osl.max(self.osl);
        let draining = self
            .step
            .decode_step_s((running * self.osl / longest).max(1.0));
        let prefill_s = self.step.prefill(self.chunk_tokens).alone_s - self.step.prompt_overhead_s
            + (running - 1.0) * self.prompt_s();
        let elapsed_s = queued_s + prefill_s + longest * draining;
        let tpot_s =
            (queued_s * endless.tpot_s + (prefill_s + longest * draining) * draining) / elapsed_s;
        Delivery {
            tpot_s,
            // Half of the prompts of the first batch, and half of the queue, are ahead of a mean request.
            ttft_s: 0.5 * (queued_s + prefill_s),
            output_tps: requests.max(self.slots) * self.osl / elapsed_s,
            decode_step_s: self.step.decode_step_s(running),
        }
    }

    /// One fixed batch from the first prompt to the last token, `batch` requests on each rank.
    #[must_use]
    pub fn static_batch(&self, batch: f64) -> Delivery {
        let prefill_s = self.step.prefill(self.chunk_tokens).alone_s - self.step.prompt_overhead_s
            + (batch - 1.0).max(0.0) * self.prompt_s();
        let tpot_s = self.step.decode_step_s(batch);
        let elapsed_s = prefill_s + (self.osl - 1.0).max(0.0) * tpot_s;
        Delivery {
            tpot_s,
            ttft_s: prefill_s,
            output_tps: self.slots * batch * self.osl / elapsed_s,
            decode_step_s: tpot_s,
        }
    }

    /// The largest load under limits on the 99th percentile of both latencies, at most `batch` a rank and slot.
    ///
    /// A running request's mean time per token is held below its limit over `tpot_tail`; a prompt, a step and `ttft_tail`
    /// mean processor-sharing waits for the prefill of others below the limit on the first token.
    /// Source: MLPerf server and interactive results, whose measured percentiles stand beside their limits.
    #[must_use]
    pub fn limited(&self, batch: f64, limits: &TailLimits) -> Delivery {
        const HALVINGS: u32 = 40;
        let alone_s = self.step.prefill(self.chunk_tokens).alone_s - self.step.prompt_overhead_s;
        let wait_s = |delivery: &Delivery| {
            let prompts_per_s = delivery.output_tps / self.slots / self.osl;
            let load = (prompts_per_s * self.prompt_s()).min(1.0 - 1e-6);
            alone_s * load / (1.0 - load)
        };
        let operation = |running: f64| {
            let delivery = self.endless(running);
            Delivery {
                ttft_s: alone_s + wait_s(&delivery) + delivery.tpot_s,
                ..delivery
            }
        };
        let is_allowed = |delivery: &Delivery| {
            let tail_s = delivery.ttft_s + (limits.ttft_tail - 1.0) * wait_s(delivery);
            delivery.tpot_s * limits.tpot_tail <= limits.tpot_s && tail_s <= limits.ttft_s
        };
        let most = operation(batch);
        if is_allowed(&most) {
            return most;
        }
        let (mut low, mut high) = (0.0, batch);
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            if is_allowed(&operation(middle)) {
                low = middle;
            } else {
                high = middle;
            }
        }
        // Not even one request at a time meets the limits: the least load says so through its latencies.
        operation(low.max(1.0f64.min(batch)))
    }
}

/// Limits on the 99th percentile of both latencies, and how far that percentile lies above the mean.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailLimits {
    /// Limit on the time to first token, s.
    pub ttft_s: f64,
    /// Limit on the time per output token, s.
    pub tpot_s: f64,
    /// 99th percentile over mean of the wait for the first token.
    pub ttft_tail: f64,
    /// 99th percentile over mean of the time per output token.
    pub tpot_tail: f64,
}

/// Whether an operator of a decode step works on running requests only, not on prompt tokens that share the step.
fn is_per_running_request(operator: &Operator) -> bool {
    match operator.name {
        OperatorName::MixerCore | OperatorName::Head => true,
        OperatorName::Overhead => matches!(operator.cost, Cost::PerRow(_)),
        _ => false,
    }
}
