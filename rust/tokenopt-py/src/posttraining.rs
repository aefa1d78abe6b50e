//! Post-training: the search for a plan.

use pyo3::prelude::*;
use tokenopt_core::posttraining::PosttrainProblem;

use crate::convert::{to_json, to_python};
use crate::run::detached;

/// Searches for a post-training plan; JSON problem in, JSON answer out.
#[pyfunction]
pub(crate) fn posttrain(py: Python<'_>, problem_json: &str) -> PyResult<String> {
    let problem = PosttrainProblem::from_json(problem_json).map_err(to_python)?;
    let answer = detached(py, |stop| {
        tokenopt_core::posttraining::posttrain(&problem, stop)
    })?;
    to_json(&answer)
}
