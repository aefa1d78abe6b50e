//! The problem as it crosses from Python: flat, validated once.

use serde::{Deserialize, Serialize};

use crate::accelerator::Accelerator;
use crate::error::{require_positive, require_within, CoreError};
use crate::model::ModelSpec;
use crate::money::Demand;
use crate::ops::attention::Lengths;
use crate::serving::speculation::acceptance_of;
use crate::serving::{DraftModel, Speculation, Stack, Traffic, Workload};

/// Everything a search needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchProblem {
    /// Model to serve.
    pub model: ModelSpec,
    /// What requests look like.
    pub workload: Workload,
    /// How requests arrive, and which share of them the limits hold for.
    #[serde(default)]
    pub traffic: Traffic,
    /// What must hold.
    pub limits: Limits,
    /// What the fleet must deliver.
    pub demand: Demand,
    /// Chips in scope.
    pub accelerators: Vec<Accelerator>,
    /// Engine x formats on those chips.
    pub stacks: Vec<Stack>,
    /// What is tried on each stack.
    pub space: SpaceSpec,
    /// What "best" means.
    #[serde(default)]
    pub objective: Objective,
    /// Solutions wanted in `best`.
    #[serde(default = "ten")]
    pub top: usize,
    /// Evaluate everything instead of skipping what cannot win.
    #[serde(default)]
    pub exhaustive: bool,
    /// Threads; 0 = all.
    #[serde(default)]
    pub threads: usize,
    /// Prefill and decode together, apart, or whichever is better.
    #[serde(default)]
    pub disagg: DisaggSpec,
    /// Speculative decoding; absent = none.
    #[serde(default)]
    pub speculation: Option<SpeculationSpec>,
    /// The one configuration that `explain` breaks down.
    #[serde(default)]
    pub point: Option<PointSpec>,
}

/// Which modes are tried, and how pools may be put together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DisaggSpec {
    /// Modes tried.
    pub mode: Mode,
    /// Accelerators that may prefill; absent = all.
    pub prefill_accelerators: Option<Vec<usize>>,
    /// Accelerators that may decode; absent = all.
    pub decode_accelerators: Option<Vec<usize>>,
    /// Whether the pools of a fleet may sit on different accelerators.
    pub is_mixed: bool,
    /// Share of the cache transfer that hides behind the prefill of later layers, 0..1.
    pub transfer_overlap: f64,
}

/// Modes that a search tries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Aggregated only.
    #[default]
    Agg,
    /// Disaggregated only.
    Disagg,
    /// Both.
    Auto,
}

/// Speculative decoding as it is searched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeculationSpec {
    /// Tokens drafted per step that are tried; 0 = none.
    pub depths: Vec<u32>,
    /// Chance that a drafted token is accepted when those before it were, 0..1.
    pub acceptance: f64,
    /// Mean output tokens of a request in a step of the deepest draft; takes the place of `acceptance`.
    #[serde(default)]
    pub accepted_tokens: Option<f64>,
    /// The draft model; absent = the model's own multi-token-prediction head.
    #[serde(default)]
    pub draft: Option<DraftModel>,
}

fn ten() -> usize {
    10
}

/// Limits on latency and size; absent = none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Time per output token, s.
    pub tpot_s: Option<f64>,
    /// Time to first token, s.
    pub ttft_s: Option<f64>,
    /// Whole request, s.
    pub e2e_s: Option<f64>,
    /// Least tokens/s a user sees.
    pub min_tps_per_user: Option<f64>,
    /// Most chips the fleet may pay for.
    pub max_chips: Option<u32>,
}

/// What a search minimises (or, for throughput, maximises).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// USD per million tokens.
    #[default]
    Cost,
    /// kWh per million tokens.
    Energy,
    /// Output tokens/s per chip.
    Throughput,
}

/// Values tried; absent = everything the model and the accelerator allow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpaceSpec {
    /// Tensor parallelism.
    #[serde(default)]
    pub tp: Option<Vec<u32>>,
    /// Pipeline stages.
    #[serde(default)]
    pub pp: Option<Vec<u32>>,
    /// Expert parallelism.
    #[serde(default)]
    pub ep: Option<Vec<u32>>,
    /// Attention data parallelism.
    #[serde(default)]
    pub attn_dp: Option<Vec<u32>>,
    /// Prefill chunk sizes, tokens.
    #[serde(default)]
    pub chunk_tokens: Option<Vec<u32>>,
    /// Largest running batch of an attention rank.
    #[serde(default = "default_max_batch")]
    pub max_batch: u32,
    /// Largest replica, chips.
    #[serde(default = "default_max_replica")]
    pub max_chips_per_replica: u32,
}

fn default_max_batch() -> u32 {
    4096
}

fn default_max_replica() -> u32 {
    320
}

