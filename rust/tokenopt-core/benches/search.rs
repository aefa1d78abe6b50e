//! Speed of the search: ns per configuration at one thread, whole searches at growing sizes.
#![allow(missing_docs, clippy::expect_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use tokenopt_core::search::{search, SearchProblem};

/// An exhaustive problem of about `configurations` configurations.
fn exhaustive(configurations: u64, threads: usize) -> SearchProblem {
    let chips = (0..1 + configurations / 20_000_000)
        .map(|index| common::accelerator(&format!("chip{index}"), 180.0, 7.7e12, 2.25e15, 2.0))
        .collect();
    let mut problem = common::problem(common::mixture_of_experts(), chips);
    problem.exhaustive = true;
    problem.threads = threads;
    problem.space.max_chips_per_replica = 64;
    problem.space.max_batch = match configurations {
        0..=100_000 => 8,
        100_001..=10_000_000 => 256,
        _ => 4096,
    };
    problem
}

fn evaluated(problem: &SearchProblem) -> u64 {
    search(problem, &AtomicBool::new(false))
        .expect("a valid problem")
        .evaluated
}

fn throughput(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("exhaustive");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    for (size, name) in [(10_000, "1e4"), (1_000_000, "1e6"), (100_000_000, "1e8")] {
        for threads in [1, 0] {
            let problem = exhaustive(size, threads);
            group.throughput(Throughput::Elements(evaluated(&problem)));
            let label = if threads == 1 {
                "1 thread"
            } else {
                "all threads"
            };
            group.bench_with_input(
                BenchmarkId::new(name, label),
                &problem,
                |bencher, problem| {
                    bencher.iter(|| evaluated(problem));
                },
            );
        }
    }
    group.finish();
}

fn pruned(criterion: &mut Criterion) {
    let mut problem = exhaustive(100_000_000, 0);
    problem.exhaustive = false;
    criterion.bench_function("pruned/1e8", |bencher| {
        bencher.iter(|| {
            search(&problem, &AtomicBool::new(false))
                .expect("a valid problem")
                .best
                .len()
        });
    });
}

criterion_group!(benches, throughput, pruned);
criterion_main!(benches);
