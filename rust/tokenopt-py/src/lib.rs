//! `tokenopt._core`: the binding and nothing but the binding. Text and arrays in, text and arrays out.

mod convert;
mod money;
mod posttraining;
mod run;
mod serving;
mod training;

use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(serving::search, module)?)?;
    module.add_function(wrap_pyfunction!(serving::explain, module)?)?;
    module.add_function(wrap_pyfunction!(serving::continuous, module)?)?;
    module.add_function(wrap_pyfunction!(serving::simulate, module)?)?;
    module.add_function(wrap_pyfunction!(serving::count_model, module)?)?;
    module.add_function(wrap_pyfunction!(serving::serving_parameters, module)?)?;
    module.add_function(wrap_pyfunction!(serving::parameters_at, module)?)?;
    module.add_function(wrap_pyfunction!(serving::log_factors_of, module)?)?;
    module.add_class::<serving::ServingRows>()?;
    module.add_function(wrap_pyfunction!(money::tco, module)?)?;
    module.add_function(wrap_pyfunction!(money::price, module)?)?;
    module.add_function(wrap_pyfunction!(money::chip_hour, module)?)?;
    module.add_function(wrap_pyfunction!(money::odds, module)?)?;
    module.add_function(wrap_pyfunction!(training::train, module)?)?;
    module.add_function(wrap_pyfunction!(posttraining::posttrain, module)?)?;
    module.add_function(wrap_pyfunction!(posttraining::posttraining_steps, module)?)?;
    module.add_function(wrap_pyfunction!(training::training_parameters, module)?)?;
    module.add_class::<training::TrainingRows>()?;
    Ok(())
}
