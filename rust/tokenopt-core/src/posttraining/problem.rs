//! The problem as it crosses from Python: flat, validated once.

use serde::{Deserialize, Serialize};

use crate::accelerator::Accelerator;
use crate::error::{require_positive, require_within, CoreError};
use crate::model::ModelSpec;
use crate::serving::Stack;
use crate::training::run::{Checkpointing, Reliability};
use crate::training::search::problem::{TrainSpaceSpec, MOST_CHIPS};
use crate::training::search::TrainStack;
use crate::training::{OptimizerState, Recipe};

/// Everything a search for a post-training run needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosttrainProblem {
    /// Models in use; the first is the policy.
    pub models: Vec<ModelSpec>,
    /// What the policy generates in a step; absent = the sequences are given (preference data).
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// Sequences a step scores and trains on.
    pub sequences: f64,
    /// Mean length of a sequence, prompt and response, tokens.
    pub sequence_tokens: f64,
    /// Length of the longest sequence, tokens.
    pub longest_tokens: f64,
    /// Scoring and update passes, in order.
    pub passes: Vec<PassSpec>,
    /// Steps of the run.
    pub steps: f64,
    /// Chips in scope.
    pub accelerators: Vec<Accelerator>,
    /// Serving stacks that generate.
    pub engines: Vec<Stack>,
    /// Training stacks that score and update.
    pub trainers: Vec<TrainStack>,
    /// Most chips that may be paid for, all pools together.
    pub max_chips: u32,
    /// Wall time, days; absent = none.
    #[serde(default)]
    pub deadline_days: Option<f64>,
    /// Whether plans may overlap generation with training on the previous step's answers.
    #[serde(default)]
    pub may_overlap: bool,
    /// Placements that compete; absent = all.
    #[serde(default)]
    pub placements: Option<Vec<Placement>>,
    /// What "best" means.
    #[serde(default)]
    pub objective: PlanObjective,
    /// Sizes of pools that are tried, chips; absent = parts and multiples of a node.
    #[serde(default)]
    pub pool_chips: Option<Vec<u32>>,
    /// Tensor parallelism of engines that is tried; absent = all.
    #[serde(default)]
    pub engine_tp: Option<Vec<u32>>,
    /// Training layouts that are tried; absent axes = all.
    #[serde(default)]
    pub trainer_space: TrainSpaceSpec,
    /// What lies between stages.
    #[serde(default)]
    pub switching: Switching,
    /// Failures.
    #[serde(default)]
    pub reliability: Reliability,
    /// Checkpoints.
    #[serde(default)]
    pub checkpoint: Checkpointing,
    /// Most requests an attention rank decodes at once.
    #[serde(default = "default_batch")]
    pub max_batch: u32,
    /// Plans wanted in `best`.
    #[serde(default = "ten")]
    pub top: usize,
}

fn ten() -> usize {
    10
}

fn default_batch() -> u32 {
    1024
}

/// What a search for a plan minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanObjective {
    /// USD of the run.
    #[default]
    Cost,
    /// Wall time.
    Time,
}

/// How stages share chips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// All on the same chips, one after the other.
    Colocated,
    /// Generation on one pool, scoring and updates on another.
    Split,
    /// Generation, scoring and updates on a pool each.
    Separate,
}

/// What the policy generates in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Prompts.
    pub prompts: f64,
    /// Answers to each prompt.
    pub samples: f64,
    /// Prompt length, tokens.
    pub prompt_tokens: f64,
    /// Mean answer length, tokens.
    pub response_tokens: f64,
    /// Standard deviation of the answer length over its mean.
    pub response_spread: f64,
    /// Length at which answers are cut, tokens.
    pub max_response_tokens: f64,
}

/// One pass over a step's sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassSpec {
    /// Name in the answer.
    pub name: String,
    /// Index of the model.
    pub model: usize,
    /// What is done.
    pub kind: PassKind,
}

/// What a pass does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PassKind {
    /// A forward pass: log-probabilities, values, rewards.
    Forward {
        /// Whether logits over the vocabulary are computed.
        has_head: bool,
    },
    /// Forward, backward and optimizer.
    Update {
        /// What is updated.
        recipe: Recipe,
        /// Passes over the step's sequences.
        epochs: f64,
        /// Optimizer steps of one pass.
        minibatches: f64,
        /// What the optimizer keeps.
        optimizer: OptimizerState,
    },
    /// Work off the accelerators (a verifier, a sandbox) that the step waits for, s.
    External {
        /// How long.
        seconds: f64,
    },
}

