//! The full breakdown of one configuration: the same operators as the search, one by one.

use serde::Serialize;

use crate::count::{count, ModelCounts};
use crate::error::CoreError;
use crate::ops::{Operator, OperatorName, Pieces};
use crate::parameters::{ParameterInfo, PARAMETERS};
use crate::search::best::{Candidate, PrefillPart};
use crate::search::problem::PointSpec;
use crate::search::scan::LayoutModel;
use crate::search::solution::Solution;
use crate::search::{FleetBreakdown, PoolBreakdown, SearchProblem};
use crate::serving::disagg::DecodeWorker;
use crate::serving::{Layout, MemoryPlan, Stack};

/// One operator of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OperatorAnswer {
    /// What it is.
    pub name: OperatorName,
    /// Occurrences in a step.
    pub count: f64,
    /// All occurrences, ms.
    pub total_ms: f64,
    /// Memory, arithmetic, network and latency alone, s.
    pub pieces: Pieces,
}

/// Breakdown of one configuration. Of a disaggregated fleet the decode step, the memory and speculation are those of a
/// decode worker, the prefill chunk and the prompt those of a prefill worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The configuration as a search would report it.
    pub solution: Solution,
    /// Operators of a decode step.
    pub decode: Vec<OperatorAnswer>,
    /// Decode step, ms.
    pub decode_step_ms: f64,
    /// Operators of a full prefill chunk, attention core apart.
    pub prefill: Vec<OperatorAnswer>,
    /// Attention core of a whole prompt, ms.
    pub prompt_core_ms: f64,
    /// One prompt alone, ms.
    pub prompt_alone_ms: f64,
    /// One more prompt in shared chunks, ms.
    pub prompt_marginal_ms: f64,
    /// Chunks of a prompt.
    pub prompt_chunks: f64,
    /// Memory of the fullest chip.
    pub memory: MemoryPlan,
    /// Requests whose full cache fits on a rank.
    pub capacity_requests: f64,
    /// The same batch with and without speculative decoding; absent without.
    pub speculation: Option<SpeculationPair>,
    /// Parameter counts of the model.
    pub counts: ModelCounts,
    /// The calibrated parameters that were used.
    pub parameters: Vec<ParameterAnswer>,
    /// Both pools of a disaggregated fleet, prefill first; empty for a replica.
    pub pools: Vec<PoolBreakdown>,
}

/// One batch with and without speculative decoding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SpeculationPair {
    /// With it.
    pub with: SpeculationSide,
    /// Without it.
    pub without: SpeculationSide,
    /// Time per output token without over that with it.
    pub speedup: f64,
}

/// One side of a [`SpeculationPair`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SpeculationSide {
    /// Step, ms: drafting and verifying, or decoding.
    pub step_ms: f64,
    /// Output tokens of a request in a step.
    pub tokens_per_step: f64,
    /// Time per output token, ms.
    pub tpot_ms: f64,
    /// Output tokens/s per chip.
    pub output_tps_per_chip: f64,
    /// Weights on the fullest chip, GB.
    pub weight_gb_per_chip: f64,
}

impl SpeculationSide {
    fn new(model: &LayoutModel<'_>, chunk_tokens: u32, batch: f64) -> Self {
        let step_s = model.step.decode_step_s(batch);
        let operation = model.steady(chunk_tokens).operation(batch, step_s);
        Self::of(model, step_s, operation.tpot_s, operation.output_tps)
    }

    /// On a worker that only decodes.
    fn decoding(model: &LayoutModel<'_>, batch: f64, osl: f64) -> Self {
        let worker = DecodeWorker::new(model.layout, &model.step, batch, osl);
        Self::of(
            model,
            worker.step_s,
            worker.tpot_s,
            worker.requests_per_s * osl,
        )
    }

    fn of(model: &LayoutModel<'_>, step_s: f64, tpot_s: f64, output_tps: f64) -> Self {
        const BYTES_PER_GB: f64 = 1e9;
        Self {
            step_ms: step_s * MS_PER_S,
            tokens_per_step: model.step.tokens_per_step,
            tpot_ms: tpot_s * MS_PER_S,
            output_tps_per_chip: output_tps / f64::from(model.layout.chips()),
            weight_gb_per_chip: model.memory.weight_bytes / BYTES_PER_GB,
        }
    }
}

/// A parameter with its value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParameterAnswer {
    /// Name, bounds, unit, meaning.
    #[serde(flatten)]
    pub info: ParameterInfo,
    /// Value used.
    pub value: f64,
}

const MS_PER_S: f64 = 1e3;

