//! Prediction of given training steps (measured rows), many parameter sets at a time.
//!
//! What a row does not say is resolved once, before any fit: recomputation by the memory model, a missing layout by a
//! search of the fastest one that fits.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::layout::{Recompute, Sharding, TrainingLayout};
use super::memory::TrainingMemory;
use super::microbatch::{MicrobatchCost, Split};
use super::parameters::TrainingParameters;
use super::pipeline::imbalance;
use super::step::{StepParts, TrainingStep};
use super::work::TrainingWork;
use super::TrainingJob;
use crate::accelerator::Accelerator;
use crate::error::CoreError;
use crate::model::{Ffn, ModelSpec};

/// Rows to predict, with the chips and models they name.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingRowSet {
    /// Models in use.
    pub models: Vec<ModelSpec>,
    /// Accelerators in use.
    pub accelerators: Vec<Accelerator>,
    /// The rows.
    pub rows: Vec<TrainingRow>,
}

/// One measured step.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingRow {
    /// Index of the model.
    pub model: usize,
    /// Index of the accelerator.
    pub accelerator: usize,
    /// Which parameter set of a prediction applies.
    pub set: usize,
    /// Job.
    pub job: TrainingJob,
    /// Chips of the job.
    pub chips: u32,
    /// Layout; absent = the fastest that fits.
    #[serde(default)]
    pub layout: Option<TrainingLayout>,
    /// What the source prints, and how it counts.
    #[serde(default)]
    pub printed: Printed,
    /// Whether the source leaves recomputation open: as little as fits.
    #[serde(default)]
    pub is_recompute_open: bool,
    /// Whether its software recomputes every layer or none.
    #[serde(default)]
    pub recomputes_all_or_nothing: bool,
    /// Whether the source leaves tensor parallelism inside experts open: only where they do not fit whole.
    #[serde(default)]
    pub is_expert_split_open: bool,
    /// Layouts that the software offers or its recipes use.
    #[serde(default)]
    pub offer: LayoutOffer,
    /// Whether the source leaves interleaving open: the fastest number of chunks that divides.
    #[serde(default)]
    pub is_interleave_open: bool,
}

/// Layouts that a training software offers, or that its recipes use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayoutOffer {
    /// All.
    #[default]
    Any,
    /// Weights spread over all chips, and no tensor, pipeline or context parallelism.
    ShardedOnly,
    /// Whole weights on every data-parallel rank, unless nothing fits so.
    WholeWeights,
}

/// Measured rate of one row as its source prints it, and the convention its FLOP are counted by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Printed {
    /// Training tokens/s per chip.
    pub tokens_per_s_per_chip: Option<f64>,
    /// Step time, s.
    pub step_s: Option<f64>,
    /// Model FLOP/s per chip.
    pub flops_per_s: Option<f64>,
    /// Model FLOP utilisation, 0..1.
    pub utilisation: Option<f64>,
    /// Whether FLOP count the whole square of attention instead of the causal pairs.
    pub counts_full_attention: bool,
    /// Format whose peak the utilisation refers to; absent = the job's.
    pub peak_format: Option<super::TrainingFormat>,
}

impl Printed {
    /// Measured tokens/s per chip; NaN where nothing is printed that it follows from.
    ///
    /// Args: `chip_tokens` tokens of a step per chip; `flops_per_token` and `peak_flops` (FLOP/s) by the convention.
    fn rate(&self, chip_tokens: f64, flops_per_token: f64, peak_flops: f64) -> f64 {
        self.tokens_per_s_per_chip
            .or(self.step_s.map(|seconds| chip_tokens / seconds))
            .or(self.flops_per_s.map(|flops| flops / flops_per_token))
            .or(self
                .utilisation
                .map(|share| share * peak_flops / flops_per_token))
            .unwrap_or(f64::NAN)
    }
}

/// Predicted step of one row; NaN where no layout was found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrainingPrediction {
    /// Step time, s.
    pub step_s: f64,
    /// Training tokens/s per chip.
    pub tokens_per_s_per_chip: f64,
    /// Measured tokens/s per chip, from the printed rate or step time, else from printed FLOP/s or utilisation by the
    /// source's convention; NaN where none is printed.
    pub printed_tokens_per_s_per_chip: f64,
    /// Predicted model FLOP/s per chip in the source's convention.
    pub flops_per_s: f64,
    /// Predicted utilisation in the source's convention.
    pub utilisation: f64,
    /// Bytes the fullest chip needs over what it can plan with.
    pub memory_ratio: f64,
}

impl TrainingPrediction {
    const NONE: Self = Self {
        step_s: f64::NAN,
        tokens_per_s_per_chip: f64::NAN,
        printed_tokens_per_s_per_chip: f64::NAN,
        flops_per_s: f64::NAN,
        utilisation: f64::NAN,
        memory_ratio: f64::NAN,
    };
}

