//! One micro-batch through the whole model on one chip's share: the expensive part of a step, worked out once for all
//! pipelines, data-parallel degrees and recomputation modes.

use super::kept::Kept;
use super::layer::{dense_ffn, mixer_products, mixer_widths, Product};
use super::layout::{ContextExchange, TrainingLayout};
use super::parameters::TrainingParameters;
use super::rates::{exposed_s, product_times, Rates};
use super::routed::ExpertLayer;
use super::{AttentionKernel, Recipe, TrainingJob};
use crate::accelerator::Accelerator;
use crate::count::GroupParameters;
use crate::model::{Ffn, LayerGroup, Mixer, ModelSpec};
use crate::ops::attention::{replicated_projection_parameters, Lengths, MixerWork};

/// What of a layout a micro-batch's time depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Split {
    /// Tensor parallelism.
    pub tp: u32,
    /// Whether norms and residuals are split along the sequence.
    pub sequence_parallel: bool,
    /// Context parallelism.
    pub cp: u32,
    /// Expert parallelism.
    pub ep: u32,
    /// Tensor parallelism inside an expert.
    pub etp: u32,
    /// Sequences of a micro-batch.
    pub micro_batch: u32,
    /// Whether products hide tensor-parallel traffic piece by piece.
    pub async_tensor: bool,
    /// How context parallelism exchanges.
    pub context_exchange: ContextExchange,
}

impl From<&TrainingLayout> for Split {
    fn from(layout: &TrainingLayout) -> Self {
        Self {
            tp: layout.tp,
            sequence_parallel: layout.sequence_parallel,
            cp: layout.cp,
            ep: layout.ep,
            etp: layout.etp,
            micro_batch: layout.micro_batch,
            async_tensor: layout.async_tensor,
            context_exchange: layout.context_exchange,
        }
    }
}

/// Seconds of one pass of a micro-batch through all layers, by what takes them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PassTimes {
    /// Dense matrix products.
    pub gemm_s: f64,
    /// Products of routed experts.
    pub experts_s: f64,
    /// Attention core and scans.
    pub attention_s: f64,
    /// Norms, residuals, activations, permutation of tokens.
    pub elementwise_s: f64,
    /// Casts to eight and four bits.
    pub cast_s: f64,
    /// Kernels of low-rank adapters.
    pub adapter_s: f64,
    /// Tensor-parallel traffic that is not hidden.
    pub tensor_s: f64,
    /// Expert-parallel traffic that is not hidden.
    pub expert_exchange_s: f64,
    /// Context-parallel traffic that is not hidden.
    pub context_s: f64,
    /// Launches and synchronisation.
    pub overhead_s: f64,
}

impl PassTimes {
    /// All of it.
    #[must_use]
    pub fn total_s(&self) -> f64 {
        self.gemm_s
            + self.experts_s
            + self.attention_s
            + self.elementwise_s
            + self.cast_s
            + self.adapter_s
            + self.tensor_s
            + self.expert_exchange_s
            + self.context_s
            + self.overhead_s
    }

    fn scale(&mut self, factor: f64) {
        for value in [
            &mut self.gemm_s,
            &mut self.experts_s,
            &mut self.attention_s,
            &mut self.elementwise_s,
            &mut self.cast_s,
            &mut self.adapter_s,
            &mut self.tensor_s,
            &mut self.expert_exchange_s,
            &mut self.context_s,
            &mut self.overhead_s,
        ] {
            *value *= factor;
        }
    }
}

/// What one chip holds of the model, all stages together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ShardSizes {
    /// Parameters of the layers outside routed experts.
    pub layer_parameters: f64,
    /// Parameters of the routed experts.
    pub expert_parameters: f64,
    /// Parameters of the embedding.
    pub embedding_parameters: f64,
    /// Parameters of the head, also where it shares the embedding's weights.
    pub head_parameters: f64,
    /// Parameters of low-rank adapters.
    pub adapter_parameters: f64,
    /// Whole-layer parameters of the largest layer before any sharding over data-parallel ranks.
    pub largest_layer_parameters: f64,
    /// Activation bytes of a micro-batch that nothing recomputes.
    pub kept_bytes: f64,
    /// The same with cheap operators recomputed.
    pub kept_selective_bytes: f64,
    /// The same with every layer recomputed.
    pub kept_full_bytes: f64,
    /// Working set of the widest layer.
    pub working_bytes: f64,
    /// Logits and their gradient.
    pub logit_bytes: f64,
}

