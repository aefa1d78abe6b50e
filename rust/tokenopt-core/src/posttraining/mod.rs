//! Post-training: a step of stages that are unlike each other, each on hardware of its own or all on the same.
//!
//! Generation is the serving model ([`crate::serving::offline`]), scoring the forward pass and updates the step of the
//! training model ([`crate::training`]); nothing of either is repeated here. What this module adds is what lies between:
//! which chips run which stage, what switching and moving weights costs, and how stages overlap.

pub mod answer;
pub mod plan;
mod pool;
pub mod problem;
pub mod stages;

pub use answer::{PosttrainAnswer, PosttrainPlan, StageCost};
pub use plan::posttrain;
pub use problem::{
    PassKind, PassSpec, Placement, PlanObjective, PosttrainProblem, Rollout, StepWork, Switching,
};
