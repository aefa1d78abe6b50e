//! The answer as it crosses back to Python: small, with the contract's field names and units.

use std::collections::BTreeMap;

use serde::Serialize;

use super::best::{Candidate, Findings, Limit, Miss, Rejections};
use super::problem::SearchProblem;
use super::scan::LayoutModel;
use crate::ops::{OperatorName, Pieces};
use crate::serving::Layout;

/// Answer of a search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchAnswer {
    /// Configurations evaluated in full.
    pub evaluated: u64,
    /// Configurations that bounds skipped.
    pub pruned: u64,
    /// Evaluated configurations that met every limit.
    pub feasible: u64,
    /// Why the others did not.
    pub rejected: Rejections,
    /// Wall time, s.
    pub elapsed_s: f64,
    /// Best layouts, best first.
    pub best: Vec<Solution>,
    /// Best of each accelerator, best first.
    pub by_accelerator: Vec<Solution>,
    /// Undominated trade-offs of interactivity against the objective, fastest first.
    pub frontier: Vec<Solution>,
    /// Closest configuration, when nothing is feasible.
    pub nearest_miss: Option<NearestMiss>,
}

/// Closest configuration to the limits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NearestMiss {
    /// Limit to relax.
    pub limit: Limit,
    /// What it would have to be.
    pub value: f64,
    /// What it is.
    pub allowed: f64,
    /// The configuration; absent when memory is what is missing.
    pub solution: Option<Solution>,
    /// Stack of the configuration.
    pub stack: usize,
    /// Its layout.
    pub layout: LayoutAnswer,
}

/// A layout as the contract names it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayoutAnswer {
    /// `agg`: prefill and decode on the same chips.
    pub mode: &'static str,
    /// Tensor parallelism.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Expert parallelism.
    pub ep: u32,
    /// Attention data parallelism.
    pub attn_dp: u32,
}

impl From<Layout> for LayoutAnswer {
    fn from(layout: Layout) -> Self {
        Self {
            mode: "agg",
            tp: layout.tp,
            pp: layout.pp,
            ep: layout.ep,
            attn_dp: layout.attn_dp,
        }
    }
}

/// What a configuration waits for most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// Memory bandwidth.
    Bandwidth,
    /// Arithmetic.
    Compute,
    /// Fabric and network.
    Network,
    /// Launch and host latency.
    Latency,
    /// Memory capacity: one more request does not fit.
    Memory,
    /// One more request would miss the limit on time per output token.
    SloTpot,
    /// One more request would miss the limit on time to first token.
    SloTtft,
    /// One more request would miss the limit on the whole request.
    SloE2e,
    /// The largest batch that was tried.
    MaxBatch,
}

/// One configuration, priced.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Solution {
    /// Index of the stack.
    pub stack: usize,
    /// Caller's index of the offer; absent when it was not priced.
    pub offer: Option<u32>,
    /// Layout.
    pub layout: LayoutAnswer,
    /// Prefill chunk, tokens.
    pub chunk_tokens: u32,
    /// Requests in flight on a replica, rounded.
    pub concurrency: u64,
    /// Requests in flight on a replica, mean.
    pub in_flight: f64,
    /// Requests decoding on a replica.
    pub running_batch: f64,
    /// Running batch of one attention rank and pipeline slot.
    pub batch_per_rank: u32,
    /// Replicas.
    pub replicas: f64,
    /// Instances paid for.
    pub instances: f64,
    /// Chips paid for.
    pub chips: f64,
    /// Chips that run replicas.
    pub chips_used: f64,
    /// Time to first token, ms.
    pub ttft_ms: f64,
    /// Time per output token, ms.
    pub tpot_ms: f64,
    /// Whole request, ms.
    pub e2e_ms: f64,
    /// Output tokens/s that a user sees.
    pub tps_per_user: f64,
    /// Output tokens/s per chip in use, at capacity.
    pub output_tps_per_chip: f64,
    /// Output tokens/s of the fleet at capacity.
    pub capacity_tps: f64,
    /// Output tokens/s the fleet delivers.
    pub output_tps: f64,
    /// Requests/s the fleet delivers.
    pub requests_per_s: f64,
    /// USD per million output tokens.
    pub usd_per_m_output_tokens: f64,
    /// USD per million tokens, input and output together.
    pub usd_per_m_tokens: f64,
    /// USD per million input tokens (all the money over the input tokens alone).
    pub usd_per_m_input_tokens: f64,
    /// USD per request.
    pub usd_per_request: f64,
    /// USD per hour of the fleet.
    pub usd_per_hr: f64,
    /// kWh per million tokens, input and output together.
    pub kwh_per_m_tokens: f64,
    /// Weights on the fullest chip, GB.
    pub weight_gb_per_chip: f64,
    /// Cache and state of the requests in flight on the fullest chip, GB.
    pub kv_gb_per_chip: f64,
    /// Share of the plannable memory in use.
    pub memory_used_share: f64,
    /// What binds.
    pub why: Binding,
    /// What a decode step waits for, as shares.
    pub step_shares: BTreeMap<&'static str, f64>,
}

