//! Errors and JSON across the border.

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::{import_exception, PyErr};
use tokenopt_core::error::CoreError;

import_exception!(tokenopt.errors, SpecError);

/// The Python exception that tells a core error to the user.
pub(crate) fn to_python(error: CoreError) -> PyErr {
    match error {
        CoreError::Interrupted => PyKeyboardInterrupt::new_err(()),
        CoreError::BadInput { .. } | CoreError::Unreadable(_) => {
            SpecError::new_err(error.to_string())
        }
    }
}

/// JSON text of an answer. Numbers that are not finite become null.
pub(crate) fn to_json<T: serde::Serialize>(answer: &T) -> Result<String, PyErr> {
    serde_json::to_string(answer).map_err(|error| SpecError::new_err(error.to_string()))
}
