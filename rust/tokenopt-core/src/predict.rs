//! Prediction of given operating points (measured rows), many parameter sets at a time: what calibration fits and
//! validation scores. The formulas are those of the search.

use rayon::prelude::*;
use serde::Deserialize;

use crate::accelerator::Accelerator;
use crate::error::CoreError;
use crate::model::ModelSpec;
use crate::ops::attention::Lengths;
use crate::parameters::EngineParameters;
use crate::serving::closed_pools::{closed_pools, Pool};
use crate::serving::offline::{Delivery, TailLimits};
use crate::serving::open_loop::Arrivals;
use crate::serving::steady::increasing_root;
use crate::serving::{
    DraftPlan, Layout, MemoryPlan, OpenLoop, Saturated, Speculation, Stack, SteadyState, StepModel,
    Workload,
};

/// Rows to predict, with the chips and models they name.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowSet {
    /// Models in use.
    pub models: Vec<ModelSpec>,
    /// Accelerators in use.
    pub accelerators: Vec<Accelerator>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// One operating point.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Index of the model.
    pub model: usize,
    /// Index of the accelerator.
    pub accelerator: usize,
    /// Formats of weights and cache; `parameters` inside are replaced by the set.
    pub weights: crate::model::WeightFormats,
    /// Format of the KV cache.
    pub kv_precision: crate::format::NumberFormat,
    /// Which parameter set of a prediction applies.
    pub set: usize,
    /// Layout.
    pub layout: Layout,
    /// Lengths.
    pub workload: Workload,
    /// Requests in flight on the replica; of a static batch, its size.
    pub concurrency: f64,
    /// Prefill chunk, tokens.
    pub chunk_tokens: f64,
    /// Speculative decoding, absent = none.
    #[serde(default)]
    pub speculation: Option<RowSpeculation>,
    /// Most requests an attention rank runs at once, absent = memory decides.
    #[serde(default)]
    pub max_batch: Option<f64>,
    /// How requests reach the replica.
    #[serde(default)]
    pub scenario: Scenario,
    /// Other layouts of the same chips; the one that delivers most counts.
    #[serde(default)]
    pub alternatives: Vec<Layout>,
    /// Squared coefficient of variation of output lengths.
    #[serde(default)]
    pub osl_cv2: f64,
    /// Equal workers that share the clients.
    #[serde(default = "one")]
    pub workers: f64,
    /// Pool that prefills apart from `layout`, which then only decodes.
    #[serde(default)]
    pub prefill_pool: Option<PrefillPool>,
    /// Whether the time to first token asked for is the median, which the burst at the start of a run does not reach.
    #[serde(default)]
    pub ttft_is_median: bool,
    /// Whether requests of equal length run in waves: all prompts of a wave prefill before its first decode step.
    #[serde(default)]
    pub in_waves: bool,
}

/// Workers that only prefill.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillPool {
    /// Layout of one worker.
    pub layout: Layout,
    /// Workers.
    pub workers: f64,
}

fn one() -> f64 {
    1.0
}

/// How requests reach the replica, and what is asked of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Scenario {
    /// As many clients as `concurrency`, each with one request at a time.
    #[default]
    Closed,
    /// More requests queued than are ever served.
    Endless,
    /// All requests queued at once, until the last one ends.
    Burst {
        /// Requests of the run.
        requests: f64,
        /// Longest answer, tokens.
        longest_osl: f64,
    },
    /// One fixed batch of `concurrency` requests.
    Static,
    /// Arrivals at a given rate.
    Open {
        /// Requests per second at the replica.
        per_s: f64,
        /// Requests of the run, absent = steady state.
        #[serde(default)]
        requests: Option<f64>,
    },
    /// The largest load under limits.
    Limited(TailLimits),
}

/// A row to predict, and the parameter set to predict it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Index of the row.
    pub row: usize,
    /// Index of the parameter set.
    pub set: usize,
}

/// Speculative decoding of a row by the model's own multi-token-prediction head.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowSpeculation {
    /// Tokens drafted per step.
    pub depth: u32,
    /// Chance that a drafted token is accepted when those before it were.
    pub acceptance: f64,
}

/// Predicted operation of one row; NaN where the model does not fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Time per output token, s.
    pub tpot_s: f64,
    /// Time to first token, s, waiting for a slot included.
    pub ttft_s: f64,
    /// Output tokens/s per chip.
    pub output_tps_per_chip: f64,
    /// Decode step, s.
    pub decode_step_s: f64,
}

