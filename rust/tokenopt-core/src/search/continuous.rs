//! The cheapest aggregated configuration in the continuous limit: batches and fleets that need not be whole numbers.
//!
//! Whole batches and whole instances make cost a staircase of the limits; where two accelerators cost the same then has
//! no exact answer. Here the batch is the real number at which a limit binds, and the fleet the real number of units
//! that the target needs, at least one. Costs are continuous in every limit but where a layout becomes possible.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::problem::SearchProblem;
use super::scan::{LatencyLimits, LayoutModel};
use super::solution::LayoutAnswer;
use super::space::{chunk_sizes, LayoutSpace};
use crate::error::{require_positive, CoreError};
use crate::money::{FleetUnit, TokenCosts, SECONDS_PER_HOUR, TOKENS_PER_QUOTE};
use crate::serving::steady::Operation;
use crate::serving::Layout;

/// One question: limits and demand in place of the problem's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Query {
    /// Time per output token, s.
    pub tpot_s: Option<f64>,
    /// Time to first token, s.
    pub ttft_s: Option<f64>,
    /// Whole request, s.
    pub e2e_s: Option<f64>,
    /// Output tokens/s of the fleet; absent = so many that units do not matter.
    pub output_tps: Option<f64>,
}

/// The cheapest configuration of one accelerator for one question.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// USD per million tokens, input and output together.
    pub usd_per_m_tokens: f64,
    /// USD per million output tokens.
    pub usd_per_m_output_tokens: f64,
    /// Index of the stack.
    pub stack: usize,
    /// Caller's id of the offer.
    pub offer: u32,
    /// Layout.
    pub layout: LayoutAnswer,
    /// Prefill chunk, tokens.
    pub chunk_tokens: u32,
    /// Running batch per attention rank and pipeline slot.
    pub batch: f64,
    /// Time per output token, ms.
    pub tpot_ms: f64,
    /// Time to first token, ms.
    pub ttft_ms: f64,
    /// Output tokens/s of a replica.
    pub replica_tps: f64,
    /// Chips paid for, not rounded; of one unit where no target is given.
    pub chips: f64,
}

/// Halvings of the logarithm of the batch in the answer: to a billionth.
const FINE_HALVINGS: u32 = 36;
/// Halvings when layouts are sifted: to a twentieth.
const COARSE_HALVINGS: u32 = 7;
/// Layouts that a sifting with one chunk size finds up to this much dearer than the best are worked out in full: the chunk
/// size and the coarse batch move costs by less.
const SIFT_MARGIN: f64 = 1.3;
/// Chunk that layouts are sifted with, tokens: in the middle of what is tried.
const SIFT_CHUNK_TOKENS: u32 = 4096;
const MS_PER_S: f64 = 1e3;

/// Answers by accelerator and question; None where no configuration meets the limits.
///
/// Assumes: throughput rises with the batch, so that the largest batch within the limits is the cheapest; aggregated
/// serving without speculation beyond the depths of the problem.
///
/// # Errors
/// [`CoreError::BadInput`] naming a limit that is not positive.
pub fn continuous(
    problem: &SearchProblem,
    queries: &[Query],
) -> Result<Vec<Vec<Option<Point>>>, CoreError> {
    for query in queries {
        for (name, value) in [
            ("tpot_s", query.tpot_s),
            ("ttft_s", query.ttft_s),
            ("e2e_s", query.e2e_s),
            ("output_tps", query.output_tps),
        ] {
            if let Some(value) = value {
                require_positive(name, value)?;
            }
        }
    }
    let by_stack: Vec<Vec<Option<Point>>> = (0..problem.stacks.len())
        .into_par_iter()
        .map(|stack| answer_stack(problem, stack, queries))
        .collect();
    let mut answers = vec![vec![None; queries.len()]; problem.accelerators.len()];
    for (stack, points) in by_stack.into_iter().enumerate() {
        let own = &mut answers[problem.stacks[stack].accelerator];
        for (known, new) in own.iter_mut().zip(points) {
            keep_cheaper(known, new);
        }
    }
    Ok(answers)
}

fn keep_cheaper(known: &mut Option<Point>, new: Option<Point>) {
    if let Some(point) = new {
        // Strictly cheaper: ties keep the earlier layout, whatever the order of threads.
        if known.is_none_or(|best| point.usd_per_m_tokens < best.usd_per_m_tokens) {
            *known = Some(point);
        }
    }
}

/// A layout with the tokens drafted per step.
type Candidate = (Layout, u32);