impl TrainingRowSet {
    /// Reads rows from JSON and checks them.
    ///
    /// # Errors
    /// [`CoreError`] naming what cannot be used.
    pub fn from_json(text: &str) -> Result<Self, CoreError> {
        let rows: Self =
            serde_json::from_str(text).map_err(|error| CoreError::Unreadable(error.to_string()))?;
        for accelerator in &rows.accelerators {
            accelerator.validate()?;
        }
        for row in &rows.rows {
            row.job.validate()?;
            let is_known = row.model < rows.models.len()
                && row.accelerator < rows.accelerators.len()
                && row.chips > 0;
            if !is_known {
                return Err(CoreError::bad_input(
                    "row",
                    format!(
                        "model {} accelerator {} chips {}",
                        row.model, row.accelerator, row.chips
                    ),
                    "expected known indices and at least one chip",
                ));
            }
            if row.layout.is_some_and(|layout| !layout.has_no_zero()) {
                return Err(CoreError::bad_input(
                    "layout",
                    0,
                    "every degree of parallelism must be at least 1",
                ));
            }
        }
        Ok(rows)
    }

    fn parameters_of<'a>(
        &self,
        row: &TrainingRow,
        sets: &'a [TrainingParameters],
    ) -> Result<&'a TrainingParameters, CoreError> {
        sets.get(row.set).ok_or_else(|| {
            CoreError::bad_input(
                "parameter set",
                row.set,
                format!("expected below {}", sets.len()),
            )
        })
    }

    /// Resolves what rows leave open: layouts by search, recomputation by memory.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] when a row names a set that is not there.
    pub fn resolve(
        &self,
        sets: &[TrainingParameters],
    ) -> Result<Vec<Option<TrainingLayout>>, CoreError> {
        self.rows
            .par_iter()
            .map(|row| {
                let parameters = self.parameters_of(row, sets)?;
                let model = &self.models[row.model];
                let accelerator = &self.accelerators[row.accelerator];
                Ok(match row.layout {
                    Some(layout) => Some(resolve_open(row, model, accelerator, parameters, layout)),
                    None => fastest_layout(
                        model,
                        accelerator,
                        parameters,
                        &row.job,
                        row.chips,
                        row.offer,
                        row.recomputes_all_or_nothing,
                    ),
                })
            })
            .collect()
    }

    /// Predicts every row on the layout resolved for it.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] when a row names a set that is not there, or the layouts are not as many as the rows.
    pub fn predict(
        &self,
        sets: &[TrainingParameters],
        layouts: &[Option<TrainingLayout>],
    ) -> Result<Vec<TrainingPrediction>, CoreError> {
        if layouts.len() != self.rows.len() {
            return Err(CoreError::bad_input(
                "layouts",
                layouts.len(),
                format!("expected {}", self.rows.len()),
            ));
        }
        self.rows
            .par_iter()
            .zip(layouts)
            .map(|(row, layout)| {
                let parameters = self.parameters_of(row, sets)?;
                Ok(layout.map_or(TrainingPrediction::NONE, |layout| {
                    self.predict_row(row, parameters, &layout)
                }))
            })
            .collect()
    }

    fn predict_row(
        &self,
        row: &TrainingRow,
        parameters: &TrainingParameters,
        layout: &TrainingLayout,
    ) -> TrainingPrediction {
        let model = &self.models[row.model];
        let accelerator = &self.accelerators[row.accelerator];
        let cost = MicrobatchCost::new(
            model,
            accelerator,
            parameters,
            &row.job,
            &Split::from(layout),
        );
        let step = TrainingStep::new(&cost, accelerator, parameters, &row.job, layout);
        let memory = TrainingMemory::new(&cost, accelerator, parameters, &row.job, layout);
        let work = TrainingWork::new(model, &row.job);
        let printed = &row.printed;
        let flops_per_token = if printed.counts_full_attention {
            work.full_flops()
        } else {
            work.causal_flops()
        };
        let peak_flops = printed
            .peak_format
            .unwrap_or(row.job.format)
            .peak_flops(&accelerator.peak_flops);
        let rate = step.tokens_per_s_per_chip(&row.job, layout);
        TrainingPrediction {
            step_s: step.step_s,
            tokens_per_s_per_chip: rate,
            printed_tokens_per_s_per_chip: printed.rate(
                row.job.step_tokens() / f64::from(row.chips),
                flops_per_token,
                peak_flops,
            ),
            flops_per_s: rate * flops_per_token,
            utilisation: rate * flops_per_token / peak_flops,
            memory_ratio: memory.total_bytes() / memory.plannable_bytes,
        }
    }

    /// What the step of row `index` consists of.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] when there is no such row or set.
    pub fn parts(
        &self,
        index: usize,
        sets: &[TrainingParameters],
        layout: &TrainingLayout,
    ) -> Result<StepParts, CoreError> {
        let row = self.rows.get(index).ok_or_else(|| {
            CoreError::bad_input("row", index, format!("expected below {}", self.rows.len()))
        })?;
        let parameters = self.parameters_of(row, sets)?;
        let accelerator = &self.accelerators[row.accelerator];
        let cost = MicrobatchCost::new(
            &self.models[row.model],
            accelerator,
            parameters,
            &row.job,
            &Split::from(layout),
        );
        let step = TrainingStep::new(&cost, accelerator, parameters, &row.job, layout);
        Ok(step.parts(&cost, parameters, layout, &row.job))
    }
}

