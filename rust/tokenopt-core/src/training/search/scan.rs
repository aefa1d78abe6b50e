//! The scan of one stack: splits, frames and data-parallel degrees, with bounds that skip whole splits and frames.

use super::best::{MemoryMiss, TrainCandidate, TrainFindings};
use super::bounds::{most_tps_per_chip, recovery_per_chip, Bound};
use super::problem::{TrainObjective, TrainProblem, TrainStack};
use super::space::{BatchRule, Frame, FrameSpace, SplitSpace};
use crate::accelerator::{Accelerator, OfferTerms};
use crate::count::count;
use crate::money::{undominated_offers, FleetUnit, SECONDS_PER_HOUR};
use crate::training::run::{RunOutcome, RunPlan, RunScale};
use crate::training::{
    MicrobatchCost, Split, TrainingJob, TrainingLayout, TrainingMemory, TrainingStep,
};

pub(super) const SECONDS_PER_DAY: f64 = 24.0 * SECONDS_PER_HOUR;

/// Everything about one stack that does not depend on the layout.
pub struct StackModel<'a> {
    pub(super) problem: &'a TrainProblem,
    pub(super) stack_index: usize,
    pub(super) stack: &'a TrainStack,
    pub(super) accelerator: &'a Accelerator,
    /// The job in the stack's format.
    pub job: TrainingJob,
    offers: Vec<OfferTerms>,
    checkpoint_bytes: f64,
    pub(super) batch: BatchRule,
    /// USD per chip and second, of the cheapest offer.
    pub(super) least_usd_per_chip_s: f64,
    /// Recovery time a chip adds to each second of wall time.
    pub(super) recovery_per_chip: f64,
}

/// Run plans by number of chips, worked out when first met.
pub struct PlanCache {
    plans: Vec<Vec<RunPlan>>,
    places: Vec<u32>,
}

/// A split with its micro-batch worked out.
pub(super) struct SplitModel {
    pub(super) split: Split,
    pub(super) cost: MicrobatchCost,
    /// Tokens/s per chip that no layout with this split exceeds.
    most_tps_per_chip: f64,
}

/// What one configuration costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Priced {
    /// The plan that scores best, by its place among the offers that can run it.
    pub plan: RunPlan,
    /// Caller's index of its offer.
    pub offer: u32,
    /// The run.
    pub outcome: RunOutcome,
    /// What the search minimises.
    pub score: f64,
}

impl<'a> StackModel<'a> {
    /// Hoists everything for one stack.
    #[must_use]
    pub fn new(problem: &'a TrainProblem, stack_index: usize) -> Self {
        let stack = &problem.stacks[stack_index];
        let accelerator = &problem.accelerators[stack.accelerator];
        let job = problem.job_of(stack);
        let offers = undominated_offers(&accelerator.offers);
        let least_usd_per_chip_s = offers
            .iter()
            .map(|offer| offer.usd_per_chip_hr / SECONDS_PER_HOUR)
            .fold(f64::INFINITY, f64::min);
        Self {
            problem,
            stack_index,
            stack,
            accelerator,
            job,
            offers,
            checkpoint_bytes: checkpoint_bytes(problem, accelerator, stack, &job),
            batch: BatchRule {
                global_batch: problem.job.global_batch,
                tolerance: problem.batch_tolerance,
            },
            least_usd_per_chip_s,
            recovery_per_chip: recovery_per_chip(problem),
        }
    }

    /// An empty cache of run plans.
    #[must_use]
    pub fn plans(&self) -> PlanCache {
        PlanCache {
            plans: Vec::new(),
            places: vec![0; self.problem.limits.max_chips as usize + 1],
        }
    }