fn answer_stack(problem: &SearchProblem, stack: usize, queries: &[Query]) -> Vec<Option<Point>> {
    let lengths = problem.workload.lengths();
    let groups = limit_groups(queries);
    let sizes = chunk_sizes(&problem.space, lengths.prompt_to_compute());
    let sift = sizes
        .iter()
        .copied()
        .min_by_key(|size| size.abs_diff(SIFT_CHUNK_TOKENS));
    let mut best = vec![None; queries.len()];
    let mut sifted: Vec<(Candidate, Vec<Option<f64>>)> = Vec::new();
    for (layout, depth) in candidates(problem, stack) {
        let model = LayoutModel::new(problem, stack, layout, depth, &lengths);
        let mut own = vec![None; queries.len()];
        if let Some(chunk_tokens) = sift.filter(|_| !model.units().is_empty()) {
            answer_chunk(
                &model,
                chunk_tokens,
                queries,
                &groups,
                COARSE_HALVINGS,
                &mut own,
            );
        }
        let costs = own
            .iter()
            .map(|point| point.map(|at: Point| at.usd_per_m_tokens))
            .collect();
        for (known, new) in best.iter_mut().zip(own) {
            keep_cheaper(known, new);
        }
        sifted.push(((layout, depth), costs));
    }
    let is_worth_it = |costs: &[Option<f64>]| {
        costs
            .iter()
            .zip(&best)
            .any(|(cost, best)| match (cost, best) {
                (Some(cost), Some(best)) => *cost <= best.usd_per_m_tokens * SIFT_MARGIN,
                // Nothing was found with the one chunk size: another may still do.
                (None, None) => true,
                _ => false,
            })
    };
    let worth: Vec<Candidate> = sifted
        .iter()
        .filter(|(_, costs)| is_worth_it(costs))
        .map(|(candidate, _)| *candidate)
        .collect();
    // Coarse batches do not belong in the answer.
    let mut answers = vec![None; queries.len()];
    for (layout, depth) in worth {
        let model = LayoutModel::new(problem, stack, layout, depth, &lengths);
        if model.units().is_empty() {
            continue;
        }
        for chunk_tokens in &sizes {
            answer_chunk(
                &model,
                *chunk_tokens,
                queries,
                &groups,
                FINE_HALVINGS,
                &mut answers,
            );
        }
    }
    answers
}

fn candidates(problem: &SearchProblem, stack: usize) -> Vec<Candidate> {
    let accelerator = &problem.accelerators[problem.stacks[stack].accelerator];
    let space = LayoutSpace::new(&problem.space, &problem.model, accelerator);
    let depths = problem.depths();
    (0..space.len())
        .map(|index| space.decode(index))
        .filter(|layout| space.is_legal(*layout, &problem.model, accelerator))
        .flat_map(|layout| depths.iter().map(move |depth| (layout, *depth)))
        .collect()
}

/// Questions by their latency limits: the batch is found once for all that differ in demand alone.
fn limit_groups(queries: &[Query]) -> Vec<(LatencyLimits, Vec<usize>)> {
    let mut groups: Vec<(LatencyLimits, Vec<usize>)> = Vec::new();
    for (index, query) in queries.iter().enumerate() {
        let limits = LatencyLimits {
            tpot_s: query.tpot_s.unwrap_or(f64::INFINITY),
            ttft_s: query.ttft_s.unwrap_or(f64::INFINITY),
            e2e_s: query.e2e_s.unwrap_or(f64::INFINITY),
        };
        match groups.iter_mut().find(|(known, _)| *known == limits) {
            Some((_, members)) => members.push(index),
            None => groups.push((limits, vec![index])),
        }
    }
    groups
}

fn answer_chunk(
    model: &LayoutModel<'_>,
    chunk_tokens: u32,
    queries: &[Query],
    groups: &[(LatencyLimits, Vec<usize>)],
    halvings: u32,
    best: &mut [Option<Point>],
) {
    let steady = model.steady(chunk_tokens);
    let requests = model.memory.capacity_requests(f64::from(chunk_tokens));
    let most_in_flight = requests * f64::from(model.layout.attn_dp);
    let most = f64::from(model.max_batch).min(requests / f64::from(model.layout.pp));
    if most < 1.0 {
        return;
    }
    let operation = |batch: f64| steady.operation(batch, model.step.decode_step_s(batch));
    let at_most = operation(most);
    let at_least = operation(1.0);
    for (limits, members) in groups {
        let is_allowed = |operation: &Operation| {
            operation.tpot_s <= limits.tpot_s
                && operation.ttft_s <= limits.ttft_s
                && operation.e2e_s <= limits.e2e_s
                && operation.in_flight <= most_in_flight
        };
        if !is_allowed(&at_least) {
            continue;
        }
        // More throughput than with the largest batch is not to be had: where that is too dear, nothing here helps.
        let may_help = members.iter().any(|index| {
            best[*index].is_none_or(|known| {
                cheapest(model, at_most.output_tps, queries[*index].output_tps)
                    .is_some_and(|(_, fleet)| fleet.usd_per_m < known.usd_per_m_output_tokens)
            })
        });
        if !may_help {
            continue;
        }
        let batch = if is_allowed(&at_most) {
            most
        } else {
            largest_batch(most, halvings, |batch| is_allowed(&operation(batch)))
        };
        let at = operation(batch);
        for index in members {
            let new = point(model, chunk_tokens, batch, &at, queries[*index].output_tps);
            keep_cheaper(&mut best[*index], new);
        }
    }
}

