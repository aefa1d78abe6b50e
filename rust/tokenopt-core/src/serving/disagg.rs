//! Disaggregated serving: prompts prefill in one pool of workers, tokens decode in another, the cache crosses between.

use serde::Serialize;

use super::{Layout, StepModel};
use crate::accelerator::{Accelerator, Topology};
use crate::format::NumberFormat;
use crate::model::ModelSpec;
use crate::ops::attention::{Lengths, MixerWork};
use crate::parameters::EngineParameters;

/// Most that prefill workers are loaded. Nearer to 1 the burstiness of the arrivals, which nobody states, decides how
/// long the queue is.
pub const MOST_UTILIZATION: f64 = 0.9;

/// A worker that only prefills, at one chunk size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillWorker {
    /// Seconds that one more prompt keeps an attention rank from the next when prompts share full chunks. Pipeline stages
    /// work on prompts side by side, in one queue.
    pub prompt_s: f64,
    /// Seconds of one prompt that has the worker to itself, fixed latencies included.
    pub alone_s: f64,
    /// Prompts/s at full load.
    pub requests_per_s: f64,
    /// Chips that hold, and so send, the cache of one prompt.
    pub links: f64,
    /// Chips of the worker.
    pub chips: f64,
}

impl PrefillWorker {
    /// Hoists a worker from its step times.
    #[must_use]
    pub fn new(
        parameters: &EngineParameters,
        layout: Layout,
        step: &StepModel,
        chunk_tokens: f64,
    ) -> Self {
        let prefill = step.prefill_alone(chunk_tokens);
        let prompt_s = prefill.marginal_s / f64::from(layout.pp);
        Self {
            prompt_s,
            alone_s: parameters.first_token_overhead_s + prefill.alone_s,
            requests_per_s: f64::from(layout.attn_dp) / prompt_s,
            links: f64::from(layout.tp) * f64::from(layout.pp),
            chips: f64::from(layout.chips()),
        }
    }

    /// Mean seconds that a prompt waits for its rank at `utilization`, 0..1.
    ///
    /// Source: Pollaczek-Khinchine for equal service times, `rho / (1 - rho) / 2` of one.
    /// Assumes: prompts arrive at random and are spread over ranks that each keep a queue of their own, which overstates
    /// the wait behind a router that knows the queues.
    #[must_use]
    pub fn wait_s(&self, utilization: f64) -> f64 {
        0.5 * utilization / (1.0 - utilization) * self.prompt_s
    }

    /// The utilization at which prompts wait `wait_s` on average, at most [`MOST_UTILIZATION`]; 0 when they must not.
    #[must_use]
    pub fn utilization_for(&self, wait_s: f64) -> f64 {
        if wait_s <= 0.0 {
            return 0.0;
        }
        if wait_s == f64::INFINITY {
            return MOST_UTILIZATION;
        }
        (2.0 * wait_s / (self.prompt_s + 2.0 * wait_s)).min(MOST_UTILIZATION)
    }
}

/// A worker that only decodes, at one running batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeWorker {
    /// Attention ranks times pipeline slots.
    pub slots: f64,
    /// Running batch of a slot.
    pub batch: f64,
    /// Decode step, s.
    pub step_s: f64,
    /// Time per output token, s.
    pub tpot_s: f64,
    /// Requests/s.
    pub requests_per_s: f64,
    /// Chips that receive the cache of one prompt.
    pub links: f64,
    /// Chips of the worker.
    pub chips: f64,
}

impl DecodeWorker {
    /// A worker on `layout` whose slots each run `batch` requests of `osl` output tokens, the first of which the prefill
    /// made.
    #[must_use]
    pub fn new(layout: Layout, step: &StepModel, batch: f64, osl: f64) -> Self {
        let slots = f64::from(layout.attn_dp) * f64::from(layout.pp);
        let step_s = step.decode_step_s(batch);
        let tpot_s = step_s / step.tokens_per_step;
        Self {
            slots,
            batch,
            step_s,
            tpot_s,
            requests_per_s: slots * batch / (tpot_s * (osl - 1.0)),
            links: f64::from(layout.tp) * f64::from(layout.pp),
            chips: f64::from(layout.chips()),
        }
    }

    /// Requests whose cache a slot holds: those that run, and those whose cache is arriving for `transfer_s`.
    #[must_use]
    pub fn held_per_slot(&self, transfer_s: f64) -> f64 {
        self.batch + self.requests_per_s / self.slots * transfer_s
    }
}

/// How the cache of a prompt reaches the decode pool.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CacheTransfer {
    /// Cache and state of one prompt, all layers, bytes.
    pub prompt_bytes: f64,
    /// Achieved rate of one chip's link, bytes/s.
    pub link_bytes_per_s: f64,
    /// Latency of a transfer, s.
    pub latency_s: f64,
    /// Share of the transfer that hides behind the prefill of later layers, 0..1.
    pub overlap: f64,
}

