//! Training: search, parameters, prediction of rows.

use std::sync::Arc;

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
    rows: Arc<TrainingRowSet>,
    layouts: Vec<Option<TrainingLayout>>,
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

#[pymethods]
impl TrainingRows {
    #[new]
    fn new(rows_json: &str) -> PyResult<Self> {
        let rows = TrainingRowSet::from_json(rows_json).map_err(to_python)?;
        let layouts = rows.rows.iter().map(|row| row.layout).collect();
        Ok(Self {
            rows: Arc::new(rows),
            layouts,
        })
    }

    fn __len__(&self) -> usize {
        self.rows.rows.len()
    }

    /// The same rows with what they leave open filled in (layouts by search, recomputation by memory), at `parameters`
    /// (sets x parameters).
    fn resolve(&self, py: Python<'_>, parameters: PyReadonlyArray2<'_, f64>) -> PyResult<Self> {
        let sets = parameter_sets(&parameters).map_err(to_python)?;
        let layouts = py.detach(|| self.rows.resolve(&sets)).map_err(to_python)?;
        Ok(Self {
            rows: Arc::clone(&self.rows),
            layouts,
        })
    }

    /// Layout of every row as JSON; null where none was printed or found.
    fn layouts(&self) -> PyResult<String> {
        to_json(&self.layouts)
    }

    /// Predicts every row on its layout: `parameters` is sets x parameters; the answer rows x (step_s,
    /// tokens_per_s_per_chip, printed_tokens_per_s_per_chip, flops_per_s, utilisation, memory_ratio), NaN without a
    /// layout.
    fn predict<'py>(
        &self,
        py: Python<'py>,
        parameters: PyReadonlyArray2<'py, f64>,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let sets = parameter_sets(&parameters).map_err(to_python)?;
        let predictions = py
            .detach(|| self.rows.predict(&sets, &self.layouts))
            .map_err(to_python)?;
        let mut table = numpy::ndarray::Array2::zeros((predictions.len(), 6));
        for (mut line, prediction) in table.rows_mut().into_iter().zip(&predictions) {
            line[0] = prediction.step_s;
            line[1] = prediction.tokens_per_s_per_chip;
            line[2] = prediction.printed_tokens_per_s_per_chip;
            line[3] = prediction.flops_per_s;
            line[4] = prediction.utilisation;
            line[5] = prediction.memory_ratio;
        }
        Ok(table.into_pyarray(py))
    }

    /// Parts of the step of row `index`, seconds by name, as JSON; null without a layout.
    fn parts(&self, index: usize, parameters: PyReadonlyArray2<'_, f64>) -> PyResult<String> {
        let sets = parameter_sets(&parameters).map_err(to_python)?;
        let parts = self
            .layouts
            .get(index)
            .copied()
            .flatten()
            .map(|layout| self.rows.parts(index, &sets, &layout))
            .transpose()
            .map_err(to_python)?;
        to_json(&parts)
    }
}
