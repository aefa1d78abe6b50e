//! Prediction of given operating points (measured rows), many parameter sets at a time: what calibration fits and
//! validation scores. The formulas are those of the search.

use rayon::prelude::*;
use serde::Deserialize;

use crate::accelerator::Accelerator;
use crate::error::CoreError;
use crate::model::ModelSpec;
use crate::parameters::EngineParameters;
use crate::serving::{Layout, MemoryPlan, Stack, SteadyState, StepModel, Workload};

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
    /// Requests in flight on the replica.
    pub concurrency: f64,
    /// Prefill chunk, tokens.
    pub chunk_tokens: f64,
    /// Most requests an attention rank runs at once, absent = memory decides.
    #[serde(default)]
    pub max_batch: Option<f64>,
}

/// A row to predict, and the parameter set to predict it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Index of the row.
    pub row: usize,
    /// Index of the parameter set.
    pub set: usize,
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
        let model = &self.models[row.model];
        let accelerator = &self.accelerators[row.accelerator];
        let stack = Stack {
            accelerator: row.accelerator,
            label: String::new(),
            weight_precision: String::new(),
            weights: row.weights,
            kv_precision: row.kv_precision,
            parameters: *parameters,
        };
        let lengths = row.workload.lengths();
        let step = StepModel::new(model, accelerator, &stack, row.layout, &lengths);
        let memory = MemoryPlan::new(model, accelerator, &stack, row.layout, &lengths);
        let steady = SteadyState::new(
            parameters,
            row.layout,
            &step.prefill(row.chunk_tokens),
            row.workload.osl,
        );
        let capacity = memory
            .capacity_requests(row.chunk_tokens)
            .min(row.max_batch.unwrap_or(f64::INFINITY))
            * f64::from(row.layout.attn_dp);
        let running = row.concurrency.min(capacity);
        if running < 1.0 {
            return Prediction {
                tpot_s: f64::NAN,
                ttft_s: f64::NAN,
                output_tps_per_chip: f64::NAN,
                decode_step_s: f64::NAN,
            };
        }
        let batch = batch_in_flight(&step, &steady, running);
        let decode_step_s = step.decode_step_s(batch);
        let operation = steady.operation(batch, decode_step_s);
        // Requests beyond the capacity wait for one of the running ones to end.
        let wait_s = (row.concurrency / running - 1.0) * operation.e2e_s;
        Prediction {
            tpot_s: operation.tpot_s,
            ttft_s: operation.ttft_s + wait_s,
            output_tps_per_chip: operation.output_tps / f64::from(row.layout.chips()),
            decode_step_s,
        }
    }
}

/// The running batch per rank and slot at which `in_flight` requests are on the replica.
///
/// Requests in flight rise with the batch, from 0 at an empty replica. The root is bracketed and found by false position
/// with the Illinois rule, to 1e-12 of the bracket: about a fourth of the evaluations that halving would need.
#[must_use]
pub fn batch_in_flight(step: &StepModel, steady: &SteadyState, in_flight: f64) -> f64 {
    const MOST_EVALUATIONS: u32 = 60;
    const TOLERANCE: f64 = 1e-12;
    let excess = |batch: f64| {
        let operation = steady.operation(batch, step.decode_step_s(batch));
        operation.in_flight - in_flight
    };
    let mut low = 0.0;
    let mut high = in_flight / steady.batches();
    let width = high;
    let mut excess_low = -in_flight;
    let mut excess_high = excess(high);
    if excess_high <= 0.0 {
        return high;
    }
    let mut kept = 0;
    for _ in 0..MOST_EVALUATIONS {
        let guess =
            (high - excess_high * (high - low) / (excess_high - excess_low)).clamp(low, high);
        let excess_guess = excess(guess);
        if excess_guess.abs() <= TOLERANCE * in_flight || high - low <= TOLERANCE * width {
            return guess;
        }
        if excess_guess < 0.0 {
            low = guess;
            excess_low = excess_guess;
            // The same end kept twice: halve its value, so that it moves too.
            if kept == 1 {
                excess_high *= 0.5;
            }
            kept = 1;
        } else {
            high = guess;
            excess_high = excess_guess;
            if kept == -1 {
                excess_low *= 0.5;
            }
            kept = -1;
        }
    }
    high
}
