//! The search: enumerate layouts lazily, evaluate or skip batches, keep the best, the frontier and the counts.

pub mod best;
pub mod continuous;
mod fleet;
mod pool_breakdown;
mod pools;
pub mod problem;
pub mod scan;
pub mod solution;
pub mod space;
mod workers;

pub use fleet::{Handover, PoolAnswer};
pub use pool_breakdown::{FleetBreakdown, PoolBreakdown, PoolRole};
pub use problem::SearchProblem;
pub use solution::{SearchAnswer, Solution};

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rayon::prelude::*;

use crate::error::CoreError;
use best::{Candidate, Findings};
use pools::Matcher;
use problem::Mode;
use scan::LayoutModel;
use space::LayoutSpace;
use workers::{prefill_options, PrefillOption};

/// Runs a search.
///
/// Work is cut the same way whatever the thread count (a stack when bounds prune, since a bound compares with what its
/// own stack and the stages before have found; a slice of a stack's layouts in exhaustive mode) and merged by a total
/// order, so the answer is deterministic, counts included.
///
/// # Errors
/// [`CoreError::Interrupted`] when `stop` is raised while it runs; [`CoreError::Unreadable`] when no thread pool can be
/// made.
pub fn search(problem: &SearchProblem, stop: &AtomicBool) -> Result<SearchAnswer, CoreError> {
    let started = Instant::now();
    let run = || {
        // Each stage starts from what the ones before it have found: bounds are tight from the first layout on.
        let mut findings = empty_findings(problem);
        let mut known = probe(problem, stop);
        for stage in stages(problem) {
            let prefills = mixed_prefills(problem, &stage);
            let found = stage
                .par_iter()
                .fold(
                    || empty_findings(problem),
                    |findings, unit| {
                        findings.merge(&run_unit(problem, unit, &prefills, &known, stop))
                    },
                )
                .reduce(|| empty_findings(problem), |a, b| a.merge(&b));
            findings = findings.merge(&found);
            // Whatever mattered of the probe has been found again.
            known.clone_from(&findings);
        }
        findings
    };
    let findings = if problem.threads == 0 {
        run()
    } else {
        rayon::ThreadPoolBuilder::new()
            .num_threads(problem.threads)
            .build()
            .map_err(|error| CoreError::Unreadable(error.to_string()))?
            .install(run)
    };
    if stop.load(Ordering::Relaxed) {
        return Err(CoreError::Interrupted);
    }
    Ok(SearchAnswer::new(
        problem,
        &findings,
        started.elapsed().as_secs_f64(),
    ))
}

/// A share of the work.
enum WorkUnit {
    /// A slice of one stack's layouts, prefill and decode together.
    Aggregated(Slice),
    /// Decode workers of a stack with prefill workers of the same.
    Disaggregated(usize),
    /// Decode workers of a stack with prefill workers on other accelerators.
    Mixed(usize),
}

/// A slice of one stack's layout space.
struct Slice {
    stack: usize,
    space: LayoutSpace,
    first: usize,
    last: usize,
}

/// Layouts of an exhaustive work unit: few enough to balance two threads, enough to hide the merging.
const LAYOUTS_PER_UNIT: usize = 256;

/// The work in stages, each of which needs the findings of those before for its bounds.
fn stages(problem: &SearchProblem) -> [Vec<WorkUnit>; 3] {
    let [mut aggregated, mut disaggregated, mut mixed] = [const { Vec::new() }; 3];
    let mode = mode(problem);
    for (stack, spec) in problem.stacks.iter().enumerate() {
        if mode != Mode::Agg && may_decode(problem, stack) {
            if may_prefill(problem, stack) {
                disaggregated.push(WorkUnit::Disaggregated(stack));
            }
            if problem.disagg.is_mixed {
                mixed.push(WorkUnit::Mixed(stack));
            }
        }
        if mode == Mode::Disagg {
            continue;
        }
        let accelerator = &problem.accelerators[spec.accelerator];
        let space = LayoutSpace::new(&problem.space, &problem.model, accelerator);
        let step = if problem.exhaustive {
            LAYOUTS_PER_UNIT
        } else {
            space.len().max(1)
        };
        for first in (0..space.len()).step_by(step) {
            aggregated.push(WorkUnit::Aggregated(Slice {
                stack,
                last: (first + step).min(space.len()),
                space: space.clone(),
                first,
            }));
        }
    }
    [aggregated, disaggregated, mixed]
}

/// The mode searched: percentiles and open arrivals are worked out for aggregated serving.
fn mode(problem: &SearchProblem) -> Mode {
    if problem.traffic.is_plain() {
        problem.disagg.mode
    } else {
        Mode::Agg
    }
}

