//! Discrete-event simulation of continuous batching: what single requests see, with the operator times of the search.
//!
//! Every attention rank and pipeline slot keeps a batch of its own: requests queue, are admitted while their whole
//! cache fits, prefill in chunks beside the decode steps of those that run, and leave after their last token. Decode
//! steps between two events are advanced together, so the effort grows with requests, not with tokens.
//!
//! In a closed loop clients march in step in bursts of the size that the calibration found: prompts of a burst prefill
//! before any of them decodes, which is what the waits of the steady state's time to first token are.
//!
//! Assumes: ranks that meet at the experts carry equal batches; a request's cache is reserved at its full length; the
//! router sends a request to the rank with the fewest.

pub mod arrivals;
mod engine;
mod rank;
mod report;
pub mod times;

pub use arrivals::{Arrivals, LengthModel};
pub use report::{Attainment, Distribution, RequestLimits};

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::{require_within, CoreError};
use crate::explain::checked_point;
use crate::search::SearchProblem;
use crate::serving::Layout;
use arrivals::LengthSource;
use engine::{Engine, Pool};
use rank::Role;
use report::Outcomes;
use times::{Front, Place, StepTimes};

/// What a run is asked to do; the configuration is the `point` of the problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulationSpec {
    /// How requests arrive.
    pub arrivals: Arrivals,
    /// How long they are.
    #[serde(default)]
    pub lengths: LengthModel,
    /// Requests measured.
    pub requests: usize,
    /// Requests that end before measuring begins.
    #[serde(default)]
    pub warmup: usize,
    /// Start of the random draws.
    #[serde(default)]
    pub seed: u64,
    /// Most requests a rank and pipeline slot holds at once; absent = memory decides.
    #[serde(default)]
    pub max_running: Option<u32>,
    /// Prefill pool of a disaggregated fleet, whose decode workers are the problem's point; absent = aggregated.
    #[serde(default)]
    pub prefill: Option<PrefillPool>,
}

/// The prefill pool of a disaggregated fleet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillPool {
    /// Index of the stack.
    pub stack: usize,
    /// Tensor parallelism of a worker.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Expert parallelism.
    pub ep: u32,
    /// Attention data parallelism.
    pub attn_dp: u32,
    /// Workers that prefill.
    pub workers: u32,
    /// Workers that decode.
    pub decode_workers: u32,
    /// Seconds that a request waits for its cache to cross, per prompt token.
    pub transfer_s_per_token: f64,
}

impl PrefillPool {
    /// The layout of a worker.
    fn layout(&self, problem: &SearchProblem) -> Result<Layout, CoreError> {
        let layout = Layout {
            tp: self.tp,
            pp: self.pp,
            ep: self.ep,
            attn_dp: self.attn_dp,
        };
        let stack = problem.stacks.get(self.stack).ok_or_else(|| {
            let expected = format!("expected below {}", problem.stacks.len());
            CoreError::bad_input("prefill.stack", self.stack, expected)
        })?;
        let accelerator = &problem.accelerators[stack.accelerator];
        match layout.refusal(&problem.model, accelerator) {
            Some(reason) => Err(CoreError::bad_input("prefill layout", self.tp, reason)),
            None => Ok(layout),
        }
    }

    fn validate(&self) -> Result<(), CoreError> {
        const MOST_WORKERS: f64 = 10_000.0;
        require_within(
            "prefill.workers",
            f64::from(self.workers),
            1.0,
            MOST_WORKERS,
        )?;
        let decode_workers = f64::from(self.decode_workers);
        require_within("prefill.decode_workers", decode_workers, 1.0, MOST_WORKERS)?;
        require_within("transfer_s_per_token", self.transfer_s_per_token, 0.0, 1e3).map(drop)
    }
}

/// What a run measured. Latencies in ms.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SimulationAnswer {
    /// Requests measured.
    pub requests: usize,
    /// Requests that no rank can hold, dropped.
    pub refused: usize,
    /// Simulated time that was measured, s.
    pub measured_s: f64,
    /// Wall time, s.
    pub elapsed_s: f64,
    /// Time to first token.
    pub ttft_ms: Distribution,
    /// Time per output token after the first, mean of each request; absent when no request has a second token.
    pub tpot_ms: Option<Distribution>,
    /// Whole request.
    pub e2e_ms: Distribution,
    /// Requests/s that ended.
    pub requests_per_s: f64,
    /// Requests/s that ended within every limit.
    pub goodput_requests_per_s: f64,
    /// Output tokens/s of the replica.
    pub output_tps: f64,
    /// Output tokens/s per chip.
    pub output_tps_per_chip: f64,
    /// Mean prompt, tokens.
    pub mean_isl: f64,
    /// Mean output, tokens.
    pub mean_osl: f64,
    /// Shares of requests within the limits.
    pub slo_attainment: Attainment,
    /// Requests decoding on the replica, mean.
    pub running_batch: f64,
    /// Most requests that a rank held at once.
    pub most_running_per_rank: usize,
    /// Requests waiting for room, mean over the replica.
    pub queue_mean: f64,
    /// Longest queue of a rank.
    pub queue_max: usize,
    /// Share of the cache memory in use, mean.
    pub cache_used_share: f64,
    /// Share of time in which a rank works.
    pub busy_share: f64,
    /// Share of time that prompts add to the steps of a rank.
    pub prefill_share: f64,
    /// Whether requests arrived faster than they ended.
    pub is_saturated: bool,
}

