//! Training: search, parameters, prediction of rows.

use numpy::{IntoPyArray, PyArray2, PyReadonlyArray2};
use pyo3::prelude::*;
use tokenopt_core::error::CoreError;
use tokenopt_core::training::predict::TrainingRowSet;
use tokenopt_core::training::search::TrainProblem;
use tokenopt_core::training::{TrainingLayout, TrainingParameters, TRAINING_PARAMETERS};

use crate::convert::{to_json, to_python};
use crate::run::detached;

/// Searches for a training run; JSON problem in, JSON answer out.
#[pyfunction]
pub(crate) fn train(py: Python<'_>, problem_json: &str) -> PyResult<String> {
    let problem = TrainProblem::from_json(problem_json).map_err(to_python)?;
    let answer = detached(py, |stop| {
        tokenopt_core::training::search::search(&problem, stop)
    })?;
    to_json(&answer)
}

/// Names, priors, bounds, units and meanings of the training parameters, in the order of prediction, as JSON.
#[pyfunction]
pub(crate) fn training_parameters() -> PyResult<String> {
    to_json(&TRAINING_PARAMETERS)
}

/// Measured training steps compiled once, predicted many times.
#[pyclass(frozen)]
pub(crate) struct TrainingRows {
    rows: TrainingRowSet,
}

/// Copied in: another thread may write the array once the interpreter is released.
fn parameter_sets(
    parameters: &PyReadonlyArray2<'_, f64>,
) -> Result<Vec<TrainingParameters>, CoreError> {
    parameters
        .as_array()
        .rows()
        .into_iter()
        .map(|row| TrainingParameters::from_slice(&row.to_vec()))
        .collect()
}

fn read_layouts(text: &str) -> PyResult<Vec<Option<TrainingLayout>>> {
    serde_json::from_str(text).map_err(|error| to_python(CoreError::Unreadable(error.to_string())))
}

#[pymethods]
impl TrainingRows {
    #[new]
    fn new(rows_json: &str) -> PyResult<Self> {
        TrainingRowSet::from_json(rows_json)
            .map(|rows| Self { rows })
            .map_err(to_python)
    }

    fn __len__(&self) -> usize {
        self.rows.rows.len()
    }

    /// Layout of every row as JSON: what the row says, with recomputation and layouts it leaves open filled in; null
    /// where nothing fits.
    fn resolve(&self, py: Python<'_>, parameters: PyReadonlyArray2<'_, f64>) -> PyResult<String> {
        let sets = parameter_sets(&parameters).map_err(to_python)?;
        to_json(&py.detach(|| self.rows.resolve(&sets)).map_err(to_python)?)
    }

    /// Predicts every row on its layout: `parameters` is sets x parameters; the answer rows x (step_s,
    /// tokens_per_s_per_chip, causal_flops, full_flops, peak_flops, memory_ratio), NaN without a layout.
    fn predict<'py>(
        &self,
        py: Python<'py>,
        parameters: PyReadonlyArray2<'py, f64>,
        layouts_json: &str,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let sets = parameter_sets(&parameters).map_err(to_python)?;
        let layouts = read_layouts(layouts_json)?;
        let predictions = py
            .detach(|| self.rows.predict(&sets, &layouts))
            .map_err(to_python)?;
        let mut table = numpy::ndarray::Array2::zeros((predictions.len(), 6));
        for (mut line, prediction) in table.rows_mut().into_iter().zip(&predictions) {
            line[0] = prediction.step_s;
            line[1] = prediction.tokens_per_s_per_chip;
            line[2] = prediction.causal_flops;
            line[3] = prediction.full_flops;
            line[4] = prediction.peak_flops;
            line[5] = prediction.memory_ratio;
        }
        Ok(table.into_pyarray(py))
    }

    /// Parts of the step of row `index` on `layout_json`, s by name, as JSON.
    fn parts(
        &self,
        index: usize,
        parameters: PyReadonlyArray2<'_, f64>,
        layout_json: &str,
    ) -> PyResult<String> {
        let sets = parameter_sets(&parameters).map_err(to_python)?;
        let layout: TrainingLayout = serde_json::from_str(layout_json)
            .map_err(|error| to_python(CoreError::Unreadable(error.to_string())))?;
        to_json(&self.rows.parts(index, &sets, &layout).map_err(to_python)?)
    }
}
