//! Cost and performance model of AI accelerators, and the search over it.
//!
//! Data flows one way: a [`search::SearchProblem`] (plain numbers compiled by the Python side) goes in, a small
//! [`search::SearchAnswer`] comes out. Every formula of time, memory, cost and feasibility lives in this crate and is
//! written once: the vectorised scan, the breakdown of one point and the prediction of measured rows all evaluate the
//! same operators.

pub mod accelerator;
pub mod count;
pub mod error;
pub mod explain;
pub mod format;
pub mod model;
pub mod money;
pub mod odds;
pub mod ops;
pub mod parameters;
pub mod posttraining;
pub mod predict;
pub mod price;
pub mod search;
pub mod serving;
pub mod simulate;
pub mod tco;
pub mod training;
