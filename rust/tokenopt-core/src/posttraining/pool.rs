//! One pool: so many chips of one accelerator on one offer, and how fast each stage runs on them.

use std::sync::atomic::AtomicBool;

use super::problem::PosttrainProblem;
use super::stages::{self, StageTime};
use crate::error::CoreError;
use crate::money::{undominated_offers, FleetUnit};

/// Everything one pool can do: its price and the time of each stage.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub(super) accelerator: usize,
    /// Chips in use.
    pub(super) used: u32,
    pub(super) instances: f64,
    pub(super) chips: f64,
    pub(super) usd_per_hr: f64,
    pub(super) offer: u32,
    pub(super) generation: Option<StageTime>,
    pub(super) passes: Vec<Option<StageTime>>,
}

/// Works out every stage on one pool; None when no offer sells it.
pub(super) fn pool(
    problem: &PosttrainProblem,
    accelerator_index: usize,
    chips: u32,
    stop: &AtomicBool,
) -> Result<Option<Pool>, CoreError> {
    let accelerator = &problem.accelerators[accelerator_index];
    let cheapest = undominated_offers(&accelerator.offers)
        .iter()
        .filter_map(|offer| FleetUnit::new(accelerator, offer, chips))
        .map(|unit| {
            let instances = unit.instances_for(f64::from(chips));
            (instances * unit.usd_per_instance_hr, instances, unit)
        })
        .filter(|(_, instances, unit)| {
            instances * unit.chips_per_instance <= f64::from(problem.max_chips)
        })
        .min_by(|a, b| a.0.total_cmp(&b.0).then(a.2.offer.cmp(&b.2.offer)));
    let Some((usd_per_hr, instances, unit)) = cheapest else {
        return Ok(None);
    };
    let generation = problem.rollout.as_ref().and_then(|rollout| {
        fastest(
            problem
                .engines
                .iter()
                .enumerate()
                .filter_map(|(index, stack)| {
                    (stack.accelerator == accelerator_index)
                        .then(|| stages::generation(problem, rollout, index, chips))
                        .flatten()
                }),
        )
    });
    let mut passes = Vec::with_capacity(problem.passes.len());
    for place in 0..problem.passes.len() {
        let mut times = Vec::new();
        for (index, stack) in problem.trainers.iter().enumerate() {
            if stack.accelerator == accelerator_index {
                times.extend(stages::pass(problem, place, index, chips, stop)?);
            }
        }
        passes.push(fastest(times.into_iter()));
    }
    Ok(Some(Pool {
        accelerator: accelerator_index,
        used: chips,
        instances,
        chips: instances * unit.chips_per_instance,
        usd_per_hr,
        offer: unit.offer,
        generation,
        passes,
    }))
}

fn fastest(times: impl Iterator<Item = StageTime>) -> Option<StageTime> {
    times.min_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.stack.cmp(&b.stack)))
}