/// A few batches of every layout, for bounds; they are evaluated again, and counted, in their own stage.
fn probe(problem: &SearchProblem, stop: &AtomicBool) -> Findings {
    if problem.exhaustive || mode(problem) == Mode::Disagg {
        return empty_findings(problem);
    }
    let lengths = problem.lengths();
    let Some(depth) = problem.depths().into_iter().next() else {
        return empty_findings(problem);
    };
    (0..problem.stacks.len())
        .into_par_iter()
        .map(|stack| {
            let mut findings = empty_findings(problem);
            let accelerator = &problem.accelerators[problem.stacks[stack].accelerator];
            let space = LayoutSpace::new(&problem.space, &problem.model, accelerator);
            for index in 0..space.len() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let layout = space.decode(index);
                if space.is_legal(layout, &problem.model, accelerator) {
                    let best = LayoutModel::new(problem, stack, layout, depth, &lengths)
                        .probe(&mut findings);
                    if let Some(candidate) = best {
                        findings.best_of_layout(Some(problem.stacks[stack].accelerator), candidate);
                    }
                }
            }
            findings
        })
        .reduce(|| empty_findings(problem), |a, b| a.merge(&b))
}

fn empty_findings(problem: &SearchProblem) -> Findings {
    Findings::new(problem.top, problem.accelerators.len())
}

fn may_prefill(problem: &SearchProblem, stack: usize) -> bool {
    is_listed(
        &problem.disagg.prefill_accelerators,
        problem.stacks[stack].accelerator,
    )
}

fn may_decode(problem: &SearchProblem, stack: usize) -> bool {
    is_listed(
        &problem.disagg.decode_accelerators,
        problem.stacks[stack].accelerator,
    )
}

fn is_listed(list: &Option<Vec<usize>>, accelerator: usize) -> bool {
    list.as_ref().is_none_or(|list| list.contains(&accelerator))
}

/// Prefill workers of every stack, where pools of a stage may sit on different accelerators.
fn mixed_prefills(problem: &SearchProblem, stage: &[WorkUnit]) -> Vec<Vec<PrefillOption>> {
    let is_wanted = matches!(stage.first(), Some(WorkUnit::Mixed(_)));
    let stacks = if is_wanted { problem.stacks.len() } else { 0 };
    (0..stacks)
        .into_par_iter()
        .map(|stack| {
            if may_prefill(problem, stack) {
                prefill_options(problem, stack, true)
            } else {
                Vec::new()
            }
        })
        .collect()
}

fn run_unit(
    problem: &SearchProblem,
    unit: &WorkUnit,
    prefills: &[Vec<PrefillOption>],
    known: &Findings,
    stop: &AtomicBool,
) -> Findings {
    let mut findings = known.successor();
    match unit {
        WorkUnit::Aggregated(slice) => scan_slice(problem, slice, &mut findings, stop),
        WorkUnit::Disaggregated(stack) => {
            let mut options = prefill_options(problem, *stack, false);
            Matcher::new(problem, *stack, &[*stack]).run(&mut options, &mut findings, stop);
        }
        WorkUnit::Mixed(stack) => {
            let own = &problem.stacks[*stack];
            let senders: Vec<usize> = (0..problem.stacks.len())
                .filter(|other| {
                    let other = &problem.stacks[*other];
                    other.accelerator != own.accelerator
                        && other.cache_group == own.cache_group
                        && other.kv_precision == own.kv_precision
                })
                .collect();
            let mut options: Vec<PrefillOption> = (senders.iter())
                .flat_map(|sender| prefills[*sender].iter().cloned())
                .collect();
            Matcher::new(problem, *stack, &senders).run(&mut options, &mut findings, stop);
        }
    }
    findings
}

fn scan_slice(problem: &SearchProblem, unit: &Slice, findings: &mut Findings, stop: &AtomicBool) {
    let lengths = problem.lengths();
    let own = problem.stacks[unit.stack].accelerator;
    let accelerator = &problem.accelerators[own];
    let depths = problem.depths();
    for index in unit.first..unit.last {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let layout = unit.space.decode(index);
        if unit.space.is_legal(layout, &problem.model, accelerator) {
            let best = depths
                .iter()
                .filter_map(|depth| {
                    LayoutModel::new(problem, unit.stack, layout, *depth, &lengths).scan(findings)
                })
                .min_by(Candidate::order);
            if let Some(candidate) = best {
                findings.best_of_layout(Some(own), candidate);
            }
        }
    }
}
