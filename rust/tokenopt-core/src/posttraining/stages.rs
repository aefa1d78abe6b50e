//! The fastest way to run one stage on so many chips of one accelerator.

use std::sync::atomic::AtomicBool;

use super::problem::{PassKind, PosttrainProblem, Rollout};
use crate::accelerator::{Accelerator, OfferTerms};
use crate::count::count;
use crate::error::CoreError;
use crate::model::ModelSpec;
use crate::search::problem::SpaceSpec;
use crate::search::space::LayoutSpace;
use crate::serving::offline::Saturated;
use crate::serving::{Layout, MemoryPlan, StepModel};
use crate::training::pipeline::{bubble_s, StageTimes};
use crate::training::run::{Reliability, RunSpec};
use crate::training::search::best::TrainCandidate;
use crate::training::search::problem::{
    TrainLimits, TrainObjective, TrainProblem, TrainSpaceSpec, TrainStack,
};
use crate::training::search::scan::StackModel;
use crate::training::search::space::{layout_of, SplitSpace};
use crate::training::{
    MicrobatchCost, Recipe, Recompute, Schedule, Sharding, TrainingJob, TrainingLayout,
    TrainingMemory, TrainingStep,
};

/// How a stage is laid out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StageLayout {
    /// Replicas of a serving layout.
    Serving {
        /// Layout of a replica.
        layout: Layout,
        /// Replicas.
        replicas: u32,
        /// Requests that an attention rank decodes at once.
        batch: f64,
    },
    /// A training layout.
    Training(TrainingLayout),
    /// No accelerator takes part.
    Host,
}

/// One stage on so many chips.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageTime {
    /// Seconds a step.
    pub seconds: f64,
    /// How it is laid out.
    pub layout: StageLayout,
    /// State that a pool shared with other stages must move out of the way, bytes per chip.
    pub state_bytes: f64,
    /// Stack: of the engines for generation, of the trainers otherwise.
    pub stack: usize,
}

/// What is tried where nothing else is wanted: sequences of post-training are short, so that few degrees matter.
fn space(wanted: &TrainSpaceSpec) -> TrainSpaceSpec {
    let or = |values: &Option<Vec<u32>>, default: &[u32]| {
        Some(values.clone().unwrap_or_else(|| default.to_vec()))
    };
    TrainSpaceSpec {
        pp: or(&wanted.pp, &[1, 2, 4, 8, 16]),
        vpp: or(&wanted.vpp, &[1]),
        cp: or(&wanted.cp, &[1, 2, 4]),
        micro_batch: or(&wanted.micro_batch, &[1, 2, 4, 8, 16]),
        sharding: wanted
            .sharding
            .clone()
            .or_else(|| Some(vec![Sharding::Zero1, Sharding::Zero3])),
        recompute: wanted
            .recompute
            .clone()
            .or_else(|| Some(vec![Recompute::None, Recompute::Selective, Recompute::Full])),
        schedule: wanted
            .schedule
            .clone()
            .or_else(|| Some(vec![Schedule::OneForwardOneBackward])),
        ..wanted.clone()
    }
}

/// Kinds of layout among which the one that copes best with uneven lengths is taken.
const KINDS: usize = 12;

/// Prompt tokens of one engine step.
const CHUNK_TOKENS: f64 = 8192.0;

/// Fastest generation of a step's answers on at most `chips` chips.
///
/// Source: [`Saturated::burst`]: what does not fit runs at the endless rate, then the last batch thins out while the
/// longest answer decodes. Answers to one prompt share its prefill.
/// Assumes: answers are spread evenly over replicas; caches are reserved at the mean length.
#[must_use]
pub fn generation(
    problem: &PosttrainProblem,
    rollout: &Rollout,
    stack_index: usize,
    chips: u32,
) -> Option<StageTime> {
    let model = &problem.models[0];
    let stack = &problem.engines[stack_index];
    let accelerator = &problem.accelerators[stack.accelerator];
    let max_batch = problem.max_batch;
    let lengths = crate::ops::attention::Lengths {
        isl: rollout.prompt_tokens,
        osl: rollout.response_tokens,
        cached: rollout.prompt_tokens * (1.0 - 1.0 / rollout.samples.max(1.0)),
    };
    let spec = SpaceSpec {
        tp: problem.engine_tp.clone(),
        pp: Some(vec![1, 2]),
        ep: None,
        attn_dp: None,
        chunk_tokens: None,
        max_batch,
        max_chips_per_replica: chips.min(72),
    };
    let layouts = LayoutSpace::new(&spec, model, accelerator);
    let longest = rollout.longest_response_tokens();
    let mut best: Option<StageTime> = None;
    for index in 0..layouts.len() {
        let layout = layouts.decode(index);
        if !layouts.is_legal(layout, model, accelerator) || layout.chips() > chips {
            continue;
        }
        let memory = MemoryPlan::new(model, accelerator, stack, layout, &lengths);
        let fitting = memory.capacity_requests(CHUNK_TOKENS) / f64::from(layout.pp);
        if fitting < 1.0 {
            continue;
        }
        let replicas = chips / layout.chips();
        let step = StepModel::new(model, accelerator, stack, layout, &lengths);
        let requests = (rollout.answers() / f64::from(replicas)).ceil().max(1.0);
        let saturated = Saturated::new(&step, layout, rollout.response_tokens, CHUNK_TOKENS);
        let batch = fitting.min(f64::from(max_batch));
        let delivery = saturated.burst(requests, batch, longest);
        let slots = f64::from(layout.pp * layout.attn_dp);
        let seconds = requests.max(slots) * rollout.response_tokens / delivery.output_tps;
        if seconds.is_finite() && best.as_ref().is_none_or(|known| seconds < known.seconds) {
            best = Some(StageTime {
                seconds,
                layout: StageLayout::Serving {
                    layout,
                    replicas,
                    batch: batch.min((requests / slots).max(1.0)),
                },
                state_bytes: memory.weight_bytes,
                stack: stack_index,
            });
        }
    }
    best
}