    /// Plans of a run on `chips` chips, one for each offer that can run it within the chip limit.
    fn plans_for<'b>(&self, cache: &'b mut PlanCache, chips: u32) -> &'b [RunPlan] {
        let place = cache.places[chips as usize] as usize;
        if place > 0 {
            return &cache.plans[place - 1];
        }
        let most = f64::from(self.problem.limits.max_chips);
        let plans = self
            .offers
            .iter()
            .filter_map(|offer| {
                let unit = FleetUnit::new(self.accelerator, offer, chips)?;
                let scale = RunScale {
                    chips,
                    checkpoint_bytes: self.checkpoint_bytes,
                    may_be_withdrawn: offer.may_be_withdrawn,
                };
                let plan = RunPlan::new(&self.problem.run, self.accelerator, &unit, &scale);
                (plan.chips <= most).then_some(plan)
            })
            .collect();
        cache.plans.push(plans);
        // At most as many plans as chips, which are at most MOST_CHIPS.
        cache.places[chips as usize] = u32::try_from(cache.plans.len()).unwrap_or(u32::MAX);
        &cache.plans[cache.plans.len() - 1]
    }

    /// The batch a layout runs, when it divides.
    #[inline(always)]
    fn batch_of(&self, frame: &Frame, split: &Split, dp: u32) -> Option<f64> {
        let rounds = if frame.vpp > 1 { frame.pp } else { 1 };
        self.batch.batch(dp, split.micro_batch, rounds)
    }

    /// Evaluates a layout and its cheapest offer.
    ///
    /// Returns None when no offer can run it within the chip limit.
    #[inline(always)]
    fn price(
        &self,
        cache: &mut PlanCache,
        layout: &TrainingLayout,
        step_s: f64,
        batch_tokens: f64,
    ) -> Option<Priced> {
        let chips = u32::try_from(layout.chips()).ok()?;
        let objective = self.problem.objective;
        let max_usd = self.problem.limits.max_usd.unwrap_or(f64::INFINITY);
        let deadline_s = self.deadline_s();
        let mut best: Option<(bool, Priced)> = None;
        for plan in self.plans_for(cache, chips) {
            let outcome = plan.outcome(step_s, batch_tokens);
            let score = score(objective, plan, &outcome);
            let is_within = outcome.usd <= max_usd && outcome.wall_s <= deadline_s;
            let is_better = best.as_ref().is_none_or(|(known_within, known)| {
                (is_within, -score) > (*known_within, -known.score)
            });
            if is_better {
                best = Some((
                    is_within,
                    Priced {
                        plan: *plan,
                        offer: plan.offer,
                        outcome,
                        score,
                    },
                ));
            }
        }
        best.map(|(_, priced)| priced)
    }

    pub(super) fn deadline_s(&self) -> f64 {
        self.problem
            .limits
            .deadline_days
            .map_or(f64::INFINITY, |days| days * SECONDS_PER_DAY)
    }

    /// Evaluates one layout in full, for the answer.
    #[must_use]
    pub fn evaluate(&self, layout: &TrainingLayout, global_batch: f64) -> Evaluated {
        let job = TrainingJob {
            global_batch,
            ..self.job
        };
        let parameters = &self.stack.parameters;
        let split = Split::from(layout);
        let cost = MicrobatchCost::new(
            &self.problem.model,
            self.accelerator,
            parameters,
            &job,
            &split,
        );
        let step = TrainingStep::new(&cost, self.accelerator, parameters, &job, layout);
        let memory = TrainingMemory::new(&cost, self.accelerator, parameters, &job, layout);
        let mut cache = self.plans();
        let priced = self.price(&mut cache, layout, step.step_s, job.step_tokens());
        Evaluated {
            job,
            cost,
            step,
            memory,
            priced,
        }
    }

    /// Splits of this stack with their micro-batches, fastest first.
    fn splits(&self, space: &SplitSpace, first: usize, last: usize) -> Vec<SplitModel> {
        let problem = self.problem;
        let mut splits: Vec<SplitModel> = (first..last)
            .filter_map(|index| {
                let split = space.decode(index);
                let is_cut = space.cuts_experts(index);
                if !space.is_legal(&split, is_cut, &problem.model, self.accelerator, &self.job) {
                    return None;
                }
                let cost = MicrobatchCost::new(
                    &problem.model,
                    self.accelerator,
                    &self.stack.parameters,
                    &self.job,
                    &split,
                );
                Some(SplitModel {
                    split,
                    most_tps_per_chip: most_tps_per_chip(&cost, &self.job, &split),
                    cost,
                })
            })
            .collect();
        splits.sort_by(|a, b| {
            b.most_tps_per_chip
                .total_cmp(&a.most_tps_per_chip)
                .then_with(|| a.split.cmp(&b.split))
        });
        splits
    }

    /// Evaluates the splits from `first` to `last` and adds what it finds.
    pub fn scan(
        &self,
        space: &SplitSpace,
        first: usize,
        last: usize,
        is_stopped: &dyn Fn() -> bool,
        findings: &mut TrainFindings,
    ) {
        if self.offers.is_empty() {
            findings.rejected.no_offer += 1;
            return;
        }
        let mut cache = self.plans();
        for model in self.splits(space, first, last) {
            if is_stopped() {
                return;
            }
            self.scan_split(&model, &mut cache, findings);
        }
    }

    fn scan_split(&self, model: &SplitModel, cache: &mut PlanCache, findings: &mut TrainFindings) {
        let problem = self.problem;
        let split = &model.split;
        let frames = FrameSpace::new(&problem.space, &problem.model, self.accelerator, split);
        let most = problem.limits.max_chips / (split.tp * split.cp);
        let degrees = self
            .batch
            .degrees(problem.space.dp.as_deref(), split.micro_batch, most);
        if degrees.is_empty() {
            findings.rejected.batch += frames.frames() as u64;
            return;
        }
        if !problem.exhaustive {
            let most_chips = f64::from(problem.limits.max_chips);
            let least_chips = self.least_chips(model.most_tps_per_chip);
            let bound = Bound {
                most_tps: model.most_tps_per_chip * most_chips * self.most_goodput(most_chips),
                most_tps_per_chip: model.most_tps_per_chip * self.most_goodput(least_chips),
            };
            if self.cannot_matter(&bound, findings) {
                findings.pruned += (frames.frames() * degrees.len()) as u64;
                return;
            }
        }
        for index in 0..frames.len() {
            if let Some(frame) = frames.decode(index) {
                self.scan_frames(model, &frames, &frame, &degrees, cache, findings);
            }
        }
    }

    /// Goes through the shardings and data-parallel degrees of one frame.
    fn scan_frames(
        &self,
        model: &SplitModel,
        frames: &FrameSpace,
        frame: &Frame,
        degrees: &[u32],
        cache: &mut PlanCache,
        findings: &mut TrainFindings,
    ) {
        let problem = self.problem;
        let split = &model.split;
        let copy_chips = u64::from(split.tp) * u64::from(split.cp) * u64::from(frame.pp);
        let most = u64::from(problem.limits.max_chips) / copy_chips;
        let least = u64::from(problem.limits.min_chips).div_ceil(copy_chips);
        let from = degrees.partition_point(|dp| u64::from(*dp) < least);
        let to = degrees.partition_point(|dp| u64::from(*dp) <= most);
        if from >= to {
            return;
        }
        let mut degrees = &degrees[from..to];
        if !problem.exhaustive {
            let Some(first) = self.first_useful(model, frame, degrees, copy_chips, findings) else {
                findings.pruned += degrees.len() as u64;
                return;
            };
            findings.pruned += first as u64;
            degrees = &degrees[first..];
        }
        for frame in frames.shardings(*frame) {
            self.scan_degrees(model, &frame, degrees, cache, findings);
        }
    }

    /// Evaluates the data-parallel degrees of one frame.
    fn scan_degrees(
        &self,
        model: &SplitModel,
        frame: &Frame,
        degrees: &[u32],
        cache: &mut PlanCache,
        findings: &mut TrainFindings,
    ) {
        let split = &model.split;
        if !self.problem.exhaustive {
            // Memory never rises with the degree: what does not fit at the highest fits nowhere.
            let Some((dp, global_batch)) = degrees.iter().rev().find_map(|dp| {
                let batch = self.batch_of(frame, split, *dp)?;
                frame.allows(split, *dp).then_some((*dp, batch))
            }) else {
                findings.rejected.batch += degrees.len() as u64;
                return;
            };
            let job = TrainingJob {
                global_batch,
                ..self.job
            };
            let layout = frame.layout(split, dp);
            let memory = TrainingMemory::new(
                &model.cost,
                self.accelerator,
                &self.stack.parameters,
                &job,
                &layout,
            );
            if !memory.fits() {
                findings.rejected.does_not_fit += degrees.len() as u64;
                self.consider_memory_miss(&memory, &layout, global_batch, findings);
                return;
            }
        }
        let mut best: Option<TrainCandidate> = None;
        for dp in degrees {
            let Some(global_batch) = self.batch_of(frame, split, *dp) else {
                findings.rejected.batch += 1;
                continue;
            };
            if !frame.allows(split, *dp) {
                continue;
            }
            let layout = frame.layout(split, *dp);
            let candidate = self.evaluate_point(model, &layout, global_batch, cache, findings);
            if let Some(candidate) = candidate {
                findings.frontier.offer(&candidate);
                if best
                    .as_ref()
                    .is_none_or(|known| candidate.order(known).is_lt())
                {
                    best = Some(candidate);
                }
            }
        }
        if let Some(candidate) = best {
            findings.best_of_frame(candidate);
        }
    }

    /// One configuration in full: memory, step, run, money, limits.
    #[inline(always)]
    fn evaluate_point(
        &self,
        model: &SplitModel,
        layout: &TrainingLayout,
        global_batch: f64,
        cache: &mut PlanCache,
        findings: &mut TrainFindings,
    ) -> Option<TrainCandidate> {
        let parameters = &self.stack.parameters;
        let job = TrainingJob {
            global_batch,
            ..self.job
        };
        let memory = TrainingMemory::new(&model.cost, self.accelerator, parameters, &job, layout);
        if !memory.fits() {
            findings.rejected.does_not_fit += 1;
            self.consider_memory_miss(&memory, layout, global_batch, findings);
            return None;
        }
        let step = TrainingStep::new(&model.cost, self.accelerator, parameters, &job, layout);
        let Some(priced) = self.price(cache, layout, step.step_s, job.step_tokens()) else {
            findings.rejected.max_chips += 1;
            return None;
        };
        findings.evaluated += 1;
        if priced.outcome.wall_s > self.deadline_s() {
            findings.rejected.deadline += 1;
            return None;
        }
        if priced.outcome.usd > self.problem.limits.max_usd.unwrap_or(f64::INFINITY) {
            findings.rejected.budget += 1;
            return None;
        }
        findings.feasible += 1;
        Some(self.candidate(
            priced.score,
            priced.outcome.days(),
            priced.outcome.usd,
            layout,
            global_batch,
        ))
    }

    fn candidate(
        &self,
        score: f64,
        days: f64,
        usd: f64,
        layout: &TrainingLayout,
        global_batch: f64,
    ) -> TrainCandidate {
        TrainCandidate {
            score,
            days,
            usd,
            accelerator: self.stack.accelerator,
            stack: self.stack_index,
            layout: *layout,
            global_batch,
        }
    }

    fn consider_memory_miss(
        &self,
        memory: &TrainingMemory,
        layout: &TrainingLayout,
        global_batch: f64,
        findings: &mut TrainFindings,
    ) {
        if findings.feasible > 0 {
            return;
        }
        findings.consider_miss(MemoryMiss {
            ratio: memory.total_bytes() / memory.plannable_bytes,
            needed_bytes: memory.total_bytes(),
            plannable_bytes: memory.plannable_bytes,
            candidate: self.candidate(
                f64::INFINITY,
                f64::INFINITY,
                f64::INFINITY,
                layout,
                global_batch,
            ),
        });
    }
}

