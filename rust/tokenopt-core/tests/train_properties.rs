//! Laws of the search for a training run, on small random problems.
#![allow(clippy::expect_used)]

mod common;

use std::sync::atomic::AtomicBool;

use common::{accelerator, dense};
use proptest::prelude::*;
use tokenopt_core::model::{Ffn, ModelSpec};
use tokenopt_core::training::run::{Checkpointing, Reliability, RunSpec};
use tokenopt_core::training::search::problem::{
    TrainLimits, TrainObjective, TrainProblem, TrainSpaceSpec, TrainStack,
};
use tokenopt_core::training::search::space::{FrameSpace, SplitSpace};
use tokenopt_core::training::search::{search, TrainAnswer};
use tokenopt_core::training::{
    AttentionKernel, GradientFormat, OptimizerState, Recipe, TrainingFormat, TrainingJob,
    TrainingParameters,
};

fn mixture() -> ModelSpec {
    let mut model = dense();
    model.layers[0].ffn = Ffn::Moe {
        experts: 8,
        top_k: 2,
        expert_dim: 3584,
        matrices: 3,
        shared_dim: 0,
        latent_dim: 0,
        router_bias: false,
    };
    model
}

fn problem(model: ModelSpec, global_batch: f64, max_chips: u32) -> TrainProblem {
    let accelerators = vec![
        accelerator("small", 80.0, 3.35e12, 989e12, 2.0),
        accelerator("large", 180.0, 7.7e12, 2250e12, 4.5),
    ];
    let stacks = (0..accelerators.len())
        .map(|accelerator| TrainStack {
            accelerator,
            label: "stack".to_owned(),
            format: TrainingFormat::Bf16,
            parameters: TrainingParameters::default(),
        })
        .collect();
    TrainProblem {
        model,
        job: TrainingJob {
            seq_len: 4096.0,
            global_batch,
            recipe: Recipe::Pretrain,
            format: TrainingFormat::Bf16,
            document_tokens: None,
            capacity_factor: None,
            attention: AttentionKernel::Flash,
            optimizer: OptimizerState::Adam32,
            gradients: GradientFormat::Fp32,
            is_eager: false,
        },
        batch_tolerance: 0.0,
        run: RunSpec {
            tokens: 1e11,
            ramp_tokens: 0.0,
            ramp_speed: 0.5,
            evaluation_every_steps: 0.0,
            evaluation_s: 0.0,
            startup_hours: 0.0,
            spare_share: 0.0,
            reliability: Reliability::default(),
            checkpoint: Checkpointing::default(),
        },
        limits: TrainLimits {
            deadline_days: None,
            max_chips,
            min_chips: 1,
            max_usd: None,
        },
        accelerators,
        stacks,
        space: TrainSpaceSpec {
            cp: Some(vec![1, 2]),
            micro_batch: Some(vec![1, 2]),
            vpp: Some(vec![1, 2]),
            pp: Some(vec![1, 2, 4]),
            ..TrainSpaceSpec::default()
        },
        objective: TrainObjective::Cost,
        top: 5,
        exhaustive: false,
        threads: 1,
    }
}

fn run(problem: &TrainProblem) -> TrainAnswer {
    search(problem, &AtomicBool::new(false)).expect("nobody interrupts")
}

/// The answer without what may differ: time and counts of skipped points.
fn essence(mut answer: TrainAnswer) -> TrainAnswer {
    answer.elapsed_s = 0.0;
    answer.evaluated = 0;
    answer.pruned = 0;
    answer.feasible = 0;
    answer.rejected = Default::default();
    answer.memory_miss = None;
    answer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn pruned_and_exhaustive_search_agree(
        batch in prop::sample::select(vec![48.0, 64.0, 96.0, 128.0]),
        max_chips in prop::sample::select(vec![16_u32, 32, 64]),
        deadline in prop::option::of(5.0_f64..200.0),
        is_mixture in any::<bool>(),
        is_rounded in any::<bool>(),
    ) {
        let mut pruned = problem(if is_mixture { mixture() } else { dense() }, batch, max_chips);
        pruned.limits.deadline_days = deadline;
        pruned.batch_tolerance = if is_rounded { 0.05 } else { 0.0 };
        let mut exhaustive = pruned.clone();
        exhaustive.exhaustive = true;
        exhaustive.threads = 2;
        let (a, b) = (run(&pruned), run(&exhaustive));
        prop_assert!(a.evaluated <= b.evaluated);
        prop_assert_eq!(essence(a), essence(b));
    }
}

#[test]
fn threads_do_not_change_the_answer() {
    let mut one = problem(dense(), 128.0, 64);
    let mut two = one.clone();
    one.threads = 1;
    two.threads = 2;
    let (mut a, mut b) = (run(&one), run(&two));
    a.elapsed_s = 0.0;
    b.elapsed_s = 0.0;
    assert_eq!(a, b);
}

