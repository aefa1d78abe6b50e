//! The search: enumerate layouts lazily, evaluate or skip batches, keep the best, the frontier and the counts.

pub mod best;
pub mod problem;
pub mod scan;
pub mod solution;
pub mod space;

pub use problem::SearchProblem;
pub use solution::{SearchAnswer, Solution};

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rayon::prelude::*;

use crate::error::CoreError;
use best::Findings;
use scan::LayoutModel;
use space::LayoutSpace;

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
        units
            .par_iter()
            .fold(
                || empty_findings(problem),
                |findings, unit| findings.merge(&scan_unit(problem, unit, stop)),
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

/// A slice of one stack's layout space.
struct WorkUnit {
    stack: usize,
    space: LayoutSpace,
    first: usize,
    last: usize,
}

/// Layouts of an exhaustive work unit: few enough to balance two threads, enough to hide the merging.
const LAYOUTS_PER_UNIT: usize = 256;

fn work_units(problem: &SearchProblem) -> Vec<WorkUnit> {
    let mut units = Vec::new();
    for (stack, spec) in problem.stacks.iter().enumerate() {
        let accelerator = &problem.accelerators[spec.accelerator];
        let space = LayoutSpace::new(&problem.space, &problem.model, accelerator);
        let step = if problem.exhaustive {
            LAYOUTS_PER_UNIT
        } else {
            space.len().max(1)
        };
        for first in (0..space.len()).step_by(step) {
            units.push(WorkUnit {
                stack,
                last: (first + step).min(space.len()),
                space: space.clone(),
                first,
            });
        }
    }
    units
}

fn empty_findings(problem: &SearchProblem) -> Findings {
    Findings::new(problem.top, problem.accelerators.len())
}

fn scan_unit(problem: &SearchProblem, unit: &WorkUnit, stop: &AtomicBool) -> Findings {
    let lengths = problem.workload.lengths();
    let accelerator = &problem.accelerators[problem.stacks[unit.stack].accelerator];
    let mut findings = empty_findings(problem);
    for index in unit.first..unit.last {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let layout = unit.space.decode(index);
        if unit.space.is_legal(layout, &problem.model, accelerator) {
            LayoutModel::new(problem, unit.stack, layout, &lengths).scan(&mut findings);
        }
    }
    findings
}