/// What a printed layout leaves open.
fn resolve_open(
    row: &TrainingRow,
    model: &ModelSpec,
    accelerator: &Accelerator,
    parameters: &TrainingParameters,
    layout: TrainingLayout,
) -> TrainingLayout {
    let job = &row.job;
    let recomputed = |layout| {
        if row.is_recompute_open {
            let least = least_recompute(model, accelerator, parameters, job, layout);
            offered_recompute(least, row.recomputes_all_or_nothing)
        } else {
            layout
        }
    };
    let mut layout = layout;
    if row.is_interleave_open && layout.pp > 1 {
        layout.vpp = fastest_chunks(model, accelerator, parameters, job, &layout);
    }
    let whole = recomputed(layout);
    if !(row.is_expert_split_open && layout.tp > 1) {
        return whole;
    }
    let split = recomputed(TrainingLayout {
        etp: layout.tp,
        ..layout
    });
    let time = |layout: &TrainingLayout| {
        let cost = MicrobatchCost::new(model, accelerator, parameters, job, &Split::from(layout));
        let memory = TrainingMemory::new(&cost, accelerator, parameters, job, layout);
        let step = TrainingStep::new(&cost, accelerator, parameters, job, layout);
        // What fits comes first, the faster after that.
        (!memory.fits(), step.step_s)
    };
    if time(&split) < time(&whole) {
        split
    } else {
        whole
    }
}

/// `layout`, any recomputation turned into all of it where a software offers nothing between.
fn offered_recompute(layout: TrainingLayout, is_all_or_nothing: bool) -> TrainingLayout {
    if is_all_or_nothing && layout.recompute != Recompute::None {
        TrainingLayout {
            recompute: Recompute::Full,
            ..layout
        }
    } else {
        layout
    }
}

/// `layout` with the least recomputation that fits; with all of it where nothing fits.
#[must_use]
pub fn least_recompute(
    model: &ModelSpec,
    accelerator: &Accelerator,
    parameters: &TrainingParameters,
    job: &TrainingJob,
    layout: TrainingLayout,
) -> TrainingLayout {
    let cost = MicrobatchCost::new(model, accelerator, parameters, job, &Split::from(&layout));
    least_recompute_of(&cost, accelerator, parameters, job, layout)
}

/// [`least_recompute`] of a micro-batch that is already worked out.
///
/// Bisection over the blocks of a stage: memory falls with every block recomputed.
#[must_use]
pub fn least_recompute_of(
    cost: &MicrobatchCost,
    accelerator: &Accelerator,
    parameters: &TrainingParameters,
    job: &TrainingJob,
    layout: TrainingLayout,
) -> TrainingLayout {
    let with = |recompute: Recompute| TrainingLayout {
        recompute,
        ..layout
    };
    let fits = |recompute: Recompute| {
        TrainingMemory::new(cost, accelerator, parameters, job, &with(recompute)).fits()
    };
    if fits(Recompute::None) {
        return with(Recompute::None);
    }
    if fits(Recompute::Selective) {
        return with(Recompute::Selective);
    }
    let layers = f64::from(cost.layers) * imbalance(cost.layers, layout.pp, layout.vpp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "layers of a stage are a small positive number"
    )]
    let stage_layers = (layers / f64::from(layout.pp)).ceil() as u32;
    let (mut low, mut high) = (0, stage_layers);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(Recompute::Blocks(middle)) {
            high = middle;
        } else {
            low = middle;
        }
    }
    with(if high >= stage_layers {
        Recompute::Full
    } else {
        Recompute::Blocks(high)
    })
}

