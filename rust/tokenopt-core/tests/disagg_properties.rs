//! Laws of disaggregated search and of speculative decoding on random small problems.
#![allow(clippy::expect_used)]

mod common;

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tokenopt_core::search::problem::{DisaggSpec, Mode, Objective, SpeculationSpec};
use tokenopt_core::search::{search, SearchAnswer, SearchProblem, Solution};

fn run(problem: &SearchProblem) -> SearchAnswer {
    search(problem, &AtomicBool::new(false)).expect("a valid problem")
}

fn essence(solutions: &[Solution]) -> Vec<String> {
    solutions
        .iter()
        .map(|solution| format!("{solution:?}"))
        .collect()
}

prop_compose! {
    fn any_problem()(
        is_moe in any::<bool>(),
        hbm_gb in 40.0..300.0_f64,
        bytes_per_s in 1e12..8e12_f64,
        bf16 in 2e14..3e15_f64,
        usd in 0.2..12.0_f64,
        second in 0.5..2.0_f64,
        tpot_ms in 5.0..120.0_f64,
        ttft_ms in prop::option::of(100.0..5000.0_f64),
        max_chips in prop::option::of(8_u32..400),
        target in prop::option::of(1e3..1e6_f64),
        isl in 16.0..6000.0_f64,
        osl in 2.0..2000.0_f64,
        objective in prop::sample::select(vec![Objective::Cost, Objective::Energy, Objective::Throughput]),
        top in 1_usize..6,
        is_mixed in any::<bool>(),
        depths in prop::sample::select(vec![vec![], vec![0, 2], vec![1]]),
        acceptance in 0.0..1.0_f64,
    ) -> SearchProblem {
        let model = if is_moe { common::mixture_of_experts() } else { common::dense() };
        let mut problem = common::problem(model, vec![
            common::accelerator("a", hbm_gb, bytes_per_s, bf16, usd),
            common::accelerator("b", hbm_gb * second, bytes_per_s / second, bf16, usd * second),
        ]);
        problem.limits.tpot_s = Some(tpot_ms / 1e3);
        problem.limits.ttft_s = ttft_ms.map(|ms| ms / 1e3);
        problem.limits.max_chips = max_chips;
        problem.demand.output_tps = target;
        problem.workload.isl = isl.round();
        problem.workload.osl = osl.round();
        problem.space.max_batch = 64;
        problem.space.max_chips_per_replica = 4;
        problem.space.pp = Some(vec![1]);
        problem.space.chunk_tokens = Some(vec![1024, 8192]);
        problem.objective = objective;
        problem.top = top;
        problem.disagg = DisaggSpec { mode: Mode::Auto, is_mixed, ..DisaggSpec::default() };
        problem.speculation = (!depths.is_empty())
            .then_some(SpeculationSpec { depths, acceptance, accepted_tokens: None, draft: None });
        problem
    }
}

