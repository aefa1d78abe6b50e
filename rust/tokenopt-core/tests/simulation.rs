//! The simulator: hand-worked runs, laws, and agreement with the steady-state formulas on random configurations.
#![allow(clippy::expect_used)]

mod common;

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tokenopt_core::explain::explain;
use tokenopt_core::search::problem::PointSpec;
use tokenopt_core::search::{SearchProblem, Solution};
use tokenopt_core::serving::{MemoryPlan, StepModel};
use tokenopt_core::simulate::{simulate, Arrivals, LengthModel, SimulationAnswer, SimulationSpec};

fn run(problem: &SearchProblem, spec: &SimulationSpec) -> SimulationAnswer {
    simulate(problem, spec, &AtomicBool::new(false)).expect("a valid problem")
}

fn formula(problem: &SearchProblem) -> Solution {
    explain(problem).expect("a valid problem").solution
}

/// A configuration of one accelerator; prompts come one by one unless the burst share is set.
fn configuration(is_moe: bool, isl: f64, osl: f64, point: PointSpec) -> SearchProblem {
    let model = if is_moe {
        common::mixture_of_experts()
    } else {
        common::dense()
    };
    let mut problem = common::problem(
        model,
        vec![common::accelerator("a", 180.0, 7.7e12, 2.25e15, 2.0)],
    );
    for stack in &mut problem.stacks {
        stack.parameters.burst_share = 0.0;
    }
    problem.workload.isl = isl;
    problem.workload.osl = osl;
    problem.point = Some(point);
    problem
}

fn point(tp: u32, attn_dp: u32, pp: u32, batch: u32) -> PointSpec {
    PointSpec {
        stack: 1,
        tp,
        pp,
        ep: 1,
        attn_dp,
        chunk_tokens: 8192,
        batch,
        depth: 0,
        prefill: None,
    }
}

fn closed(concurrency: u32, rounds: usize) -> SimulationSpec {
    SimulationSpec {
        arrivals: Arrivals::Closed { concurrency },
        lengths: LengthModel::Uniform { low: 0.5 },
        requests: rounds * concurrency as usize,
        warmup: 4 * concurrency as usize,
        seed: 11,
        max_running: None,
        prefill: None,
    }
}

fn poisson(requests_per_s: f64, requests: usize) -> SimulationSpec {
    SimulationSpec {
        arrivals: Arrivals::Poisson { requests_per_s },
        lengths: LengthModel::Fixed,
        requests,
        warmup: requests / 5,
        seed: 3,
        max_running: None,
        prefill: None,
    }
}

#[test]
fn one_request_alone_takes_its_prompt_and_its_steps() {
    let problem = configuration(false, 1000.0, 3.0, point(1, 1, 1, 1));
    let spec = SimulationSpec {
        lengths: LengthModel::Fixed,
        requests: 5,
        warmup: 0,
        ..closed(1, 1)
    };
    let found = run(&problem, &spec);
    let stack = &problem.stacks[1];
    let at = |isl: f64, osl: f64| {
        let lengths = tokenopt_core::serving::Workload {
            isl,
            osl,
            prefix_hit: 0.0,
        }
        .lengths();
        let layout = tokenopt_core::serving::Layout {
            tp: 1,
            pp: 1,
            ep: 1,
            attn_dp: 1,
        };
        StepModel::new(
            &problem.model,
            &problem.accelerators[0],
            stack,
            layout,
            &lengths,
        )
    };
    let step = at(1000.0, 3.0);
    // 5 steps until the first token, 1.5 of which are the request's own and the wait for others.
    let front_s = stack.parameters.first_token_overhead_s
        + (stack.parameters.first_token_steps - 1.5) * at(1000.0, 1e-9).decode_step_s(1.0);
    let ttft_ms = 1e3 * (front_s + step.prefill(8192.0).alone_s);
    assert!(
        (found.ttft_ms.p50 / ttft_ms - 1.0).abs() < 0.002,
        "{} {ttft_ms}",
        found.ttft_ms.p50
    );
    // Two more tokens, at contexts of 1001 and 1002 tokens.
    let tpot_ms = 1e3 * at(1001.5, 1e-9).decode_step_s(1.0);
    let simulated = found.tpot_ms.expect("three tokens");
    assert!((simulated.mean / tpot_ms - 1.0).abs() < 1e-6);
    assert!((found.e2e_ms.mean - (found.ttft_ms.mean + 2.0 * simulated.mean)).abs() < 1e-6);
}