/// The largest batch from 1 to `most` that is allowed, 1 being allowed, by halving its logarithm.
fn largest_batch(most: f64, halvings: u32, is_allowed: impl Fn(f64) -> bool) -> f64 {
    let mut low = 0.0;
    let mut high = most.ln();
    for _ in 0..halvings {
        let middle = 0.5 * (low + high);
        if is_allowed(middle.exp()) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low.exp()
}

fn cheapest<'a>(
    model: &'a LayoutModel<'_>,
    replica_tps: f64,
    target: Option<f64>,
) -> Option<(&'a FleetUnit, UnitFleet)> {
    model
        .units()
        .iter()
        .map(|unit| (unit, UnitFleet::new(unit, replica_tps, target)))
        .min_by(|a, b| a.1.usd_per_m.total_cmp(&b.1.usd_per_m))
}

fn point(
    model: &LayoutModel<'_>,
    chunk_tokens: u32,
    batch: f64,
    at: &Operation,
    target: Option<f64>,
) -> Option<Point> {
    let (unit, fleet) = cheapest(model, at.output_tps, target)?;
    let workload = &model.problem.workload;
    let costs = TokenCosts::new(fleet.usd_per_m, workload.isl, workload.osl);
    Some(Point {
        usd_per_m_tokens: costs.usd_per_m_tokens,
        usd_per_m_output_tokens: fleet.usd_per_m,
        stack: model.stack_index,
        offer: unit.offer,
        layout: model.layout.into(),
        chunk_tokens,
        batch,
        tpot_ms: at.tpot_s * MS_PER_S,
        ttft_ms: at.ttft_s * MS_PER_S,
        replica_tps: at.output_tps,
        chips: fleet.chips,
    })
}

/// A fleet of a real number of units.
struct UnitFleet {
    usd_per_m: f64,
    chips: f64,
}

impl UnitFleet {
    /// Units are the least that holds whole replicas; at least one is paid for, beyond it as many as the target needs.
    fn new(unit: &FleetUnit, replica_tps: f64, target: Option<f64>) -> Self {
        let instances = (1.0 / unit.replicas_per_instance)
            .max(1.0)
            .max(unit.minimum_instances);
        let unit_tps = instances * unit.replicas_per_instance * replica_tps;
        let units = target.map_or(1.0, |wanted| (wanted / unit_tps).max(1.0));
        let output_tps = target.unwrap_or(unit_tps);
        let usd_per_hr = units * instances * unit.usd_per_instance_hr;
        Self {
            usd_per_m: usd_per_hr / (output_tps * SECONDS_PER_HOUR) * TOKENS_PER_QUOTE,
            chips: units * instances * unit.chips_per_instance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_targets_pay_for_one_unit_and_large_ones_for_their_share() {
        let unit = FleetUnit {
            offer: 0,
            usd_per_instance_hr: 36.0,
            chips_per_instance: 8.0,
            replicas_per_instance: 2.0,
            minimum_instances: 1.0,
            fabric_chips: 8.0,
        };
        // One unit makes 2000 tokens/s for 36 USD/h: 5 USD per million.
        let full = UnitFleet::new(&unit, 1000.0, None);
        assert!((full.usd_per_m - 5.0).abs() < 1e-9);
        // Half of that wanted: twice the cost per token.
        let half = UnitFleet::new(&unit, 1000.0, Some(1000.0));
        assert!((half.usd_per_m - 10.0).abs() < 1e-9);
        // Two and a half units: the cost of a full one, 20 chips.
        let many = UnitFleet::new(&unit, 1000.0, Some(5000.0));
        assert!((many.usd_per_m - 5.0).abs() < 1e-9);
        assert!((many.chips - 20.0).abs() < 1e-9);
    }
}
