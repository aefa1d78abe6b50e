//! Money: what owned hardware costs.

use pyo3::prelude::*;

use crate::convert::{to_json, to_python};
use crate::run::detached;

/// Cost of an owned chip-hour, term by term; JSON problem in, JSON answer out.
#[pyfunction]
pub(crate) fn tco(problem_json: &str) -> PyResult<String> {
    to_json(&tokenopt_core::tco::tco(problem_json).map_err(to_python)?)
}

/// Prices replicas whose throughput is known; JSON problem in, one fleet or null a replica out.
#[pyfunction]
pub(crate) fn price(problem_json: &str) -> PyResult<String> {
    let problem =
        tokenopt_core::price::PricingProblem::from_json(problem_json).map_err(to_python)?;
    to_json(&problem.price())
}

/// What a chip-hour buys; JSON accelerator and price in, JSON answer out.
#[pyfunction]
pub(crate) fn chip_hour(question_json: &str) -> PyResult<String> {
    to_json(&tokenopt_core::price::ChipHour::from_json(question_json).map_err(to_python)?)
}

/// Chances of being the cheapest; JSON problem in, one answer a candidate out.
#[pyfunction]
pub(crate) fn odds(py: Python<'_>, problem_json: &str) -> PyResult<String> {
    let problem = tokenopt_core::odds::OddsProblem::from_json(problem_json).map_err(to_python)?;
    to_json(&detached(py, |_| Ok(problem.odds()))?)
}
