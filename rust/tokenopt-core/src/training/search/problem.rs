//! The problem as it crosses from Python: flat, validated once.

use serde::{Deserialize, Serialize};

use crate::accelerator::Accelerator;
use crate::error::{require_positive, require_within, CoreError};
use crate::model::ModelSpec;
use crate::training::run::RunSpec;
use crate::training::{
    Recompute, Schedule, Sharding, TrainingFormat, TrainingJob, TrainingParameters,
};

/// Everything a search for a training run needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainProblem {
    /// Model to train.
    pub model: ModelSpec,
    /// What is trained; the format is that of the stack.
    pub job: TrainingJob,
    /// Share by which a layout may round the global batch, 0 = it must divide exactly.
    #[serde(default)]
    pub batch_tolerance: f64,
    /// The run.
    pub run: RunSpec,
    /// What must hold.
    #[serde(default)]
    pub limits: TrainLimits,
    /// Chips in scope.
    pub accelerators: Vec<Accelerator>,
    /// Software and formats on those chips.
    pub stacks: Vec<TrainStack>,
    /// What is tried on each stack.
    #[serde(default)]
    pub space: TrainSpaceSpec,
    /// What "best" means.
    #[serde(default)]
    pub objective: TrainObjective,
    /// Solutions wanted in `best`.
    #[serde(default = "ten")]
    pub top: usize,
    /// Evaluate everything instead of skipping what cannot win.
    #[serde(default)]
    pub exhaustive: bool,
    /// Threads; 0 = all.
    #[serde(default)]
    pub threads: usize,
}

fn ten() -> usize {
    10
}

/// Software, number format and calibration on one accelerator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainStack {
    /// Index of the accelerator.
    pub accelerator: usize,
    /// Caller's name of the stack.
    pub label: String,
    /// Format of the linear layers.
    pub format: TrainingFormat,
    /// Calibrated efficiencies and overheads.
    #[serde(default)]
    pub parameters: TrainingParameters,
}

/// Most chips of one job that are tried when no budget is given.
pub const MOST_CHIPS: u32 = 100_000;

/// Limits of a run; absent = none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainLimits {
    /// Wall time, days.
    pub deadline_days: Option<f64>,
    /// Most chips that may be paid for.
    pub max_chips: u32,
    /// Least chips that train.
    pub min_chips: u32,
    /// Most USD for the run.
    pub max_usd: Option<f64>,
}

impl Default for TrainLimits {
    fn default() -> Self {
        Self {
            deadline_days: None,
            max_chips: MOST_CHIPS,
            min_chips: 1,
            max_usd: None,
        }
    }
}

/// What a search minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainObjective {
    /// USD per million tokens.
    #[default]
    Cost,
    /// Wall time.
    Time,
    /// kWh per million tokens.
    Energy,
}

/// Values tried; absent = everything the model, the batch and the accelerator allow.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSpaceSpec {
    /// Tensor parallelism.
    pub tp: Option<Vec<u32>>,
    /// Pipeline stages.
    pub pp: Option<Vec<u32>>,
    /// Chunks of layers a stage holds.
    pub vpp: Option<Vec<u32>>,
    /// Context parallelism.
    pub cp: Option<Vec<u32>>,
    /// Expert parallelism.
    pub ep: Option<Vec<u32>>,
    /// Data parallelism.
    pub dp: Option<Vec<u32>>,
    /// Sequences of a micro-batch.
    pub micro_batch: Option<Vec<u32>>,
    /// Sharding.
    pub sharding: Option<Vec<Sharding>>,
    /// Recomputation.
    pub recompute: Option<Vec<Recompute>>,
    /// Pipeline schedules.
    pub schedule: Option<Vec<Schedule>>,
}

impl TrainProblem {
    /// Reads a problem from JSON and validates it.
    ///
    /// # Errors
    /// [`CoreError`] naming what cannot be used.
    pub fn from_json(text: &str) -> Result<Self, CoreError> {
        let problem: Self =
            serde_json::from_str(text).map_err(|error| CoreError::Unreadable(error.to_string()))?;
        problem.validate()?;
        Ok(problem)
    }

    /// Checks everything that crosses the border.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        self.model
            .validate()
            .map_err(|message| CoreError::bad_input("model", &self.model.key, message))?;
        self.job.validate()?;
        self.run.validate()?;
        require_within("batch_tolerance", self.batch_tolerance, 0.0, 0.5)?;
        if self.batch_tolerance == 0.0 && self.job.global_batch.fract() != 0.0 {
            return Err(CoreError::bad_input(
                "global_batch",
                self.job.global_batch,
                "expected a whole number of sequences",
            ));
        }
        require_within("global_batch", self.job.global_batch, 0.5, 1e8)?;
        for (name, limit) in [
            ("deadline_days", self.limits.deadline_days),
            ("max_usd", self.limits.max_usd),
        ] {
            if let Some(value) = limit {
                require_positive(name, value)?;
            }
        }
        require_within(
            "max_chips",
            f64::from(self.limits.max_chips),
            1.0,
            f64::from(MOST_CHIPS),
        )?;
        require_within(
            "min_chips",
            f64::from(self.limits.min_chips),
            1.0,
            f64::from(self.limits.max_chips),
        )?;
        let space = &self.space;
        for (name, values) in [
            ("tp", &space.tp),
            ("pp", &space.pp),
            ("vpp", &space.vpp),
            ("cp", &space.cp),
            ("ep", &space.ep),
            ("dp", &space.dp),
            ("micro_batch", &space.micro_batch),
        ] {
            for value in values.iter().flatten() {
                require_within(name, f64::from(*value), 1.0, f64::from(MOST_CHIPS))?;
            }
        }
        for accelerator in &self.accelerators {
            accelerator.validate()?;
        }
        for stack in &self.stacks {
            if stack.accelerator >= self.accelerators.len() {
                return Err(CoreError::bad_input(
                    format!("accelerator of stack {}", stack.label),
                    stack.accelerator,
                    format!("expected below {}", self.accelerators.len()),
                ));
            }
            stack.parameters.validate()?;
        }
        Ok(())
    }

    /// The job in the format of a stack.
    #[must_use]
    pub fn job_of(&self, stack: &TrainStack) -> TrainingJob {
        TrainingJob {
            format: stack.format,
            ..self.job
        }
    }
}