/// Times and sizes of one micro-batch on one chip, as if it held every layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MicrobatchCost {
    /// Forward pass of the layers.
    pub forward: PassTimes,
    /// Backward pass of the layers, nothing recomputed.
    pub backward: PassTimes,
    /// Weight gradients, part of the backward pass.
    pub weight_gradient_s: f64,
    /// What selective recomputation repeats.
    pub selective_s: f64,
    /// Head and loss, forward.
    pub head_forward_s: f64,
    /// Head and loss, backward.
    pub head_backward_s: f64,
    /// Bytes a stage sends to the next for one micro-batch.
    pub boundary_bytes: f64,
    /// What the chip holds.
    pub shard: ShardSizes,
    /// Rates of the chip, with the parameters in force.
    pub rates: Rates,
    /// Layers of the model.
    pub layers: u32,
}

/// Backward over forward of a flash attention core: five products instead of two.
const FLASH_BACKWARD: f64 = 2.5;
/// Bytes of 16-bit activations.
pub(super) const ACTIVATION_BYTES: f64 = 2.0;
/// Reads and writes of a scan's inputs: convolution in and out, gate, chunk states, norm. An attention core streams its
/// queries, keys and values once in and once out.
const SCAN_STREAMS: f64 = 6.0;
/// Share of the elementwise forward that selective recomputation repeats: norms and activations.
const SELECTIVE_SHARE: f64 = 0.5;

impl MicrobatchCost {
    /// Works out a micro-batch of `job` on `model`, split as `split`.
    ///
    /// Source: rooflines of every product, core and streaming kernel on the per-chip shapes; see each item.
    /// Assumes: experts are balanced but for `expert_imbalance`; layers are averaged over pipeline stages.
    #[must_use]
    pub fn new(
        model: &ModelSpec,
        accelerator: &Accelerator,
        parameters: &TrainingParameters,
        job: &TrainingJob,
        split: &Split,
    ) -> Self {
        let rates = Rates::new(accelerator, parameters, job);
        let shape = Shape::new(model, job, split);
        let mut cost = Self {
            forward: PassTimes::default(),
            backward: PassTimes::default(),
            weight_gradient_s: 0.0,
            selective_s: 0.0,
            head_forward_s: 0.0,
            head_backward_s: 0.0,
            boundary_bytes: ACTIVATION_BYTES * shape.tokens * shape.hidden / shape.sequence_split,
            shard: ShardSizes::default(),
            rates,
            layers: model.layers.iter().map(|group| group.count).sum(),
        };
        for group in &model.layers {
            cost.add_layers(group, model, parameters, job, split, &shape);
        }
        cost.add_ends(model, parameters, job, &shape);
        let faster = 1.0 / parameters.software_factor;
        cost.forward.scale(faster);
        cost.backward.scale(faster);
        cost.weight_gradient_s *= faster;
        cost.selective_s *= faster;
        cost.head_forward_s *= faster;
        cost.head_backward_s *= faster;
        cost
    }

