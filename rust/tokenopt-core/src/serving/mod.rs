//! Serving: layouts, memory, step times and the steady state of continuous batching.

pub mod closed_pools;
pub mod disagg;
pub mod layout;
pub mod memory;
pub mod offline;
pub mod open_loop;
pub mod queueing;
pub mod speculation;
pub mod steady;
pub mod step;

pub use layout::Layout;
pub use memory::MemoryPlan;
pub use offline::Saturated;
pub use open_loop::OpenLoop;
pub use queueing::{LoadModel, Traffic};
pub use speculation::{DraftModel, DraftPlan, Speculation};
pub use steady::SteadyState;
pub use step::StepModel;

use serde::{Deserialize, Serialize};

use crate::error::{require_positive, require_within, CoreError};
use crate::format::NumberFormat;
use crate::model::WeightFormats;
use crate::ops::attention::Lengths;
use crate::parameters::EngineParameters;

/// What the requests look like.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Prompt length, tokens.
    pub isl: f64,
    /// Output length, tokens.
    pub osl: f64,
    /// Share of the prompt found in the prefix cache.
    #[serde(default)]
    pub prefix_hit: f64,
}

impl Workload {
    /// Lengths as the operators need them. At least one prompt token is always computed.
    #[must_use]
    pub fn lengths(&self) -> Lengths {
        Lengths {
            isl: self.isl,
            osl: self.osl,
            cached: (self.isl * self.prefix_hit).min(self.isl - 1.0).max(0.0),
        }
    }

    /// Checks every figure.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        require_positive("isl", self.isl)?;
        require_positive("osl", self.osl)?;
        require_within("prefix_hit", self.prefix_hit, 0.0, 1.0)?;
        Ok(())
    }
}

/// Number formats and engine behaviour of one stack: what runs on the accelerator, before any layout is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stack {
    /// Index of the accelerator.
    pub accelerator: usize,
    /// Caller's name of engine and calibration date.
    pub label: String,
    /// Caller's name of the weight precision.
    pub weight_precision: String,
    /// Formats of the weights.
    pub weights: WeightFormats,
    /// Format of the KV cache.
    pub kv_precision: NumberFormat,
    /// Calibrated efficiencies and overheads.
    pub parameters: EngineParameters,
    /// Most requests that the engine runs at once on an attention rank unless told otherwise; absent = no limit.
    #[serde(default)]
    pub max_batch: Option<u32>,
    /// Stacks of the same group can hand caches to each other.
    #[serde(default)]
    pub cache_group: u32,
}