impl RowSet {
    /// Reads rows from JSON and checks their indices.
    ///
    /// # Errors
    /// [`CoreError`] naming what cannot be used.
    pub fn from_json(text: &str) -> Result<Self, CoreError> {
        let rows: Self =
            serde_json::from_str(text).map_err(|error| CoreError::Unreadable(error.to_string()))?;
        for accelerator in &rows.accelerators {
            accelerator.validate()?;
        }
        for row in &rows.rows {
            row.workload.validate()?;
            let is_known =
                row.model < rows.models.len() && row.accelerator < rows.accelerators.len();
            if !is_known {
                return Err(CoreError::bad_input(
                    "row",
                    format!("model {} accelerator {}", row.model, row.accelerator),
                    "expected known indices",
                ));
            }
            if let Some(RowSpeculation { depth, acceptance }) = row.speculation {
                Speculation::validate(depth, acceptance)?;
            }
            if let Some(reason) = row
                .layout
                .refusal(&rows.models[row.model], &rows.accelerators[row.accelerator])
                .filter(|_| row.layout.tp == 0 || row.layout.pp == 0 || row.layout.ep == 0)
            {
                return Err(CoreError::bad_input("layout", "0", reason));
            }
        }
        Ok(rows)
    }

    /// Predicts every row with its parameter set.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] when a row names a set that is not there.
    pub fn predict(&self, sets: &[EngineParameters]) -> Result<Vec<Prediction>, CoreError> {
        let jobs: Vec<Job> = (0..self.rows.len())
            .map(|row| Job {
                row,
                set: self.rows[row].set,
            })
            .collect();
        self.predict_jobs(&jobs, sets)
    }

    /// Predicts chosen rows, each with a chosen parameter set: many sets in one call, and no row that a set cannot
    /// touch (a Jacobian needs a column's own rows only).
    ///
    /// # Errors
    /// [`CoreError::BadInput`] when a job names a row or a set that is not there.
    pub fn predict_jobs(
        &self,
        jobs: &[Job],
        sets: &[EngineParameters],
    ) -> Result<Vec<Prediction>, CoreError> {
        jobs.par_iter()
            .with_min_len(64)
            .map(|job| {
                let (Some(row), Some(parameters)) = (self.rows.get(job.row), sets.get(job.set))
                else {
                    return Err(CoreError::bad_input(
                        "job",
                        format!("row {} set {}", job.row, job.set),
                        format!("expected below {} and {}", self.rows.len(), sets.len()),
                    ));
                };
                Ok(self.predict_row(row, parameters))
            })
            .collect()
    }

    fn predict_row(&self, row: &Row, parameters: &EngineParameters) -> Prediction {
        let mut best = self.predict_layout(row, row.layout, parameters);
        for layout in &row.alternatives {
            let other = self.predict_layout(row, *layout, parameters);
            let is_better = other.output_tps_per_chip > best.output_tps_per_chip;
            if is_better || best.output_tps_per_chip.is_nan() {
                best = other;
            }
        }
        best
    }

    fn predict_layout(
        &self,
        row: &Row,
        layout: Layout,
        parameters: &EngineParameters,
    ) -> Prediction {
        let model = &self.models[row.model];
        let accelerator = &self.accelerators[row.accelerator];
        let stack = Stack {
            accelerator: row.accelerator,
            label: String::new(),
            weight_precision: String::new(),
            weights: row.weights,
            kv_precision: row.kv_precision,
            parameters: *parameters,
            max_batch: None,
            cache_group: 0,
        };
        let osl = row.workload.osl;
        // A request that runs is a long one more often than one that arrives: at a random moment its length has mean
        // osl (1 + cv^2).
        let lengths = Lengths {
            osl: osl * (1.0 + row.osl_cv2),
            ..row.workload.lengths()
        };
        let mut step = StepModel::new(model, accelerator, &stack, layout, &lengths);
        let mut memory = MemoryPlan::new(model, accelerator, &stack, layout, &lengths);
        if let Some(RowSpeculation { depth, acceptance }) = row.speculation {
            let draft = DraftPlan::new(model, None, accelerator, &stack, layout, &lengths);
            let speculation = Speculation {
                depth,
                acceptance,
                draft: None,
            };
            step = step.with_speculation(&draft, &speculation);
            memory = memory.with_draft(&draft);
        }
        let ranks = f64::from(layout.attn_dp);
        let slots = f64::from(layout.pp);
        let per_rank = memory
            .capacity_requests(row.chunk_tokens)
            .min(row.max_batch.unwrap_or(f64::INFINITY));
        if per_rank < 1.0 {
            return Prediction::NONE;
        }
        if let (Some(pool), Scenario::Closed) = (row.prefill_pool, row.scenario) {
            let prefill = StepModel::new(model, accelerator, &stack, pool.layout, &lengths);
            let decode = Pool {
                layout,
                workers: row.workers,
                step: &step,
            };
            let prefill = Pool {
                layout: pool.layout,
                workers: pool.workers,
                step: &prefill,
            };
            let chips = prefill.chips() + decode.chips();
            let operation = closed_pools(
                prefill,
                decode,
                parameters,
                row.chunk_tokens,
                osl,
                row.concurrency,
                per_rank / slots,
            );
            return Prediction {
                tpot_s: operation.tpot_s,
                ttft_s: operation.ttft_s,
                output_tps_per_chip: operation.output_tps / chips,
                decode_step_s: operation.tpot_s,
            };
        }
        let saturated = Saturated::new(&step, layout, osl, row.chunk_tokens);
        let batch = per_rank / slots;
        let delivery = match row.scenario {
            Scenario::Closed => {
                return closed_loop(row, layout, parameters, &step, per_rank * ranks)
            }
            Scenario::Endless => saturated.endless(batch),
            Scenario::Burst {
                requests,
                longest_osl,
            } => saturated.burst(requests, batch, longest_osl),
            Scenario::Static => saturated.static_batch(row.concurrency / ranks / slots),
            Scenario::Limited(limits) => saturated.limited(batch, &limits),
            Scenario::Open { per_s, requests } => {
                let open = OpenLoop::new(
                    &step,
                    row.chunk_tokens,
                    osl,
                    &Arrivals {
                        per_s: per_s / ranks / slots,
                        requests: requests.unwrap_or(f64::INFINITY) / ranks / slots,
                        most_running: batch,
                        osl_cv2: row.osl_cv2,
                    },
                );
                Delivery {
                    tpot_s: open.tpot_s,
                    ttft_s: open.ttft_s,
                    output_tps: per_s.min(ranks * slots * open.batch / (osl * open.tpot_s)) * osl,
                    decode_step_s: step.decode_step_s(open.batch),
                }
            }
        };
        Prediction {
            tpot_s: delivery.tpot_s,
            ttft_s: delivery.ttft_s,
            output_tps_per_chip: delivery.output_tps / f64::from(layout.chips()),
            decode_step_s: delivery.decode_step_s,
        }
    }
}

