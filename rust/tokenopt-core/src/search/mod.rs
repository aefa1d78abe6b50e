//! The search: enumerate layouts lazily, evaluate or skip batches, keep the best, the frontier and the counts.

pub mod best;
pub mod continuous;
mod fleet;
mod pools;
pub mod problem;
pub mod scan;
pub mod solution;
pub mod space;
mod workers;

pub use fleet::{Handover, PoolAnswer};
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
/// own stack has found; a slice of a stack's layouts in exhaustive mode) and merged by a total order, so the answer is
/// deterministic, counts included.
///
/// # Errors
/// [`CoreError::Interrupted`] when `stop` is raised while it runs; [`CoreError::Unreadable`] when no thread pool can be
/// made.
pub fn search(problem: &SearchProblem, stop: &AtomicBool) -> Result<SearchAnswer, CoreError> {
    let started = Instant::now();
    let units = work_units(problem);
    let run = || {
        let prefills = mixed_prefills(problem);
        units
            .par_iter()
            .fold(
                || empty_findings(problem),
                |findings, unit| findings.merge(&run_unit(problem, unit, &prefills, stop)),
            )
            .reduce(|| empty_findings(problem), |a, b| a.merge(&b))
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

fn work_units(problem: &SearchProblem) -> Vec<WorkUnit> {
    let mut units = Vec::new();
    // Percentiles and open arrivals are worked out for aggregated serving.
    let mode = if problem.traffic.is_plain() {
        problem.disagg.mode
    } else {
        Mode::Agg
    };
    for (stack, spec) in problem.stacks.iter().enumerate() {
        if mode != Mode::Agg && may_decode(problem, stack) {
            if may_prefill(problem, stack) {
                units.push(WorkUnit::Disaggregated(stack));
            }
            if problem.disagg.is_mixed {
                units.push(WorkUnit::Mixed(stack));
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
            units.push(WorkUnit::Aggregated(Slice {
                stack,
                last: (first + step).min(space.len()),
                space: space.clone(),
                first,
            }));
        }
    }
    units
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

/// Prefill workers of every stack, where pools may sit on different accelerators.
fn mixed_prefills(problem: &SearchProblem) -> Vec<Vec<PrefillOption>> {
    let is_wanted =
        problem.disagg.is_mixed && problem.disagg.mode != Mode::Agg && problem.traffic.is_plain();
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
    stop: &AtomicBool,
) -> Findings {
    match unit {
        WorkUnit::Aggregated(slice) => scan_slice(problem, slice, stop),
        WorkUnit::Disaggregated(stack) => {
            let mut findings = empty_findings(problem);
            let mut options = prefill_options(problem, *stack, false);
            Matcher::new(problem, *stack, &[*stack]).run(&mut options, &mut findings, stop);
            findings
        }
        WorkUnit::Mixed(stack) => {
            let mut findings = empty_findings(problem);
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
            findings
        }
    }
}

fn scan_slice(problem: &SearchProblem, unit: &Slice, stop: &AtomicBool) -> Findings {
    let lengths = problem.lengths();
    let own = problem.stacks[unit.stack].accelerator;
    let accelerator = &problem.accelerators[own];
    let depths = problem.depths();
    let mut findings = empty_findings(problem);
    for index in unit.first..unit.last {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let layout = unit.space.decode(index);
        if unit.space.is_legal(layout, &problem.model, accelerator) {
            let best = depths
                .iter()
                .filter_map(|depth| {
                    LayoutModel::new(problem, unit.stack, layout, *depth, &lengths)
                        .scan(&mut findings)
                })
                .min_by(Candidate::order);
            if let Some(candidate) = best {
                findings.best_of_layout(Some(own), candidate);
            }
        }
    }
    findings
}
