//! The formulas of open arrivals and of percentiles against the simulator, on random configurations.
#![allow(clippy::expect_used)]

mod common;

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tokenopt_core::search::problem::PointSpec;
use tokenopt_core::search::{search, SearchProblem};
use tokenopt_core::serving::queueing::{Arrival, LoadModel, Traffic};
use tokenopt_core::serving::steady::Operation;
use tokenopt_core::serving::{Layout, SteadyState, StepModel};
use tokenopt_core::simulate::{simulate, Arrivals, LengthModel, SimulationSpec};

#[derive(Debug)]
struct Case {
    problem: SearchProblem,
    layout: Layout,
    batch: f64,
    chunk_tokens: u32,
}

impl Case {
    fn load(&self, percentile: Option<f64>, cv: f64) -> (LoadModel, StepModel) {
        let problem = &self.problem;
        let stack = &problem.stacks[1];
        let traffic = Traffic {
            arrival: Arrival::Poisson,
            percentile,
            isl_cv: cv,
            osl_cv: cv,
            ..Traffic::default()
        };
        let lengths = traffic.lengths(&problem.workload);
        let chip = &problem.accelerators[0];
        let step = StepModel::new(&problem.model, chip, stack, self.layout, &lengths);
        let prefill = step.prefill(f64::from(self.chunk_tokens));
        let osl = problem.workload.osl;
        let steady = SteadyState::new(&stack.parameters, self.layout, &prefill, osl);
        let load = LoadModel::new(
            traffic,
            steady,
            &stack.parameters,
            self.layout,
            &prefill,
            step.prompt_overhead_s,
            osl,
            1.0,
        );
        (load, step)
    }

    fn formula(&self, percentile: Option<f64>, cv: f64) -> (Operation, f64) {
        let (load, step) = self.load(percentile, cv);
        let step_s = step.decode_step_s(self.batch);
        let raised_s = step.decode_step_s(load.raised_batch(self.batch));
        (
            load.operation(self.batch, step_s, raised_s),
            load.saturation(self.batch, step_s),
        )
    }
}