const MS_PER_S: f64 = 1e3;
/// Most requests of a run: their latencies are kept for the percentiles.
const MOST_REQUESTS: usize = 50_000_000;

impl SimulationSpec {
    /// Reads a specification from JSON and checks it.
    ///
    /// # Errors
    /// [`CoreError`] naming what cannot be used.
    pub fn from_json(text: &str) -> Result<Self, CoreError> {
        let spec: Self =
            serde_json::from_str(text).map_err(|error| CoreError::Unreadable(error.to_string()))?;
        spec.validate()?;
        Ok(spec)
    }

    /// Checks every figure.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        self.arrivals.validate()?;
        self.lengths.validate()?;
        if let Some(prefill) = &self.prefill {
            prefill.validate()?;
        }
        if self.requests == 0 || self.requests.saturating_add(self.warmup) > MOST_REQUESTS {
            return Err(CoreError::bad_input(
                "requests",
                self.requests,
                format!("expected 1 to {MOST_REQUESTS}, warm-up included"),
            ));
        }
        if self.max_running == Some(0) {
            return Err(CoreError::bad_input(
                "max_running",
                0,
                "expected at least 1",
            ));
        }
        Ok(())
    }
}

/// Simulates the configuration named by `problem.point`.
///
/// # Errors
/// [`CoreError::BadInput`] when there is no such configuration or it cannot hold any of the requests;
/// [`CoreError::Interrupted`] when `stop` is raised while it runs.
pub fn simulate(
    problem: &SearchProblem,
    spec: &SimulationSpec,
    stop: &AtomicBool,
) -> Result<SimulationAnswer, CoreError> {
    spec.validate()?;
    let started = Instant::now();
    let (point, layout) = checked_point(problem)?;
    if point.prefill.is_some() {
        return Err(CoreError::bad_input(
            "point.prefill",
            "present",
            "expected none: the specification of the run names the pools",
        ));
    }
    let is_closed = matches!(spec.arrivals, Arrivals::Closed { .. });
    let decode = Place {
        problem,
        stack: point.stack,
        layout,
        depth: point.depth,
        chunk_tokens: point.chunk_tokens,
        front: if is_closed {
            Front::Closed
        } else {
            Front::Open
        },
    };
    let Some(spread) = &spec.prefill else {
        let run = Run {
            problem,
            spec,
            chips: layout.chips(),
            transfer_s_per_token: 0.0,
        };
        return run.of(vec![pool(decode, Role::Both, 1, spec)], started, stop);
    };
    let prefill = Place {
        stack: spread.stack,
        layout: spread.layout(problem)?,
        depth: 0,
        front: Front::Pool,
        ..decode
    };
    // Decode workers need room for the tokens of a step, not for a chunk.
    let decode = Place {
        chunk_tokens: point.batch.max(1) * (1 + point.depth),
        front: Front::Pool,
        ..decode
    };
    let run = Run {
        problem,
        spec,
        chips: spread.workers * prefill.layout.chips() + spread.decode_workers * layout.chips(),
        transfer_s_per_token: spread.transfer_s_per_token,
    };
    let pools = vec![
        pool(prefill, Role::Prefill, spread.workers, spec),
        pool(decode, Role::Decode, spread.decode_workers, spec),
    ];
    run.of(pools, started, stop)
}

/// The ranks of `workers` workers at one place.
fn pool<'a>(place: Place<'a>, role: Role, workers: u32, spec: &SimulationSpec) -> Pool<'a> {
    let ranks = workers as usize * (place.layout.pp * place.layout.attn_dp) as usize;
    let is_closed = matches!(spec.arrivals, Arrivals::Closed { .. });
    Pool::new(
        StepTimes::new(place, &place.problem.lengths()),
        role,
        ranks,
        spec.max_running.unwrap_or(u32::MAX) as usize,
        place.problem.workload.isl,
        role == Role::Both && is_closed,
    )
}

/// A run on given pools.
struct Run<'a> {
    problem: &'a SearchProblem,
    spec: &'a SimulationSpec,
    chips: u32,
    transfer_s_per_token: f64,
}