#[test]
fn a_trace_is_served_to_its_end_in_any_order_of_length() {
    let problem = configuration(true, 1000.0, 100.0, point(1, 1, 1, 1));
    let spec = SimulationSpec {
        arrivals: Arrivals::Trace {
            at_s: vec![0.0, 0.0, 0.5, 100.0],
        },
        lengths: LengthModel::Given {
            isl: vec![100.0, 20_000.0, 500.0, 500.0],
            osl: vec![400.0, 1.0, 10.0, 10.0],
            cached: vec![0.0, 0.0, 400.0, 0.0],
        },
        requests: 100,
        warmup: 0,
        ..poisson(1.0, 100)
    };
    let found = run(&problem, &spec);
    assert_eq!(
        (found.requests, found.refused, found.is_saturated),
        (4, 0, false)
    );
    assert!((found.mean_isl - 5275.0).abs() < 1e-9);
    // The last request finds the replica empty a hundred seconds later.
    assert!(found.measured_s > 100.0 && found.measured_s < 101.0);
    assert!(found.busy_share < 0.1);
}

#[test]
fn memory_bounds_what_runs_and_the_rest_waits() {
    let mut problem = configuration(false, 4000.0, 1000.0, point(1, 1, 1, 1));
    problem.accelerators[0].hbm_bytes = 24e9;
    let stack = &problem.stacks[1];
    let layout = tokenopt_core::serving::Layout {
        tp: 1,
        pp: 1,
        ep: 1,
        attn_dp: 1,
    };
    let plan = MemoryPlan::new(
        &problem.model,
        &problem.accelerators[0],
        stack,
        layout,
        &problem.workload.lengths(),
    );
    let capacity = plan.capacity_requests(8192.0);
    assert!(capacity > 3.0 && capacity < 40.0, "{capacity}");
    let spec = SimulationSpec {
        lengths: LengthModel::Fixed,
        ..closed(64, 10)
    };
    let found = run(&problem, &spec);
    assert_eq!(found.most_running_per_rank as f64, capacity);
    assert!(
        (found.queue_mean - (64.0 - capacity)).abs() < 2.0,
        "{}",
        found.queue_mean
    );
    assert!(found.cache_used_share > 0.9 && found.cache_used_share <= 1.0);
    // A batch limit does the same.
    let limited = run(
        &problem,
        &SimulationSpec {
            max_running: Some(2),
            ..spec
        },
    );
    assert_eq!(limited.most_running_per_rank, 2);
}

#[test]
fn a_request_that_fits_nowhere_is_refused() {
    let mut problem = configuration(false, 100.0, 100.0, point(1, 1, 1, 1));
    problem.accelerators[0].hbm_bytes = 22e9;
    let mut spec = SimulationSpec {
        lengths: LengthModel::Given {
            isl: vec![100.0, 120_000.0],
            osl: vec![10.0, 10.0],
            cached: vec![],
        },
        ..closed(2, 20)
    };
    let found = run(&problem, &spec);
    assert!(found.refused > 0 && found.requests == 40);
    spec.lengths = LengthModel::Given {
        isl: vec![120_000.0],
        osl: vec![10.0],
        cached: vec![],
    };
    let error = simulate(&problem, &spec, &AtomicBool::new(false)).expect_err("nothing fits");
    assert!(error.to_string().contains("none of which fits"), "{error}");
}

#[test]
fn more_than_the_replica_can_serve_is_called_saturated() {
    let problem = configuration(false, 2000.0, 200.0, point(1, 1, 1, 32));
    let steady = formula(&problem);
    let capacity_rps = steady.output_tps_per_chip / 200.0;
    assert!(!run(&problem, &poisson(0.5 * capacity_rps, 4000)).is_saturated);
    assert!(run(&problem, &poisson(4.0 * capacity_rps, 4000)).is_saturated);
}