    fn add_layers(
        &mut self,
        group: &LayerGroup,
        model: &ModelSpec,
        parameters: &TrainingParameters,
        job: &TrainingJob,
        split: &Split,
        shape: &Shape,
    ) {
        let layers = f64::from(group.count);
        let mut forward = PassTimes::default();
        let mut backward = PassTimes::default();
        let mut weight_gradient_s = 0.0;
        let mut widths = 0.0;
        let mut adapter_widths = 0.0;
        let mut adapter_parameters = 0.0;
        let rank = f64::from(job.recipe.rank());
        let is_frozen = job.recipe.is_frozen();
        let rates = self.rates;
        let tp = f64::from(split.tp);
        let tokens = shape.tokens;

        let mut add_product = |product: Product, is_mixer: bool| -> (f64, f64) {
            let times = product_times(
                tokens,
                product,
                rates.product_flops,
                rates.half_rate,
                job.format.operand_bytes(),
                rates.memory_bytes_per_s,
            );
            let gradient_s = if is_frozen {
                0.0
            } else {
                times.weight_gradient_s
            };
            weight_gradient_s += gradient_s;
            widths += product.k + product.n;
            if rank > 0.0 && (is_mixer || matches!(job.recipe, Recipe::Lora { .. })) {
                adapter_widths += product.k + 3.0 * product.n;
                adapter_parameters += rank * (product.k + product.n);
            }
            (times.forward_s, times.data_gradient_s + gradient_s)
        };

        // Mixer.
        let mut mixer_s = (0.0, 0.0);
        mixer_products(&group.mixer, model.hidden, tp, |product| {
            let (forward_s, backward_s) = add_product(product, true);
            mixer_s.0 += forward_s;
            mixer_s.1 += backward_s;
        });
        // Dense or shared FFN.
        let (ffn_dim, matrices) = dense_ffn(&group.ffn);
        let mut ffn_s = (0.0, 0.0);
        if ffn_dim > 0.0 {
            let inner = ffn_dim / tp;
            for product in [
                Product {
                    k: shape.hidden,
                    n: (matrices - 1.0) * inner,
                },
                Product {
                    k: inner,
                    n: shape.hidden,
                },
            ] {
                let (forward_s, backward_s) = add_product(product, false);
                ffn_s.0 += forward_s;
                ffn_s.1 += backward_s;
            }
        }
        forward.gemm_s = mixer_s.0 + ffn_s.0;
        backward.gemm_s = mixer_s.1 + ffn_s.1;

        let core = CoreTimes::new(group, job, &rates, parameters, shape, tp);
        forward.attention_s = core.forward_s;
        backward.attention_s = core.backward_s;

        // Norms, residuals, rotary and activations: one read or write of each tensor in a forward pass, two in a
        // backward pass.
        let mixer = mixer_widths(&group.mixer, tp);
        let has_mixer = group.mixer != Mixer::None;
        let has_ffn = group.ffn != Ffn::None;
        let blocks = f64::from(u8::from(has_mixer)) + f64::from(u8::from(has_ffn));
        let streamed = 3.0 * blocks * shape.hidden / shape.sequence_split
            + if mixer.heads > 0.0 { 2.0 } else { SCAN_STREAMS } * mixer.inner
            + matrices * ffn_dim / tp;
        // Unfused kernels write and read every intermediate once more.
        const EAGER_TRAFFIC: f64 = 2.0;
        let fusion = if job.is_eager { EAGER_TRAFFIC } else { 1.0 };
        let pass_s = ACTIVATION_BYTES * tokens * streamed * parameters.elementwise_factor * fusion
            / rates.memory_bytes_per_s;
        forward.elementwise_s = pass_s;
        backward.elementwise_s = 2.0 * pass_s;

        // Casts: an operand is read in 16 bits and written in 8 for each of three products.
        if job.format.is_cast() {
            const CAST_BYTES: f64 = 4.0 / 3.0;
            let cast_s =
                CAST_BYTES * job.format.cast_weight() * parameters.cast_factor * tokens * widths
                    / rates.memory_bytes_per_s;
            forward.cast_s = cast_s;
            backward.cast_s = if is_frozen { cast_s } else { 2.0 * cast_s };
        }
        if adapter_widths > 0.0 {
            let adapter_s = ACTIVATION_BYTES * tokens * adapter_widths * parameters.adapter_factor
                / rates.memory_bytes_per_s;
            forward.adapter_s = adapter_s;
            backward.adapter_s = 2.0 * adapter_s;
        }

        // Tensor parallelism gathers before a block and scatters after it; a backward pass gathers once more.
        if split.tp > 1 {
            let exposed = if split.async_tensor {
                parameters.async_tensor_exposed
            } else {
                parameters.tensor_exposed
            };
            let block_s =
                2.0 * rates.gather_s(tp, 1.0, ACTIVATION_BYTES * tokens * shape.hidden, 0.0);
            let again = if split.sequence_parallel { 1.5 } else { 1.0 };
            for (has_traffic, (forward_s, backward_s)) in [
                (has_mixer, mixer_s),
                (ffn_dim > 0.0 || (has_ffn && split.etp > 1), ffn_s),
            ] {
                if has_traffic {
                    forward.tensor_s += exposed_s(block_s, forward_s, exposed);
                    backward.tensor_s += exposed_s(again * block_s, backward_s, exposed);
                }
            }
        }
        // Context parallelism.
        if split.cp > 1 && has_mixer {
            let cp = f64::from(split.cp);
            let is_inside = tp * cp <= rates.domain_chips;
            let rate = if is_inside {
                rates.fabric.group_bytes_per_s(tp * cp)
            } else {
                rates.network_bytes_per_s
            };
            let (traffic_s, exposed) = match split.context_exchange {
                ContextExchange::Ring => (
                    ACTIVATION_BYTES * tokens * mixer.kv * (cp - 1.0) / rate,
                    parameters.context_exposed,
                ),
                ContextExchange::AllToAll => (
                    ACTIVATION_BYTES * tokens * (mixer.inner + mixer.out) * (cp - 1.0) / cp / rate,
                    1.0,
                ),
            };
            forward.context_s = exposed_s(traffic_s, core.forward_s, exposed);
            backward.context_s = exposed_s(2.0 * traffic_s, core.backward_s, exposed);
        }
        let layer_overhead_s = 0.5 * blocks * parameters.layer_overhead_s;
        forward.overhead_s = layer_overhead_s / 3.0;
        backward.overhead_s = layer_overhead_s * 2.0 / 3.0;

        let mut kept = Kept::new(group, job, shape, &mixer, tp);
        let mut expert_parameters = 0.0;
        if let Some(experts) = ExpertLayer::new(&group.ffn, job, parameters, split, shape) {
            let (gradient_s, expert_forward, expert_backward) =
                experts.times(job, &rates, parameters, split, shape);
            weight_gradient_s += gradient_s;
            forward.experts_s = expert_forward.experts_s;
            backward.experts_s = expert_backward.experts_s;
            forward.elementwise_s += expert_forward.elementwise_s;
            backward.elementwise_s += expert_backward.elementwise_s;
            forward.cast_s += expert_forward.cast_s;
            backward.cast_s += expert_backward.cast_s;
            forward.expert_exchange_s = expert_forward.expert_exchange_s;
            backward.expert_exchange_s = expert_backward.expert_exchange_s;
            forward.overhead_s += expert_forward.overhead_s;
            backward.overhead_s += expert_backward.overhead_s;
            kept.add_experts(&experts, job, shape);
            expert_parameters = experts.parameters_on_chip();
        }

        let counted = GroupParameters::new(group, model.hidden);
        let replicated =
            replicated_projection_parameters(&group.mixer, model.hidden).min(counted.mixer);
        let layer_parameters = (counted.mixer - replicated + counted.dense) / tp
            + replicated
            + counted.router
            + counted.small;

        let selective_s = SELECTIVE_SHARE * forward.elementwise_s
            + if job.attention == AttentionKernel::Materialised {
                core.forward_s
            } else {
                0.0
            };
        accumulate(&mut self.forward, &forward, layers);
        accumulate(&mut self.backward, &backward, layers);
        self.weight_gradient_s += layers * weight_gradient_s;
        self.selective_s += layers * selective_s;
        self.shard.layer_parameters += layers * layer_parameters;
        self.shard.expert_parameters += layers * expert_parameters;
        self.shard.adapter_parameters += layers * adapter_parameters;
        self.shard.largest_layer_parameters = self
            .shard
            .largest_layer_parameters
            .max(layer_parameters + expert_parameters);
        self.shard.kept_bytes += layers * kept.all;
        self.shard.kept_selective_bytes += layers * kept.selective;
        self.shard.kept_full_bytes += layers * kept.full;
        self.shard.working_bytes = self.shard.working_bytes.max(kept.all + kept.transient);
    }

