//! A disaggregated fleet as the answer reports it.

use serde::Serialize;

use super::best::{Candidate, PrefillPart};
use super::pools::Pair;
use super::problem::SearchProblem;
use super::scan::{LatencyLimits, LayoutModel};
use super::solution::{
    largest_share, rounded, shares, speculation_answer, step_pieces, Binding, LayoutAnswer,
    Solution, BYTES_PER_GB, MS_PER_S,
};
use super::workers::{decode_capacity, prompt_lengths, Links};
use crate::money::{
    pooled_fleet, FleetUnit, PooledFleet, TokenCosts, SECONDS_PER_HOUR, TOKENS_PER_QUOTE,
};
use crate::serving::disagg::{DecodeWorker, PrefillWorker, MOST_UTILIZATION};
use crate::serving::Layout;

/// One pool of a disaggregated fleet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PoolAnswer {
    /// Index of the stack.
    pub stack: usize,
    /// Caller's index of the offer.
    pub offer: u32,
    /// Tensor parallelism of a worker.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Expert parallelism.
    pub ep: u32,
    /// Attention data parallelism.
    pub attn_dp: u32,
    /// Workers.
    pub workers: u32,
    /// Chips of a worker.
    pub chips_per_worker: u32,
    /// Requests/s of a worker, at the load that the limits allow.
    pub requests_per_s: f64,
    /// Share of the time that a worker is busy.
    pub utilization: f64,
}

/// Time to first token of a disaggregated fleet by part, and the cache that crosses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Handover {
    /// Waiting for a prefill worker, ms.
    pub queue_ms: f64,
    /// Prefill, fixed latencies included, ms.
    pub prefill_ms: f64,
    /// The part of the cache transfer that the request waits for, ms.
    pub transfer_ms: f64,
    /// First decode step, ms.
    pub first_step_ms: f64,
    /// Cache of one prompt, GB.
    pub cache_gb: f64,
    /// Achieved rate of one chip's link, GB/s.
    pub link_gb_per_s: f64,
    /// Whether the fast fabric carries it.
    pub over_fabric: bool,
}

/// Both pools of a candidate, worked out again.
pub(super) struct Fleet<'a> {
    problem: &'a SearchProblem,
    pub(super) prefill: LayoutModel<'a>,
    pub(super) decode: LayoutModel<'a>,
    pub(super) pair: Pair,
    over_fabric: bool,
    paid: PooledFleet,
    requests_per_s: f64,
    utilization: f64,
    part: PrefillPart,
    batch: u32,
}

fn unit_of(problem: &SearchProblem, stack: usize, offer: u32, layout: Layout) -> Option<FleetUnit> {
    let accelerator = &problem.accelerators[problem.stacks[stack].accelerator];
    let terms = accelerator.offers.iter().find(|terms| terms.id == offer)?;
    FleetUnit::new(accelerator, terms, layout.chips())
}

impl<'a> Fleet<'a> {
    /// None when the candidate names an offer that cannot hold its workers.
    pub(super) fn new(
        problem: &'a SearchProblem,
        candidate: &Candidate,
        part: PrefillPart,
    ) -> Option<Self> {
        let osl = problem.workload.osl;
        let lengths = problem.lengths();
        let decode = LayoutModel::new(
            problem,
            candidate.stack,
            candidate.layout,
            candidate.depth,
            &lengths,
        );
        let prompt = prompt_lengths(&problem.workload);
        let prefill = LayoutModel::new(problem, part.stack, part.layout, 0, &prompt);
        let worker = PrefillWorker::new(
            &problem.stacks[part.stack].parameters,
            part.layout,
            &prefill.step,
            f64::from(candidate.chunk_tokens),
        );
        let batch = f64::from(candidate.batch);
        let decode_worker = DecodeWorker::new(candidate.layout, &decode.step, batch, osl);
        let unit = unit_of(problem, part.stack, part.offer, part.layout)?;
        let decode_unit = unit_of(
            problem,
            candidate.stack,
            part.decode_offer,
            candidate.layout,
        )?;
        let own = problem.stacks[candidate.stack].accelerator;
        let is_shared = problem.stacks[part.stack].accelerator == own;
        let links = Links::new(problem, part.stack, candidate.stack);
        let fabric_chips = is_shared.then_some(unit.fabric_chips);
        let accelerator = &problem.accelerators[own];
        let transfer = links.between(&worker, &decode_worker, accelerator, fabric_chips);
        let pair = Pair::new(worker, decode_worker, transfer, osl);
        let workers = (f64::from(part.workers), f64::from(part.decode_workers));
        let requests_per_s = match problem.demand.output_tps {
            Some(target) => target / osl,
            None => workers.1 * decode_worker.requests_per_s,
        };
        Some(Self {
            problem,
            over_fabric: links.is_fabric(&transfer),
            paid: pooled_fleet((&unit, workers.0), (&decode_unit, workers.1), is_shared),
            requests_per_s,
            utilization: pair.utilization(&LatencyLimits::of(&problem.limits)),
            pair,
            prefill,
            decode,
            part,
            batch: candidate.batch,
        })
    }

