//! Laws of the training model, on random jobs and layouts.

mod common;

use proptest::prelude::*;
use tokenopt_core::accelerator::Accelerator;
use tokenopt_core::model::ModelSpec;
use tokenopt_core::training::{
    AttentionKernel, GradientFormat, MicrobatchCost, OptimizerState, Recipe, Recompute, Schedule,
    Sharding, Split, TrainingFormat, TrainingJob, TrainingLayout, TrainingMemory,
    TrainingParameters, TrainingStep, TrainingWork,
};

const JOB: TrainingJob = TrainingJob {
    seq_len: 8192.0,
    global_batch: 512.0,
    recipe: Recipe::Pretrain,
    format: TrainingFormat::Bf16,
    document_tokens: None,
    capacity_factor: None,
    attention: AttentionKernel::Flash,
    optimizer: OptimizerState::Adam32,
    gradients: GradientFormat::Fp32,
    is_eager: false,
};

fn chip() -> Accelerator {
    common::accelerator("chip", 80.0, 3.35e12, 989e12, 2.0)
}

/// The shapes of Llama 3.1 8B.
fn llama() -> ModelSpec {
    let mut model = common::dense();
    if let tokenopt_core::model::Mixer::Attention {
        qk_head_dim,
        v_head_dim,
        ..
    } = &mut model.layers[0].mixer
    {
        *qk_head_dim = 128;
        *v_head_dim = 128;
    }
    model
}

struct Evaluated {
    cost: MicrobatchCost,
    step: TrainingStep,
    memory: TrainingMemory,
}

fn evaluate(model: &ModelSpec, job: &TrainingJob, layout: &TrainingLayout) -> Evaluated {
    let parameters = TrainingParameters::default();
    let chip = chip();
    let cost = MicrobatchCost::new(model, &chip, &parameters, job, &Split::from(layout));
    Evaluated {
        step: TrainingStep::new(&cost, &chip, &parameters, job, layout),
        memory: TrainingMemory::new(&cost, &chip, &parameters, job, layout),
        cost,
    }
}

fn layouts() -> impl Strategy<Value = TrainingLayout> {
    (
        0..3_u32,
        0..3_u32,
        0..2_u32,
        0..4_u32,
        0..3_u32,
        any::<bool>(),
    )
        .prop_map(|(tp, pp, cp, dp, vpp, is_sharded)| TrainingLayout {
            tp: 1 << tp,
            pp: 1 << pp,
            vpp: if pp > 0 { 1 << vpp } else { 1 },
            cp: 1 << cp,
            dp: 1 << dp,
            sharding: if is_sharded {
                Sharding::Zero3
            } else {
                Sharding::Zero1
            },
            ..TrainingLayout::default()
        })
}

#[test]
fn flops_per_token_match_published_conventions() {
    let work = TrainingWork::new(&llama(), &JOB);
    // Megatron-Bridge prints 1,933 TFLOP/s at 37,556 tokens/s (causal), NeMo 697 at 12,036 (whole square).
    assert!((work.causal_flops() / (1933e12 / 37_556.0) - 1.0).abs() < 2e-3);
    assert!((work.full_flops() / (697e12 / 12_036.0) - 1.0).abs() < 2e-3);
    // 6 FLOP per parameter met, the input embedding left out: 6 x (8.030e9 - 128256 x 4096).
    assert!((work.parameter_flops / 4.503e10 - 1.0).abs() < 1e-3);
}

#[test]
fn frozen_weights_save_a_third_of_the_products() {
    let lora = TrainingJob {
        recipe: Recipe::Lora { rank: 16 },
        ..JOB
    };
    let ratio = TrainingWork::new(&llama(), &lora).parameter_flops
        / TrainingWork::new(&llama(), &JOB).parameter_flops;
    assert!((ratio - 2.0 / 3.0).abs() < 1e-12);
}

#[test]
fn weights_gradients_and_state_are_counted_by_hand() {
    let layout = TrainingLayout {
        dp: 8,
        ..TrainingLayout::default()
    };
    let memory = evaluate(&llama(), &JOB, &layout).memory;
    // 8.03e9 parameters: 2 bytes of weights, 4 of gradients, 12 of optimizer state over 8 ranks.
    assert!((memory.weight_bytes / 16.06e9 - 1.0).abs() < 1e-2);
    assert!((memory.gradient_bytes / 32.12e9 - 1.0).abs() < 1e-2);
    assert!((memory.optimizer_bytes / 12.05e9 - 1.0).abs() < 1e-2);
}

#[test]
fn what_does_not_fit_says_why() {
    let memory = evaluate(&llama(), &JOB, &TrainingLayout::default()).memory;
    assert_eq!(
        memory.refusal(),
        Some("weights, gradients and optimizer state do not fit")
    );
}