const BYTES_PER_GB: f64 = 1e9;
const MS_PER_S: f64 = 1e3;

impl SearchAnswer {
    pub(super) fn new(problem: &SearchProblem, findings: &Findings, elapsed_s: f64) -> Self {
        let solve = |candidates: &[Candidate]| -> Vec<Solution> {
            candidates
                .iter()
                .map(|candidate| Solution::new(problem, candidate))
                .collect()
        };
        let mut by_accelerator: Vec<Candidate> =
            findings.by_accelerator.iter().flatten().copied().collect();
        by_accelerator.sort_by(Candidate::order);
        Self {
            evaluated: findings.evaluated,
            pruned: findings.pruned,
            feasible: findings.feasible,
            rejected: findings.rejected,
            elapsed_s,
            best: solve(findings.top.entries()),
            by_accelerator: solve(&by_accelerator),
            frontier: solve(&findings.frontier.points()),
            nearest_miss: findings
                .miss
                .filter(|_| findings.feasible == 0)
                .map(|miss| NearestMiss::new(problem, &miss)),
        }
    }
}

impl NearestMiss {
    fn new(problem: &SearchProblem, miss: &Miss) -> Self {
        let candidate = &miss.candidate;
        Self {
            limit: miss.limit,
            value: miss.value,
            allowed: miss.allowed,
            solution: (miss.limit != Limit::Memory).then(|| Solution::new(problem, candidate)),
            stack: candidate.stack,
            layout: candidate.layout.into(),
        }
    }
}

impl Solution {
    /// Evaluates one candidate again, with everything a reader wants to know.
    #[must_use]
    pub fn new(problem: &SearchProblem, candidate: &Candidate) -> Self {
        let lengths = problem.workload.lengths();
        let model = LayoutModel::new(problem, candidate.stack, candidate.layout, &lengths);
        let batch = f64::from(candidate.batch);
        let steady = model.steady(candidate.chunk_tokens);
        let operation = steady.operation(batch, model.step.decode_step_s(batch));
        let unit = model.cheapest_unit(operation.output_tps);
        let fleet =
            unit.map(|index| model.units()[index].fleet(operation.output_tps, &problem.demand));
        let replica_chips = f64::from(candidate.layout.chips());
        let replicas = fleet.map_or(1.0, |fleet| fleet.replicas);
        let isl = problem.workload.isl;
        let osl = problem.workload.osl;
        let usd_per_m_output = fleet.map_or(f64::NAN, |fleet| fleet.usd_per_m_output_tokens());
        let costs = crate::money::TokenCosts::new(usd_per_m_output, isl, osl);
        let kwh_per_m_output = fleet.map_or(f64::NAN, |fleet| {
            fleet.kwh_per_m_output_tokens(model.accelerator.power_w)
        });
        let delivered = fleet.map_or(operation.output_tps, |fleet| fleet.delivered_tps);
        let output_share = osl / (isl + osl);
        let kept_bytes =
            model.memory.request_bytes * operation.in_flight / f64::from(candidate.layout.attn_dp);
        let used_bytes = model.memory.weight_bytes
            + kept_bytes
            + model.memory.activation_bytes_per_token * f64::from(candidate.chunk_tokens);
        let pieces = step_pieces(&model, batch);
        Self {
            stack: candidate.stack,
            offer: unit.map(|index| model.units()[index].offer),
            layout: candidate.layout.into(),
            chunk_tokens: candidate.chunk_tokens,
            concurrency: rounded(operation.in_flight),
            in_flight: operation.in_flight,
            running_batch: batch * steady.batches(),
            batch_per_rank: candidate.batch,
            replicas,
            instances: fleet.map_or(f64::NAN, |fleet| fleet.instances),
            chips: fleet.map_or(replica_chips, |fleet| fleet.chips),
            chips_used: replicas * replica_chips,
            ttft_ms: operation.ttft_s * MS_PER_S,
            tpot_ms: operation.tpot_s * MS_PER_S,
            e2e_ms: operation.e2e_s * MS_PER_S,
            tps_per_user: 1.0 / operation.tpot_s,
            output_tps_per_chip: operation.output_tps / replica_chips,
            capacity_tps: replicas * operation.output_tps,
            output_tps: delivered,
            requests_per_s: delivered / osl,
            usd_per_m_output_tokens: usd_per_m_output,
            usd_per_m_tokens: costs.usd_per_m_tokens,
            usd_per_m_input_tokens: costs.usd_per_m_input_tokens,
            usd_per_request: costs.usd_per_request,
            usd_per_hr: fleet.map_or(f64::NAN, |fleet| fleet.usd_per_hr),
            kwh_per_m_tokens: kwh_per_m_output * output_share,
            weight_gb_per_chip: model.memory.weight_bytes / BYTES_PER_GB,
            kv_gb_per_chip: kept_bytes / BYTES_PER_GB,
            memory_used_share: used_bytes / model.memory.plannable_bytes,
            why: binding(problem, &model, candidate, &pieces),
            step_shares: shares(&pieces),
        }
    }
}

