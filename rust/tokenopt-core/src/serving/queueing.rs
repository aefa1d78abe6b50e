//! What requests see under a kind of traffic, as a mean or at a percentile: closed loop or open arrivals.

use serde::{Deserialize, Serialize};

use super::steady::{rank_waiting, Operation, SteadyState};
use super::step::Prefill;
use super::{Layout, Workload};
use crate::error::{require_within, CoreError};
use crate::ops::attention::Lengths;
use crate::parameters::EngineParameters;

/// Share of the time that arriving prompts may take of a replica under open arrivals.
///
/// Source: measured open-loop latencies follow every formula below it and none above it, where the queue is set by how
/// long the run lasts.
pub const MOST_PREFILL_LOAD: f64 = 0.7;
/// Open arrivals fill a batch unevenly: nine times in ten what runs must fit the memory, whatever the percentile asked.
const MEMORY_PERCENTILE: f64 = 0.9;
/// The elasticity of step time against load is cut here: beyond, the batch swings without bound.
const MOST_ELASTICITY: f64 = 0.95;

/// How requests arrive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrival {
    /// A fixed number of clients, each with one request at a time.
    #[default]
    Closed,
    /// Independent users, at the rate that fills the batch.
    Poisson,
}

/// Traffic that the latencies of a search hold for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traffic {
    /// How requests arrive.
    pub arrival: Arrival,
    /// Share of requests that latencies and their limits hold for, 0.5 to 0.999; absent = the mean.
    pub percentile: Option<f64>,
    /// Standard deviation over mean of the prompts' lengths.
    pub isl_cv: f64,
    /// Standard deviation over mean of the outputs' lengths.
    pub osl_cv: f64,
    /// Variance over mean of the number of arrivals in a time; 1 for independent users.
    pub burstiness: f64,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            arrival: Arrival::Closed,
            percentile: None,
            isl_cv: 0.0,
            osl_cv: 0.0,
            burstiness: 1.0,
        }
    }
}

impl Traffic {
    /// Checks every figure.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        if let Some(share) = self.percentile {
            require_within("percentile", share, 0.5, 0.999)?;
        }
        require_within("isl_cv", self.isl_cv, 0.0, 100.0)?;
        require_within("osl_cv", self.osl_cv, 0.0, 100.0)?;
        require_within("burstiness", self.burstiness, 0.0, 1e6)?;
        Ok(())
    }

    /// Lengths that step times and memory are worked out for.
    ///
    /// A request that runs is a long one more often than one that arrives: at a random moment its output has mean
    /// `osl (1 + cv^2)`.
    #[must_use]
    pub fn lengths(&self, workload: &Workload) -> Lengths {
        let lengths = workload.lengths();
        Lengths {
            osl: lengths.osl * (1.0 + self.osl_cv * self.osl_cv),
            ..lengths
        }
    }

    /// Whether latencies are those of [`SteadyState::operation`].
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.arrival == Arrival::Closed && self.percentile.is_none()
    }
}

