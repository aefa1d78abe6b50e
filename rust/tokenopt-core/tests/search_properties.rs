//! Laws of the search on random small problems.
#![allow(clippy::expect_used)]

mod common;

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tokenopt_core::search::problem::Objective;
use tokenopt_core::search::{search, SearchAnswer, SearchProblem, Solution};

fn run(problem: &SearchProblem) -> SearchAnswer {
    search(problem, &AtomicBool::new(false)).expect("a valid problem")
}

/// What must not depend on how the search went about it.
fn essence(solutions: &[Solution]) -> Vec<String> {
    solutions
        .iter()
        .map(|solution| format!("{solution:?}"))
        .collect()
}

prop_compose! {
    fn any_problem()(
        is_moe in any::<bool>(),
        hbm_gb in 20.0..300.0_f64,
        bytes_per_s in 5e11..8e12_f64,
        bf16 in 5e13..3e15_f64,
        usd in 0.2..12.0_f64,
        second in 0.3..3.0_f64,
        tpot_ms in 3.0..120.0_f64,
        ttft_ms in prop::option::of(50.0..5000.0_f64),
        max_chips in prop::option::of(4_u32..400),
        target in prop::option::of(1e2..1e6_f64),
        isl in 1.0..6000.0_f64,
        osl in 1.0..3000.0_f64,
        max_batch in 1_u32..300,
        objective in prop::sample::select(vec![Objective::Cost, Objective::Energy, Objective::Throughput]),
        top in 1_usize..8,
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
        problem.space.max_batch = max_batch;
        problem.space.max_chips_per_replica = 8;
        problem.objective = objective;
        problem.top = top;
        problem
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn pruned_and_exhaustive_search_agree(mut problem in any_problem()) {
        let pruned = run(&problem);
        problem.exhaustive = true;
        let exhaustive = run(&problem);
        prop_assert_eq!(essence(&pruned.best), essence(&exhaustive.best));
        prop_assert_eq!(essence(&pruned.by_accelerator), essence(&exhaustive.by_accelerator));
        prop_assert_eq!(essence(&pruned.frontier), essence(&exhaustive.frontier));
        prop_assert_eq!(pruned.nearest_miss.is_some(), exhaustive.nearest_miss.is_some());
        prop_assert_eq!(
            pruned.evaluated + pruned.pruned,
            exhaustive.evaluated,
            "every configuration that fits is either evaluated or ruled out"
        );
    }

    #[test]
    fn the_answer_does_not_depend_on_the_thread_count(mut problem in any_problem(), exhaustive in any::<bool>()) {
        problem.exhaustive = exhaustive;
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
            prop_assert_eq!(&dear.layout, &cheap.layout);
        }
    }

    #[test]
    fn solutions_keep_the_limits_and_the_arithmetic(problem in any_problem()) {
        for solution in run(&problem).best {
            prop_assert!(solution.tpot_ms <= problem.limits.tpot_s.unwrap_or(f64::MAX) * 1e3 * (1.0 + 1e-12));
            prop_assert!(solution.ttft_ms <= problem.limits.ttft_s.unwrap_or(f64::MAX) * 1e3 * (1.0 + 1e-12));
            prop_assert!(solution.chips <= problem.limits.max_chips.map_or(f64::MAX, f64::from));
            prop_assert!(solution.memory_used_share <= 1.0 + 1e-9);
            if let Some(target) = problem.demand.output_tps {
                prop_assert!(solution.capacity_tps >= target * (1.0 - 1e-12));
            }
            let per_million = solution.usd_per_hr / (solution.output_tps * 3600.0) * 1e6;
            prop_assert!((per_million / solution.usd_per_m_output_tokens - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn a_faster_memory_never_costs_more(mut problem in any_problem(), factor in 1.0..4.0_f64) {
        problem.objective = Objective::Cost;
        problem.accelerators.truncate(1);
        problem.stacks.retain(|stack| stack.accelerator == 0);
        let before = run(&problem);
        problem.accelerators[0].hbm_bytes_per_s *= factor;
        let after = run(&problem);
        if let Some(best) = before.best.first() {
            prop_assert!(after.best[0].usd_per_m_tokens <= best.usd_per_m_tokens * (1.0 + 1e-9));
        }
    }
}

#[test]
fn an_impossible_limit_names_the_nearest_miss() {
    let mut problem = common::problem(
        common::dense(),
        vec![common::accelerator("a", 80.0, 3e12, 1e15, 2.0)],
    );
    problem.limits.tpot_s = Some(1e-6);
    let answer = run(&problem);
    assert!(answer.best.is_empty());
    let miss = answer.nearest_miss.expect("a nearest miss");
    assert!(miss.value > miss.allowed);
    assert!(miss.solution.is_some());
}

#[test]
fn a_model_that_fits_nowhere_says_so() {
    let mut problem = common::problem(
        common::mixture_of_experts(),
        vec![common::accelerator("a", 4.0, 3e12, 1e15, 2.0)],
    );
    problem.space.max_chips_per_replica = 2;
    let answer = run(&problem);
    assert!(answer.best.is_empty());
    assert!(answer.rejected.does_not_fit > 0);
    assert_eq!(
        format!("{:?}", answer.nearest_miss.expect("a nearest miss").limit),
        "Memory"
    );
}

#[test]
fn raising_the_stop_flag_interrupts() {
    let problem = common::problem(
        common::dense(),
        vec![common::accelerator("a", 80.0, 3e12, 1e15, 2.0)],
    );
    assert!(search(&problem, &AtomicBool::new(true)).is_err());
}