#[test]
fn refusals_name_what_does_not_divide() {
    let chip = chip();
    let refusal = |layout: TrainingLayout, job: &TrainingJob| layout.refusal(&llama(), &chip, job);
    let base = TrainingLayout::default();
    let odd = TrainingJob {
        global_batch: 7.0,
        ..JOB
    };
    assert_eq!(
        refusal(TrainingLayout { dp: 2, ..base }, &odd),
        Some("data parallelism and micro-batch do not divide the global batch")
    );
    assert_eq!(
        refusal(TrainingLayout { tp: 3, ..base }, &JOB),
        Some("tensor parallelism does not divide the heads")
    );
    assert_eq!(
        refusal(TrainingLayout { tp: 16, ..base }, &JOB),
        Some("tensor parallelism leaves the scale-up domain")
    );
    assert_eq!(
        refusal(
            TrainingLayout {
                cp: 4096,
                dp: 1,
                ..base
            },
            &TrainingJob {
                seq_len: 4096.0,
                ..JOB
            }
        ),
        Some("context parallelism does not cut the sequence into equal pieces")
    );
    assert_eq!(
        refusal(
            TrainingLayout {
                ep: 2,
                dp: 2,
                ..base
            },
            &JOB
        ),
        Some("the model has no experts to share")
    );
    assert_eq!(refusal(base, &JOB), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Recomputing every layer repeats one forward pass: at most a third more than forward and backward.
    #[test]
    fn full_recomputation_costs_at_most_a_third(layout in layouts()) {
        let none = evaluate(&llama(), &JOB, &layout);
        let full = evaluate(&llama(), &JOB, &TrainingLayout { recompute: Recompute::Full, ..layout });
        let busy_s = none.step.microbatches * (none.step.stage_forward_s + none.step.stage_backward_s);
        prop_assert!(full.step.recompute_s <= busy_s / 3.0 + 1e-12);
        prop_assert!(full.step.recompute_s > 0.2 * busy_s);
    }

    /// The bubble of a step is that of its schedule.
    #[test]
    fn the_bubble_follows_its_formula(layout in layouts()) {
        let step = evaluate(&llama(), &JOB, &layout).step;
        let transfer_s = step.pipeline_transfer_s / step.microbatches;
        let expected = (f64::from(layout.pp) - 1.0) / f64::from(layout.vpp)
            * (step.stage_forward_s + step.stage_backward_s + transfer_s);
        prop_assert!((step.bubble_s - expected).abs() <= 1e-9 * (1.0 + expected));
        let filled = evaluate(&llama(), &JOB, &TrainingLayout { schedule: Schedule::ZeroBubble, ..layout });
        prop_assert!(filled.step.bubble_s <= step.bubble_s);
    }

    /// The more is computed again, the less memory is needed and the longer a step takes.
    #[test]
    fn recomputation_trades_memory_for_time(layout in layouts(), blocks in 1..8_u32) {
        let of = |recompute| evaluate(&llama(), &JOB, &TrainingLayout { recompute, ..layout });
        let series = [Recompute::None, Recompute::Selective, Recompute::Blocks(blocks), Recompute::Full].map(of);
        for pair in series.windows(2) {
            prop_assert!(pair[1].memory.activation_bytes <= pair[0].memory.activation_bytes * (1.0 + 1e-12));
            prop_assert!(pair[1].step.step_s >= pair[0].step.step_s * (1.0 - 1e-12));
        }
    }

    /// Memory falls when the model is split further, by tensors or by sharding.
    #[test]
    fn splitting_saves_memory(layout in layouts()) {
        let total = |layout: &TrainingLayout| evaluate(&llama(), &JOB, layout).memory.total_bytes();
        let wider = TrainingLayout { tp: layout.tp * 2, ..layout };
        prop_assert!(total(&wider) < total(&layout));
        let replicated = TrainingLayout { sharding: Sharding::Zero0, ..layout };
        let owned = TrainingLayout { sharding: Sharding::Zero1, ..layout };
        prop_assert!(total(&owned) <= total(&replicated));
    }

    /// Twice the ranks at the same batch never take less than half the time.
    #[test]
    fn more_chips_never_beat_the_ideal_split(layout in layouts()) {
        let wide = TrainingLayout { dp: layout.dp * 2, ..layout };
        let narrow_s = evaluate(&llama(), &JOB, &layout).step.step_s;
        let wide_s = evaluate(&llama(), &JOB, &wide).step.step_s;
        prop_assert!(wide_s >= 0.5 * narrow_s * (1.0 - 1e-9), "{wide_s} {narrow_s}");
    }

    /// What a step consists of adds up to it.
    #[test]
    fn parts_add_up(layout in layouts(), is_full in any::<bool>()) {
        let recompute = if is_full { Recompute::Full } else { Recompute::Selective };
        let layout = TrainingLayout { recompute, ..layout };
        let evaluated = evaluate(&llama(), &JOB, &layout);
        let parts = evaluated.step.parts(&evaluated.cost, &TrainingParameters::default(), &layout, &JOB);
        let sum: f64 = serde_json::to_value(parts)
            .ok()
            .and_then(|value| value.as_object().map(|map| map.values().filter_map(serde_json::Value::as_f64).sum()))
            .unwrap_or(f64::NAN);
        prop_assert!((sum / evaluated.step.step_s - 1.0).abs() < 1e-9, "{sum} {}", evaluated.step.step_s);
    }

    /// No step is faster than its arithmetic at the chip's peak.
    #[test]
    fn utilisation_stays_below_one(layout in layouts()) {
        let step = evaluate(&llama(), &JOB, &layout).step;
        let work = TrainingWork::new(&llama(), &JOB);
        let rate = step.tokens_per_s_per_chip(&JOB, &layout);
        let mfu = step.mfu(&work, rate, 989e12);
        prop_assert!(mfu > 0.0 && mfu < 0.75);
        prop_assert!(step.hfu(&work, rate, 989e12, 1.0) > mfu);
    }
}