/// Means and percentiles of one layout and chunk size under a kind of traffic.
///
/// Open arrivals, with `b` running requests per rank and slot, `T_m` one more prompt in shared chunks without its host
/// work, `T_1` one prompt alone, `c` the spread of prompt lengths:
///
/// ```text
/// tpot = T_d(b) + b T_m / osl          rate = b / (osl tpot)        rho = rate T_m
/// ttft = t0 + T_1 + n T_d(b) + W       W = T_1 (1 + c^2) rho / (1 - rho)
/// ```
///
/// `n` chunks of a prompt ride with as many steps. Where there are several, prompts also queue for places in the chunks,
/// of which `u = n b / osl` are taken: `W` is at least `n tpot (1 + c^2) u / 2 (1 - u)`.
///
/// Percentile `p`, `z` its standard normal deviate: the batch is the occupancy of a processor-sharing queue whose
/// service slows with load, of variance `b / (1 - e)`, `e` the elasticity of `tpot` against `b`; a request sees that
/// batch and a Poisson number of prompts of random length. The wait has an exponential tail of the decay of a queue that serves prompts
/// in order, `T_m (1 + c^2) / 2 (1 - rho)`, and mean `W`; what a longer prompt adds is independent of it.
///
/// In a closed loop the batch is fixed; bursts hold twice the burst share of the prompts, whose waits are even between
/// none and the whole burst.
///
/// Source: M/G/1 processor sharing and Pollaczek-Khinchine (Kleinrock, vol. II); linear noise of a birth-death process
/// for the occupancy. Agreement with the simulator is tested (`docs/simulation.md`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadModel {
    steady: SteadyState,
    traffic: Traffic,
    deviate: f64,
    memory_deviate: f64,
    /// `T_m`, waiting of other ranks included, s.
    prompt_s: f64,
    alone_s: f64,
    /// Steps that the chunks of a prompt ride with.
    chunks: f64,
    overhead_s: f64,
    burst_share: f64,
    /// What one more request adds to the longest wait of a burst, s.
    burst_s: f64,
    stages: f64,
    tokens_per_step: f64,
    osl: f64,
    /// Prompt and output at the percentile, over their means.
    longest_prompt: f64,
    longest_output: f64,
}