    fn pools(&self, candidate: &Candidate) -> (PoolAnswer, PoolAnswer) {
        let pool = |stack, offer, layout: Layout, workers: u32, rate: f64, full: f64| PoolAnswer {
            stack,
            offer,
            tp: layout.tp,
            pp: layout.pp,
            ep: layout.ep,
            attn_dp: layout.attn_dp,
            workers,
            chips_per_worker: layout.chips(),
            requests_per_s: rate,
            utilization: self.requests_per_s / (f64::from(workers) * full),
        };
        let part = &self.part;
        let rate = self.pair.prefill_rate(self.utilization);
        let decode_rate = self.pair.decode.requests_per_s;
        (
            pool(
                part.stack,
                part.offer,
                part.layout,
                part.workers,
                rate,
                self.pair.prefill.requests_per_s,
            ),
            pool(
                candidate.stack,
                part.decode_offer,
                candidate.layout,
                part.decode_workers,
                decode_rate,
                decode_rate,
            ),
        )
    }

    /// What keeps the fleet from being cheaper: a limit or the memory against a larger decode batch, the limit on the
    /// first token against fuller prefill workers, else what decode steps wait for.
    fn binding(&self, otherwise: Binding) -> Binding {
        let limits = LatencyLimits::of(&self.problem.limits);
        let more = self.batch + 1;
        let tokens = self.decode.step.tokens_per_step;
        if self.decode.step.decode_step_s(f64::from(more)) / tokens > limits.tpot_s {
            Binding::SloTpot
        } else if let Some(limit) = self.first_token_limit() {
            limit
        } else if f64::from(more) > decode_capacity(&self.decode, more) {
            Binding::Memory
        } else if more > self.decode.max_batch {
            Binding::MaxBatch
        } else {
            otherwise
        }
    }

    /// The limit that keeps prefill workers from their highest load; None where none does.
    fn first_token_limit(&self) -> Option<Binding> {
        let limits = LatencyLimits::of(&self.problem.limits);
        (self.utilization < MOST_UTILIZATION).then_some(
            if limits.e2e_s - self.pair.after_first_s < limits.ttft_s {
                Binding::SloE2e
            } else {
                Binding::SloTtft
            },
        )
    }

    /// What keeps prefill workers from more prompts: the links, the limit on the first token, else what a prompt waits
    /// for.
    pub(super) fn prefill_binding(&self, otherwise: Binding) -> Binding {
        let worker = &self.pair.prefill;
        if self.pair.prefill_rate(self.utilization) < worker.requests_per_s * self.utilization {
            return Binding::Network;
        }
        self.first_token_limit().unwrap_or(otherwise)
    }

    /// Requests whose cache a rank of a decode worker holds: those that run, and those whose cache is arriving.
    pub(super) fn held_per_decode_rank(&self) -> f64 {
        let Pair {
            prefill,
            decode,
            transfer,
            ..
        } = &self.pair;
        let transfer_s = transfer.seconds(prefill.links, decode.links);
        decode.held_per_slot(transfer_s) * f64::from(self.decode.layout.pp)
    }
}