impl Prediction {
    /// The model does not fit.
    const NONE: Self = Self {
        tpot_s: f64::NAN,
        ttft_s: f64::NAN,
        output_tps_per_chip: f64::NAN,
        decode_step_s: f64::NAN,
    };
}

/// A closed loop of `row.concurrency` clients on a replica that runs at most `capacity` requests.
fn closed_loop(
    row: &Row,
    layout: Layout,
    parameters: &EngineParameters,
    step: &StepModel,
    capacity: f64,
) -> Prediction {
    let running = row.concurrency.min(capacity);
    let parameters = &EngineParameters {
        burst_share: if row.in_waves {
            wave_share(row, layout, running)
        } else {
            parameters.burst_share
        },
        ..*parameters
    };
    let steady = SteadyState::new(
        parameters,
        layout,
        &step.prefill(row.chunk_tokens),
        row.workload.osl,
    )
    .with_tokens_per_step(step.tokens_per_step);
    let batch = batch_in_flight(step, &steady, running);
    let decode_step_s = step.decode_step_s(batch);
    let operation = steady.operation(batch, decode_step_s);
    // Requests beyond the capacity wait for one of the running ones to end.
    let wait_s = (row.concurrency / running - 1.0) * operation.e2e_s;
    let ttft_s = if row.ttft_is_median {
        // The burst that starts a run is a minority of its requests.
        let calm = EngineParameters {
            burst_share: 0.0,
            ..*parameters
        };
        let prefill = step.prefill(row.chunk_tokens);
        SteadyState::new(&calm, layout, &prefill, row.workload.osl)
            .operation(batch, decode_step_s)
            .ttft_s
    } else {
        operation.ttft_s
    };
    Prediction {
        tpot_s: operation.tpot_s,
        ttft_s: ttft_s + wait_s,
        output_tps_per_chip: operation.output_tps / f64::from(layout.chips()),
        decode_step_s,
    }
}

/// Share of a wave's prefill that its requests spend waiting for their first token rather than between later ones.
///
/// Prompts end one chunk after another; the one that ends after a share `x` of the wave's prefill waits for `x` of it
/// before its first token and for `1 - x` after it. With `g` of `b` prompts in a chunk the mean of `x` is `(1 + g/b) / 2`.
fn wave_share(row: &Row, layout: Layout, running: f64) -> f64 {
    let prompts = running / f64::from(layout.attn_dp * layout.pp);
    let in_a_chunk = row.chunk_tokens / row.workload.lengths().prompt_to_compute();
    0.5 * (1.0 + (in_a_chunk.max(1.0) / prompts).min(1.0))
}

/// The running batch per rank and slot at which `in_flight` requests are on the replica.
///
/// Requests in flight rise with the batch, from 0 at an empty replica.
#[must_use]
pub fn batch_in_flight(step: &StepModel, steady: &SteadyState, in_flight: f64) -> f64 {
    increasing_root(in_flight / steady.batches(), in_flight, |batch| {
        steady.operation(batch, step.decode_step_s(batch)).in_flight
    })
}
