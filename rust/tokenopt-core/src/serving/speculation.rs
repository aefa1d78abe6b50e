//! Speculative decoding: a draft proposes tokens, one step of the model verifies them all.

use serde::{Deserialize, Serialize};

use super::memory::MemoryPlan;
use super::{Layout, Stack, StepModel};
use crate::accelerator::Accelerator;
use crate::error::{require_within, CoreError};
use crate::model::{Ffn, LayerGroup, Mixer, ModelSpec, Scope, WeightFormats};
use crate::ops::attention::Lengths;
use crate::ops::gemm::Gemm;
use crate::ops::{Cost, Operator, OperatorName};

/// Longest draft that is accepted.
pub const MOST_DRAFTED: u32 = 16;

/// A draft model of its own, and the formats its weights are in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftModel {
    /// Architecture.
    pub model: ModelSpec,
    /// Formats of its weights.
    pub weights: WeightFormats,
}

/// How a step speculates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speculation<'a> {
    /// Tokens drafted per request and step; 0 = none.
    pub depth: u32,
    /// Chance that a drafted token is accepted when those before it were, 0..1.
    pub acceptance: f64,
    /// The draft model; None = the model's own multi-token-prediction head.
    pub draft: Option<&'a DraftModel>,
}

impl Speculation<'_> {
    /// No speculation.
    pub const OFF: Speculation<'static> = Speculation {
        depth: 0,
        acceptance: 0.0,
        draft: None,
    };

    /// Checks depth and acceptance.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(depth: u32, acceptance: f64) -> Result<(), CoreError> {
        if depth > MOST_DRAFTED {
            return Err(CoreError::bad_input(
                "speculation depth",
                depth,
                format!("expected 0 to {MOST_DRAFTED}"),
            ));
        }
        require_within("acceptance", acceptance, 0.0, 1.0)?;
        Ok(())
    }

    /// Mean tokens that a request gains in a step: `1 + a + a^2 + ... + a^depth`.
    ///
    /// Source: Leviathan et al. 2023, equation 1.
    /// Assumes: each token is accepted with the same chance, whatever its place and the load.
    #[must_use]
    pub fn tokens_per_step(&self) -> f64 {
        (0..self.depth).fold(1.0, |sum, _| 1.0 + self.acceptance * sum)
    }

    /// Tokens that a verify step carries per request.
    #[must_use]
    pub fn tokens_verified(&self) -> f64 {
        1.0 + f64::from(self.depth)
    }
}

/// The acceptance at which a draft of `depth` tokens gains `tokens_per_step` tokens a step, clamped to 0..1.
///
/// Bisection: the gain rises with the acceptance.
#[must_use]
pub fn acceptance_of(depth: u32, tokens_per_step: f64) -> f64 {
    const HALVINGS: u32 = 50;
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..HALVINGS {
        let acceptance = 0.5 * (low + high);
        let gained = Speculation {
            depth,
            acceptance,
            draft: None,
        }
        .tokens_per_step();
        if gained < tokens_per_step {
            low = acceptance;
        } else {
            high = acceptance;
        }
    }
    0.5 * (low + high)
}

/// The draft of one stack and layout: what it adds to each step and to each chip.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftPlan {
    /// Operators of one drafted token per request.
    pub pass: Vec<Operator>,
    /// Weights on the fullest chip, bytes.
    pub weight_bytes: f64,
    /// Cache of one request on the fullest chip, bytes.
    pub request_bytes: f64,
}

