//! The full breakdown of one configuration: the same operators as the search, one by one.

use serde::Serialize;

use crate::count::{count, ModelCounts};
use crate::error::CoreError;
use crate::ops::{Operator, OperatorName, Pieces};
use crate::parameters::{ParameterInfo, PARAMETERS};
use crate::search::best::Candidate;
use crate::search::problem::PointSpec;
use crate::search::scan::LayoutModel;
use crate::search::solution::Solution;
use crate::search::SearchProblem;
use crate::serving::{Layout, MemoryPlan};

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

/// Breakdown of one configuration.
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
        const BYTES_PER_GB: f64 = 1e9;
        let step_s = model.step.decode_step_s(batch);
        let operation = model.steady(chunk_tokens).operation(batch, step_s);
        Self {
            step_ms: step_s * MS_PER_S,
            tokens_per_step: model.step.tokens_per_step,
            tpot_ms: operation.tpot_s * MS_PER_S,
            output_tps_per_chip: operation.output_tps / f64::from(model.layout.chips()),
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
        prefill: None,
    };
    let lengths = problem.lengths();
    let model = LayoutModel::new(problem, point.stack, layout, point.depth, &lengths);
    let batch = f64::from(point.batch);
    let chunk = f64::from(point.chunk_tokens);
    let prefill = model.step.prefill(chunk);
    let speculation = (point.depth > 0).then(|| {
        let plain = LayoutModel::new(problem, point.stack, layout, 0, &lengths);
        let with = SpeculationSide::new(&model, point.chunk_tokens, batch);
        let without = SpeculationSide::new(&plain, point.chunk_tokens, batch);
        SpeculationPair {
            with,
            without,
            speedup: without.tpot_ms / with.tpot_ms,
        }
    });
    Ok(Explanation {
        speculation,
        solution: Solution::new(problem, &candidate),
        decode: model
            .step
            .decode
            .iter()
            .map(|operator| answer(operator, batch))
            .collect(),
        decode_step_ms: model.step.decode_step_s(batch) * MS_PER_S,
        prefill: model
            .step
            .prefill
            .iter()
            .map(|operator| answer(operator, chunk))
            .collect(),
        prompt_core_ms: model.step.prompt_core_s * MS_PER_S,
        prompt_alone_ms: prefill.alone_s * MS_PER_S,
        prompt_marginal_ms: prefill.marginal_s * MS_PER_S,
        prompt_chunks: prefill.chunks,
        memory: model.memory,
        capacity_requests: model.memory.capacity_requests(chunk),
        counts: count(&problem.model),
        parameters: PARAMETERS
            .iter()
            .zip(stack.parameters.to_vec())
            .map(|(info, value)| ParameterAnswer { info: *info, value })
            .collect(),
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
    let stack = problem.stacks.get(point.stack).ok_or_else(|| {
        CoreError::bad_input(
            "point.stack",
            point.stack,
            format!("expected below {}", problem.stacks.len()),
        )
    })?;
    let layout = Layout {
        tp: point.tp,
        pp: point.pp,
        ep: point.ep,
        attn_dp: point.attn_dp,
    };
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
    if point.chunk_tokens == 0 || point.batch == 0 {
        return Err(CoreError::bad_input(
            "batch and chunk_tokens",
            0,
            "expected at least 1",
        ));
    }
    Ok((point, layout))
}

fn answer(operator: &Operator, tokens: f64) -> OperatorAnswer {
    OperatorAnswer {
        name: operator.name,
        count: operator.count,
        total_ms: operator.seconds(tokens) * MS_PER_S,
        pieces: operator.pieces(tokens),
    }
}