/// What the software of a step adds to what its operators take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Switching {
    /// Time of generation over that of the serving model.
    pub generation_factor: f64,
    /// Time of scoring and updates over that of the training model on even, full batches.
    pub training_factor: f64,
    /// Rate at which a chip moves state to host memory and back, bytes/s.
    pub host_bytes_per_s: f64,
    /// Waking, sleeping and rebuilding of an engine or trainer when a pool changes its stage, s.
    pub phase_overhead_s: f64,
    /// Share of the link rate at which trainers hand weights to engines.
    pub refit_efficiency: f64,
}

impl Default for Switching {
    fn default() -> Self {
        Self {
            generation_factor: 1.0,
            training_factor: 1.0,
            host_bytes_per_s: 25e9,
            phase_overhead_s: 3.0,
            refit_efficiency: 0.4,
        }
    }
}

/// What the pools of a step do, as the models of serving and training say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepWork {
    /// Generation, s.
    pub generation_s: f64,
    /// Scoring on a pool of its own, s; 0 when the pool that updates also scores.
    pub scoring_s: f64,
    /// All other scoring and updates, s.
    pub training_s: f64,
    /// Time off the accelerators, s.
    pub external_s: f64,
    /// Changes of stage in a scoring pool.
    pub scoring_changes: f64,
    /// Changes of stage in the pool that updates, those from and to generation included.
    pub training_changes: f64,
    /// Weights over the link rate, s.
    pub refit_s: f64,
    /// State a chip moves to the host and back, bytes.
    pub moved_bytes: f64,
    /// Whether pools work at the same time.
    pub is_overlapped: bool,
}

impl Switching {
    /// Seconds of a step.
    ///
    /// Source: a synchronous step is the sum of its stages, an overlapped one the longest of its pools; weights, moved
    /// state and changes of stage come on top.
    #[inline(always)]
    #[must_use]
    pub fn step_s(&self, work: &StepWork) -> f64 {
        let generation_s = self.generation_factor * work.generation_s;
        let scoring_s = self.pool_s(work.scoring_s, work.scoring_changes);
        let training_s = self.pool_s(work.training_s, work.training_changes) + work.external_s;
        let busy_s = if work.is_overlapped {
            generation_s.max(scoring_s).max(training_s)
        } else {
            generation_s + scoring_s + training_s
        };
        busy_s + self.refit_s(work) + self.moving_s(work)
    }

    /// Seconds of a pool that scores or updates.
    #[inline(always)]
    #[must_use]
    pub fn pool_s(&self, seconds: f64, changes: f64) -> f64 {
        self.training_factor * seconds + self.phase_overhead_s * changes
    }

    /// Seconds until new weights are in the engines.
    #[inline(always)]
    #[must_use]
    pub fn refit_s(&self, work: &StepWork) -> f64 {
        work.refit_s / self.refit_efficiency
    }

    /// Seconds in which state goes to the host and comes back.
    #[inline(always)]
    #[must_use]
    pub fn moving_s(&self, work: &StepWork) -> f64 {
        work.moved_bytes / self.host_bytes_per_s
    }

    /// Checks every figure.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        require_within("generation_factor", self.generation_factor, 0.01, 100.0)?;
        require_within("training_factor", self.training_factor, 0.01, 100.0)?;
        require_positive("host_bytes_per_s", self.host_bytes_per_s)?;
        require_within("phase_overhead_s", self.phase_overhead_s, 0.0, 1e5)?;
        require_within("refit_efficiency", self.refit_efficiency, 0.001, 100.0)?;
        Ok(())
    }
}

impl Rollout {
    /// Answers of a step.
    #[must_use]
    pub fn answers(&self) -> f64 {
        self.prompts * self.samples
    }

    /// Expected length of the longest answer of a step, tokens.
    ///
    /// Source: lengths are log-normal; the largest of `n` standard normals lies near
    /// `sqrt(2 ln n) - (ln ln n + ln 4 pi) / (2 sqrt(2 ln n))` (extreme value theory, Gumbel limit).
    /// Assumes: cutting answers does not change their mean, which is what was given.
    #[must_use]
    pub fn longest_response_tokens(&self) -> f64 {
        let variance = self.response_spread.powi(2).ln_1p();
        let longest = self.response_tokens
            * (variance.sqrt() * largest_normal(self.answers()) - 0.5 * variance).exp();
        longest
            .max(self.response_tokens)
            .min(self.max_response_tokens)
    }
}

/// Expected largest of `count` standard normals.
#[must_use]
pub fn largest_normal(count: f64) -> f64 {
    if count < 2.0 {
        return 0.0;
    }
    let root = (2.0 * count.ln()).sqrt();
    (root - (count.ln().ln() + (4.0 * std::f64::consts::PI).ln()) / (2.0 * root)).max(0.0)
}