    /// Embedding, head and loss.
    fn add_ends(
        &mut self,
        model: &ModelSpec,
        parameters: &TrainingParameters,
        job: &TrainingJob,
        shape: &Shape,
    ) {
        let vocab = f64::from(model.vocab) / shape.tp;
        self.shard.embedding_parameters =
            vocab * shape.hidden + f64::from(model.learned_positions) * shape.hidden;
        if !job.recipe.has_head() {
            return;
        }
        self.shard.head_parameters = vocab * shape.hidden;
        // Logits in 16 bits and in FP32.
        const LOGIT_BYTES: f64 = 6.0;
        self.shard.logit_bytes = LOGIT_BYTES * shape.tokens * vocab;
        let times = product_times(
            shape.tokens,
            Product {
                k: shape.hidden,
                n: vocab,
            },
            self.rates.wide_flops,
            self.rates.wide_half_rate,
            ACTIVATION_BYTES,
            self.rates.memory_bytes_per_s,
        );
        // Loss: logits are written, read, and their gradient written, in 16 bits and FP32.
        const LOSS_BYTES: f64 = 4.0;
        let pass_s = LOSS_BYTES * shape.tokens * vocab / self.rates.memory_bytes_per_s;
        let tensor_s = if shape.tp > 1.0 {
            parameters.tensor_exposed
                * self.rates.gather_s(
                    shape.tp,
                    1.0,
                    ACTIVATION_BYTES * shape.tokens * shape.hidden,
                    0.0,
                )
        } else {
            0.0
        };
        let gradient_s = if job.recipe.is_frozen() {
            0.0
        } else {
            times.weight_gradient_s
        };
        self.head_forward_s = times.forward_s + pass_s + tensor_s;
        self.head_backward_s = times.data_gradient_s + gradient_s + 2.0 * pass_s + tensor_s;
    }
}