impl DraftPlan {
    /// Sizes the draft beside `model` on `layout`.
    ///
    /// A multi-token-prediction head is one more layer like the model's last, a projection of two residual streams into
    /// one, and the model's own head. A draft model runs inside each attention rank, over as many of its chips as its
    /// heads can be split over.
    ///
    /// Source: DeepSeek-V3 technical report, section 2.2, for the head; engines keep its projection on every chip.
    /// Assumes: drafting runs in the graph of the step, so it pays its layers but no scheduler; the last pipeline stage
    /// drafts.
    #[must_use]
    pub fn new(
        model: &ModelSpec,
        draft: Option<&DraftModel>,
        accelerator: &Accelerator,
        stack: &Stack,
        layout: Layout,
        lengths: &Lengths,
    ) -> Self {
        let mut stack = stack.clone();
        stack.parameters.step_overhead_s = 0.0;
        stack.parameters.request_overhead_s = 0.0;
        let Some(draft) = draft else {
            let layout = Layout { pp: 1, ..layout };
            let head = head_model(model);
            let mut pass = StepModel::new(&head, accelerator, &stack, layout, lengths).decode;
            let projection = 2.0 * f64::from(model.hidden) * f64::from(model.hidden);
            let bytes = stack.weights.dense.bytes();
            pass.push(Operator {
                name: OperatorName::DenseFfn,
                count: 1.0,
                rows_per_token: 1.0,
                cost: Cost::Gemm(Gemm::new(
                    projection,
                    bytes,
                    accelerator.hbm_bytes_per_s * stack.parameters.weight_bandwidth_efficiency,
                    accelerator.sustained(accelerator.peak_flops.for_weights(stack.weights.dense))
                        * stack.parameters.decode_compute_efficiency,
                    stack.parameters.dense_tile_tokens,
                )),
            });
            // Embedding and LM head are the model's own.
            let layer = ModelSpec { vocab: 0, ..head };
            let memory = MemoryPlan::new(&layer, accelerator, &stack, layout, lengths);
            return Self {
                pass,
                weight_bytes: memory.weight_bytes + projection * bytes,
                request_bytes: memory.request_bytes,
            };
        };
        stack.weights = draft.weights;
        let layout = draft_layout(&draft.model, accelerator, layout.tp);
        let memory = MemoryPlan::new(&draft.model, accelerator, &stack, layout, lengths);
        Self {
            pass: StepModel::new(&draft.model, accelerator, &stack, layout, lengths).decode,
            weight_bytes: memory.weight_bytes,
            request_bytes: memory.request_bytes,
        }
    }
}

/// A model of one layer: the last attention and the last feed-forward block of `model`.
fn head_model(model: &ModelSpec) -> ModelSpec {
    let attends = |group: &&LayerGroup| {
        matches!(
            group.mixer,
            Mixer::Attention { .. } | Mixer::Mla { .. } | Mixer::CompressedAttention { .. }
        )
    };
    let sees_all = |group: &&LayerGroup| {
        !matches!(
            group.mixer,
            Mixer::Attention {
                scope: Scope::Sliding(_) | Scope::Chunked(_),
                ..
            }
        )
    };
    let mixer = (model.layers.iter().rev().filter(attends))
        .find(sees_all)
        .or_else(|| model.layers.iter().rfind(attends))
        .or_else(|| model.layers.last())
        .map_or(Mixer::None, |group| group.mixer.clone());
    let ffn = (model.layers.iter())
        .rfind(|group| group.ffn != Ffn::None)
        .map_or(Ffn::None, |group| group.ffn.clone());
    ModelSpec {
        layers: vec![LayerGroup {
            count: 1,
            mixer,
            ffn,
            small_parameters: 0,
        }],
        mtp_layers: 0,
        ..model.clone()
    }
}

/// The widest layout within `chips` chips that can run a draft model.
fn draft_layout(model: &ModelSpec, accelerator: &Accelerator, chips: u32) -> Layout {
    let plain = |tp| Layout {
        tp,
        pp: 1,
        ep: 1,
        attn_dp: 1,
    };
    (1..=chips)
        .rev()
        .map(plain)
        .find(|layout| layout.refusal(model, accelerator).is_none())
        .unwrap_or(plain(1))
}

impl StepModel {
    /// Turns the decode step into one that drafts and verifies.
    #[must_use]
    pub fn with_speculation(mut self, draft: &DraftPlan, speculation: &Speculation<'_>) -> Self {
        self.decode = speculative_step(&self.decode, draft, speculation);
        self.tokens_per_step = speculation.tokens_per_step();
        self
    }
}