#[test]
fn limits_are_met_by_the_share_of_requests_below_them() {
    let mut problem = configuration(false, 2000.0, 200.0, point(1, 1, 1, 32));
    let spec = poisson(20.0, 4000);
    let free = run(&problem, &spec);
    assert_eq!(free.slo_attainment.all, 1.0);
    problem.limits.ttft_s = Some(free.ttft_ms.p90 / 1e3);
    let limited = run(&problem, &spec);
    assert!((limited.slo_attainment.ttft - 0.9).abs() < 0.005);
    assert_eq!(limited.slo_attainment.tpot, 1.0);
    assert!((limited.goodput_requests_per_s / limited.requests_per_s - 0.9).abs() < 0.005);
}

prop_compose! {
    fn any_configuration()(
        is_moe in any::<bool>(),
        layout in prop::sample::select(vec![(1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 1, 2), (2, 1, 4), (1, 4, 1), (1, 8, 1)]),
        isl in 64.0..12_000.0_f64,
        osl in 32.0..3000.0_f64,
        batch in 1_u32..160,
        burst_share in prop::sample::select(vec![0.0, 0.13, 0.4]),
    ) -> SearchProblem {
        let (tp, attn_dp, pp) = layout;
        let attn_dp = if is_moe { attn_dp } else { 1 };
        let mut problem =
            configuration(is_moe, isl.round(), osl.round(), point(tp, attn_dp, pp, batch));
        for stack in &mut problem.stacks {
            stack.parameters.burst_share = burst_share;
        }
        problem
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// In a closed loop the formulas give the means of the simulation, bursts included. `docs/simulation.md` explains the
    /// tolerances.
    #[test]
    fn closed_loop_agrees_with_the_steady_state(mut problem in any_configuration()) {
        let nominal = problem.workload;
        // Lengths are drawn from half to the whole of the nominal one: on average three quarters.
        problem.workload.isl = (0.75 * nominal.isl).round();
        problem.workload.osl = (0.75 * nominal.osl).round();
        let steady = formula(&problem);
        prop_assume!(steady.memory_used_share < 0.95);
        problem.workload = nominal;
        let concurrency = u32::try_from(steady.concurrency).expect("small");
        let found = run(&problem, &closed(concurrency, 30));
        let tpot = found.tpot_ms.expect("many tokens");
        // A formula knows no whole requests: the smallest batches are off by half a request, and a prompt of one's own
        // delays nobody.
        let ranks = steady.running_batch / f64::from(steady.batch_per_rank);
        // Large bursts of unlike lengths run into each other.
        let is_bursty = problem.stacks[1].parameters.burst_share > 0.2;
        let slack = if is_bursty { 0.12 } else { 0.05 } + 0.5 * ranks / f64::from(concurrency);
        let (simulated, expected) = (found.output_tps_per_chip, steady.output_tps_per_chip);
        if found.prefill_share < 0.4 {
            prop_assert!((tpot.mean / steady.tpot_ms - 1.0).abs() < slack, "{} {}", tpot.mean, steady.tpot_ms);
            prop_assert!((simulated / expected - 1.0).abs() < slack, "{simulated} {expected}");
        } else {
            // Prompts take most of the time and queue; what waits in the first token is missing in the others.
            prop_assert!((simulated / expected - 1.0).abs() < 0.15, "{simulated} {expected}");
        }
        let is_whole = steady.layout.pp * steady.layout.attn_dp == 1 || nominal.isl <= f64::from(steady.chunk_tokens);
        if found.prefill_share < 0.2 && is_whole {
            let (simulated, expected) = (found.ttft_ms.mean, steady.ttft_ms);
            let tolerance = if is_bursty { 0.6 } else { 0.3 };
            prop_assert!((simulated / expected - 1.0).abs() < tolerance, "{simulated} {expected}");
        }
        let in_flight = found.requests_per_s * found.e2e_ms.mean / 1e3;
        prop_assert!((in_flight / f64::from(concurrency) - 1.0).abs() < 0.03, "Little's law: {in_flight} {concurrency}");
    }
}
