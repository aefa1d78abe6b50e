//! The search for a training run: enumerate layouts lazily, evaluate or skip them, keep the best, the frontier of days
//! against money, and the counts.

pub mod best;
mod bounds;
pub mod problem;
pub mod scan;
pub mod solution;
pub mod space;

pub use problem::{TrainProblem, TrainStack};
pub use solution::{TrainAnswer, TrainSolution};

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rayon::prelude::*;

use crate::error::CoreError;
use best::TrainFindings;
use problem::{TrainLimits, TrainObjective};
use scan::StackModel;
use space::SplitSpace;

/// Runs a search.
///
/// Work is cut the same way whatever the thread count and merged by a total order, so the answer is deterministic,
/// counts included. When nothing meets the limits, the fastest run without deadline and budget is looked for, to say how
/// far the limits are missed.
///
/// # Errors
/// [`CoreError::Interrupted`] when `stop` is raised while it runs; [`CoreError::Unreadable`] when no thread pool can be
/// made.
pub fn search(problem: &TrainProblem, stop: &AtomicBool) -> Result<TrainAnswer, CoreError> {
    let started = Instant::now();
    let mut findings = find(problem, stop)?;
    let is_limited = problem.limits.deadline_days.is_some() || problem.limits.max_usd.is_some();
    let nearest = if findings.feasible == 0 && is_limited {
        let objective = if problem.limits.deadline_days.is_some() {
            TrainObjective::Time
        } else {
            TrainObjective::Cost
        };
        let unlimited = TrainProblem {
            limits: TrainLimits {
                deadline_days: None,
                max_usd: None,
                ..problem.limits
            },
            objective,
            top: 1,
            exhaustive: false,
            ..problem.clone()
        };
        let closest = find(&unlimited, stop)?;
        // A deadline may rule layouts out before their memory is looked at.
        if let Some(miss) = closest.memory_miss {
            findings.consider_miss(miss);
        }
        if closest.feasible == 0 {
            findings.rejected.merge(&closest.rejected);
        }
        closest
            .top
            .entries()
            .first()
            .map(|candidate| TrainSolution::new(&unlimited, candidate))
    } else {
        None
    };
    Ok(TrainAnswer::new(
        problem,
        &findings,
        nearest,
        started.elapsed().as_secs_f64(),
    ))
}

pub(crate) fn find(problem: &TrainProblem, stop: &AtomicBool) -> Result<TrainFindings, CoreError> {
    let units = work_units(problem);
    let empty = || TrainFindings::new(problem.top, problem.accelerators.len());
    let is_stopped = || stop.load(Ordering::Relaxed);
    let run = || {
        units
            .par_iter()
            .map(|unit| {
                let mut findings = empty();
                let model = StackModel::new(problem, unit.stack);
                model.scan(
                    &unit.space,
                    unit.first,
                    unit.last,
                    &is_stopped,
                    &mut findings,
                );
                findings
            })
            .reduce(empty, |a, b| a.merge(&b))
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
    if is_stopped() {
        return Err(CoreError::Interrupted);
    }
    Ok(findings)
}

/// A slice of one stack's splits.
struct WorkUnit {
    stack: usize,
    space: SplitSpace,
    first: usize,
    last: usize,
}

/// Splits of an exhaustive work unit.
const SPLITS_PER_UNIT: usize = 64;

fn work_units(problem: &TrainProblem) -> Vec<WorkUnit> {
    let mut units = Vec::new();
    for (stack, spec) in problem.stacks.iter().enumerate() {
        let space = SplitSpace::new(problem, &problem.accelerators[spec.accelerator]);
        // Bounds compare with what their own unit has found: a whole stack prunes best.
        let step = if problem.exhaustive {
            SPLITS_PER_UNIT
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
