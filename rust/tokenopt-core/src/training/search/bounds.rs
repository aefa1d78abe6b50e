//! Bounds: what no run of a split or frame exceeds, whatever its data-parallel degree, and whether that can matter.

use super::best::TrainFindings;
use super::problem::{TrainObjective, TrainProblem};
use super::scan::{SplitModel, StackModel, SECONDS_PER_DAY};
use super::space::Frame;
use crate::money::{SECONDS_PER_HOUR, TOKENS_PER_QUOTE};
use crate::training::{pipeline, MicrobatchCost, Split, TrainingJob, TrainingStep};

/// What no run of a split or frame exceeds.
pub(super) struct Bound {
    /// Tokens/s of the largest cluster, failures counted.
    pub(super) most_tps: f64,
    /// Tokens/s per chip of the smallest cluster in question, failures counted.
    pub(super) most_tps_per_chip: f64,
}

impl StackModel<'_> {
    /// Share of the wall time that makes progress, at most, on `chips` chips or more: what recoveries alone leave.
    #[inline(always)]
    pub(super) fn most_goodput(&self, chips: f64) -> f64 {
        (-chips * self.recovery_per_chip).exp()
    }

    /// Chips below which a run at `tps_per_chip` misses the deadline.
    pub(super) fn least_chips(&self, tps_per_chip: f64) -> f64 {
        let least = self.problem.run.tokens / (tps_per_chip * self.deadline_s());
        least.max(f64::from(self.problem.limits.min_chips))
    }

    /// Whether no run within `bound` can enter the best list, the best of its accelerator or the frontier, or meet the
    /// deadline.
    #[inline(always)]
    pub(super) fn cannot_matter(&self, bound: &Bound, findings: &TrainFindings) -> bool {
        let tokens = self.problem.run.tokens;
        let wall_s = tokens / bound.most_tps;
        if wall_s > self.deadline_s() {
            return true;
        }
        let usd = self.least_usd_per_chip_s / bound.most_tps_per_chip * tokens;
        let score = match self.problem.objective {
            TrainObjective::Cost => usd / tokens * TOKENS_PER_QUOTE,
            TrainObjective::Time => wall_s / SECONDS_PER_DAY,
            TrainObjective::Energy => {
                const WS_PER_KWH: f64 = 3.6e6;
                self.accelerator.power_w / WS_PER_KWH / bound.most_tps_per_chip * TOKENS_PER_QUOTE
            }
        };
        let best = findings.by_accelerator[self.stack.accelerator]
            .as_ref()
            .map_or(f64::INFINITY, |candidate| candidate.score);
        score > findings.top.threshold()
            && score > best
            && findings.frontier.dominates(wall_s / SECONDS_PER_DAY, usd)
    }

    /// Place of the first degree that can meet the deadline; None when no degree can matter.
    ///
    /// The time of a stage and of the bubble do not depend on the data-parallel degree, nor on the sharding; data
    /// traffic, the optimizer and constant latency come on top of them.
    pub(super) fn first_useful(
        &self,
        model: &SplitModel,
        frame: &Frame,
        degrees: &[u32],
        copy_chips: u64,
        findings: &TrainFindings,
    ) -> Option<usize> {
        let split = &model.split;
        let layout = frame.layout(split, 1);
        let step = TrainingStep::new(
            &model.cost,
            self.accelerator,
            &self.stack.parameters,
            &self.job,
            &layout,
        );
        let stage_s = step.stage_forward_s + step.stage_backward_s;
        #[expect(clippy::cast_precision_loss, reason = "at most MOST_CHIPS")]
        let copy = copy_chips as f64;
        let sequences = f64::from(split.micro_batch);
        let most_sequences = self.batch.global_batch * (1.0 + self.batch.tolerance);
        // Without the transfers between stages, which only lengthen it.
        let bubble_s = pipeline::bubble_s(
            frame.schedule,
            f64::from(frame.pp),
            f64::from(frame.vpp),
            &pipeline::StageTimes {
                forward_s: step.stage_forward_s,
                backward_s: step.stage_backward_s,
                weight_gradient_s: model.cost.weight_gradient_s
                    * pipeline::imbalance(model.cost.layers, frame.pp, frame.vpp)
                    / f64::from(frame.pp),
            },
        );
        let tps_per_chip = |dp: u32| {
            let microbatches = (most_sequences / (f64::from(dp) * sequences)).max(1.0);
            sequences * self.job.seq_len / ((stage_s + bubble_s / microbatches) * copy)
        };
        let tps = |dp: u32| {
            let chips = copy * f64::from(dp);
            tps_per_chip(dp) * chips * self.most_goodput(chips)
        };
        let deadline_s = self.deadline_s();
        let tokens = self.problem.run.tokens;
        let first = degrees.partition_point(|dp| tokens / tps(*dp) > deadline_s);
        let least = *degrees.get(first)?;
        let bound = Bound {
            most_tps: tps(*degrees.last()?),
            most_tps_per_chip: tps_per_chip(least) * self.most_goodput(copy * f64::from(least)),
        };
        (!self.cannot_matter(&bound, findings)).then_some(first)
    }
}

/// Recovery time that one more chip adds to each second of wall time, at least: failures alone, no checkpoint read.
///
/// Capped so that more chips always mean more progress, which bounds rely on.
pub(super) fn recovery_per_chip(problem: &TrainProblem) -> f64 {
    let reliability = &problem.run.reliability;
    let recovery_s = reliability.detection_s + reliability.restart_s;
    let failures_per_s = 1.0 / (reliability.chip_hours_between_failures * SECONDS_PER_HOUR);
    (failures_per_s * recovery_s).min(1.0 / f64::from(problem.limits.max_chips))
}

/// Tokens/s per chip when nothing but the layers and the head takes time: no bubble, no recomputation, no data-parallel
/// traffic, stages perfectly even.
pub(super) fn most_tps_per_chip(cost: &MicrobatchCost, job: &TrainingJob, split: &Split) -> f64 {
    let extra = job.recipe.extra_forwards();
    let seconds = (1.0 + extra) * (cost.forward.total_s() + cost.head_forward_s)
        + cost.backward.total_s()
        + cost.head_backward_s;
    f64::from(split.micro_batch) * job.seq_len
        / (seconds * f64::from(split.tp) * f64::from(split.cp))
}