/// The fastest layout of `job` on `chips` chips that fits, over divisors of the chips.
///
/// Assumes: what measured recipes use: interleaving where it divides, ZeRO-1 or full sharding without a pipeline,
/// expert groups inside the replicas, micro-batches of 1 to 8 sequences. Software that only shards has no
/// other layout.
#[must_use]
pub fn fastest_layout(
    model: &ModelSpec,
    accelerator: &Accelerator,
    parameters: &TrainingParameters,
    job: &TrainingJob,
    chips: u32,
    offer: LayoutOffer,
    recomputes_all_or_nothing: bool,
) -> Option<TrainingLayout> {
    let is_sharded_only = offer == LayoutOffer::ShardedOnly;
    let (largest_tp, largest_cp, largest_pp) = if is_sharded_only {
        (1, 1, 1)
    } else {
        (16, 64, u32::MAX)
    };
    let layers: u32 = model.layers.iter().map(|group| group.count).sum();
    let experts = model.layers.iter().find_map(|group| match group.ffn {
        Ffn::Moe { experts, .. } => Some(experts),
        _ => None,
    });
    let mut best: Option<(f64, TrainingLayout)> = None;
    let mut consider = |layout: TrainingLayout, cost: &MicrobatchCost| {
        if layout.refusal(model, accelerator, job).is_some() {
            return;
        }
        let least = least_recompute_of(cost, accelerator, parameters, job, layout);
        let layout = offered_recompute(least, recomputes_all_or_nothing);
        if !TrainingMemory::new(cost, accelerator, parameters, job, &layout).fits() {
            return;
        }
        let step_s = TrainingStep::new(cost, accelerator, parameters, job, &layout).step_s;
        if best.is_none_or(|(fastest_s, fastest)| (step_s, layout) < (fastest_s, fastest)) {
            best = Some((step_s, layout));
        }
    };
    for tp in divisors(chips).filter(|&tp| tp <= largest_tp) {
        for cp in divisors(chips / tp).filter(|&cp| cp <= largest_cp) {
            for ep in expert_degrees(experts, chips) {
                for micro_batch in [1, 2, 4, 8] {
                    let base = TrainingLayout {
                        tp,
                        cp,
                        ep,
                        micro_batch,
                        ..TrainingLayout::default()
                    };
                    let cost = MicrobatchCost::new(
                        model,
                        accelerator,
                        parameters,
                        job,
                        &Split::from(&base),
                    );
                    for pp in divisors(chips / tp / cp).filter(|&pp| pp <= layers.min(largest_pp)) {
                        let dp = chips / tp / cp / pp;
                        if !is_sharded_only || dp == 1 {
                            for vpp in chunk_counts(layers, pp) {
                                consider(
                                    TrainingLayout {
                                        pp,
                                        vpp,
                                        dp,
                                        ..base
                                    },
                                    &cost,
                                );
                            }
                        }
                        if pp == 1 && dp > 1 && offer != LayoutOffer::WholeWeights {
                            let sharding = Sharding::Zero3;
                            consider(
                                TrainingLayout {
                                    dp,
                                    sharding,
                                    ..base
                                },
                                &cost,
                            );
                        }
                    }
                }
            }
        }
    }
    let found = best.map(|(_, layout)| layout);
    if found.is_none() && offer == LayoutOffer::WholeWeights {
        return fastest_layout(
            model,
            accelerator,
            parameters,
            job,
            chips,
            LayoutOffer::Any,
            recomputes_all_or_nothing,
        );
    }
    found
}

/// Divisors of `number`, rising.
pub fn divisors(number: u32) -> impl Iterator<Item = u32> {
    (1..=number).filter(move |candidate| number % candidate == 0)
}

/// The chunks a stage at which `layout` is fastest.
fn fastest_chunks(
    model: &ModelSpec,
    accelerator: &Accelerator,
    parameters: &TrainingParameters,
    job: &TrainingJob,
    layout: &TrainingLayout,
) -> u32 {
    let cost = MicrobatchCost::new(model, accelerator, parameters, job, &Split::from(layout));
    if layout.microbatches(job) % f64::from(layout.pp) != 0.0 {
        return 1;
    }
    let step_s = |vpp: u32| {
        let layout = TrainingLayout { vpp, ..*layout };
        TrainingStep::new(&cost, accelerator, parameters, job, &layout).step_s
    };
    chunk_counts(cost.layers, layout.pp)
        .min_by(|a, b| step_s(*a).total_cmp(&step_s(*b)))
        .unwrap_or(1)
}

/// Chunks a stage can be cut into.
fn chunk_counts(layers: u32, pp: u32) -> impl Iterator<Item = u32> {
    (1..=layers.div_ceil(pp)).filter(move |vpp| {
        *vpp == 1 || (pp > 1 && (layers % (pp * vpp) == 0 || (layers + 2) % (pp * vpp) == 0))
    })
}

/// Degrees of expert parallelism worth trying.
fn expert_degrees(experts: Option<u32>, chips: u32) -> Vec<u32> {
    experts.map_or_else(
        || vec![1],
        |experts| {
            divisors(experts)
                .filter(|&degree| chips % degree == 0)
                .collect()
        },
    )
}