impl Solution {
    /// Evaluates a disaggregated candidate again, with everything a reader wants to know; None when its offers cannot
    /// hold its workers.
    pub(super) fn disaggregated(
        problem: &SearchProblem,
        candidate: &Candidate,
        part: PrefillPart,
    ) -> Option<Self> {
        let fleet = Fleet::new(problem, candidate, part)?;
        let (isl, osl) = (problem.workload.isl, problem.workload.osl);
        let pair = &fleet.pair;
        let decode = &pair.decode;
        let (prefill_workers, decode_workers) =
            (f64::from(part.workers), f64::from(part.decode_workers));
        let ttft_s = pair.ttft_s(fleet.requests_per_s, prefill_workers);
        let e2e_s = ttft_s + pair.after_first_s;
        let (prefill_pool, decode_pool) = fleet.pools(candidate);
        let capacity = (prefill_workers * prefill_pool.requests_per_s)
            .min(decode_workers * decode.requests_per_s)
            * osl;
        let chips_used = prefill_workers * pair.prefill.chips + decode_workers * decode.chips;
        let delivered = fleet.requests_per_s * osl * problem.demand.utilization;
        let per_million = |per_hr: f64| per_hr / (delivered * SECONDS_PER_HOUR) * TOKENS_PER_QUOTE;
        let power_w =
            |stack: usize| problem.accelerators[problem.stacks[stack].accelerator].power_w;
        let kwh = per_million(fleet.paid.kw(power_w(part.stack), power_w(candidate.stack)));
        let usd = per_million(fleet.paid.usd_per_hr);
        let costs = TokenCosts::new(usd, isl, osl);
        let output_share = osl / (isl + osl);
        let batch = f64::from(candidate.batch);
        let transfer_s = pair.transfer.exposed_s(pair.prefill.links, decode.links);
        let memory = &fleet.decode.memory;
        let kept_bytes = memory.request_bytes * fleet.held_per_decode_rank();
        let used_bytes = memory.weight_bytes
            + kept_bytes
            + memory.activation_bytes_per_token * batch * fleet.decode.tokens_verified();
        let pieces = step_pieces(&fleet.decode, batch);
        let in_flight = decode.requests_per_s * e2e_s;
        Some(Self {
            stack: candidate.stack,
            offer: Some(part.decode_offer),
            layout: LayoutAnswer {
                mode: candidate.mode(),
                prefill: Some(prefill_pool),
                decode: Some(decode_pool),
                ..candidate.layout.into()
            },
            chunk_tokens: candidate.chunk_tokens,
            concurrency: rounded(in_flight),
            in_flight,
            running_batch: batch * decode.slots,
            batch_per_rank: candidate.batch,
            replicas: decode_workers,
            instances: fleet.paid.instances.0 + fleet.paid.instances.1,
            chips: fleet.paid.chips(),
            chips_used,
            ttft_ms: ttft_s * MS_PER_S,
            tpot_ms: decode.tpot_s * MS_PER_S,
            e2e_ms: e2e_s * MS_PER_S,
            tps_per_user: 1.0 / decode.tpot_s,
            output_tps_per_chip: capacity / chips_used,
            capacity_tps: capacity,
            output_tps: delivered,
            requests_per_s: delivered / osl,
            usd_per_m_output_tokens: usd,
            usd_per_m_tokens: costs.usd_per_m_tokens,
            usd_per_m_input_tokens: costs.usd_per_m_input_tokens,
            usd_per_request: costs.usd_per_request,
            usd_per_hr: fleet.paid.usd_per_hr,
            kwh_per_m_tokens: kwh * output_share,
            weight_gb_per_chip: memory.weight_bytes / BYTES_PER_GB,
            kv_gb_per_chip: kept_bytes / BYTES_PER_GB,
            memory_used_share: used_bytes / memory.plannable_bytes,
            why: fleet.binding(largest_share(&pieces)),
            step_shares: shares(&pieces),
            speculation: speculation_answer(problem, candidate.depth),
            handover: Some(Handover {
                queue_ms: (ttft_s - pair.unqueued_s) * MS_PER_S,
                prefill_ms: pair.prefill.alone_s * MS_PER_S,
                transfer_ms: transfer_s * MS_PER_S,
                first_step_ms: decode.step_s * MS_PER_S,
                cache_gb: pair.transfer.prompt_bytes / BYTES_PER_GB,
                link_gb_per_s: pair.transfer.link_bytes_per_s / BYTES_PER_GB,
                over_fabric: fleet.over_fabric,
            }),
            other_mode: None,
        })
    }
}