impl LoadModel {
    /// Hoists the coefficients; `prompt_overhead_s` is the host's part of `prefill`.
    #[must_use]
    #[expect(
        clippy::too_many_arguments,
        reason = "what a layout model holds, hoisted once"
    )]
    pub fn new(
        traffic: Traffic,
        steady: SteadyState,
        parameters: &EngineParameters,
        layout: Layout,
        prefill: &Prefill,
        prompt_overhead_s: f64,
        osl: f64,
        tokens_per_step: f64,
    ) -> Self {
        let deviate = traffic.percentile.map_or(0.0, normal_deviate);
        Self {
            steady,
            traffic,
            deviate,
            memory_deviate: deviate.max(normal_deviate(MEMORY_PERCENTILE)),
            prompt_s: (prefill.marginal_s - prompt_overhead_s).max(0.0)
                * rank_waiting(parameters, layout),
            alone_s: prefill.alone_s,
            chunks: prefill.chunks,
            overhead_s: parameters.first_token_overhead_s,
            burst_share: parameters.burst_share,
            burst_s: prefill.marginal_s * rank_waiting(parameters, layout),
            stages: f64::from(layout.pp),
            tokens_per_step,
            osl,
            longest_prompt: lognormal_at(traffic.isl_cv, traffic.percentile.map(|_| deviate)),
            longest_output: lognormal_at(traffic.osl_cv, traffic.percentile.map(|_| deviate)),
        }
    }

    /// The steady state in a closed loop.
    #[must_use]
    pub fn steady(&self) -> &SteadyState {
        &self.steady
    }

    /// Whether [`Self::operation`] needs the step at [`Self::raised_batch`].
    #[must_use]
    pub fn needs_raised(&self) -> bool {
        !self.traffic.is_plain()
    }

    /// A batch as far above `batch` as the percentile's requests may see, at which the slope of the step is taken.
    #[inline(always)]
    #[must_use]
    pub fn raised_batch(&self, batch: f64) -> f64 {
        batch + (self.memory_deviate * batch.sqrt()).max(1.0)
    }

    /// Share of time that prompts take at a batch with time per output token `tpot_s` (mean); 0 in a closed loop.
    fn prefill_load(&self, batch: f64, tpot_s: f64) -> f64 {
        batch * self.prompt_s / (self.osl * tpot_s)
    }

    /// Whether open arrivals that keep `batch` requests running leave no steady state.
    #[inline(always)]
    #[must_use]
    pub fn is_saturated(&self, batch: f64, step_s: f64) -> bool {
        self.traffic.arrival == Arrival::Poisson
            && self.saturation(batch, step_s) > MOST_PREFILL_LOAD
    }

    /// Prefill load at a batch under open arrivals: the share of time that prompts take, or of chunks that are full where
    /// that is nearer to its limit.
    #[must_use]
    pub fn saturation(&self, batch: f64, step_s: f64) -> f64 {
        const MOST_CHUNKS_FULL: f64 = 0.9;
        let tpot_s = step_s / self.tokens_per_step + batch * self.prompt_s / self.osl;
        self.prefill_load(batch, tpot_s)
            .max(self.chunk_load(batch) * MOST_PREFILL_LOAD / MOST_CHUNKS_FULL)
    }

    /// Share of the steps' chunks that arriving prompts fill, where a prompt takes several; 0 where one chunk holds it.
    fn chunk_load(&self, batch: f64) -> f64 {
        if self.chunks > 1.0 {
            batch * self.tokens_per_step / self.osl * self.chunks
        } else {
            0.0
        }
    }

    /// Mean operation when each rank and pipeline slot runs `batch` requests on average and a decode step takes `step_s`.
    #[must_use]
    pub fn mean_operation(&self, batch: f64, step_s: f64) -> Operation {
        match self.traffic.arrival {
            Arrival::Closed => self.steady.operation(batch, step_s),
            Arrival::Poisson => self.open_mean(batch, step_s),
        }
    }

    /// Operation when each rank and pipeline slot runs `batch` requests on average and a decode step takes `step_s`;
    /// `raised_step_s` is the step at [`Self::raised_batch`] (unused where not needed).
    ///
    /// Latencies are those of the percentile, throughput is the mean, requests in flight are those that memory must
    /// hold.
    #[inline(always)]
    #[must_use]
    pub fn operation(&self, batch: f64, step_s: f64, raised_step_s: f64) -> Operation {
        if self.traffic.is_plain() {
            return self.steady.operation(batch, step_s);
        }
        let slope_s = (raised_step_s - step_s).max(0.0) / (self.raised_batch(batch) - batch);
        match self.traffic.arrival {
            Arrival::Closed => self.closed(batch, step_s),
            Arrival::Poisson => self.open(batch, step_s, slope_s),
        }
    }

    fn closed(&self, batch: f64, step_s: f64) -> Operation {
        let mean = self.steady.operation(batch, step_s);
        let share = (2.0 * self.burst_share).min(1.0);
        let percentile = self.traffic.percentile.unwrap_or(0.5);
        // Waits of those in bursts run evenly from none to the whole burst.
        let whole_s = self.burst_s * (batch - 1.0 / self.stages).max(0.0);
        let mean_wait_s = self.burst_share * whole_s;
        let wait_s = if share > 0.0 {
            2.0 * mean_wait_s / share * ((percentile - 1.0 + share) / share).max(0.0)
        } else {
            0.0
        };
        let prompts_s = (1.0 - self.burst_share) * self.prompt_s / self.osl * batch.sqrt();
        let ttft_more_s = combined(&[
            wait_s - mean_wait_s,
            self.alone_s * (self.longest_prompt - 1.0),
        ]);
        self.at_percentile(&mean, mean.in_flight, ttft_more_s, self.deviate * prompts_s)
    }

    fn spread(&self) -> f64 {
        1.0 + self.traffic.isl_cv * self.traffic.isl_cv
    }

    fn open_mean(&self, batch: f64, step_s: f64) -> Operation {
        let tpot_s = step_s / self.tokens_per_step + batch * self.prompt_s / self.osl;
        let ttft_s =
            self.overhead_s + self.alone_s + self.chunks * step_s + self.open_wait_s(batch, tpot_s);
        let e2e_s = ttft_s + tpot_s * (self.osl - 1.0).max(0.0);
        let per_s = self.steady.batches() * batch / (self.osl * tpot_s);
        Operation {
            tpot_s,
            ttft_s,
            e2e_s,
            in_flight: per_s * e2e_s,
            output_tps: per_s * self.osl,
        }
    }

    /// Mean wait of a prompt for others under open arrivals, s: for the time of the replica, or for a place in the chunks.
    fn open_wait_s(&self, batch: f64, tpot_s: f64) -> f64 {
        let load = self.prefill_load(batch, tpot_s).min(1.0 - 1e-9);
        let chunk_load = self.chunk_load(batch).min(1.0 - 1e-9);
        let in_chunks_s = self.chunk_decay_s(batch, tpot_s) * chunk_load;
        (self.alone_s * self.spread() * load / (1.0 - load)).max(in_chunks_s)
    }

    /// Decay of the wait for a place in the chunks, s.
    fn chunk_decay_s(&self, batch: f64, tpot_s: f64) -> f64 {
        let chunk_load = self.chunk_load(batch).min(1.0 - 1e-9);
        let service_s = if self.chunks > 1.0 {
            self.chunks * tpot_s * self.tokens_per_step
        } else {
            0.0
        };
        0.5 * service_s * self.spread() / (1.0 - chunk_load)
    }

    fn open(&self, batch: f64, step_s: f64, slope_s: f64) -> Operation {
        let mean = self.open_mean(batch, step_s);
        let per_prompt_s = self.prompt_s / self.osl;
        let load = self.prefill_load(batch, mean.tpot_s).min(1.0 - 1e-9);
        let wait_s = self.open_wait_s(batch, mean.tpot_s);
        let slope_s = slope_s / self.tokens_per_step;
        let elasticity = (batch * (slope_s + per_prompt_s) / mean.tpot_s).min(MOST_ELASTICITY);
        let variance = self.traffic.burstiness * batch / (1.0 - elasticity);
        let held = mean.in_flight + self.steady.batches() * self.memory_deviate * variance.sqrt();
        let tpot_more_s = self.deviate
            * ((slope_s + per_prompt_s).powi(2) * variance
                + self.traffic.burstiness * self.spread() * batch * per_prompt_s * per_prompt_s)
                .sqrt();
        let ttft_more_s = match self.traffic.percentile {
            None => 0.0,
            Some(percentile) => {
                let decay_s = (0.5 * self.prompt_s * self.spread() / (1.0 - load))
                    .max(self.chunk_decay_s(batch, mean.tpot_s));
                let tail = wait_s / (decay_s * (1.0 - percentile));
                let waits_s = decay_s * tail.max(1.0).ln();
                combined(&[
                    waits_s - wait_s,
                    self.alone_s * (self.longest_prompt - 1.0),
                    self.deviate * slope_s * self.tokens_per_step * variance.sqrt(),
                ])
            }
        };
        self.at_percentile(&mean, held, ttft_more_s, tpot_more_s)
    }

    fn at_percentile(
        &self,
        mean: &Operation,
        held: f64,
        ttft_more_s: f64,
        tpot_more_s: f64,
    ) -> Operation {
        let after_first = (self.osl - 1.0).max(0.0);
        let e2e_more_s = combined(&[
            ttft_more_s,
            tpot_more_s * after_first,
            mean.tpot_s * self.osl * (self.longest_output - 1.0),
        ]);
        Operation {
            tpot_s: mean.tpot_s + tpot_more_s,
            ttft_s: mean.ttft_s + ttft_more_s,
            e2e_s: mean.e2e_s + e2e_more_s,
            in_flight: held,
            output_tps: mean.output_tps,
        }
    }
}

