//! Offline, static, limited and open-loop runs keep the laws of a queue.
#![allow(missing_docs)]

mod common;

use tokenopt_core::format::NumberFormat;
use tokenopt_core::parameters::EngineParameters;
use tokenopt_core::serving::offline::TailLimits;
use tokenopt_core::serving::open_loop::Arrivals;
use tokenopt_core::serving::{Layout, OpenLoop, Saturated, Stack, StepModel, Workload};

const OSL: f64 = 500.0;
const CHUNK: f64 = 8192.0;

fn step(layout: Layout) -> StepModel {
    let chip = common::accelerator("chip", 80.0, 3.35e12, 1e15, 2.0);
    let stack = Stack {
        accelerator: 0,
        label: String::new(),
        weight_precision: String::new(),
        weights: common::formats(NumberFormat::Bf16),
        kv_precision: NumberFormat::Bf16,
        parameters: EngineParameters::default(),
        max_batch: None,
        cache_group: 0,
    };
    let workload = Workload {
        isl: 1000.0,
        osl: OSL,
        prefix_hit: 0.0,
    };
    StepModel::new(&common::dense(), &chip, &stack, layout, &workload.lengths())
}

fn layout(tp: u32) -> Layout {
    Layout {
        tp,
        pp: 1,
        ep: 1,
        attn_dp: 1,
    }
}

#[test]
fn a_static_batch_is_its_prefill_and_its_steps() {
    let step = step(layout(1));
    let saturated = Saturated::new(&step, layout(1), OSL, CHUNK);
    let one = saturated.static_batch(1.0);
    let prefill_s = step.prefill(CHUNK).alone_s - step.prompt_overhead_s;
    let elapsed_s = prefill_s + 499.0 * step.decode_step_s(1.0);
    assert!((one.output_tps - 500.0 / elapsed_s).abs() < 1e-9 * one.output_tps);
    assert!((one.ttft_s - prefill_s).abs() < 1e-12);
}

#[test]
fn more_batch_is_more_throughput_and_slower_tokens() {
    let step = step(layout(1));
    let saturated = Saturated::new(&step, layout(1), OSL, CHUNK);
    let mut last = saturated.endless(1.0);
    for batch in [4.0, 16.0, 64.0, 256.0] {
        let next = saturated.endless(batch);
        assert!(next.output_tps > last.output_tps && next.tpot_s > last.tpot_s);
        last = next;
    }
}

#[test]
fn ranks_wait_for_each_others_prompts() {
    let step = step(layout(1));
    let mut waiting = step.clone();
    waiting.rank_waiting = 1.7;
    let prompt_s = step.prefill(CHUNK).marginal_s - step.prompt_overhead_s;
    let further_s = |batch: f64| {
        Saturated::new(&waiting, layout(1), OSL, CHUNK).fused_step_s(batch)
            - Saturated::new(&step, layout(1), OSL, CHUNK).fused_step_s(batch)
    };
    // 0.7 of a fifth of a prompt, over the root of 1.2; the share falls where a step holds many prompts.
    assert!((further_s(100.0) - 0.7 * 0.2 / 1.2f64.sqrt() * prompt_s).abs() < 1e-12);
    assert!(further_s(5000.0) < 10.0 * further_s(500.0));
}

#[test]
fn a_fused_step_costs_less_than_decode_and_prefill_apart() {
    let step = step(layout(1));
    let saturated = Saturated::new(&step, layout(1), OSL, CHUNK);
    let apart_s = step.decode_step_s(128.0)
        + 128.0 / OSL * (step.prefill(CHUNK).marginal_s - step.prompt_overhead_s);
    let fused_s = saturated.fused_step_s(128.0);
    assert!(fused_s < apart_s && fused_s > step.decode_step_s(128.0));
}

#[test]
fn a_long_burst_delivers_the_endless_rate_and_a_short_one_less() {
    let step = step(layout(1));
    let saturated = Saturated::new(&step, layout(1), OSL, CHUNK);
    let endless = saturated.endless(64.0).output_tps;
    let long = saturated.burst(1e6, 64.0, OSL).output_tps;
    let short = saturated.burst(64.0, 64.0, 2.0 * OSL).output_tps;
    assert!((long / endless - 1.0).abs() < 0.01);
    assert!(short < 0.8 * endless);
}

#[test]
fn limits_bind_only_when_they_are_tight() {
    let step = step(layout(1));
    let saturated = Saturated::new(&step, layout(1), OSL, CHUNK);
    let limits = |tpot_s| TailLimits {
        ttft_s: 60.0,
        tpot_s,
        ttft_tail: 3.0,
        tpot_tail: 1.5,
    };
    let free = saturated.limited(256.0, &limits(10.0));
    assert!((free.output_tps - saturated.endless(256.0).output_tps).abs() < 1e-6);
    let tight_s = 1.5 * 1.2 * saturated.endless(8.0).tpot_s;
    let tight = saturated.limited(256.0, &limits(tight_s));
    assert!(tight.output_tps < free.output_tps);
    assert!((tight.tpot_s * 1.5 / tight_s - 1.0).abs() < 1e-6);
    // The tail of the time to first token is that of the wait: with none, the limit is a prompt and a step.
    let step_s = saturated.endless(256.0).tpot_s;
    let alone_s = step.prefill(CHUNK).alone_s + step_s;
    let impatient = TailLimits {
        ttft_s: 1.01 * alone_s,
        ..limits(10.0)
    };
    assert!(saturated.limited(256.0, &impatient).output_tps < free.output_tps);
}

#[test]
fn a_slow_trickle_sees_the_latencies_of_an_idle_replica() {
    let step = step(layout(1));
    let at = |per_s, requests| {
        OpenLoop::new(
            &step,
            CHUNK,
            OSL,
            &Arrivals {
                per_s,
                requests,
                most_running: 256.0,
                osl_cv2: 0.0,
            },
        )
    };
    let idle = at(1e-6, f64::INFINITY);
    assert!((idle.batch - 1.0).abs() < 1e-12);
    let busy = at(5.0, f64::INFINITY);
    // Little's law: requests in flight are the rate times the time of a request.
    assert!((busy.batch - 5.0 * OSL * busy.tpot_s).abs() < 1e-6 * busy.batch);
    assert!(busy.tpot_s > idle.tpot_s && busy.ttft_s > idle.ttft_s);
    // A run that ends holds fewer requests than one that goes on.
    assert!(at(5.0, 30.0).batch < busy.batch);
    assert!(at(1e6, f64::INFINITY).ttft_s.is_infinite());
}
