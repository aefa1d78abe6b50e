//! Laws of post-training plans on a small problem.
#![allow(clippy::expect_used)]

mod common;

use std::sync::atomic::AtomicBool;

use common::{accelerator, dense};
use tokenopt_core::format::NumberFormat;
use tokenopt_core::parameters::EngineParameters;
use tokenopt_core::posttraining::{
    posttrain, PassKind, PassSpec, Placement, PlanObjective, PosttrainAnswer, PosttrainProblem,
    Rollout, Switching,
};
use tokenopt_core::serving::Stack;
use tokenopt_core::training::run::{Checkpointing, Reliability};
use tokenopt_core::training::search::problem::TrainSpaceSpec;
use tokenopt_core::training::search::TrainStack;
use tokenopt_core::training::{OptimizerState, Recipe, TrainingFormat, TrainingParameters};

fn problem() -> PosttrainProblem {
    let model = dense();
    let accelerators = vec![
        accelerator("small", 80.0, 3.35e12, 989e12, 2.0),
        accelerator("large", 180.0, 7.7e12, 2250e12, 4.5),
    ];
    let engines = (0..accelerators.len())
        .map(|accelerator| Stack {
            accelerator,
            label: "engine".to_owned(),
            weight_precision: "native".to_owned(),
            weights: model.native_formats,
            kv_precision: NumberFormat::Bf16,
            parameters: EngineParameters::default(),
            max_batch: None,
            cache_group: 0,
        })
        .collect();
    let trainers = (0..accelerators.len())
        .map(|accelerator| TrainStack {
            accelerator,
            label: "trainer".to_owned(),
            format: TrainingFormat::Bf16,
            parameters: TrainingParameters::default(),
        })
        .collect();
    PosttrainProblem {
        models: vec![model],
        rollout: Some(Rollout {
            prompts: 64.0,
            samples: 8.0,
            prompt_tokens: 512.0,
            response_tokens: 1024.0,
            response_spread: 0.7,
            max_response_tokens: 4096.0,
        }),
        sequences: 512.0,
        sequence_tokens: 1536.0,
        longest_tokens: 4608.0,
        passes: vec![
            PassSpec {
                name: "reference".to_owned(),
                model: 0,
                kind: PassKind::Forward { has_head: true },
            },
            PassSpec {
                name: "update".to_owned(),
                model: 0,
                kind: PassKind::Update {
                    recipe: Recipe::Sft,
                    epochs: 1.0,
                    minibatches: 2.0,
                    optimizer: OptimizerState::Adam32,
                },
            },
        ],
        steps: 100.0,
        accelerators,
        engines,
        trainers,
        max_chips: 64,
        deadline_days: None,
        may_overlap: true,
        placements: None,
        objective: PlanObjective::Cost,
        pool_chips: Some(vec![8, 16, 32]),
        engine_tp: None,
        trainer_space: TrainSpaceSpec {
            cp: Some(vec![1]),
            ..TrainSpaceSpec::default()
        },
        switching: Switching::default(),
        reliability: Reliability::default(),
        checkpoint: Checkpointing::default(),
        max_batch: 256,
        top: 20,
    }
}

fn run(problem: &PosttrainProblem) -> PosttrainAnswer {
    posttrain(problem, &AtomicBool::new(false)).expect("nobody interrupts")
}

#[test]
fn plans_are_consistent_with_themselves() {
    let answer = run(&problem());
    assert!(answer.feasible > 0);
    for plan in &answer.best {
        let chips: f64 = plan.pools.iter().map(|pool| pool.chips).sum();
        let usd: f64 = plan.pools.iter().map(|pool| pool.usd_per_hr).sum();
        assert!((plan.chips - chips).abs() < 1e-9 && chips <= 64.0);
        assert!((plan.usd_per_hr - usd).abs() < 1e-9);
        assert!((plan.usd_per_run / 100.0 / plan.usd_per_step - 1.0).abs() < 1e-12);
        assert!((plan.gpu_hours - chips * plan.days * 24.0).abs() < 1e-6);
        let of_tokens = plan.usd_per_step / (512.0 * 1536.0) * 1e6;
        assert!((plan.usd_per_m_tokens / of_tokens - 1.0).abs() < 1e-12);
        assert!(plan
            .pools
            .iter()
            .all(|pool| pool.busy > 0.0 && pool.busy <= 1.0));
        assert!(plan.goodput > 0.9 && plan.goodput < 1.0);
    }
    let costs: Vec<f64> = answer.best.iter().map(|plan| plan.usd_per_run).collect();
    assert!(costs.windows(2).all(|pair| pair[0] <= pair[1]));
    let placements: Vec<Placement> = answer
        .by_placement
        .iter()
        .map(|plan| plan.placement)
        .collect();
    for placement in [Placement::Colocated, Placement::Split, Placement::Separate] {
        assert!(placements.contains(&placement));
    }
}

#[test]
fn overlap_never_takes_longer_than_waiting() {
    let mut alone = problem();
    alone.objective = PlanObjective::Time;
    alone.placements = Some(vec![Placement::Split]);
    let answer = run(&alone);
    let step = |is_overlapped: bool| {
        answer
            .by_placement
            .iter()
            .find(|plan| plan.is_overlapped == is_overlapped)
            .map(|plan| plan.step_time_s)
            .expect("both kinds are found")
    };
    assert!(step(true) < step(false));
}

#[test]
fn double_price_double_cost_and_more_choice_never_dearer() {
    let base = problem();
    let mut dear = base.clone();
    for accelerator in &mut dear.accelerators {
        for offer in &mut accelerator.offers {
            offer.usd_per_chip_hr *= 2.0;
        }
    }
    let cheap = run(&base).best[0].clone();
    assert!((run(&dear).best[0].usd_per_run / cheap.usd_per_run - 2.0).abs() < 1e-9);
    let mut wider = base.clone();
    wider.pool_chips = Some(vec![4, 8, 16, 24, 32]);
    assert!(run(&wider).best[0].usd_per_run <= cheap.usd_per_run * (1.0 + 1e-12));
    let mut hurried = base;
    hurried.deadline_days = Some(cheap.days * 0.8);
    let fast = run(&hurried).best[0].clone();
    assert!(fast.days <= cheap.days * 0.8 && fast.usd_per_run >= cheap.usd_per_run);
}

#[test]
fn the_same_answer_twice() {
    assert_eq!(run(&problem()), run(&problem()));
}

#[test]
fn longer_tails_take_longer_and_what_nothing_meets_names_the_fastest() {
    let even = PosttrainProblem {
        rollout: problem().rollout.map(|rollout| Rollout {
            response_spread: 0.0,
            ..rollout
        }),
        ..problem()
    };
    let generation = |answer: &PosttrainAnswer| answer.by_stage[0].usd_per_step;
    assert!(generation(&run(&even)) < generation(&run(&problem())));
    let mut impossible = problem();
    impossible.deadline_days = Some(1e-3);
    let answer = run(&impossible);
    assert_eq!(answer.feasible, 0);
    assert!(answer.nearest.expect("something runs").days > 1e-3);
}
