//! Money: what owned hardware costs.

use pyo3::prelude::*;

use crate::convert::{to_json, to_python};

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
