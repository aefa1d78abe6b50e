//! The workers that a disaggregated fleet can be put together from: both pools of every stack, with the ways to buy them
//! and the links between them.

use std::sync::Arc;

use super::best::{Findings, Limit, Miss};
use super::problem::{Objective, SearchProblem};
use super::scan::{LatencyLimits, LayoutModel};
use super::space::{chunk_sizes, LayoutSpace};
use crate::accelerator::{Accelerator, OfferTerms};
use crate::money::FleetUnit;
use crate::ops::attention::Lengths;
use crate::serving::disagg::{
    group_is_inside, prompt_cache_bytes, CacheTransfer, DecodeWorker, PrefillWorker,
    MOST_UTILIZATION,
};
use crate::serving::{Layout, Workload};

/// Decode batches tried a doubling, beside the largest that the limits and the memory allow.
const BATCHES_PER_OCTAVE: f64 = 4.0;

/// The ways to buy a worker: by offer, None where the offer cannot hold it.
pub(super) type Units = Arc<[Option<FleetUnit>]>;

/// A prefill worker that can be bought.
#[derive(Debug, Clone)]
pub(super) struct PrefillOption {
    pub stack: usize,
    pub layout: Layout,
    pub chunk_tokens: u32,
    pub worker: PrefillWorker,
    pub units: Units,
    /// Least resource per request/s.
    pub least_share: f64,
}

/// A decode worker that can be bought.
#[derive(Debug, Clone)]
pub(super) struct DecodeOption {
    pub layout: Layout,
    pub depth: u32,
    pub batch: u32,
    pub worker: DecodeWorker,
    /// Requests whose cache fits in a slot.
    pub capacity: f64,
    pub units: Units,
    pub least_share: f64,
}

/// Offers of both pools that can serve one fleet: pairs of places in the two lists.
#[derive(Debug)]
pub(super) struct OfferPairs {
    pub pairs: Vec<(usize, usize)>,
    pub is_shared: bool,
}

/// Decode workers of one stack that no other of the same size beats in every respect, by layout; `is_mixed` as for
/// [`prefill_options`].
pub(super) fn decode_options(
    problem: &SearchProblem,
    stack: usize,
    is_mixed: bool,
    limits: &LatencyLimits,
    findings: &mut Findings,
) -> Vec<Vec<DecodeOption>> {
    let spec = &problem.stacks[stack];
    let lengths = problem.workload.lengths();
    let accelerator = &problem.accelerators[spec.accelerator];
    let offers = OfferPairs::offers(problem, spec.accelerator, is_mixed);
    let space = LayoutSpace::new(&problem.space, &problem.model, accelerator);
    let mut options = Vec::new();
    for index in 0..space.len() {
        let layout = space.decode(index);
        if !space.is_legal(layout, &problem.model, accelerator) {
            continue;
        }
        let units = units_of(problem, spec.accelerator, &offers, layout.chips());
        if units.iter().all(Option::is_none) {
            findings.rejected.no_offer += 1;
            continue;
        }
        for depth in problem.depths() {
            let model = LayoutModel::new(problem, stack, layout, depth, &lengths);
            let largest = largest_batch(&model, limits, findings);
            for batch in batch_grid(largest) {
                let osl = problem.workload.osl;
                let worker = DecodeWorker::new(layout, &model.step, f64::from(batch), osl);
                options.push(DecodeOption {
                    layout,
                    depth,
                    batch,
                    capacity: decode_capacity(&model, batch),
                    least_share: least_share(
                        problem,
                        stack,
                        worker.chips,
                        &units,
                        worker.requests_per_s,
                    ),
                    worker,
                    units: Arc::clone(&units),
                });
            }
        }
    }
    let options = undominated(options, |option: &DecodeOption| {
        let worker = &option.worker;
        // How long a transfer may take before the caches on their way no longer fit.
        let longest_transfer_s =
            (option.capacity - worker.batch) * worker.slots / worker.requests_per_s;
        let figures = [
            worker.tpot_s,
            -worker.requests_per_s,
            -longest_transfer_s,
            -worker.links,
        ];
        (option.layout.chips(), figures)
    });
    let mut groups: Vec<Vec<DecodeOption>> = Vec::new();
    for option in options {
        match groups.last_mut() {
            Some(group) if group[0].layout == option.layout => group.push(option),
            _ => groups.push(vec![option]),
        }
    }
    groups
}