/// Breaks down the configuration named by `problem.point`.
///
/// # Errors
/// [`CoreError::BadInput`] when there is no point, its stack does not exist, or its layout cannot run the model.
pub fn explain(problem: &SearchProblem) -> Result<Explanation, CoreError> {
    let (point, layout) = checked_point(problem)?;
    let stack = &problem.stacks[point.stack];
    let candidate = Candidate {
        score: 0.0,
        tpot_s: 0.0,
        ttft_s: 0.0,
        stack: point.stack,
        layout,
        chunk_tokens: point.chunk_tokens,
        batch: point.batch,
        depth: point.depth,
        prefill: checked_prefill(problem, &point)?,
    };
    let lengths = problem.lengths();
    let model = LayoutModel::new(problem, point.stack, layout, point.depth, &lengths);
    let batch = f64::from(point.batch);
    let chunk = f64::from(point.chunk_tokens);
    let osl = problem.workload.osl;
    let solution = Solution::new(problem, &candidate);
    let fleet = match candidate.prefill {
        Some(part) => Some(
            FleetBreakdown::new(problem, &candidate, part, &solution).ok_or_else(|| {
                CoreError::bad_input(
                    "point.prefill",
                    format!("offers {} and {}", part.offer, part.decode_offer),
                    "expected offers of the pools' accelerators that hold a worker",
                )
            })?,
        ),
        None => None,
    };
    let (prompt_step, prompt, capacity_requests) = match &fleet {
        Some(fleet) => (
            &fleet.prefill.step,
            fleet.prompt,
            fleet.pools[1].capacity_requests,
        ),
        None => (
            &model.step,
            model.step.prefill(chunk),
            model.memory.capacity_requests(chunk),
        ),
    };
    let side = |model: &LayoutModel<'_>| match fleet {
        Some(_) => SpeculationSide::decoding(model, batch, osl),
        None => SpeculationSide::new(model, point.chunk_tokens, batch),
    };
    let speculation = (point.depth > 0).then(|| {
        let plain = LayoutModel::new(problem, point.stack, layout, 0, &lengths);
        let (with, without) = (side(&model), side(&plain));
        SpeculationPair {
            with,
            without,
            speedup: without.tpot_ms / with.tpot_ms,
        }
    });
    Ok(Explanation {
        speculation,
        solution,
        decode: operator_answers(&model.step.decode, batch),
        decode_step_ms: model.step.decode_step_s(batch) * MS_PER_S,
        prefill: operator_answers(&prompt_step.prefill, chunk),
        prompt_core_ms: prompt_step.prompt_core_s * MS_PER_S,
        prompt_alone_ms: prompt.alone_s * MS_PER_S,
        prompt_marginal_ms: prompt.marginal_s * MS_PER_S,
        prompt_chunks: prompt.chunks,
        memory: model.memory,
        capacity_requests,
        counts: count(&problem.model),
        parameters: parameter_answers(stack),
        pools: fleet.map_or_else(Vec::new, |fleet| fleet.pools),
    })
}

/// The configuration named by `problem.point`, and its layout.
///
/// # Errors
/// [`CoreError::BadInput`] when there is no point, its stack does not exist, or its layout cannot run the model.
pub fn checked_point(problem: &SearchProblem) -> Result<(PointSpec, Layout), CoreError> {
    let point = problem
        .point
        .ok_or_else(|| CoreError::bad_input("point", "absent", "expected one configuration"))?;
    let layout = Layout {
        tp: point.tp,
        pp: point.pp,
        ep: point.ep,
        attn_dp: point.attn_dp,
    };
    check_layout(problem, "point.stack", point.stack, layout)?;
    if point.chunk_tokens == 0 || point.batch == 0 {
        return Err(CoreError::bad_input(
            "batch and chunk_tokens",
            0,
            "expected at least 1",
        ));
    }
    Ok((point, layout))
}

/// The prefill pool of `point`; None for a replica.
fn checked_prefill(
    problem: &SearchProblem,
    point: &PointSpec,
) -> Result<Option<PrefillPart>, CoreError> {
    let Some(prefill) = point.prefill else {
        return Ok(None);
    };
    let layout = Layout {
        tp: prefill.tp,
        pp: prefill.pp,
        ep: prefill.ep,
        attn_dp: prefill.attn_dp,
    };
    check_layout(problem, "point.prefill.stack", prefill.stack, layout)?;
    if prefill.workers == 0 || prefill.decode_workers == 0 {
        return Err(CoreError::bad_input(
            "point.prefill.workers and decode_workers",
            0,
            "expected at least 1",
        ));
    }
    if problem.workload.osl < 2.0 {
        return Err(CoreError::bad_input(
            "workload.osl",
            problem.workload.osl,
            "expected at least 2: the prefill pool makes the first token",
        ));
    }
    Ok(Some(PrefillPart {
        stack: prefill.stack,
        layout,
        workers: prefill.workers,
        decode_workers: prefill.decode_workers,
        offer: prefill.offer,
        decode_offer: prefill.decode_offer,
    }))
}

fn check_layout(
    problem: &SearchProblem,
    field: &str,
    stack: usize,
    layout: Layout,
) -> Result<(), CoreError> {
    let stack = problem.stacks.get(stack).ok_or_else(|| {
        let expected = format!("expected below {}", problem.stacks.len());
        CoreError::bad_input(field, stack, expected)
    })?;
    let accelerator = &problem.accelerators[stack.accelerator];
    if let Some(reason) = layout.refusal(&problem.model, accelerator) {
        return Err(CoreError::bad_input(
            "layout",
            format!(
                "tp={} pp={} ep={} attn_dp={}",
                layout.tp, layout.pp, layout.ep, layout.attn_dp
            ),
            format!("which cannot run {}: {reason}", problem.model.key),
        ));
    }
    Ok(())
}

/// Operators of a step at `tokens` tokens.
pub(crate) fn operator_answers(operators: &[Operator], tokens: f64) -> Vec<OperatorAnswer> {
    let answer = |operator: &Operator| OperatorAnswer {
        name: operator.name,
        count: operator.count,
        total_ms: operator.seconds(tokens) * MS_PER_S,
        pieces: operator.pieces(tokens),
    };
    operators.iter().map(answer).collect()
}

/// The calibrated parameters of a stack.
pub(crate) fn parameter_answers(stack: &Stack) -> Vec<ParameterAnswer> {
    PARAMETERS
        .iter()
        .zip(stack.parameters.to_vec())
        .map(|(info, value)| ParameterAnswer { info: *info, value })
        .collect()
}
