//! Serving: search, explain, model counts, prediction of rows.

use numpy::{IntoPyArray, PyArray2, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use tokenopt_core::count;
use tokenopt_core::error::CoreError;
use tokenopt_core::model::ModelSpec;
use tokenopt_core::parameters::{EngineParameters, PARAMETERS};
use tokenopt_core::predict::{Job, Prediction, RowSet};
use tokenopt_core::search::continuous::Query;
use tokenopt_core::search::SearchProblem;
use tokenopt_core::simulate::SimulationSpec;

use crate::convert::{to_json, to_python};
use crate::run::detached;

/// Searches; JSON problem in, JSON answer out.
#[pyfunction]
pub(crate) fn search(py: Python<'_>, problem_json: &str) -> PyResult<String> {
    let problem = SearchProblem::from_json(problem_json).map_err(to_python)?;
    let answer = detached(py, |stop| tokenopt_core::search::search(&problem, stop))?;
    to_json(&answer)
}

/// Cheapest configurations in the continuous limit; JSON problem and questions in, points by accelerator and question out.
#[pyfunction]
pub(crate) fn continuous(
    py: Python<'_>,
    problem_json: &str,
    queries_json: &str,
) -> PyResult<String> {
    let problem = SearchProblem::from_json(problem_json).map_err(to_python)?;
    let queries: Vec<Query> = serde_json::from_str(queries_json)
        .map_err(|error| to_python(CoreError::Unreadable(error.to_string())))?;
    let answer = detached(py, |_| {
        tokenopt_core::search::continuous::continuous(&problem, &queries)
    })?;
    to_json(&answer)
}

/// Breaks down the configuration in `point`.
#[pyfunction]
pub(crate) fn explain(problem_json: &str) -> PyResult<String> {
    let problem = SearchProblem::from_json(problem_json).map_err(to_python)?;
    to_json(&tokenopt_core::explain::explain(&problem).map_err(to_python)?)
}

/// Simulates the configuration in `point`; JSON specification of the run in, JSON answer out.
#[pyfunction]
pub(crate) fn simulate(py: Python<'_>, problem_json: &str, spec_json: &str) -> PyResult<String> {
    let problem = SearchProblem::from_json(problem_json).map_err(to_python)?;
    let spec = SimulationSpec::from_json(spec_json).map_err(to_python)?;
    let answer = detached(py, |stop| {
        tokenopt_core::simulate::simulate(&problem, &spec, stop)
    })?;
    to_json(&answer)
}

/// Counts parameters and bytes of an architecture.
#[pyfunction]
pub(crate) fn count_model(model_json: &str) -> PyResult<String> {
    let model: ModelSpec = serde_json::from_str(model_json)
        .map_err(|error| to_python(CoreError::Unreadable(error.to_string())))?;
    model
        .validate()
        .map_err(|message| to_python(CoreError::bad_input("model", &model.key, message)))?;
    to_json(&count::count(&model))
}

/// Names, priors, bounds, units and meanings of the serving parameters, in the order of prediction, as JSON.
#[pyfunction]
pub(crate) fn serving_parameters() -> PyResult<String> {
    to_json(&PARAMETERS)
}

/// Values of all parameters where deviations from the priors add up to `log_factors`, one list a set.
#[pyfunction]
pub(crate) fn parameters_at(log_factors: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let values = |set: Vec<f64>| {
        let pairs = set.into_iter().zip(PARAMETERS);
        pairs.map(|(factor, info)| info.value_at(factor)).collect()
    };
    log_factors.into_iter().map(values).collect()
}

/// The inverse of `parameters_at`.
#[pyfunction]
pub(crate) fn log_factors_of(parameters: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let factors = |set: Vec<f64>| {
        let pairs = set.into_iter().zip(PARAMETERS);
        pairs
            .map(|(value, info)| info.log_factor_of(value))
            .collect()
    };
    parameters.into_iter().map(factors).collect()
}

/// Operating points compiled once, predicted many times.
#[pyclass(frozen)]
pub(crate) struct ServingRows {
    rows: RowSet,
}

#[pymethods]
impl ServingRows {
    #[new]
    fn new(rows_json: &str) -> PyResult<Self> {
        RowSet::from_json(rows_json)
            .map(|rows| Self { rows })
            .map_err(to_python)
    }

    fn __len__(&self) -> usize {
        self.rows.rows.len()
    }

    /// Predicts every row: `parameters` is sets x parameters; the answer rows x (tpot_s, ttft_s, output_tps_per_chip,
    /// decode_step_s), NaN where the model does not fit.
    fn predict<'py>(
        &self,
        py: Python<'py>,
        parameters: PyReadonlyArray2<'py, f64>,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let sets = parameter_sets(&parameters)?;
        let predictions = py.detach(|| self.rows.predict(&sets)).map_err(to_python)?;
        Ok(table(py, &predictions))
    }

    /// Predicts row `rows[i]` with set `sets[i]` of `parameters`; the answer as from `predict`, one line a job.
    fn predict_jobs<'py>(
        &self,
        py: Python<'py>,
        rows: PyReadonlyArray1<'py, i64>,
        sets: PyReadonlyArray1<'py, i64>,
        parameters: PyReadonlyArray2<'py, f64>,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let parameters = parameter_sets(&parameters)?;
        // A negative index becomes one that is out of range, which the core refuses.
        let index = |value: &i64| usize::try_from(*value).unwrap_or(usize::MAX);
        let jobs: Vec<Job> = rows
            .as_array()
            .iter()
            .zip(sets.as_array())
            .map(|(row, set)| Job {
                row: index(row),
                set: index(set),
            })
            .collect();
        let predictions = py
            .detach(|| self.rows.predict_jobs(&jobs, &parameters))
            .map_err(to_python)?;
        Ok(table(py, &predictions))
    }
}

/// Copied in: another thread may write the array once the interpreter is released.
fn parameter_sets(parameters: &PyReadonlyArray2<'_, f64>) -> PyResult<Vec<EngineParameters>> {
    parameters
        .as_array()
        .rows()
        .into_iter()
        .map(|row| EngineParameters::from_slice(&row.to_vec()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(to_python)
}

/// One line a prediction.
fn table<'py>(py: Python<'py>, predictions: &[Prediction]) -> Bound<'py, PyArray2<f64>> {
    let mut table = numpy::ndarray::Array2::zeros((predictions.len(), 4));
    for (mut line, prediction) in table.rows_mut().into_iter().zip(predictions) {
        line[0] = prediction.tpot_s;
        line[1] = prediction.ttft_s;
        line[2] = prediction.output_tps_per_chip;
        line[3] = prediction.decode_step_s;
    }
    table.into_pyarray(py)
}
