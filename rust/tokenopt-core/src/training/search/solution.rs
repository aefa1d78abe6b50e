//! The answer as it crosses back to Python: small, with the contract's field names and units.

use std::collections::BTreeMap;

use serde::Serialize;

use super::best::{TrainCandidate, TrainFindings, TrainRejections};
use super::problem::TrainProblem;
use super::scan::{Evaluated, StackModel};
use crate::training::run::Goodput;
use crate::training::{
    Recompute, Schedule, Sharding, StepParts, TrainingLayout, TrainingMemory, TrainingWork,
};

/// Answer of a search for a training run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainAnswer {
    /// Configurations evaluated in full.
    pub evaluated: u64,
    /// Configurations that bounds skipped.
    pub pruned: u64,
    /// Evaluated configurations that met every limit.
    pub feasible: u64,
    /// Why the others did not.
    pub rejected: TrainRejections,
    /// Wall time, s.
    pub elapsed_s: f64,
    /// Best layouts, best first; one entry a split over chips.
    pub best: Vec<TrainSolution>,
    /// Best of each accelerator, best first.
    pub by_accelerator: Vec<TrainSolution>,
    /// Undominated trade-offs of days against money, fastest first.
    pub frontier: Vec<TrainSolution>,
    /// The run that comes nearest to the deadline or budget, when nothing is feasible.
    pub nearest: Option<TrainSolution>,
    /// The layout that comes nearest to fitting, when nothing fits.
    pub memory_miss: Option<MemoryMissAnswer>,
}

/// The layout that comes nearest to fitting.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MemoryMissAnswer {
    /// Stack.
    pub stack: usize,
    /// Its layout.
    pub layout: TrainLayoutAnswer,
    /// Memory it needs per chip, GB.
    pub needed_gb: f64,
    /// Memory it may use per chip, GB.
    pub allowed_gb: f64,
}

/// A layout as the contract names it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrainLayoutAnswer {
    /// Tensor parallelism.
    pub tp: u32,
    /// Whether norms and residuals are split along the sequence.
    pub sequence_parallel: bool,
    /// Pipeline stages.
    pub pp: u32,
    /// Chunks of layers a stage holds.
    pub vpp: u32,
    /// Context parallelism.
    pub cp: u32,
    /// Expert parallelism.
    pub ep: u32,
    /// Tensor parallelism inside an expert.
    pub etp: u32,
    /// Data parallelism.
    pub dp: u32,
    /// Sequences of a micro-batch.
    pub micro_batch: u32,
    /// Micro-batches of a step through each pipeline.
    pub microbatches: f64,
    /// Who holds which part of weights, gradients and optimizer state.
    pub sharding: &'static str,
    /// Ranks over which weights are spread.
    pub weight_ranks: u32,
    /// What is computed twice.
    pub recompute: &'static str,
    /// Layers of a stage that are wholly computed twice.
    pub recompute_layers: u32,
    /// Pipeline schedule.
    pub schedule: &'static str,
}

impl TrainLayoutAnswer {
    fn new(layout: &TrainingLayout, global_batch: f64, layers: u32) -> Self {
        Self {
            tp: layout.tp,
            sequence_parallel: layout.sequence_parallel,
            pp: layout.pp,
            vpp: layout.vpp,
            cp: layout.cp,
            ep: layout.ep,
            etp: layout.etp,
            dp: layout.dp,
            micro_batch: layout.micro_batch,
            microbatches: global_batch / f64::from(layout.dp) / f64::from(layout.micro_batch),
            sharding: match layout.sharding {
                Sharding::Zero0 => "zero0",
                Sharding::Zero1 => "zero1",
                Sharding::Zero2 => "zero2",
                Sharding::Zero3 => "zero3",
                Sharding::Hybrid(_) => "hybrid",
            },
            weight_ranks: layout.sharding.weight_ranks(layout.replicas()),
            recompute: match layout.recompute {
                Recompute::None => "none",
                Recompute::Selective => "selective",
                Recompute::Full => "full",
                Recompute::Blocks(_) => "blocks",
            },
            recompute_layers: match layout.recompute {
                Recompute::None | Recompute::Selective => 0,
                Recompute::Full => layers.div_ceil(layout.pp),
                Recompute::Blocks(blocks) => blocks,
            },
            schedule: match (layout.schedule, layout.pp, layout.vpp) {
                (_, 1, _) => "none",
                (Schedule::ZeroBubble, _, _) => "zero-bubble",
                (Schedule::OneForwardOneBackward, _, 1) => "1f1b",
                (Schedule::OneForwardOneBackward, _, _) => "interleaved",
            },
        }
    }
}

/// Memory of the fullest chip, GB.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrainMemoryAnswer {
    /// 16-bit weights.
    pub weights: f64,
    /// Gradients.
    pub gradients: f64,
    /// Optimizer state.
    pub optimizer: f64,
    /// Activations of the micro-batches in flight.
    pub activations: f64,
    /// Working set.
    pub working: f64,
    /// What training can plan with.
    pub plannable: f64,
}