/// The operators of a decode step that verifies `speculation.depth` drafted tokens beside the last one, and drafts as
/// many again.
///
/// Products, experts and collectives carry `1 + depth` tokens a request; the cache is read once for all of them, while
/// its arithmetic is done for each; the host handles a request once.
///
/// Assumes: the tokens of a request are routed to experts independently, which overstates what is read.
#[must_use]
pub fn speculative_step(
    decode: &[Operator],
    draft: &DraftPlan,
    speculation: &Speculation<'_>,
) -> Vec<Operator> {
    let tokens = speculation.tokens_verified();
    let verified = decode.iter().map(|operator| {
        let mut operator = *operator;
        match (operator.name, &mut operator.cost) {
            (OperatorName::MixerCore, Cost::PerRow(core)) => core.compute_s *= tokens,
            (OperatorName::Overhead, _) => {}
            _ => operator.rows_per_token *= tokens,
        }
        operator
    });
    let drafted = draft.pass.iter().map(|operator| {
        let mut operator = *operator;
        operator.count *= f64::from(speculation.depth);
        operator
    });
    verified.chain(drafted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::PerRow;

    fn speculation(depth: u32, acceptance: f64) -> Speculation<'static> {
        Speculation {
            depth,
            acceptance,
            draft: None,
        }
    }

    #[test]
    fn accepted_tokens_are_a_geometric_sum() {
        // 1 + 0.6 + 0.36 + 0.216
        assert!((speculation(3, 0.6).tokens_per_step() - 2.176).abs() < 1e-12);
        assert_eq!(speculation(3, 0.0).tokens_per_step(), 1.0);
        assert_eq!(speculation(2, 1.0).tokens_per_step(), 3.0);
        assert_eq!(Speculation::OFF.tokens_per_step(), 1.0);
    }

    #[test]
    fn acceptance_is_found_from_the_accepted_tokens() {
        assert!((acceptance_of(3, 2.176) - 0.6).abs() < 1e-9);
        assert!((acceptance_of(1, 1.85) - 0.85).abs() < 1e-9);
    }

    #[test]
    fn a_verify_step_reads_the_cache_once_and_multiplies_for_every_token() {
        let core = PerRow {
            memory_s: 1e-3,
            compute_s: 2e-4,
            latency_s: 0.0,
        };
        let host = PerRow {
            memory_s: 0.0,
            compute_s: 0.0,
            latency_s: 1e-5,
        };
        let product = Gemm::new(1e9, 1.0, 1e12, 1e15, 0.0);
        let operator = |name, cost| Operator {
            name,
            count: 2.0,
            rows_per_token: 1.0,
            cost,
        };
        let decode = [
            operator(OperatorName::MixerCore, Cost::PerRow(core)),
            operator(OperatorName::Overhead, Cost::PerRow(host)),
            operator(OperatorName::DenseFfn, Cost::Gemm(product)),
        ];
        let draft = DraftPlan {
            pass: vec![operator(OperatorName::Overhead, Cost::Fixed(1e-4))],
            weight_bytes: 0.0,
            request_bytes: 0.0,
        };
        let step = speculative_step(&decode, &draft, &speculation(3, 0.5));
        let pieces = step[0].pieces(10.0);
        assert!((pieces.memory_s - 2.0 * 10.0 * 1e-3).abs() < 1e-12);
        assert!((pieces.compute_s - 2.0 * 10.0 * 4.0 * 2e-4).abs() < 1e-12);
        assert!((step[1].seconds(10.0) - 2.0 * 10.0 * 1e-5).abs() < 1e-15);
        // 40 tokens x 2 GFLOP at 1 PFLOP/s, twice
        assert!((step[2].pieces(10.0).compute_s - 2.0 * 40.0 * 2e-6).abs() < 1e-12);
        assert!((step[3].seconds(10.0) - 3.0 * 2.0 * 1e-4).abs() < 1e-15);
    }
}
