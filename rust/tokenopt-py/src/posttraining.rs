//! Post-training: the search for a plan.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use tokenopt_core::error::CoreError;
use tokenopt_core::posttraining::{PosttrainProblem, StepWork, Switching};

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

/// Seconds of steps whose work is known: `works_json` a list of works, `switching` one row of (generation_factor,
/// training_factor, host_bytes_per_s, phase_overhead_s, refit_efficiency) each.
#[pyfunction]
pub(crate) fn posttraining_steps<'py>(
    py: Python<'py>,
    works_json: &str,
    switching: PyReadonlyArray2<'py, f64>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let works: Vec<StepWork> = serde_json::from_str(works_json)
        .map_err(|error| to_python(CoreError::Unreadable(error.to_string())))?;
    let table = switching.as_array();
    if table.nrows() != works.len() || table.ncols() != 5 {
        return Err(to_python(CoreError::bad_input(
            "shape of switching",
            format!("{} x {}", table.nrows(), table.ncols()),
            format!("expected {} x 5", works.len()),
        )));
    }
    let mut seconds = Vec::with_capacity(works.len());
    for (work, row) in works.iter().zip(table.rows()) {
        let software = Switching {
            generation_factor: row[0],
            training_factor: row[1],
            host_bytes_per_s: row[2],
            phase_overhead_s: row[3],
            refit_efficiency: row[4],
        };
        software.validate().map_err(to_python)?;
        seconds.push(software.step_s(work));
    }
    Ok(seconds.into_pyarray(py))
}