/// Sum of independent deviations of one percentile: their squares add, each with its sign.
fn combined(deviations: &[f64]) -> f64 {
    let squares: f64 = deviations.iter().map(|part| part * part.abs()).sum();
    squares.abs().sqrt().copysign(squares)
}

/// Value of a log-normal variable of mean 1 and standard deviation `cv` at a normal deviate; its mean without one.
fn lognormal_at(cv: f64, deviate: Option<f64>) -> f64 {
    let variance = (cv * cv).ln_1p();
    deviate.map_or(1.0, |z| (variance.sqrt() * z - 0.5 * variance).exp())
}

/// Standard normal deviate that a share `p` of 0.5 to 0.999 stays below, within 4.5e-4.
///
/// Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.23.
#[must_use]
pub fn normal_deviate(p: f64) -> f64 {
    let t = (-2.0 * (1.0 - p).ln()).sqrt();
    let top = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let bottom = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    (t - top / bottom).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(traffic: Traffic) -> LoadModel {
        let parameters = EngineParameters {
            burst_share: 0.2,
            first_token_overhead_s: 0.01,
            first_token_steps: 1.0,
            rank_desynchronisation: 0.0,
            ..EngineParameters::default()
        };
        let layout = Layout {
            tp: 1,
            pp: 1,
            ep: 1,
            attn_dp: 1,
        };
        let prefill = Prefill {
            chunks: 1.0,
            alone_s: 0.05,
            marginal_s: 0.04,
        };
        let steady = SteadyState::new(&parameters, layout, &prefill, 101.0);
        LoadModel::new(
            traffic,
            steady,
            &parameters,
            layout,
            &prefill,
            0.0,
            100.0,
            1.0,
        )
    }

    fn open(percentile: Option<f64>) -> Traffic {
        Traffic {
            arrival: Arrival::Poisson,
            percentile,
            ..Traffic::default()
        }
    }

    #[test]
    fn normal_deviates_are_those_of_the_tables() {
        for (p, z) in [
            (0.5, 0.0),
            (0.9, 1.2816),
            (0.95, 1.6449),
            (0.99, 2.3263),
            (0.999, 3.0902),
        ] {
            assert!((normal_deviate(p) - z).abs() < 5e-4, "{p}");
        }
    }

    #[test]
    fn open_means_are_those_of_a_shared_processor() {
        // tpot = 10 ms + 10 x 40 ms / 100 = 14 ms; rate = 10 / 1.4 s; rho = 0.2857; wait = 50 ms x 0.4
        let found = model(open(None)).operation(10.0, 0.010, 0.012);
        assert!((found.tpot_s - 0.014).abs() < 1e-12);
        assert!((found.ttft_s - (0.01 + 0.05 + 0.01 + 0.02)).abs() < 1e-12);
        assert!((found.output_tps - 10.0 / 0.014).abs() < 1e-9);
    }

    #[test]
    fn a_batch_swings_more_where_steps_slow_with_it() {
        let load = model(open(Some(0.99)));
        let flat = load.operation(10.0, 0.010, 0.010);
        let steep = load.operation(10.0, 0.010, 0.014);
        assert!(steep.tpot_s > flat.tpot_s && steep.in_flight > flat.in_flight);
        assert_eq!(steep.output_tps, flat.output_tps);
        // Flat steps: e = 10 x 0.4 ms / 14 ms; only prompts vary: z x 0.4 ms x sqrt(10 / (1 - e) + 10)
        let e: f64 = 4.0 / 14.0;
        let expected = 0.014 + normal_deviate(0.99) * 4e-4 * (10.0 / (1.0 - e) + 10.0).sqrt();
        assert!((flat.tpot_s - expected).abs() < 1e-12);
    }

    #[test]
    fn a_closed_loop_waits_in_bursts() {
        let closed = |percentile| {
            model(Traffic {
                percentile,
                ..Traffic::default()
            })
            .operation(11.0, 0.010, 0.010)
            .ttft_s
        };
        // Fixed 10 ms, one step of 10 ms, 50 ms alone; the mean waits 0.2 x 10 x 40 ms
        assert!((closed(None) - (0.07 + 0.08)).abs() < 1e-12);
        // Six in ten wait for nothing, the others evenly up to 10 x 40 ms.
        assert!((closed(Some(0.5)) - 0.07).abs() < 1e-12);
        assert!((closed(Some(0.8)) - (0.07 + 0.2)).abs() < 1e-12);
    }

    #[test]
    fn too_many_prompts_saturate() {
        let load = model(open(None));
        assert!(!load.is_saturated(10.0, 0.010));
        assert!(load.is_saturated(100.0, 0.010));
        assert!(!model(Traffic::default()).is_saturated(100.0, 0.010));
    }
}
