//! The answer as it crosses back to Python: small, with the contract's field names and units.

use serde::Serialize;

use super::problem::{Placement, StepWork};
use super::stages::StageLayout;

/// Answer of a search for a post-training run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PosttrainAnswer {
    /// Stage configurations worked out.
    pub evaluated: u64,
    /// Plans priced.
    pub plans: u64,
    /// Plans that meet the limits.
    pub feasible: u64,
    /// Best plans, cheapest first; one entry a placement and set of accelerators.
    pub best: Vec<PosttrainPlan>,
    /// Best plan of each placement, cheapest first.
    pub by_placement: Vec<PosttrainPlan>,
    /// Best plan on one accelerator, all stages on the same chips, cheapest first.
    pub by_accelerator: Vec<PosttrainPlan>,
    /// Each stage alone on each accelerator, cheapest first within a stage.
    pub by_stage: Vec<StageCost>,
    /// The fastest plan, when none meets the limits.
    pub nearest: Option<PosttrainPlan>,
    /// Longest answer of a step, tokens.
    pub longest_response_tokens: Option<f64>,
}

/// One stage on a pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageCost {
    /// Name of the stage.
    pub stage: String,
    /// Index of the accelerator.
    pub accelerator: usize,
    /// Index of the engine (generation) or trainer (all else).
    pub stack: usize,
    /// Chips paid for.
    pub chips: f64,
    /// Seconds a step.
    pub seconds: f64,
    /// USD a step while the stage runs, waiting not counted.
    pub usd_per_step: f64,
    /// Offer.
    pub offer: u32,
    /// Layout.
    pub layout: StageLayoutAnswer,
}

/// Layout of a stage, degrees that do not apply 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StageLayoutAnswer {
    /// Tensor parallelism.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Context parallelism.
    pub cp: u32,
    /// Expert parallelism.
    pub ep: u32,
    /// Data parallelism: attention ranks times replicas of an engine, ranks of a trainer.
    pub dp: u32,
    /// Requests decoded at once by an engine's rank, or sequences of a micro-batch.
    pub batch: f64,
}

impl From<&StageLayout> for StageLayoutAnswer {
    fn from(layout: &StageLayout) -> Self {
        match layout {
            StageLayout::Serving {
                layout,
                replicas,
                batch,
            } => Self {
                tp: layout.tp,
                pp: layout.pp,
                cp: 1,
                ep: layout.ep,
                dp: layout.attn_dp * replicas,
                batch: *batch,
            },
            StageLayout::Training(layout) => Self {
                tp: layout.tp,
                pp: layout.pp,
                cp: layout.cp,
                ep: layout.ep,
                dp: layout.dp,
                batch: f64::from(layout.micro_batch),
            },
            StageLayout::Host => Self {
                tp: 1,
                pp: 1,
                cp: 1,
                ep: 1,
                dp: 1,
                batch: 0.0,
            },
        }
    }
}

/// One pool of chips of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolAnswer {
    /// Index of the accelerator.
    pub accelerator: usize,
    /// Offer.
    pub offer: u32,
    /// Instances paid for.
    pub instances: f64,
    /// Chips paid for.
    pub chips: f64,
    /// USD per hour.
    pub usd_per_hr: f64,
    /// Share of the step in which the pool works.
    pub busy: f64,
    /// Its stages.
    pub stages: Vec<StageCost>,
}

/// One plan, priced.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PosttrainPlan {
    /// How stages share chips.
    pub placement: Placement,
    /// Whether generation overlaps with training on the answers of the step before.
    pub is_overlapped: bool,
    /// Pools.
    pub pools: Vec<PoolAnswer>,
    /// Seconds of a step.
    pub step_time_s: f64,
    /// Moving state out of the way and engines waking up, s a step.
    pub switch_s: f64,
    /// New weights to the engines, s a step.
    pub weight_sync_s: f64,
    /// Share of the step that is generation, as if alone.
    pub generation_share: f64,
    /// Chips paid for.
    pub chips: f64,
    /// USD per hour.
    pub usd_per_hr: f64,
    /// USD per step.
    pub usd_per_step: f64,
    /// USD of the run.
    pub usd_per_run: f64,
    /// USD per million tokens trained on.
    pub usd_per_m_tokens: f64,
    /// Wall time of the run, days.
    pub days: f64,
    /// Chip-hours paid for.
    pub gpu_hours: f64,
    /// kWh of the run.
    pub kwh_per_run: f64,
    /// Share of the wall time that makes progress.
    pub goodput: f64,
    /// Tokens trained on per second and chip paid for.
    pub tokens_per_s_per_chip: f64,
    /// What its pools do, before the software's additions.
    pub work: StepWork,
}