impl PosttrainProblem {
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
        for model in &self.models {
            model
                .validate()
                .map_err(|message| CoreError::bad_input("model", &model.key, message))?;
        }
        require_positive("sequences", self.sequences)?;
        require_positive("sequence_tokens", self.sequence_tokens)?;
        require_within(
            "longest_tokens",
            self.longest_tokens,
            self.sequence_tokens,
            1e9,
        )?;
        require_positive("steps", self.steps)?;
        require_within(
            "max_chips",
            f64::from(self.max_chips),
            1.0,
            f64::from(MOST_CHIPS),
        )?;
        if let Some(days) = self.deadline_days {
            require_positive("deadline_days", days)?;
        }
        if let Some(rollout) = &self.rollout {
            for (name, value) in [
                ("prompts", rollout.prompts),
                ("samples", rollout.samples),
                ("prompt_tokens", rollout.prompt_tokens),
                ("response_tokens", rollout.response_tokens),
            ] {
                require_positive(name, value)?;
            }
            require_within("response_spread", rollout.response_spread, 0.0, 10.0)?;
            require_within(
                "max_response_tokens",
                rollout.max_response_tokens,
                rollout.response_tokens,
                1e9,
            )?;
        }
        for (name, values) in [
            ("pool_chips", &self.pool_chips),
            ("engine_tp", &self.engine_tp),
        ] {
            for value in values.iter().flatten() {
                require_within(name, f64::from(*value), 1.0, f64::from(MOST_CHIPS))?;
            }
        }
        self.switching.validate()?;
        for pass in &self.passes {
            if pass.model >= self.models.len() {
                return Err(CoreError::bad_input(
                    format!("model of pass {}", pass.name),
                    pass.model,
                    format!("expected below {}", self.models.len()),
                ));
            }
            match pass.kind {
                PassKind::Forward { .. } => {}
                PassKind::Update {
                    epochs,
                    minibatches,
                    ..
                } => {
                    require_positive("epochs", epochs)?;
                    require_within("minibatches", minibatches, 1.0, self.sequences)?;
                }
                PassKind::External { seconds } => {
                    require_within("seconds", seconds, 0.0, 1e7)?;
                }
            }
        }
        for accelerator in &self.accelerators {
            accelerator.validate()?;
        }
        let count = self.accelerators.len();
        let places = self.engines.iter().map(|stack| stack.accelerator);
        for place in places.chain(self.trainers.iter().map(|stack| stack.accelerator)) {
            if place >= count {
                return Err(CoreError::bad_input(
                    "accelerator of a stack",
                    place,
                    format!("expected below {count}"),
                ));
            }
        }
        for stack in &self.engines {
            stack.parameters.validate()?;
        }
        for stack in &self.trainers {
            stack.parameters.validate()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_many_is_found_in_tables() {
        // Expected maxima of 10, 100 and 1,000 standard normals: 1.539, 2.508, 3.241 (Harter 1961).
        for (count, expected) in [(10.0, 1.539), (100.0, 2.508), (1000.0, 3.241)] {
            assert!((largest_normal(count) - expected).abs() < 0.2, "{count}");
        }
    }

    #[test]
    fn a_step_adds_up_and_overlap_takes_the_longest() {
        let switching = Switching {
            generation_factor: 1.5,
            training_factor: 2.0,
            host_bytes_per_s: 1e9,
            phase_overhead_s: 1.0,
            refit_efficiency: 0.5,
        };
        let mut work = StepWork {
            generation_s: 10.0,
            training_s: 6.0,
            training_changes: 3.0,
            refit_s: 2.0,
            moved_bytes: 5e9,
            ..StepWork::default()
        };
        // 15 + 12 + 3 + 4 + 5
        assert!((switching.step_s(&work) - 39.0).abs() < 1e-12);
        // max(15, 15) + 4 + 5
        work.is_overlapped = true;
        assert!((switching.step_s(&work) - 24.0).abs() < 1e-12);
    }

    #[test]
    fn the_longest_answer_is_cut() {
        let rollout = Rollout {
            prompts: 64.0,
            samples: 16.0,
            prompt_tokens: 500.0,
            response_tokens: 2000.0,
            response_spread: 0.8,
            max_response_tokens: 8192.0,
        };
        assert!(rollout.longest_response_tokens() > 4.0 * 2000.0);
        let even = Rollout {
            response_spread: 0.0,
            ..rollout
        };
        assert!((even.longest_response_tokens() - 2000.0).abs() < 1e-9);
        let cut = Rollout {
            max_response_tokens: 4096.0,
            ..rollout
        };
        assert!((cut.longest_response_tokens() - 4096.0).abs() < 1e-9);
    }
}