impl CacheTransfer {
    /// Rates between workers on `accelerator`: the fast fabric when a group of workers shares a scale-up domain, else the
    /// network.
    #[must_use]
    pub fn new(
        accelerator: &Accelerator,
        parameters: &EngineParameters,
        is_inside_domain: bool,
        prompt_bytes: f64,
        overlap: f64,
    ) -> Self {
        let (rate, efficiency, latency_s) = if is_inside_domain {
            (
                accelerator.scale_up.bytes_per_s,
                parameters.link_efficiency,
                parameters.collective_latency_s,
            )
        } else {
            (
                accelerator.scale_out_bytes_per_s,
                parameters.network_efficiency,
                parameters.network_latency_s,
            )
        };
        Self {
            prompt_bytes,
            link_bytes_per_s: rate * efficiency,
            latency_s,
            overlap,
        }
    }

    /// The slower of two ends.
    #[must_use]
    pub fn slower(self, other: Self) -> Self {
        Self {
            link_bytes_per_s: self.link_bytes_per_s.min(other.link_bytes_per_s),
            latency_s: self.latency_s.max(other.latency_s),
            ..self
        }
    }

    /// Seconds that a prompt's cache is on the way over `links` links at each end, whichever has fewer.
    ///
    /// Assumes: the whole prompt's cache is sent, cached prefixes included, and every chip of a worker has a link of its
    /// own.
    #[must_use]
    pub fn seconds(&self, sending_links: f64, receiving_links: f64) -> f64 {
        self.latency_s
            + self.prompt_bytes / (self.link_bytes_per_s * sending_links.min(receiving_links))
    }

    /// The part of [`Self::seconds`] that a request waits for.
    #[must_use]
    pub fn exposed_s(&self, sending_links: f64, receiving_links: f64) -> f64 {
        let seconds = self.seconds(sending_links, receiving_links);
        self.latency_s + (seconds - self.latency_s) * (1.0 - self.overlap)
    }

    /// Requests/s whose caches the links of a worker of `chips` chips can carry.
    #[must_use]
    pub fn most_requests_per_s(&self, chips: f64) -> f64 {
        chips * self.link_bytes_per_s / self.prompt_bytes
    }
}

/// Whether a balanced group of workers shares one domain of `domain_chips` chips: one worker of the pool that needs
/// fewer, and as many of the other as it keeps busy.
#[must_use]
pub fn group_is_inside(
    prefill: &PrefillWorker,
    decode: &DecodeWorker,
    accelerator: &Accelerator,
    domain_chips: f64,
) -> bool {
    if accelerator.scale_up.topology == Topology::Single {
        return false;
    }
    let prefill_per_decode = decode.requests_per_s / (prefill.requests_per_s * MOST_UTILIZATION);
    let chips = if prefill_per_decode >= 1.0 {
        decode.chips + prefill_per_decode.ceil() * prefill.chips
    } else {
        prefill.chips + (1.0 / prefill_per_decode).ceil() * decode.chips
    };
    chips <= domain_chips.min(f64::from(accelerator.scale_up.domain_chips))
}

/// Cache and state of a prompt over all layers, bytes.
#[must_use]
pub fn prompt_cache_bytes(model: &ModelSpec, lengths: &Lengths, kv_precision: NumberFormat) -> f64 {
    let prompt = Lengths {
        osl: 0.0,
        ..*lengths
    };
    (model.layers.iter())
        .map(|group| {
            let work = MixerWork::new(&group.mixer, &prompt, kv_precision.bytes(), 1.0);
            f64::from(group.count) * work.kept_bytes
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefill() -> PrefillWorker {
        PrefillWorker {
            prompt_s: 0.1,
            alone_s: 0.15,
            requests_per_s: 20.0,
            links: 4.0,
            chips: 8.0,
        }
    }

    #[test]
    fn a_prompt_waits_half_a_service_at_half_load() {
        // 0.5 / 0.5 / 2 x 100 ms
        assert!((prefill().wait_s(0.5) - 0.05).abs() < 1e-12);
    }

    #[test]
    fn utilization_and_wait_are_inverse() {
        for utilization in [0.1, 0.5, 0.85] {
            let wait_s = prefill().wait_s(utilization);
            assert!((prefill().utilization_for(wait_s) - utilization).abs() < 1e-12);
        }
        assert_eq!(prefill().utilization_for(f64::INFINITY), MOST_UTILIZATION);
        assert_eq!(prefill().utilization_for(-1.0), 0.0);
    }

    #[test]
    fn a_cache_crosses_over_the_links_of_the_smaller_worker() {
        let transfer = CacheTransfer {
            prompt_bytes: 1e9,
            link_bytes_per_s: 50e9,
            latency_s: 1e-3,
            overlap: 0.0,
        };
        // 1 GB over 4 links of 50 GB/s and 1 ms
        assert!((transfer.seconds(4.0, 8.0) - 6e-3).abs() < 1e-12);
        let hidden = CacheTransfer {
            overlap: 0.8,
            ..transfer
        };
        assert!((hidden.exposed_s(4.0, 8.0) - 2e-3).abs() < 1e-12);
        // 8 links of 50 GB/s carry 400 caches of 1 GB a second
        assert!((transfer.most_requests_per_s(8.0) - 400.0).abs() < 1e-9);
    }

    #[test]
    fn a_slot_holds_the_caches_that_are_arriving() {
        let worker = DecodeWorker {
            slots: 2.0,
            batch: 10.0,
            step_s: 0.01,
            tpot_s: 0.01,
            requests_per_s: 4.0,
            links: 4.0,
            chips: 8.0,
        };
        // 2 requests/s a slot for half a second
        assert!((worker.held_per_slot(0.5) - 11.0).abs() < 1e-12);
    }
}