/// One layout with everything worked out.
#[derive(Debug, Clone, Copy)]
pub struct Evaluated {
    /// The job with the batch the layout runs.
    pub job: TrainingJob,
    /// Its micro-batch.
    pub cost: MicrobatchCost,
    /// Its step.
    pub step: TrainingStep,
    /// Its memory.
    pub memory: TrainingMemory,
    /// Its run on the best offer; None when no offer can run it.
    pub priced: Option<Priced>,
}

/// What the search minimises.
#[inline(always)]
fn score(objective: TrainObjective, plan: &RunPlan, outcome: &RunOutcome) -> f64 {
    match objective {
        TrainObjective::Cost => plan.usd_per_m_tokens(outcome),
        TrainObjective::Time => outcome.days(),
        TrainObjective::Energy => plan.kwh_per_m_tokens(outcome),
    }
}

/// Bytes of a checkpoint: 16-bit weights and the optimizer's state of what is trained.
///
/// Source: BLOOM, 2.3 TB for 176e9 parameters (13 bytes each). Assumes: frozen weights are not written again; optimizer
/// state in host memory is written all the same.
fn checkpoint_bytes(
    problem: &TrainProblem,
    accelerator: &Accelerator,
    stack: &TrainStack,
    job: &TrainingJob,
) -> f64 {
    const WEIGHT_BYTES: f64 = 2.0;
    const LEAST_STATE_BYTES: f64 = 6.0;
    let trained = if job.recipe.is_frozen() {
        let whole = Split {
            tp: 1,
            sequence_parallel: false,
            cp: 1,
            ep: 1,
            etp: 1,
            micro_batch: 1,
            async_tensor: false,
            context_exchange: crate::training::ContextExchange::Ring,
        };
        MicrobatchCost::new(&problem.model, accelerator, &stack.parameters, job, &whole)
            .shard
            .adapter_parameters
    } else {
        count(&problem.model).total_parameters
    };
    let state = job.optimizer.bytes_per_parameter();
    let state = if state > 0.0 {
        state
    } else {
        2.0 * LEAST_STATE_BYTES
    };
    trained * (WEIGHT_BYTES + state)
}