#[test]
fn double_price_double_cost_and_a_tighter_deadline_never_cheaper() {
    let base = problem(dense(), 128.0, 64);
    let mut dear = base.clone();
    for accelerator in &mut dear.accelerators {
        for offer in &mut accelerator.offers {
            offer.usd_per_chip_hr *= 2.0;
        }
    }
    let cheap = run(&base).best[0].clone();
    assert!((run(&dear).best[0].usd_per_run / cheap.usd_per_run - 2.0).abs() < 1e-9);
    let mut hurried = base.clone();
    hurried.limits.deadline_days = Some(cheap.days / 2.0);
    let fast = run(&hurried).best[0].clone();
    assert!(fast.days <= cheap.days / 2.0 && fast.usd_per_run >= cheap.usd_per_run);
}

#[test]
fn an_answer_is_consistent_with_itself() {
    let answer = run(&problem(dense(), 128.0, 64));
    for solution in answer.best.iter().chain(&answer.frontier) {
        let layout = &solution.layout;
        let chips = f64::from(layout.tp * layout.pp * layout.cp * layout.dp);
        assert!((solution.chips_used - chips).abs() < 1e-9);
        assert!(solution.chips >= solution.chips_used && solution.chips <= 64.0);
        let batch = f64::from(layout.dp * layout.micro_batch) * layout.microbatches;
        assert!((batch - solution.global_batch).abs() < 1e-9);
        assert!((solution.usd_per_m_tokens * 1e5 / solution.usd_per_run - 1.0).abs() < 1e-9);
        assert!((solution.gpu_hours - solution.chips * solution.days * 24.0).abs() < 1e-6);
        assert!(solution.memory_gb <= solution.memory.plannable);
        assert!(solution.mfu > 0.0 && solution.mfu <= solution.hfu && solution.hfu < 1.0);
        let shares: f64 = solution.step_shares.values().sum();
        assert!((shares - 1.0).abs() < 1e-9);
    }
    let days: Vec<f64> = answer.frontier.iter().map(|point| point.days).collect();
    assert!(days.windows(2).all(|pair| pair[0] < pair[1]));
    let money: Vec<f64> = answer
        .frontier
        .iter()
        .map(|point| point.usd_per_run)
        .collect();
    assert!(money.windows(2).all(|pair| pair[0] > pair[1]));
}

#[test]
fn what_nothing_meets_names_the_nearest() {
    let mut impossible = problem(dense(), 128.0, 64);
    impossible.limits.deadline_days = Some(0.01);
    let answer = run(&impossible);
    assert_eq!(answer.feasible, 0);
    let nearest = answer.nearest.expect("something fits");
    assert!(nearest.days > 0.01);
    let mut unlimited = impossible.clone();
    unlimited.limits.deadline_days = None;
    unlimited.objective = TrainObjective::Time;
    assert!((run(&unlimited).best[0].days - nearest.days).abs() < 1e-12);

    let mut tiny = problem(dense(), 128.0, 1);
    tiny.accelerators.truncate(1);
    tiny.stacks.truncate(1);
    let miss = run(&tiny)
        .memory_miss
        .expect("8 billion parameters do not train on 80 GB");
    assert!(miss.needed_gb > miss.allowed_gb);
}

#[test]
fn every_split_decodes_and_encodes_and_every_frame_is_legal() {
    for model in [dense(), mixture()] {
        let problem = problem(model, 96.0, 64);
        let chip = &problem.accelerators[0];
        let space = SplitSpace::new(&problem, chip);
        for index in 0..space.len() {
            let split = space.decode(index);
            if !space.is_legal(
                &split,
                space.cuts_experts(index),
                &problem.model,
                chip,
                &problem.job,
            ) {
                continue;
            }
            assert_eq!(space.encode(&split), Some(index));
            let frames = FrameSpace::new(&problem.space, &problem.model, chip, &split);
            for place in 0..frames.len() {
                let Some(frame) = frames.decode(place) else {
                    continue;
                };
                for (frame, dp) in frames
                    .shardings(frame)
                    .flat_map(|frame| [1, 2, 3, 8].map(|dp| (frame, dp)))
                {
                    let layout = frame.layout(&split, dp);
                    let rounds = if frame.vpp > 1 { frame.pp } else { 1 };
                    let job = TrainingJob {
                        global_batch: f64::from(dp * split.micro_batch * rounds * 3),
                        ..problem.job
                    };
                    if frame.allows(&split, dp) {
                        assert_eq!(
                            layout.refusal(&problem.model, chip, &job),
                            None,
                            "{layout:?}"
                        );
                    }
                }
            }
        }
    }
}