impl Run<'_> {
    fn of(
        &self,
        pools: Vec<Pool<'_>>,
        started: Instant,
        stop: &AtomicBool,
    ) -> Result<SimulationAnswer, CoreError> {
        let spec = self.spec;
        let wanted = match &spec.arrivals {
            Arrivals::Trace { at_s } => at_s.len().saturating_sub(spec.warmup).min(spec.requests),
            Arrivals::Closed { .. } | Arrivals::Poisson { .. } => spec.requests,
        };
        let source = LengthSource::new(
            &spec.lengths,
            self.problem.workload,
            f64::from(self.problem.model.max_context),
            spec.seed,
        );
        let outcomes = Outcomes::new(self.limits(), spec.warmup, Some(wanted));
        let mut engine = Engine::new(
            pools,
            &spec.arrivals,
            source,
            spec.seed,
            self.transfer_s_per_token,
            outcomes,
        );
        engine.run(stop)?;
        self.answer(&mut engine, started)
    }

    fn limits(&self) -> RequestLimits {
        let limits = &self.problem.limits;
        let unlimited = f64::INFINITY;
        RequestLimits {
            tpot_s: limits
                .tpot_s
                .unwrap_or(unlimited)
                .min(limits.min_tps_per_user.map_or(unlimited, |tps| 1.0 / tps)),
            ttft_s: limits.ttft_s.unwrap_or(unlimited),
            e2e_s: limits.e2e_s.unwrap_or(unlimited),
        }
    }

    fn answer(
        &self,
        engine: &mut Engine<'_, '_>,
        started: Instant,
    ) -> Result<SimulationAnswer, CoreError> {
        let backlog = engine.backlog();
        let outcomes = &mut engine.outcomes;
        let attainment = outcomes.attainment();
        let measured = outcomes.e2e_s.len();
        let is_open = !matches!(self.spec.arrivals, Arrivals::Closed { .. });
        let is_saturated = is_open && outcomes.is_growing(backlog);
        let milliseconds = |sample: &mut Vec<f64>| {
            Distribution::new(std::mem::take(sample)).map(|found| found.scaled(MS_PER_S))
        };
        let ttft_ms = milliseconds(&mut outcomes.ttft_s);
        let tpot_ms = milliseconds(&mut outcomes.tpot_s);
        let e2e_ms = milliseconds(&mut outcomes.e2e_s);
        let (Some(ttft_ms), Some(e2e_ms), Some(slo_attainment)) = (ttft_ms, e2e_ms, attainment)
        else {
            return Err(CoreError::bad_input(
                "requests",
                format!("{} in all", outcomes.refused),
                "none of which fits the memory of a rank beside the weights",
            ));
        };
        let measured_s = outcomes.measured_to_s - outcomes.measured_from_s;
        let per_s = |sum: f64| {
            if measured_s > 0.0 {
                sum / measured_s
            } else {
                f64::NAN
            }
        };
        let output_tps = per_s(outcomes.output_tokens);
        let requests_per_s = per_s(measured as f64);
        let (queue_mean, mean_isl, mean_osl) = (
            per_s(outcomes.waited_s),
            outcomes.input_tokens / measured as f64,
            outcomes.output_tokens / measured as f64,
        );
        let refused = outcomes.refused;
        let Some(last) = engine.pools.last() else {
            return Err(CoreError::bad_input("pools", 0, "expected at least one"));
        };
        let ranks = last.ranks.len() as f64;
        let sum = |figure: fn(&rank::Load) -> f64| {
            last.ranks
                .iter()
                .map(|rank| figure(&rank.load))
                .sum::<f64>()
        };
        let most = |figure: fn(&rank::Load) -> usize| {
            engine
                .pools
                .iter()
                .flat_map(|pool| &pool.ranks)
                .map(|rank| figure(&rank.load))
                .max()
                .unwrap_or(0)
        };
        Ok(SimulationAnswer {
            requests: measured,
            refused,
            measured_s,
            elapsed_s: started.elapsed().as_secs_f64(),
            ttft_ms,
            tpot_ms,
            e2e_ms,
            requests_per_s,
            goodput_requests_per_s: requests_per_s * slo_attainment.all,
            output_tps,
            output_tps_per_chip: output_tps / f64::from(self.chips),
            mean_isl,
            mean_osl,
            slo_attainment,
            running_batch: per_s(sum(|load| load.batch_s)),
            most_running_per_rank: most(|load| load.most_running),
            queue_mean,
            queue_max: most(|load| load.most_waiting),
            cache_used_share: per_s(sum(|load| load.cache_s)) / (ranks * last.times.cache_bytes()),
            busy_share: per_s(sum(|load| load.busy_s)) / ranks,
            prefill_share: per_s(
                engine.pools[0]
                    .ranks
                    .iter()
                    .map(|rank| rank.load.prefill_s)
                    .sum(),
            ) / engine.pools[0].ranks.len() as f64,
            is_saturated,
        })
    }
}