fn accumulate(total: &mut PassTimes, one: &PassTimes, count: f64) {
    total.gemm_s += count * one.gemm_s;
    total.experts_s += count * one.experts_s;
    total.attention_s += count * one.attention_s;
    total.elementwise_s += count * one.elementwise_s;
    total.cast_s += count * one.cast_s;
    total.adapter_s += count * one.adapter_s;
    total.tensor_s += count * one.tensor_s;
    total.expert_exchange_s += count * one.expert_exchange_s;
    total.context_s += count * one.context_s;
    total.overhead_s += count * one.overhead_s;
}

/// Shapes that every layer shares.
pub(super) struct Shape {
    /// Tokens of a micro-batch on one chip, before tensor parallelism.
    pub(super) tokens: f64,
    pub(super) hidden: f64,
    pub(super) tp: f64,
    /// Chips over which norms and residuals are split.
    pub(super) sequence_split: f64,
}

impl Shape {
    fn new(model: &ModelSpec, job: &TrainingJob, split: &Split) -> Self {
        let tp = f64::from(split.tp);
        Self {
            tokens: job.seq_len * f64::from(split.micro_batch) / f64::from(split.cp),
            hidden: f64::from(model.hidden),
            tp,
            sequence_split: if split.sequence_parallel { tp } else { 1.0 },
        }
    }
}

/// Times of a layer's attention core or scan, s.
struct CoreTimes {
    forward_s: f64,
    backward_s: f64,
}

impl CoreTimes {
    /// Source: causal pairs (or the window's) at the core's own rate; heads narrower than 128 run slower as
    /// `1.5 d / (d + 64)`. A materialised core computes the whole square and streams its scores.
    fn new(
        group: &LayerGroup,
        job: &TrainingJob,
        rates: &Rates,
        parameters: &TrainingParameters,
        shape: &Shape,
        tp: f64,
    ) -> Self {
        let documents = job.document_tokens();
        let lengths = Lengths {
            isl: documents,
            osl: 0.0,
            cached: 0.0,
        };
        let flops = MixerWork::new(&group.mixer, &lengths, ACTIVATION_BYTES, tp).prompt_flops
            / documents
            * shape.tokens;
        let widths = mixer_widths(&group.mixer, tp);
        if widths.head <= 0.0 {
            let forward_s = flops / (rates.attention_flops * parameters.scan_factor);
            return Self {
                forward_s,
                backward_s: FLASH_BACKWARD * forward_s,
            };
        }
        const HALF_RATE_HEAD: f64 = 64.0;
        let rate = rates.attention_flops * 1.5 * widths.head / (widths.head + HALF_RATE_HEAD);
        match job.attention {
            AttentionKernel::Flash | AttentionKernel::Flash2 => Self {
                forward_s: flops / rate,
                backward_s: FLASH_BACKWARD * flops / rate,
            },
            AttentionKernel::Materialised => {
                // Scores, mask, softmax, dropout, values: written and read once each; again twice backward.
                const SCORE_BYTES: f64 = 12.0;
                let stream_s = SCORE_BYTES * shape.tokens * documents * widths.heads
                    / rates.memory_bytes_per_s;
                let forward_s = 2.0 * flops / rate + stream_s;
                Self {
                    forward_s,
                    backward_s: 2.0 * forward_s,
                }
            }
        }
    }
}