/// The largest batch whose time per output token and caches are within limits; 0 when none is.
fn largest_batch(model: &LayoutModel<'_>, limits: &LatencyLimits, findings: &mut Findings) -> u32 {
    let tokens = model.step.tokens_per_step;
    let is_fast = |batch: u32| model.step.decode_step_s(f64::from(batch)) / tokens <= limits.tpot_s;
    let fits = |batch: u32| f64::from(batch) <= decode_capacity(model, batch);
    if !fits(1) {
        findings.rejected.does_not_fit += 1;
        if model.problem.is_disagg_only() {
            model.consider_memory_miss(1, findings);
        }
        return 0;
    }
    if !is_fast(1) {
        findings.rejected.tpot += 1;
        if model.problem.is_disagg_only() && findings.feasible == 0 {
            let tpot_s = model.step.decode_step_s(1.0) / tokens;
            findings.consider_miss(Miss {
                ratio: tpot_s / limits.tpot_s,
                limit: Limit::TpotS,
                value: tpot_s,
                allowed: limits.tpot_s,
                candidate: model.candidate(f64::INFINITY, tpot_s, f64::INFINITY, 512, 1),
            });
        }
        return 0;
    }
    // Both only get worse with the batch.
    let (mut low, mut high) = (1, model.max_batch + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if is_fast(middle) && fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

impl PrefillOption {
    /// Place in the space.
    pub(super) fn place(&self) -> (usize, Layout, u32) {
        (self.stack, self.layout, self.chunk_tokens)
    }
}

/// Prefill workers of one stack that no other of the same size beats in every respect; `is_mixed` when they serve decode workers on another accelerator.
pub(super) fn prefill_options(
    problem: &SearchProblem,
    stack: usize,
    is_mixed: bool,
) -> Vec<PrefillOption> {
    let spec = &problem.stacks[stack];
    let accelerator = &problem.accelerators[spec.accelerator];
    let offers = OfferPairs::offers(problem, spec.accelerator, is_mixed);
    let space = LayoutSpace::new(&problem.space, &problem.model, accelerator);
    let lengths = prompt_lengths(&problem.workload);
    let mut options = Vec::new();
    for index in 0..space.len() {
        let layout = space.decode(index);
        if !space.is_legal(layout, &problem.model, accelerator) {
            continue;
        }
        let units = units_of(problem, spec.accelerator, &offers, layout.chips());
        if units.iter().all(Option::is_none) {
            continue;
        }
        let model = LayoutModel::new(problem, stack, layout, 0, &lengths);
        for chunk_tokens in chunk_sizes(&problem.space, model.step.prompt_tokens) {
            let chunk = f64::from(chunk_tokens);
            if model.memory.capacity_requests(chunk) < prompts_held(&model, chunk) {
                continue;
            }
            let worker = PrefillWorker::new(&spec.parameters, layout, &model.step, chunk);
            options.push(PrefillOption {
                stack,
                layout,
                chunk_tokens,
                worker,
                units: Arc::clone(&units),
                least_share: least_share(
                    problem,
                    stack,
                    worker.chips,
                    &units,
                    worker.requests_per_s * MOST_UTILIZATION,
                ),
            });
        }
    }
    undominated(options, |option: &PrefillOption| {
        let worker = &option.worker;
        (
            option.layout.chips(),
            [
                -worker.requests_per_s,
                worker.alone_s,
                worker.prompt_s,
                -worker.links,
            ],
        )
    })
}

/// The options that no other of the same size beats in every respect (of equals the first), in their order.
///
/// Args: `merits` gives the size and figures of which less is better.
fn undominated<T>(options: Vec<T>, merits: impl Fn(&T) -> (u32, [f64; 4])) -> Vec<T> {
    let figures: Vec<(u32, [f64; 4])> = options.iter().map(merits).collect();
    let mut order: Vec<usize> = (0..options.len()).collect();
    // Who is beaten is beaten by one that comes earlier in this order.
    order.sort_by(|a, b| {
        let (first, second) = (&figures[*a], &figures[*b]);
        let by_figure = first.1.iter().zip(&second.1).map(|(a, b)| a.total_cmp(b));
        by_figure
            .fold(first.0.cmp(&second.0), |known, next| known.then(next))
            .then(a.cmp(b))
    });
    let mut is_kept = vec![false; options.len()];
    // Merits of those kept so far, all of one size.
    let mut kept: Vec<[f64; 4]> = Vec::new();
    let mut size = 0;
    for index in order {
        let (new_size, merit) = figures[index];
        if new_size != size {
            kept.clear();
            size = new_size;
        }
        let is_beaten = kept.iter().any(|known| {
            // The first figure is in order already.
            (known[1] <= merit[1]) & (known[2] <= merit[2]) & (known[3] <= merit[3])
        });
        if !is_beaten {
            is_kept[index] = true;
            kept.push(merit);
        }
    }
    let mut flags = is_kept.into_iter();
    let mut options = options;
    options.retain(|_| flags.next().unwrap_or(false));
    options
}

/// Prompts whose cache a rank of a prefill worker holds: those of a chunk in every stage, and one whose cache is leaving.
pub(super) fn prompts_held(model: &LayoutModel<'_>, chunk: f64) -> f64 {
    f64::from(model.layout.pp) * (chunk / model.step.prompt_tokens).max(1.0) + 1.0
}

/// What a prefill worker sees of a request.
pub(super) fn prompt_lengths(workload: &Workload) -> Lengths {
    Lengths {
        osl: 1.0,
        ..workload.lengths()
    }
}

/// The links over which the workers of one stack may send to those of another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    fabric: CacheTransfer,
    network: CacheTransfer,
}

impl Links {
    /// Links between prefill workers of one stack and decode workers of another.
    pub(super) fn new(problem: &SearchProblem, prefill: usize, decode: usize) -> Self {
        let lengths = problem.workload.lengths();
        let format = problem.stacks[decode].kv_precision;
        let bytes = prompt_cache_bytes(&problem.model, &lengths, format);
        let link = |is_inside| {
            let end = |stack: usize| {
                let stack = &problem.stacks[stack];
                CacheTransfer::new(
                    &problem.accelerators[stack.accelerator],
                    &stack.parameters,
                    is_inside,
                    bytes,
                    problem.disagg.transfer_overlap,
                )
            };
            end(prefill).slower(end(decode))
        };
        Self {
            fabric: link(true),
            network: link(false),
        }
    }

    /// Whether a link of [`Self::between`] is the fast fabric.
    pub(super) fn is_fabric(&self, link: &CacheTransfer) -> bool {
        *link == self.fabric && self.fabric != self.network
    }

    /// The link between two workers; `fabric_chips` = chips of `accelerator` that share the fast fabric where both pools
    /// sit on units of one offer.
    pub(super) fn between(
        &self,
        prefill: &PrefillWorker,
        decode: &DecodeWorker,
        accelerator: &Accelerator,
        fabric_chips: Option<f64>,
    ) -> CacheTransfer {
        let is_inside =
            fabric_chips.is_some_and(|chips| group_is_inside(prefill, decode, accelerator, chips));
        if is_inside {
            self.fabric
        } else {
            self.network
        }
    }
}

impl OfferPairs {
    /// Offers for prefill on one accelerator and decode on another.
    pub(super) fn new(problem: &SearchProblem, prefill: usize, decode: usize) -> Self {
        let is_shared = prefill == decode;
        if is_shared {
            let offers = Self::offers(problem, decode, false);
            return Self {
                pairs: (0..offers.len()).map(|index| (index, index)).collect(),
                is_shared,
            };
        }
        let first = Self::offers(problem, prefill, true);
        let second = Self::offers(problem, decode, true);
        // Pools on different accelerators must be reachable from each other: the same provider and region.
        let meet = |a: &OfferTerms, b: &OfferTerms| match (a.site, b.site) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        let pairs = (0..first.len())
            .flat_map(|index| (0..second.len()).map(move |other| (index, other)))
            .filter(|(index, other)| meet(&first[*index], &second[*other]))
            .collect();
        Self { pairs, is_shared }
    }

    /// Offers of an accelerator that can be the cheapest: in all, or at their site when pools must meet there.
    fn offers(problem: &SearchProblem, accelerator: usize, by_site: bool) -> Vec<OfferTerms> {
        crate::money::undominated_offers_by(&problem.accelerators[accelerator].offers, by_site)
    }
}

fn units_of(
    problem: &SearchProblem,
    accelerator: usize,
    offers: &[OfferTerms],
    chips: u32,
) -> Units {
    offers
        .iter()
        .map(|offer| FleetUnit::new(&problem.accelerators[accelerator], offer, chips))
        .collect()
}

/// Least resource (USD/h, kW or chips) that a request/s takes at a worker that serves `requests_per_s`.
fn least_share(
    problem: &SearchProblem,
    stack: usize,
    chips: f64,
    units: &Units,
    requests_per_s: f64,
) -> f64 {
    let power_kw = problem.accelerators[problem.stacks[stack].accelerator].power_w / W_PER_KW;
    let resource = |unit: &FleetUnit| match problem.objective {
        Objective::Cost => unit.usd_per_instance_hr / unit.replicas_per_instance,
        Objective::Energy => unit.chips_per_instance * power_kw / unit.replicas_per_instance,
        Objective::Throughput => chips,
    };
    units
        .iter()
        .flatten()
        .map(|unit| resource(unit) / requests_per_s)
        .fold(f64::INFINITY, f64::min)
}

const W_PER_KW: f64 = 1000.0;

/// Requests whose full cache fits in a slot of a worker that decodes `batch` requests a slot.
pub(super) fn decode_capacity(model: &LayoutModel<'_>, batch: u32) -> f64 {
    model
        .memory
        .capacity_requests(f64::from(batch) * model.tokens_verified())
        / f64::from(model.layout.pp)
}

/// Batches up to `largest`: every one at first, then [`BATCHES_PER_OCTAVE`], and the largest itself.
fn batch_grid(largest: u32) -> Vec<u32> {
    let mut batches = Vec::new();
    let mut batch = 1;
    while batch < largest {
        batches.push(batch);
        batch = whole(f64::from(batch) * (1.0 / BATCHES_PER_OCTAVE).exp2()).max(batch + 1);
    }
    if largest > 0 {
        batches.push(largest);
    }
    batches
}

/// At least one; the small slack keeps 3 x (1/3) from becoming 2.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped first; a count of workers"
)]
pub(super) fn whole(workers: f64) -> u32 {
    (workers - 1e-9).ceil().clamp(1.0, 4e9) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_undominated_of_a_size_stay() {
        let options = vec![
            (1, [2.0, 2.0, 0.0, 0.0]),
            (1, [1.0, 3.0, 0.0, 0.0]),
            (1, [2.0, 2.0, 0.0, 0.0]),
            (1, [3.0, 2.0, 0.0, 0.0]),
            (2, [3.0, 2.0, 0.0, 0.0]),
            (1, [3.0, 2.5, -1.0, 0.0]),
        ];
        let kept = undominated(options.clone(), |option| *option);
        assert_eq!(kept, [options[0], options[1], options[4], options[5]]);
    }

    #[test]
    fn the_grid_is_dense_ends_at_the_largest_and_rises() {
        let grid = batch_grid(100);
        assert_eq!(grid[..7], [1, 2, 3, 4, 5, 6, 8]);
        assert_eq!(grid.last(), Some(&100));
        assert!(grid.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(grid
            .windows(2)
            .all(|pair| f64::from(pair[1]) <= f64::from(pair[0]) * 1.25 + 1.0));
        assert_eq!(batch_grid(1), [1]);
        assert!(batch_grid(0).is_empty());
    }
}