fn rounded(value: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped first; a request count"
    )]
    let whole = value.round().clamp(1.0, 1e15) as u64;
    whole
}

/// What the steps wait for, s per decode step; the pieces of each roofline are scaled to its time.
fn step_pieces(model: &LayoutModel<'_>, batch: f64) -> Pieces {
    let mut total = Pieces::default();
    for operator in &model.step.decode {
        let pieces = operator.pieces(batch);
        let seconds = operator.seconds(batch);
        let sum = pieces.memory_s + pieces.compute_s + pieces.network_s + pieces.latency_s;
        if sum <= 0.0 {
            continue;
        }
        // Where memory and arithmetic overlap, the time is charged to the longer of the two.
        let is_memory_bound = pieces.memory_s >= pieces.compute_s;
        match operator.name {
            OperatorName::AllReduce
            | OperatorName::ExpertExchange
            | OperatorName::PipelineTransfer => total.network_s += seconds,
            OperatorName::Overhead => total.latency_s += seconds,
            _ if is_memory_bound => total.memory_s += seconds,
            _ => total.compute_s += seconds,
        }
    }
    total
}

fn shares(pieces: &Pieces) -> BTreeMap<&'static str, f64> {
    let total = pieces.memory_s + pieces.compute_s + pieces.network_s + pieces.latency_s;
    BTreeMap::from([
        ("bandwidth", pieces.memory_s / total),
        ("compute", pieces.compute_s / total),
        ("network", pieces.network_s / total),
        ("latency", pieces.latency_s / total),
    ])
}

/// What keeps the configuration from a larger batch; where nothing does, what its steps wait for.
fn binding(
    problem: &SearchProblem,
    model: &LayoutModel<'_>,
    candidate: &Candidate,
    pieces: &Pieces,
) -> Binding {
    let steady = model.steady(candidate.chunk_tokens);
    let more = f64::from(candidate.batch + 1);
    let next = steady.operation(more, model.step.decode_step_s(more));
    let limits = &problem.limits;
    let exceeds = |value: f64, limit: Option<f64>| limit.is_some_and(|most| value > most);
    let capacity = model
        .memory
        .capacity_requests(f64::from(candidate.chunk_tokens))
        * f64::from(model.layout.attn_dp);
    if exceeds(next.tpot_s, limits.tpot_s)
        || exceeds(next.tpot_s, limits.min_tps_per_user.map(|tps| 1.0 / tps))
    {
        Binding::SloTpot
    } else if exceeds(next.ttft_s, limits.ttft_s) {
        Binding::SloTtft
    } else if exceeds(next.e2e_s, limits.e2e_s) {
        Binding::SloE2e
    } else if next.in_flight > capacity {
        Binding::Memory
    } else if candidate.batch >= problem.space.max_batch {
        Binding::MaxBatch
    } else {
        let parts = [
            (pieces.memory_s, Binding::Bandwidth),
            (pieces.compute_s, Binding::Compute),
            (pieces.network_s, Binding::Network),
            (pieces.latency_s, Binding::Latency),
        ];
        parts
            .into_iter()
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map_or(Binding::Bandwidth, |(_, binding)| binding)
    }
}