/// How much longer the slowest rank takes than the mean, when `sequences` are dealt to `ranks` by length.
///
/// Source: loads are even down to the longest sequence, which no rank can share.
#[must_use]
pub fn length_imbalance(problem: &PosttrainProblem, sequences: f64, ranks: f64) -> f64 {
    let per_rank = sequences / ranks * problem.sequence_tokens;
    (problem.longest_tokens / per_rank).max(1.0)
}

/// Fastest pass over a step's sequences on at most `chips` chips.
///
/// # Errors
/// [`CoreError::Interrupted`] when `stop` is raised.
pub fn pass(
    problem: &PosttrainProblem,
    place: usize,
    stack_index: usize,
    chips: u32,
    stop: &AtomicBool,
) -> Result<Option<StageTime>, CoreError> {
    let spec = &problem.passes[place];
    let stack = &problem.trainers[stack_index];
    match spec.kind {
        PassKind::External { seconds } => Ok(Some(StageTime {
            seconds,
            layout: StageLayout::Host,
            state_bytes: 0.0,
            stack: stack_index,
        })),
        PassKind::Forward { has_head } => Ok(forward(
            problem,
            spec.model,
            has_head,
            stack,
            stack_index,
            chips,
        )),
        PassKind::Update {
            recipe,
            epochs,
            minibatches,
            optimizer,
        } => {
            let job = TrainingJob {
                recipe,
                optimizer,
                global_batch: (problem.sequences / minibatches).max(1.0),
                ..job_of(problem, stack)
            };
            let found = update(problem, spec.model, &job, stack, chips, stop)?;
            Ok(found.map(|(step, layout, memory, batch)| {
                let ranks = f64::from(layout.dp);
                // A batch that was rounded stands for the share of the sequences it trains on.
                let steps = problem.sequences / batch * epochs;
                StageTime {
                    seconds: step.step_s * steps * length_imbalance(problem, batch, ranks),
                    layout: StageLayout::Training(layout),
                    state_bytes: memory.optimizer_bytes
                        + memory.gradient_bytes
                        + memory.weight_bytes,
                    stack: stack_index,
                }
            }))
        }
    }
}

/// The sequences of a step as one training job.
fn job_of(problem: &PosttrainProblem, stack: &TrainStack) -> TrainingJob {
    TrainingJob {
        seq_len: problem.sequence_tokens.round().max(1.0),
        global_batch: problem.sequences,
        recipe: Recipe::Sft,
        format: stack.format,
        document_tokens: None,
        capacity_factor: None,
        attention: crate::training::AttentionKernel::default(),
        optimizer: crate::training::OptimizerState::default(),
        gradients: crate::training::GradientFormat::default(),
        is_eager: false,
    }
}

/// A search of one stack for one model, on at most `chips` chips.
fn train_problem(
    problem: &PosttrainProblem,
    model: usize,
    job: &TrainingJob,
    stack: &TrainStack,
    chips: u32,
) -> TrainProblem {
    // Time alone is asked for: nothing fails, and any number of chips can be had.
    let mut accelerator = problem.accelerators[stack.accelerator].clone();
    accelerator.offers = vec![OfferTerms {
        id: 0,
        usd_per_chip_hr: 1.0,
        chips_per_instance: 1,
        minimum_instances: 1,
        fabric_chips: Some(accelerator.chips_per_node),
        may_be_withdrawn: false,
        site: None,
    }];
    let reliability = Reliability {
        chip_hours_between_failures: 1e15,
        ..problem.reliability
    };
    TrainProblem {
        model: problem.models[model].clone(),
        job: *job,
        batch_tolerance: 0.1,
        run: RunSpec {
            tokens: job.step_tokens(),
            ramp_tokens: 0.0,
            ramp_speed: 1.0,
            evaluation_every_steps: 0.0,
            evaluation_s: 0.0,
            startup_hours: 0.0,
            spare_share: 0.0,
            reliability,
            checkpoint: problem.checkpoint,
        },
        limits: TrainLimits {
            max_chips: chips,
            ..TrainLimits::default()
        },
        accelerators: vec![accelerator],
        stacks: vec![TrainStack {
            accelerator: 0,
            ..stack.clone()
        }],
        space: space(&problem.trainer_space),
        objective: TrainObjective::Time,
        top: KINDS,
        exhaustive: false,
        threads: 0,
    }
}