const BYTES_PER_GB: f64 = 1e9;

impl From<&TrainingMemory> for TrainMemoryAnswer {
    fn from(memory: &TrainingMemory) -> Self {
        Self {
            weights: memory.weight_bytes / BYTES_PER_GB,
            gradients: memory.gradient_bytes / BYTES_PER_GB,
            optimizer: memory.optimizer_bytes / BYTES_PER_GB,
            activations: memory.activation_bytes / BYTES_PER_GB,
            working: memory.working_bytes / BYTES_PER_GB,
            plannable: memory.plannable_bytes / BYTES_PER_GB,
        }
    }
}

/// What a run waits for most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainBinding {
    /// Arithmetic.
    Compute,
    /// Memory bandwidth.
    Bandwidth,
    /// Fabric and network.
    Network,
    /// Pipeline bubble.
    Bubble,
    /// Launch and host latency.
    Latency,
    /// Computing again what memory cannot keep.
    Memory,
    /// Fewer chips would miss the deadline.
    Deadline,
}

/// One run, priced.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainSolution {
    /// Index of the stack.
    pub stack: usize,
    /// Caller's index of the offer; absent when it was not priced.
    pub offer: Option<u32>,
    /// Layout.
    pub layout: TrainLayoutAnswer,
    /// Sequences of a step.
    pub global_batch: f64,
    /// Tokens of a step.
    pub batch_tokens: f64,
    /// Steps of the run.
    pub steps: f64,
    /// Instances paid for.
    pub instances: f64,
    /// Chips paid for.
    pub chips: f64,
    /// Chips that train.
    pub chips_used: f64,
    /// USD per million tokens trained.
    pub usd_per_m_tokens: f64,
    /// USD of the run.
    pub usd_per_run: f64,
    /// USD per hour.
    pub usd_per_hr: f64,
    /// Wall time, days.
    pub days: f64,
    /// Chip-hours paid for.
    pub gpu_hours: f64,
    /// Model FLOP utilisation of a step: causal attention once, nothing for recomputation.
    pub mfu: f64,
    /// Hardware FLOP utilisation of a step: with what is computed again.
    pub hfu: f64,
    /// Share of the wall time spent in steps at full speed.
    pub goodput: f64,
    /// Where the rest goes.
    pub losses: Option<Goodput>,
    /// Tokens/s per training chip in an undisturbed step.
    pub tokens_per_s_per_chip: f64,
    /// Model TFLOP/s per training chip, by the convention of `mfu`.
    pub tflops_per_chip: f64,
    /// An undisturbed step, s.
    pub step_time_s: f64,
    /// Memory of the fullest chip in use, GB.
    pub memory_gb: f64,
    /// Memory of the fullest chip by what holds it, GB.
    pub memory: TrainMemoryAnswer,
    /// kWh per million tokens trained.
    pub kwh_per_m_tokens: f64,
    /// kWh of the run.
    pub kwh_per_run: f64,
    /// What binds.
    pub why: TrainBinding,
    /// What a step spends its time on, as shares.
    pub step_shares: BTreeMap<&'static str, f64>,
}

impl TrainAnswer {
    pub(super) fn new(
        problem: &TrainProblem,
        findings: &TrainFindings,
        nearest: Option<TrainSolution>,
        elapsed_s: f64,
    ) -> Self {
        let solve = |candidates: &[TrainCandidate]| -> Vec<TrainSolution> {
            candidates
                .iter()
                .map(|candidate| TrainSolution::new(problem, candidate))
                .collect()
        };
        let mut by_accelerator: Vec<TrainCandidate> =
            findings.by_accelerator.iter().flatten().copied().collect();
        by_accelerator.sort_by(TrainCandidate::order);
        let layers = problem.model.layers.iter().map(|group| group.count).sum();
        Self {
            evaluated: findings.evaluated,
            pruned: findings.pruned,
            feasible: findings.feasible,
            rejected: findings.rejected,
            elapsed_s,
            best: solve(findings.top.entries()),
            by_accelerator: solve(&by_accelerator),
            frontier: solve(&findings.frontier.points()),
            nearest,
            memory_miss: findings
                .memory_miss
                .filter(|_| findings.feasible == 0)
                .map(|miss| MemoryMissAnswer {
                    stack: miss.candidate.stack,
                    layout: TrainLayoutAnswer::new(
                        &miss.candidate.layout,
                        miss.candidate.global_batch,
                        layers,
                    ),
                    needed_gb: miss.needed_bytes / BYTES_PER_GB,
                    allowed_gb: miss.plannable_bytes / BYTES_PER_GB,
                }),
        }
    }
}