/// One configuration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointSpec {
    /// Index of the stack.
    pub stack: usize,
    /// Tensor parallelism.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Expert parallelism.
    pub ep: u32,
    /// Attention data parallelism.
    pub attn_dp: u32,
    /// Prefill chunk, tokens.
    pub chunk_tokens: u32,
    /// Running batch per attention rank and pipeline slot.
    pub batch: u32,
    /// Tokens drafted per step.
    #[serde(default)]
    pub depth: u32,
    /// Prefill pool of a disaggregated fleet, whose decode workers the other fields describe; absent = a replica.
    #[serde(default)]
    pub prefill: Option<PrefillPoint>,
}

/// The prefill pool of one configuration, and how the fleet is sized.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillPoint {
    /// Index of the stack.
    pub stack: usize,
    /// Tensor parallelism.
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
    /// Caller's index of the offer.
    pub offer: u32,
    /// Caller's index of the decode pool's offer.
    pub decode_offer: u32,
}

impl SearchProblem {
    /// Lengths that step times and memory are worked out for.
    #[must_use]
    pub fn lengths(&self) -> Lengths {
        self.traffic.lengths(&self.workload)
    }

    /// Reads a problem from JSON and validates it.
    ///
    /// # Errors
    /// [`CoreError`] naming what cannot be used.
    pub fn from_json(text: &str) -> Result<Self, CoreError> {
        let mut problem: Self =
            serde_json::from_str(text).map_err(|error| CoreError::Unreadable(error.to_string()))?;
        if let Some(spec) = &mut problem.speculation {
            if let Some(tokens) = spec.accepted_tokens {
                require_positive("accepted_tokens", tokens)?;
                let deepest = spec.depths.iter().copied().max().unwrap_or(0);
                spec.acceptance = acceptance_of(deepest, tokens);
            }
        }
        problem.validate()?;
        Ok(problem)
    }

    /// Depths of speculation to try; at least one.
    pub fn depths(&self) -> Vec<u32> {
        match &self.speculation {
            Some(spec) if !spec.depths.is_empty() => {
                let mut depths = spec.depths.clone();
                depths.sort_unstable();
                depths.dedup();
                depths
            }
            _ => vec![0],
        }
    }

    /// Whether only disaggregated fleets are tried.
    #[must_use]
    pub fn is_disagg_only(&self) -> bool {
        self.disagg.mode == Mode::Disagg
    }

    /// Checks everything that crosses the border.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        self.model
            .validate()
            .map_err(|message| CoreError::bad_input("model", &self.model.key, message))?;
        self.workload.validate()?;
        self.traffic.validate()?;
        self.demand.validate()?;
        let limits = &self.limits;
        for (name, limit) in [
            ("tpot_s", limits.tpot_s),
            ("ttft_s", limits.ttft_s),
            ("e2e_s", limits.e2e_s),
            ("min_tps_per_user", limits.min_tps_per_user),
        ] {
            if let Some(value) = limit {
                require_positive(name, value)?;
            }
        }
        if limits.max_chips == Some(0) {
            return Err(CoreError::bad_input("max_chips", 0, "expected at least 1"));
        }
        if self.space.max_batch == 0 || self.space.max_batch > 1 << 20 {
            return Err(CoreError::bad_input(
                "max_batch",
                self.space.max_batch,
                "expected 1 to 1048576",
            ));
        }
        for (name, values) in [
            ("tp", &self.space.tp),
            ("pp", &self.space.pp),
            ("ep", &self.space.ep),
            ("attn_dp", &self.space.attn_dp),
            ("chunk_tokens", &self.space.chunk_tokens),
        ] {
            if values.as_ref().is_some_and(|list| list.contains(&0)) {
                return Err(CoreError::bad_input(name, 0, "expected at least 1"));
            }
        }
        if self.disagg.mode == Mode::Disagg && !self.traffic.is_plain() {
            return Err(CoreError::bad_input(
                "mode",
                "disagg",
                "expected agg: percentiles and open arrivals are worked out for aggregated serving",
            ));
        }
        require_within("transfer_overlap", self.disagg.transfer_overlap, 0.0, 1.0)?;
        for (name, list) in [
            ("prefill_accelerators", &self.disagg.prefill_accelerators),
            ("decode_accelerators", &self.disagg.decode_accelerators),
        ] {
            let unknown = |index: &&usize| **index >= self.accelerators.len();
            if let Some(index) = list.iter().flatten().find(unknown) {
                let most = self.accelerators.len();
                return Err(CoreError::bad_input(
                    name,
                    index,
                    format!("expected below {most}"),
                ));
            }
        }
        if let Some(spec) = &self.speculation {
            for depth in &spec.depths {
                Speculation::validate(*depth, spec.acceptance)?;
            }
            if let Some(draft) = &spec.draft {
                draft.model.validate().map_err(|message| {
                    CoreError::bad_input("draft model", &draft.model.key, message)
                })?;
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
}