/// What whole batches can cost or save: a slower or faster decode can happen to match the seats that requests waiting for
/// their first token leave a request or two more closely.
fn rounding(batch: u32) -> f64 {
    0.05 + 2.0 / f64::from(batch)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pruned_and_exhaustive_search_agree(mut problem in any_problem()) {
        let pruned = run(&problem);
        problem.exhaustive = true;
        let exhaustive = run(&problem);
        prop_assert_eq!(essence(&pruned.best), essence(&exhaustive.best));
        prop_assert_eq!(essence(&pruned.by_mode), essence(&exhaustive.by_mode));
        prop_assert_eq!(essence(&pruned.by_accelerator), essence(&exhaustive.by_accelerator));
        prop_assert_eq!(essence(&pruned.frontier), essence(&exhaustive.frontier));
        prop_assert_eq!(pruned.evaluated + pruned.pruned, exhaustive.evaluated);
    }

    #[test]
    fn the_answer_does_not_depend_on_the_thread_count(mut problem in any_problem()) {
        let one = run(&problem);
        problem.threads = 3;
        let three = run(&problem);
        prop_assert_eq!(
            (one.evaluated, one.pruned, one.feasible, one.rejected),
            (three.evaluated, three.pruned, three.feasible, three.rejected)
        );
        prop_assert_eq!(essence(&one.best), essence(&three.best));
        prop_assert_eq!(essence(&one.frontier), essence(&three.frontier));
    }

    #[test]
    fn workers_cover_the_rates_within_the_limits(mut problem in any_problem()) {
        problem.disagg.mode = Mode::Disagg;
        for solution in run(&problem).best {
            let (prefill, decode) = (
                solution.layout.prefill.expect("a prefill pool"),
                solution.layout.decode.expect("a decode pool"),
            );
            prop_assert!(prefill.workers >= 1 && decode.workers >= 1);
            prop_assert!(prefill.utilization <= 0.9 + 1e-9 && decode.utilization <= 1.0 + 1e-9);
            let needed = solution.requests_per_s / problem.demand.utilization;
            prop_assert!(f64::from(prefill.workers) * prefill.requests_per_s >= needed * (1.0 - 1e-6));
            prop_assert!(f64::from(decode.workers) * decode.requests_per_s >= needed * (1.0 - 1e-6));
            if problem.demand.output_tps.is_some() {
                // One worker fewer would not do.
                let fewer = f64::from(decode.workers - 1) * decode.requests_per_s;
                prop_assert!(fewer < needed);
                let fewer = f64::from(prefill.workers - 1) * prefill.requests_per_s;
                prop_assert!(fewer < needed);
            }
            prop_assert!(solution.tpot_ms <= problem.limits.tpot_s.unwrap_or(f64::MAX) * 1e3 * (1.0 + 1e-9));
            prop_assert!(solution.ttft_ms <= problem.limits.ttft_s.unwrap_or(f64::MAX) * 1e3 * (1.0 + 1e-9));
            prop_assert!(solution.chips <= problem.limits.max_chips.map_or(f64::MAX, f64::from));
            prop_assert!(solution.memory_used_share <= 1.0 + 1e-9);
            let handover = solution.handover.expect("a handover");
            let sum = handover.queue_ms + handover.prefill_ms + handover.transfer_ms + handover.first_step_ms;
            prop_assert!((sum / solution.ttft_ms - 1.0).abs() < 1e-9);
            let per_million = solution.usd_per_hr / (solution.output_tps * 3600.0) * 1e6;
            prop_assert!((per_million / solution.usd_per_m_output_tokens - 1.0).abs() < 1e-9);
            let used = f64::from(prefill.workers * prefill.chips_per_worker
                + decode.workers * decode.chips_per_worker);
            prop_assert!((used - solution.chips_used).abs() < 1e-9 && used <= solution.chips + 1e-9);
        }
    }

    #[test]
    fn doubling_every_price_doubles_the_cost(mut problem in any_problem()) {
        problem.objective = Objective::Cost;
        let before = run(&problem);
        for accelerator in &mut problem.accelerators {
            for offer in &mut accelerator.offers {
                offer.usd_per_chip_hr *= 2.0;
            }
        }
        let after = run(&problem);
        prop_assert_eq!(before.best.len(), after.best.len());
        for (cheap, dear) in before.best.iter().zip(&after.best) {
            prop_assert!((dear.usd_per_m_tokens / cheap.usd_per_m_tokens - 2.0).abs() < 1e-9);
        }
    }

    #[test]
    fn more_choice_never_costs_more(mut problem in any_problem()) {
        problem.objective = Objective::Cost;
        problem.disagg.is_mixed = true;
        let least = |problem: &SearchProblem| {
            run(problem).best.first().map_or(f64::INFINITY, |best| best.usd_per_m_tokens)
        };
        let mixed = least(&problem);
        problem.disagg.is_mixed = false;
        let same = least(&problem);
        let mut apart = Vec::new();
        for mode in [Mode::Agg, Mode::Disagg] {
            problem.disagg.mode = mode;
            apart.push(least(&problem));
        }
        prop_assert!(mixed <= same * (1.0 + 1e-12));
        let least_apart = apart[0].min(apart[1]);
        // The same sums in another order may differ in the last digit.
        prop_assert!(same == least_apart || (same / least_apart - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_faster_network_and_more_overlap_never_cost_more(mut problem in any_problem(), factor in 1.0..10.0_f64) {
        problem.objective = Objective::Cost;
        problem.disagg.mode = Mode::Disagg;
        let least = |problem: &SearchProblem| {
            run(problem).best.first().map_or(f64::INFINITY, |best| best.usd_per_m_tokens)
        };
        let slow = least(&problem);
        let mut hidden = problem.clone();
        hidden.disagg.transfer_overlap = 1.0;
        prop_assert!(least(&hidden) <= slow);
        for accelerator in &mut problem.accelerators {
            accelerator.scale_out_bytes_per_s *= factor;
        }
        prop_assert!(least(&problem) <= slow);
    }

    #[test]
    fn speculation_without_acceptance_never_wins(mut problem in any_problem()) {
        // Whole ratios of workers round by more than speculation costs.
        problem.disagg.mode = Mode::Agg;
        problem.objective = Objective::Throughput;
        let most = |problem: &SearchProblem| {
            let found = run(problem).best.into_iter().next();
            found.map_or((0.0, 1), |best| (best.output_tps_per_chip, best.batch_per_rank))
        };
        problem.speculation = None;
        let plain = most(&problem);
        problem.speculation = Some(SpeculationSpec {
            depths: vec![0, 1, 3], acceptance: 0.0, accepted_tokens: None, draft: None,
        });
        prop_assert!(most(&problem).0 <= plain.0 * (1.0 + rounding(plain.1)));
    }

    #[test]
    fn more_acceptance_never_costs_more(mut problem in any_problem(), acceptance in 0.0..0.9_f64) {
        problem.objective = Objective::Cost;
        problem.disagg.mode = Mode::Agg;
        let mut least = |acceptance| {
            problem.speculation = Some(SpeculationSpec {
                depths: vec![0, 2], acceptance, accepted_tokens: None, draft: None,
            });
            let found = run(&problem).best.into_iter().next();
            found.map_or((f64::INFINITY, 1), |best| (best.usd_per_m_tokens, best.batch_per_rank))
        };
        let (more, less) = (least(acceptance + 0.1), least(acceptance));
        prop_assert!(more.0 <= less.0 * (1.0 + rounding(less.1)), "{more:?} > {less:?}");
    }
}

#[test]
fn an_impossible_limit_names_the_nearest_miss() {
    let mut problem = common::problem(
        common::dense(),
        vec![common::accelerator("a", 80.0, 3e12, 1e15, 2.0)],
    );
    problem.disagg.mode = Mode::Disagg;
    for (tpot_s, ttft_s, limit) in [(1e-6, None, "TpotS"), (0.05, Some(1e-4), "TtftS")] {
        problem.limits.tpot_s = Some(tpot_s);
        problem.limits.ttft_s = ttft_s;
        let answer = run(&problem);
        assert!(answer.best.is_empty());
        let miss = answer.nearest_miss.expect("a nearest miss");
        assert_eq!(format!("{:?}", miss.limit), limit);
        assert!(miss.value > miss.allowed);
    }
}

#[test]
fn pools_meet_at_one_site_only() {
    let mut problem = common::problem(
        common::dense(),
        vec![
            common::accelerator("a", 80.0, 3e12, 1e15, 2.0),
            common::accelerator("b", 80.0, 1e12, 1e15, 0.5),
        ],
    );
    problem.disagg = DisaggSpec {
        mode: Mode::Disagg,
        prefill_accelerators: Some(vec![1]),
        decode_accelerators: Some(vec![0]),
        is_mixed: true,
        transfer_overlap: 0.0,
    };
    let best = run(&problem).best;
    assert!(!best.is_empty());
    for solution in &best {
        let prefill = solution.layout.prefill.expect("a prefill pool");
        assert_eq!(problem.stacks[prefill.stack].accelerator, 1);
        assert_eq!(problem.stacks[solution.stack].accelerator, 0);
    }
    for (site, accelerator) in problem.accelerators.iter_mut().enumerate() {
        for offer in &mut accelerator.offers {
            offer.site = u32::try_from(site).ok();
        }
    }
    assert!(run(&problem).best.is_empty());
}

#[test]
fn without_a_network_only_a_shared_domain_will_do() {
    let mut problem = common::problem(
        common::dense(),
        vec![common::accelerator("a", 80.0, 3e12, 1e15, 2.0)],
    );
    problem.disagg.mode = Mode::Disagg;
    problem.accelerators[0].scale_out_bytes_per_s = 0.0;
    let best = run(&problem).best;
    assert!(best.iter().all(|solution| solution
        .handover
        .is_some_and(|handover| handover.over_fabric)));
    problem.accelerators[0].scale_up.domain_chips = 1;
    let answer = run(&problem);
    assert!(answer.best.is_empty());
    assert!(answer.rejected.no_link > 0);
}
