//! Speed of the simulator: requests of simulated traffic per second on one core.
#![allow(missing_docs, clippy::expect_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use tokenopt_core::search::problem::PointSpec;
use tokenopt_core::simulate::{simulate, Arrivals, LengthModel, SimulationSpec};

const CONCURRENCY: u32 = 256;
const REQUESTS: usize = 100_000;

/// A replica of eight chips at concurrency 256, 1k in and 1k out.
fn eight_chips(criterion: &mut Criterion) {
    let mut problem = common::problem(
        common::mixture_of_experts(),
        vec![common::accelerator("a", 180.0, 7.7e12, 2.25e15, 2.0)],
    );
    problem.workload.isl = 1024.0;
    problem.workload.osl = 1024.0;
    problem.point = Some(PointSpec {
        stack: 1,
        tp: 8,
        pp: 1,
        ep: 1,
        attn_dp: 1,
        chunk_tokens: 8192,
        batch: CONCURRENCY,
        depth: 0,
        prefill: None,
    });
    let mut group = criterion.benchmark_group("simulate");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5))
        .throughput(Throughput::Elements(REQUESTS as u64));
    for (name, arrivals, lengths) in [
        (
            "closed/256",
            Arrivals::Closed {
                concurrency: CONCURRENCY,
            },
            LengthModel::Uniform { low: 0.8 },
        ),
        (
            "poisson",
            Arrivals::Poisson {
                requests_per_s: 20.0,
            },
            LengthModel::Lognormal {
                isl_cv: 1.0,
                osl_cv: 1.0,
            },
        ),
    ] {
        let spec = SimulationSpec {
            arrivals,
            lengths,
            requests: REQUESTS,
            warmup: 0,
            seed: 1,
            max_running: Some(CONCURRENCY),
            prefill: None,
        };
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                simulate(&problem, &spec, &AtomicBool::new(false))
                    .expect("a valid problem")
                    .requests
            });
        });
    }
    group.finish();
}

criterion_group!(benches, eight_chips);
criterion_main!(benches);