impl TrainSolution {
    /// Evaluates one candidate again, with everything a reader wants to know.
    #[must_use]
    pub fn new(problem: &TrainProblem, candidate: &TrainCandidate) -> Self {
        let stack = StackModel::new(problem, candidate.stack);
        let layout = &candidate.layout;
        let point = stack.evaluate(layout, candidate.global_batch);
        let Evaluated {
            job,
            cost,
            step,
            memory,
            priced,
        } = &point;
        let layers: u32 = problem.model.layers.iter().map(|group| group.count).sum();
        let answer = TrainLayoutAnswer::new(layout, candidate.global_batch, layers);
        let work = TrainingWork::new(&problem.model, job);
        let peak = job.format.peak_flops(&stack.accelerator.peak_flops);
        let rate = step.tokens_per_s_per_chip(job, layout);
        let parts = step.parts(cost, &stack.stack.parameters, layout, job);
        let forward_s = step.microbatches * step.stage_forward_s;
        let repeated = if forward_s > 0.0 {
            step.recompute_s / forward_s
        } else {
            0.0
        };
        let shares = shares(&parts);
        let nan = f64::NAN;
        let from_plan = |value: fn(&super::scan::Priced) -> f64| priced.as_ref().map_or(nan, value);
        #[expect(clippy::cast_precision_loss, reason = "at most MOST_CHIPS")]
        let chips_used = layout.chips() as f64;
        Self {
            stack: candidate.stack,
            offer: priced.as_ref().map(|priced| priced.offer),
            layout: answer,
            global_batch: candidate.global_batch,
            batch_tokens: job.step_tokens(),
            steps: (problem.run.tokens / job.step_tokens()).ceil(),
            instances: from_plan(|priced| priced.plan.instances),
            chips: from_plan(|priced| priced.plan.chips),
            chips_used,
            usd_per_m_tokens: from_plan(|priced| priced.plan.usd_per_m_tokens(&priced.outcome)),
            usd_per_run: from_plan(|priced| priced.outcome.usd),
            usd_per_hr: from_plan(|priced| priced.plan.usd_per_hr),
            days: from_plan(|priced| priced.outcome.days()),
            gpu_hours: from_plan(|priced| priced.plan.chip_hours(&priced.outcome)),
            mfu: step.mfu(&work, rate, peak),
            hfu: step.hfu(&work, rate, peak, repeated),
            goodput: from_plan(|priced| priced.outcome.goodput),
            losses: priced.as_ref().map(|priced| priced.plan.goodput),
            tokens_per_s_per_chip: rate,
            tflops_per_chip: work.causal_flops() * rate / 1e12,
            step_time_s: step.step_s,
            memory_gb: memory.total_bytes() / BYTES_PER_GB,
            memory: memory.into(),
            kwh_per_m_tokens: from_plan(|priced| priced.plan.kwh_per_m_tokens(&priced.outcome)),
            kwh_per_run: from_plan(|priced| priced.plan.kwh(&priced.outcome)),
            why: binding(problem, &point, &shares),
            step_shares: shares,
        }
    }
}

fn shares(parts: &StepParts) -> BTreeMap<&'static str, f64> {
    let named = [
        ("gemm", parts.gemm_s),
        ("experts", parts.experts_s),
        ("attention", parts.attention_s),
        ("elementwise", parts.elementwise_s),
        ("cast", parts.cast_s),
        ("head", parts.head_s),
        ("tensor_network", parts.tensor_s),
        ("expert_network", parts.expert_exchange_s),
        ("context_network", parts.context_s),
        ("pipeline_network", parts.pipeline_s),
        ("data_network", parts.data_s),
        ("bubble", parts.bubble_s),
        ("recompute", parts.recompute_s),
        ("optimizer", parts.optimizer_s),
        ("overhead", parts.overhead_s),
    ];
    let total: f64 = named.iter().map(|(_, seconds)| seconds).sum();
    named
        .into_iter()
        .map(|(name, seconds)| (name, seconds / total))
        .collect()
}

/// Share of the deadline from which fewer chips are taken to miss it.
const AT_DEADLINE: f64 = 0.95;

/// What keeps the run from being cheaper: the deadline when it is nearly used up, otherwise what a step spends most on.
fn binding(
    problem: &TrainProblem,
    point: &Evaluated,
    shares: &BTreeMap<&'static str, f64>,
) -> TrainBinding {
    if let (Some(deadline), Some(priced)) = (problem.limits.deadline_days, &point.priced) {
        if priced.outcome.days() > AT_DEADLINE * deadline {
            return TrainBinding::Deadline;
        }
    }
    let sum = |names: &[&str]| -> f64 { names.iter().filter_map(|name| shares.get(name)).sum() };
    let groups = [
        (
            TrainBinding::Compute,
            sum(&["gemm", "experts", "attention", "head"]),
        ),
        (
            TrainBinding::Bandwidth,
            sum(&["elementwise", "cast", "optimizer"]),
        ),
        (
            TrainBinding::Network,
            sum(&[
                "tensor_network",
                "expert_network",
                "context_network",
                "pipeline_network",
                "data_network",
            ]),
        ),
        (TrainBinding::Bubble, sum(&["bubble"])),
        (TrainBinding::Memory, sum(&["recompute"])),
        (TrainBinding::Latency, sum(&["overhead"])),
    ];
    groups
        .into_iter()
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(TrainBinding::Compute, |(binding, _)| binding)
}