prop_compose! {
    fn any_case()(
        is_moe in any::<bool>(),
        tp in prop::sample::select(vec![1, 2, 4, 8]),
        isl in 64.0..8000.0_f64,
        osl in 32.0..2000.0_f64,
        batch in 2.0..120.0_f64,
        chunk_tokens in prop::sample::select(vec![512_u32, 8192, 8192]),
    ) -> Case {
        let model = if is_moe { common::mixture_of_experts() } else { common::dense() };
        let mut problem = common::problem(
            model,
            vec![common::accelerator("a", 180.0, 7.7e12, 2.25e15, 2.0)],
        );
        problem.workload.isl = isl.round();
        problem.workload.osl = osl.round();
        problem.point = Some(PointSpec {
            stack: 1, tp, pp: 1, ep: 1, attn_dp: 1, chunk_tokens, batch: 1, depth: 0,
            prefill: None,
        });
        Case { problem, layout: Layout { tp, pp: 1, ep: 1, attn_dp: 1 }, batch, chunk_tokens }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// `docs/simulation.md` explains the tolerances.
    #[test]
    fn open_arrivals_agree_with_the_simulator(case in any_case(), is_spread in any::<bool>()) {
        let cv = if is_spread { 0.6 } else { 0.0 };
        let (mean, load) = case.formula(None, cv);
        prop_assume!(load < 0.35);
        let spec = SimulationSpec {
            arrivals: Arrivals::Poisson { requests_per_s: mean.output_tps / case.problem.workload.osl },
            lengths: LengthModel::Lognormal { isl_cv: cv, osl_cv: cv },
            requests: 20_000,
            warmup: 4_000,
            seed: 5,
            max_running: None,
        prefill: None,
        };
        let found = simulate(&case.problem, &spec, &AtomicBool::new(false)).expect("valid");
        let tpot = found.tpot_ms.expect("tokens");
        let at = |p| case.formula(Some(p), cv).0;
        let check = |name: &str, formula_s: f64, simulated_ms: f64, below: f64, above: f64| {
            let off = formula_s * 1e3 / simulated_ms - 1.0;
            prop_assert!(-below < off && off < above, "{name}: {off:+.2} at a load of {load:.2}");
            Ok(())
        };
        check("mean tpot", mean.tpot_s, tpot.mean, 0.30, 0.05)?;
        check("mean ttft", mean.ttft_s, found.ttft_ms.mean, 0.35, 0.40)?;
        check("median tpot", at(0.5).tpot_s, tpot.p50, 0.30, 0.05)?;
        check("median ttft", at(0.5).ttft_s, found.ttft_ms.p50, 0.30, 0.45)?;
        check("p90 tpot", at(0.9).tpot_s, tpot.p90, 0.40, 0.05)?;
        check("p90 ttft", at(0.9).ttft_s, found.ttft_ms.p90, 0.45, 0.50)?;
        check("p99 tpot", at(0.99).tpot_s, tpot.p99, 0.40, 0.05)?;
        check("p99 ttft", at(0.99).ttft_s, found.ttft_ms.p99, 0.55, 0.80)?;
    }
}

/// The search finds the same whether it prunes or not, and what it finds meets its limits at the percentile.
fn search_under(traffic: Traffic, tpot_ms: f64, ttft_ms: f64, isl: f64, osl: f64) -> SearchProblem {
    let mut problem = common::problem(
        common::dense(),
        vec![common::accelerator("a", 80.0, 3.3e12, 1e15, 2.0)],
    );
    problem.traffic = traffic;
    problem.limits.tpot_s = Some(tpot_ms / 1e3);
    problem.limits.ttft_s = Some(ttft_ms / 1e3);
    problem.workload.isl = isl.round();
    problem.workload.osl = osl.round();
    problem.space.max_batch = 200;
    problem
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn pruned_and_exhaustive_search_agree_under_any_traffic(
        arrival in prop::sample::select(vec![Arrival::Closed, Arrival::Poisson]),
        percentile in prop::sample::select(vec![None, Some(0.5), Some(0.9), Some(0.99)]),
        cv in 0.0..1.5_f64,
        burstiness in 0.5..20.0_f64,
        tpot_ms in 4.0..80.0_f64,
        ttft_ms in 30.0..3000.0_f64,
        isl in 16.0..6000.0_f64,
        osl in 8.0..2000.0_f64,
    ) {
        let traffic = Traffic { arrival, percentile, isl_cv: cv, osl_cv: 0.5 * cv, burstiness };
        let mut problem = search_under(traffic, tpot_ms, ttft_ms, isl, osl);
        let stop = AtomicBool::new(false);
        let pruned = search(&problem, &stop).expect("valid");
        problem.exhaustive = true;
        let exhaustive = search(&problem, &stop).expect("valid");
        prop_assert_eq!(format!("{:?}", pruned.best), format!("{:?}", exhaustive.best));
        prop_assert_eq!(format!("{:?}", pruned.frontier), format!("{:?}", exhaustive.frontier));
        for solution in &pruned.best {
            prop_assert!(solution.tpot_ms <= tpot_ms * (1.0 + 1e-9));
            prop_assert!(solution.ttft_ms <= ttft_ms * (1.0 + 1e-9));
        }
        if let Some(miss) = &pruned.nearest_miss {
            prop_assert!(miss.value > miss.allowed);
        }
    }

    #[test]
    fn a_higher_percentile_never_costs_less(
        arrival in prop::sample::select(vec![Arrival::Closed, Arrival::Poisson]),
        tpot_ms in 8.0..80.0_f64,
        isl in 16.0..4000.0_f64,
        osl in 32.0..2000.0_f64,
    ) {
        let cost = |percentile| {
            let traffic = Traffic { arrival, percentile: Some(percentile), ..Traffic::default() };
            let problem = search_under(traffic, tpot_ms, 2000.0, isl, osl);
            let answer = search(&problem, &AtomicBool::new(false)).expect("valid");
            answer.best.first().map_or(f64::INFINITY, |best| best.usd_per_m_tokens)
        };
        prop_assert!(cost(0.5) <= cost(0.9) * (1.0 + 1e-9));
        prop_assert!(cost(0.9) <= cost(0.99) * (1.0 + 1e-9));
    }
}
