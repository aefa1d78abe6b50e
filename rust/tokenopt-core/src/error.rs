//! Errors of the core: bad input only. What cannot be satisfied is a counted reason of the answer, never an error.

use thiserror::Error;

/// Why the core refused to work.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CoreError {
    /// A field holds a value that cannot be used.
    #[error("{field} is {value}, {expected}")]
    BadInput {
        /// Which field.
        field: String,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: String,
    },
    /// The problem could not be read.
    #[error("the problem cannot be read: {0}")]
    Unreadable(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl CoreError {
    /// A [`CoreError::BadInput`] from anything that prints.
    pub fn bad_input(
        field: impl Into<String>,
        value: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::BadInput {
            field: field.into(),
            value: value.to_string(),
            expected: expected.into(),
        }
    }
}

/// Refuses a number that is not finite and positive.
///
/// # Errors
/// [`CoreError::BadInput`] naming `field`.
pub fn require_positive(field: &str, value: f64) -> Result<f64, CoreError> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(CoreError::bad_input(
            field,
            value,
            "expected a finite number above 0",
        ))
    }
}

/// Refuses a number outside `low..=high` (NaN included).
///
/// # Errors
/// [`CoreError::BadInput`] naming `field` and the legal range.
pub fn require_within(field: &str, value: f64, low: f64, high: f64) -> Result<f64, CoreError> {
    if value >= low && value <= high {
        Ok(value)
    } else {
        Err(CoreError::bad_input(
            field,
            value,
            format!("expected a number from {low} to {high}"),
        ))
    }
}