type Update = (TrainingStep, TrainingLayout, TrainingMemory, f64);

fn update(
    problem: &PosttrainProblem,
    model: usize,
    job: &TrainingJob,
    stack: &TrainStack,
    chips: u32,
    stop: &AtomicBool,
) -> Result<Option<Update>, CoreError> {
    let search = train_problem(problem, model, job, stack, chips);
    let findings = crate::training::search::find(&search, stop)?;
    let stack = StackModel::new(&search, 0);
    // Many ranks with few sequences each wait for the longest one: the fastest layout on even lengths need not win.
    let slowed = |candidate: &TrainCandidate| {
        let ranks = f64::from(candidate.layout.dp);
        candidate.score * length_imbalance(problem, candidate.global_batch, ranks)
    };
    let best = findings
        .top
        .entries()
        .iter()
        .min_by(|a, b| slowed(a).total_cmp(&slowed(b)).then_with(|| a.order(b)));
    Ok(best.map(|candidate| {
        let point = stack.evaluate(&candidate.layout, candidate.global_batch);
        (
            point.step,
            candidate.layout,
            point.memory,
            candidate.global_batch,
        )
    }))
}

/// Fastest forward pass: micro-batches through the stages, the pipeline filled once.
///
/// Assumes: weights are held whole (no sharding over data-parallel ranks), gradients and optimizer are elsewhere.
fn forward(
    problem: &PosttrainProblem,
    model_index: usize,
    has_head: bool,
    stack: &TrainStack,
    stack_index: usize,
    chips: u32,
) -> Option<StageTime> {
    let job = TrainingJob {
        recipe: if has_head {
            Recipe::Sft
        } else {
            Recipe::RewardModel
        },
        ..job_of(problem, stack)
    };
    let search = train_problem(problem, model_index, &job, stack, chips);
    let model = &search.model;
    let accelerator = &search.accelerators[0];
    let parameters = &stack.parameters;
    let splits = SplitSpace::new(&search, accelerator);
    let mut best: Option<StageTime> = None;
    for index in 0..splits.len() {
        let split = splits.decode(index);
        if !splits.is_legal(&split, splits.cuts_experts(index), model, accelerator, &job) {
            continue;
        }
        let cost = MicrobatchCost::new(model, accelerator, parameters, &job, &split);
        for pp in search.space.pp.iter().flatten().copied() {
            let dp = chips / (split.tp * split.cp * pp);
            let ranks = split.tp * split.cp * dp;
            if dp == 0 || pp > cost.layers || ranks % (split.ep * split.etp) != 0 {
                continue;
            }
            let (sharding, recompute) = (Sharding::Zero1, Recompute::Full);
            let layout = layout_of(
                &split,
                pp,
                1,
                dp,
                sharding,
                recompute,
                Schedule::OneForwardOneBackward,
            );
            let memory = TrainingMemory::new(&cost, accelerator, parameters, &job, &layout);
            if memory.weight_bytes + memory.working_bytes > memory.plannable_bytes {
                continue;
            }
            let step = TrainingStep::new(&cost, accelerator, parameters, &job, &layout);
            let microbatches = step.microbatches.ceil();
            let fill_s = bubble_s(
                Schedule::OneForwardOneBackward,
                f64::from(pp),
                1.0,
                &StageTimes {
                    forward_s: step.stage_forward_s,
                    backward_s: 0.0,
                    weight_gradient_s: 0.0,
                },
            );
            let imbalance = length_imbalance(problem, problem.sequences, f64::from(dp));
            let seconds = (microbatches * step.stage_forward_s + fill_s) * imbalance
                + parameters.step_overhead_s;
            if best.as_ref().is_none_or(|known| seconds < known.seconds) {
                best = Some(StageTime {
                    seconds,
                    layout: StageLayout::Training(layout),
                    state_bytes: memory.weight_bytes,
                    stack: stack_index,
                });
            }
        }
    }
    best
}

/// Seconds in which all weights pass every chip's link at its rate.
///
/// Source: tensors are gathered and sent one by one, so that all of them pass every chip, whether engines and trainers
/// share chips or not.
#[must_use]
pub fn refit_s(model: &ModelSpec, accelerator: &Accelerator, reach_chips: f64) -> f64 {
    const WEIGHT_BYTES: f64 = 2.0;
    if reach_chips <= 1.0 {
        return 0.0;
    }
    let bytes = count(model).total_parameters * WEIGHT_BYTES;
    let rate = if reach_chips <= f64::from(accelerator.scale_up.domain_chips) {
        accelerator.scale_up.bytes_per_s
    } else {
        accelerator.scale_out_bytes_per_s
    };
    bytes / rate.max(1.0)
}
