//! Where the time and the memory of both pools of a disaggregated fleet go.

use std::collections::BTreeMap;

use serde::Serialize;

use super::best::{Candidate, PrefillPart};
use super::fleet::Fleet;
use super::problem::SearchProblem;
use super::scan::LayoutModel;
use super::solution::{
    largest_share, pieces_of, shares, step_pieces, Binding, Solution, BYTES_PER_GB,
};
use super::workers::prompts_held;
use crate::explain::{operator_answers, parameter_answers, OperatorAnswer, ParameterAnswer};
use crate::ops::Pieces;
use crate::serving::step::Prefill;

/// What the workers of a pool do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolRole {
    /// Prompts.
    Prefill,
    /// Output tokens.
    Decode,
}

/// Breakdown of one worker of a pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolBreakdown {
    /// What it does.
    pub role: PoolRole,
    /// Operators of a step: of a full prefill chunk without the attention core, or of a decode step.
    pub operators: Vec<OperatorAnswer>,
    /// All of them, ms.
    pub step_ms: f64,
    /// What keeps the pool from more requests a worker.
    pub why: Binding,
    /// What a prompt, or a decode step, waits for, as shares.
    pub step_shares: BTreeMap<&'static str, f64>,
    /// Weights on the fullest chip, GB.
    pub weight_gb: f64,
    /// Cache and state of the requests that are held, caches on their way included, on the fullest chip, GB.
    pub kv_gb: f64,
    /// Activations of a step, GB.
    pub activation_gb: f64,
    /// What the engine may plan with, GB.
    pub plannable_gb: f64,
    /// Requests whose cache a rank holds.
    pub held_requests: f64,
    /// Requests whose cache fits on a rank.
    pub capacity_requests: f64,
    /// The calibrated parameters of the pool's stack.
    pub parameters: Vec<ParameterAnswer>,
}

/// Both pools of a fleet, prefill first.
pub struct FleetBreakdown<'a> {
    /// A prefill worker.
    pub prefill: LayoutModel<'a>,
    /// A decode worker.
    pub decode: LayoutModel<'a>,
    /// Times of one prompt on a prefill worker.
    pub prompt: Prefill,
    /// The pools.
    pub pools: Vec<PoolBreakdown>,
}

impl<'a> FleetBreakdown<'a> {
    /// Breaks a disaggregated candidate down; None when its offers cannot hold its workers.
    #[must_use]
    pub fn new(
        problem: &'a SearchProblem,
        candidate: &Candidate,
        part: PrefillPart,
        solution: &Solution,
    ) -> Option<Self> {
        let fleet = Fleet::new(problem, candidate, part)?;
        let chunk = f64::from(candidate.chunk_tokens);
        let batch = f64::from(candidate.batch);
        let step = &fleet.prefill.step;
        let mut of_prompt = pieces_of(&step.prefill, chunk).scaled(step.prompt_tokens / chunk);
        of_prompt.compute_s += step.prompt_core_s;
        of_prompt.latency_s += step.prompt_overhead_s;
        let prefill = pool(
            &fleet.prefill,
            PoolRole::Prefill,
            operator_answers(&step.prefill, chunk),
            fleet.prefill_binding(largest_share(&of_prompt)),
            &of_prompt,
            (chunk, prompts_held(&fleet.prefill, chunk)),
        );
        let decode = pool(
            &fleet.decode,
            PoolRole::Decode,
            operator_answers(&fleet.decode.step.decode, batch),
            solution.why,
            &step_pieces(&fleet.decode, batch),
            (
                batch * fleet.decode.tokens_verified(),
                fleet.held_per_decode_rank(),
            ),
        );
        Some(Self {
            prompt: step.prefill_alone(chunk),
            pools: vec![prefill, decode],
            prefill: fleet.prefill,
            decode: fleet.decode,
        })
    }
}

/// One pool; `load` = tokens of a step and requests held, both of a rank.
fn pool(
    model: &LayoutModel<'_>,
    role: PoolRole,
    operators: Vec<OperatorAnswer>,
    why: Binding,
    pieces: &Pieces,
    load: (f64, f64),
) -> PoolBreakdown {
    let (tokens, held_requests) = load;
    let memory = &model.memory;
    PoolBreakdown {
        role,
        step_ms: operators.iter().map(|operator| operator.total_ms).sum(),
        operators,
        why,
        step_shares: shares(pieces),
        weight_gb: memory.weight_bytes / BYTES_PER_GB,
        kv_gb: memory.request_bytes * held_requests / BYTES_PER_GB,
        activation_gb: memory.activation_bytes_per_token * tokens / BYTES_PER_GB,
        plannable_gb: memory.plannable_bytes / BYTES_PER_GB,
        held_requests,
        capacity_requests: memory.capacity_requests(tokens),
        parameters: parameter_answers(model.stack),
    }
}
