//! The answer as it crosses back to Python: small, with the contract's field names and units.

use std::collections::BTreeMap;

use serde::Serialize;

use super::best::{ByMode, Candidate, Findings, Limit, Miss, Rejections, ServingMode};
use super::fleet::{Handover, PoolAnswer};
use super::problem::SearchProblem;
use super::scan::LayoutModel;
use crate::ops::{Operator, OperatorName, Pieces};
use crate::serving::{Layout, Speculation};

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
    /// Best of each mode that was tried, best first.
    pub by_mode: Vec<Solution>,
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
    /// Whether prefill and decode share chips. The degrees of a disaggregated fleet are those of its decode workers.
    pub mode: ServingMode,
    /// Tensor parallelism.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Expert parallelism.
    pub ep: u32,
    /// Attention data parallelism.
    pub attn_dp: u32,
    /// Prefill pool of a disaggregated fleet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill: Option<PoolAnswer>,
    /// Decode pool of a disaggregated fleet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode: Option<PoolAnswer>,
}

/// Speculative decoding of a solution.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpeculationAnswer {
    /// Tokens drafted per step.
    pub depth: u32,
    /// Chance that a drafted token is accepted when those before it were.
    pub acceptance: f64,
    /// Mean output tokens of a request in a step.
    pub tokens_per_step: f64,
    /// The draft model's key; absent = the model's own multi-token-prediction head.
    pub draft: Option<String>,
}

/// The best of the other mode on the same accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OtherMode {
    /// The mode.
    pub mode: ServingMode,
    /// Its USD per million tokens, input and output together.
    pub usd_per_m_tokens: f64,
    /// How much worse it is by the objective: 0.1 = 10%; negative where it is better.
    pub worse_by: f64,
}

impl From<Layout> for LayoutAnswer {
    fn from(layout: Layout) -> Self {
        Self {
            mode: ServingMode::Agg,
            tp: layout.tp,
            pp: layout.pp,
            ep: layout.ep,
            attn_dp: layout.attn_dp,
            prefill: None,
            decode: None,
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
    /// A larger batch would bring more prompts than leave a steady state.
    PrefillLoad,
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
    /// Speculative decoding; absent = none.
    pub speculation: Option<SpeculationAnswer>,
    /// From prefill to decode, in a disaggregated fleet.
    pub handover: Option<Handover>,
    /// The best of the other mode on the same accelerator; absent where it was not tried or is not feasible.
    pub other_mode: Option<OtherMode>,
}

pub(super) const BYTES_PER_GB: f64 = 1e9;
pub(super) const MS_PER_S: f64 = 1e3;

impl SearchAnswer {
    pub(super) fn new(problem: &SearchProblem, findings: &Findings, elapsed_s: f64) -> Self {
        let solve = |candidates: &[Candidate]| -> Vec<Solution> {
            candidates
                .iter()
                .map(|candidate| Solution {
                    other_mode: other_mode(problem, findings, candidate),
                    ..Solution::new(problem, candidate)
                })
                .collect()
        };
        let better = |modes: &ByMode| modes.iter().flatten().copied().min_by(Candidate::order);
        let mut by_accelerator: Vec<Candidate> =
            findings.by_accelerator.iter().filter_map(better).collect();
        by_accelerator.sort_by(Candidate::order);
        let mut by_mode: Vec<Candidate> = findings.by_mode.iter().flatten().copied().collect();
        by_mode.sort_by(Candidate::order);
        Self {
            evaluated: findings.evaluated,
            pruned: findings.pruned,
            feasible: findings.feasible,
            rejected: findings.rejected,
            elapsed_s,
            best: solve(findings.top.entries()),
            by_mode: solve(&by_mode),
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
        candidate
            .prefill
            .and_then(|part| Self::disaggregated(problem, candidate, part))
            .unwrap_or_else(|| Self::aggregated(problem, candidate))
    }

    fn aggregated(problem: &SearchProblem, candidate: &Candidate) -> Self {
        let lengths = problem.lengths();
        let depth = candidate.depth;
        let model = LayoutModel::new(problem, candidate.stack, candidate.layout, depth, &lengths);
        let batch = f64::from(candidate.batch);
        let load = model.load(candidate.chunk_tokens);
        let operation = model.operation(&load, batch);
        let in_flight = load
            .mean_operation(batch, model.step.decode_step_s(batch))
            .in_flight;
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
            concurrency: rounded(in_flight),
            in_flight,
            running_batch: batch * load.steady().batches(),
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
            speculation: speculation_answer(problem, depth),
            handover: None,
            other_mode: None,
        }
    }
}

/// What a solution says about speculation.
pub(super) fn speculation_answer(problem: &SearchProblem, depth: u32) -> Option<SpeculationAnswer> {
    let spec = problem.speculation.as_ref().filter(|_| depth > 0)?;
    let speculation = Speculation {
        depth,
        acceptance: spec.acceptance,
        draft: spec.draft.as_ref(),
    };
    Some(SpeculationAnswer {
        depth,
        acceptance: spec.acceptance,
        tokens_per_step: speculation.tokens_per_step(),
        draft: spec.draft.as_ref().map(|draft| draft.model.key.clone()),
    })
}

/// How the best of the other mode compares: on the same accelerator, or over everything for a fleet on several.
fn other_mode(
    problem: &SearchProblem,
    findings: &Findings,
    candidate: &Candidate,
) -> Option<OtherMode> {
    let accelerator = |stack: usize| problem.stacks[stack].accelerator;
    let own = accelerator(candidate.stack);
    let is_mixed = candidate
        .prefill
        .is_some_and(|part| accelerator(part.stack) != own);
    let known = if is_mixed {
        &findings.by_mode
    } else {
        &findings.by_accelerator[own]
    };
    let other = known[1 - candidate.mode().index()]?;
    // A rate that is maximised is kept as its negative.
    let worse_by = if candidate.score < 0.0 {
        candidate.score / other.score - 1.0
    } else {
        other.score / candidate.score - 1.0
    };
    Some(OtherMode {
        mode: other.mode(),
        usd_per_m_tokens: Solution::new(problem, &other).usd_per_m_tokens,
        worse_by,
    })
}

pub(super) fn rounded(value: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped first; a request count"
    )]
    let whole = value.round().clamp(1.0, 1e15) as u64;
    whole
}

/// What the steps wait for, s per decode step; the pieces of each roofline are scaled to its time.
pub(super) fn step_pieces(model: &LayoutModel<'_>, batch: f64) -> Pieces {
    pieces_of(&model.step.decode, batch)
}

/// What `operators` of one step wait for at `tokens` tokens, s.
pub(super) fn pieces_of(operators: &[Operator], tokens: f64) -> Pieces {
    let mut total = Pieces::default();
    for operator in operators {
        let pieces = operator.pieces(tokens);
        let seconds = operator.seconds(tokens);
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

pub(super) fn shares(pieces: &Pieces) -> BTreeMap<&'static str, f64> {
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
    let load = model.load(candidate.chunk_tokens);
    let more = f64::from(candidate.batch + 1);
    let next = model.operation(&load, more);
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
    } else if load.is_saturated(more, model.step.decode_step_s(more)) {
        Binding::PrefillLoad
    } else if next.in_flight > capacity {
        Binding::Memory
    } else if candidate.batch >= model.max_batch {
        Binding::MaxBatch
    } else {
        largest_share(pieces)
    }
}

/// What the steps wait for most.
pub(super) fn largest_share(pieces: &Pieces) -> Binding {
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
