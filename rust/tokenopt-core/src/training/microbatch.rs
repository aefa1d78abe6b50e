//! One micro-batch through the whole model on one chip's share: the expensive part of a step, worked out once for all
//! pipelines, data-parallel degrees and recomputation modes.

use super::layer::{dense_ffn, mixer_products, mixer_widths, Product};
use super::layout::{ContextExchange, TrainingLayout};
use super::parameters::TrainingParameters;
use super::{AttentionKernel, Recipe, TrainingFormat, TrainingJob};
use crate::accelerator::Accelerator;
use crate::count::GroupParameters;
use crate::model::{Ffn, LayerGroup, Mixer, ModelSpec};
use crate::ops::attention::{replicated_projection_parameters, Lengths, MixerWork};
use crate::ops::collective::Fabric;
use crate::ops::roofline;

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

/// Achieved rates of one chip for one job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Products in the job's format, FLOP/s at large sizes.
    pub product_flops: f64,
    /// Dimension at which such a product loses half its rate.
    pub half_rate: f64,
    /// Products in 16 bits, FLOP/s at large sizes.
    pub wide_flops: f64,
    /// Dimension at which a 16-bit product loses half its rate.
    pub wide_half_rate: f64,
    /// Attention core, FLOP/s at heads of 128.
    pub attention_flops: f64,
    /// Memory, bytes/s.
    pub memory_bytes_per_s: f64,
    /// Fabric inside and outside the scale-up domain.
    pub fabric: Fabric,
    /// Network alone, bytes/s.
    pub network_bytes_per_s: f64,
    /// Chips of a scale-up domain.
    pub domain_chips: f64,
}

/// Power per peak 16-bit FLOP/s at which `gemm_efficiency` is defined, W per 10^12 FLOP/s: 700 W over 989e12.
const REFERENCE_W_PER_TFLOPS: f64 = 0.7;
/// Beyond this the clock is no longer held by power.
const AMPLE_W_PER_TFLOPS: f64 = 0.75;
/// FLOP per byte of the chip on which `half_rate_elements` is defined.
const REFERENCE_FLOPS_PER_BYTE: f64 = 989e12 / 3.35e12;

impl Rates {
    /// Rates of `accelerator` for `job`.
    ///
    /// Source: the sustained clock of a GPU under matrix products follows its power per peak FLOP/s; dimension-wise
    /// saturation scales with the FLOP per byte that a tile must earn.
    #[must_use]
    pub fn new(
        accelerator: &Accelerator,
        parameters: &TrainingParameters,
        job: &TrainingJob,
    ) -> Self {
        let bf16 = accelerator.peak_flops.bf16;
        let clock = accelerator.clock_power_w.map_or(1.0, |power_w| {
            let ratio = (power_w / (bf16 / 1e12)).min(AMPLE_W_PER_TFLOPS) / REFERENCE_W_PER_TFLOPS;
            ratio.powf(parameters.power_exponent)
        }) * parameters.chip_factor;
        let peak = job.format.peak_flops(&accelerator.peak_flops);
        let half_rate = |flops: f64| {
            let ratio = flops / accelerator.hbm_bytes_per_s / REFERENCE_FLOPS_PER_BYTE;
            parameters.half_rate_elements * ratio.powf(parameters.half_rate_growth)
        };
        let scaling = if job.format == TrainingFormat::Fp8Rowwise {
            parameters.rowwise_factor
        } else {
            1.0
        };
        let has_newer_units = accelerator.peak_flops.fp8.is_some();
        let generation = if job.attention == AttentionKernel::Flash2 && has_newer_units {
            parameters.older_kernel_factor
        } else {
            1.0
        };
        let network_bytes_per_s =
            (accelerator.scale_out_bytes_per_s * parameters.network_efficiency).max(1.0);
        Self {
            product_flops: peak * parameters.gemm_efficiency * clock * scaling,
            half_rate: half_rate(peak),
            wide_flops: bf16 * parameters.gemm_efficiency * clock,
            wide_half_rate: half_rate(bf16),
            attention_flops: bf16 * parameters.attention_efficiency * clock * generation,
            memory_bytes_per_s: accelerator.hbm_bytes_per_s * parameters.bandwidth_efficiency,
            fabric: Fabric::with_rates(
                accelerator,
                accelerator.scale_up.bytes_per_s * parameters.link_efficiency,
                0.0,
                network_bytes_per_s,
                parameters.network_latency_s,
            ),
            network_bytes_per_s,
            domain_chips: f64::from(accelerator.scale_up.domain_chips),
        }
    }

    /// Seconds in which every chip of a group of `size` gathers (or reduces and scatters) a buffer of `bytes`, members
    /// `stride` chips apart.
    ///
    /// Source: `(n - 1) / n` of the buffer crosses each chip's links; where the group leaves the scale-up domain, the
    /// part that comes from outside is shared by the members inside, each with its own network interface.
    #[inline(always)]
    #[must_use]
    pub fn gather_s(&self, size: f64, stride: f64, bytes: f64, latency_s: f64) -> f64 {
        if size <= 1.0 {
            return 0.0;
        }
        let inside = (self.domain_chips / stride).floor().clamp(1.0, size);
        let mut seconds = 0.0;
        if inside > 1.0 {
            seconds +=
                (inside - 1.0) / inside * bytes / self.fabric.group_bytes_per_s(inside * stride);
        }
        if inside < size {
            let domains = size / inside;
            seconds += (domains - 1.0) / domains * bytes / inside / self.network_bytes_per_s
                + latency_s * domains.log2();
        }
        seconds
    }
}

/// A product's times, s.
struct ProductTimes {
    forward_s: f64,
    data_gradient_s: f64,
    weight_gradient_s: f64,
}

/// Roofline of `rows` rows through `product`.
///
/// Source: `2 M N K` FLOP against the operands once each; every dimension saturates as `1 + d / size` (tiles, waves,
/// prologue). The weight gradient accumulates in FP32: a read and a write of 4 bytes.
#[inline(always)]
fn product_times(
    rows: f64,
    product: Product,
    flops: f64,
    half_rate: f64,
    operand_bytes: f64,
    memory_bytes_per_s: f64,
) -> ProductTimes {
    const WIDE_BYTES: f64 = 2.0;
    const ACCUMULATION_BYTES: f64 = 8.0;
    let Product { k, n } = product;
    let saturation = (1.0 + half_rate / rows) * (1.0 + half_rate / k) * (1.0 + half_rate / n);
    let compute_s = 2.0 * rows * k * n * saturation / flops;
    let weight_bytes = k * n * operand_bytes;
    let forward_bytes = rows * k * operand_bytes + weight_bytes + rows * n * WIDE_BYTES;
    let data_bytes = rows * n * operand_bytes + weight_bytes + rows * k * WIDE_BYTES;
    let gradient_bytes = rows * (k + n) * operand_bytes + k * n * ACCUMULATION_BYTES;
    ProductTimes {
        forward_s: roofline(forward_bytes / memory_bytes_per_s, compute_s),
        data_gradient_s: roofline(data_bytes / memory_bytes_per_s, compute_s),
        weight_gradient_s: roofline(gradient_bytes / memory_bytes_per_s, compute_s),
    }
}

/// Traffic of which a share `exposed` is never hidden and the rest hides behind `hiding_s` of other work.
///
/// Assumes: `comm (x + (1 - x) comm / (comm + work))`: long products hide all but `x`, short ones nothing.
#[inline(always)]
fn exposed_s(traffic_s: f64, hiding_s: f64, exposed: f64) -> f64 {
    if traffic_s <= 0.0 {
        return 0.0;
    }
    traffic_s * (exposed + (1.0 - exposed) * traffic_s / (traffic_s + hiding_s))
}

/// Backward over forward of a flash attention core: five products instead of two.
const FLASH_BACKWARD: f64 = 2.5;
/// Bytes of 16-bit activations.
const ACTIVATION_BYTES: f64 = 2.0;
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
struct Shape {
    /// Tokens of a micro-batch on one chip, before tensor parallelism.
    tokens: f64,
    hidden: f64,
    tp: f64,
    /// Chips over which norms and residuals are split.
    sequence_split: f64,
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

/// Activation bytes of one layer and micro-batch by recomputation.
struct Kept {
    all: f64,
    selective: f64,
    full: f64,
    transient: f64,
}

impl Kept {
    /// Source: the inputs that backward operators read (Korthikanti et al. 2022, section 4, without dropout and with
    /// gated FFNs): norm input and output, queries, keys, values, core output, inner FFN tensors. Casts keep their
    /// operands in the narrow format.
    fn new(
        group: &LayerGroup,
        job: &TrainingJob,
        shape: &Shape,
        mixer: &super::layer::MixerWidths,
        tp: f64,
    ) -> Self {
        let operand = job.format.operand_bytes().max(1.0);
        let residual = shape.hidden / shape.sequence_split;
        let (ffn_dim, matrices) = dense_ffn(&group.ffn);
        let inner = ffn_dim / tp;
        // A frozen product needs its input only where an adapter reads it too.
        let ffn_input = match job.recipe {
            Recipe::LoraAttention { .. } => 0.0,
            _ => operand,
        };
        let mut all = 0.0;
        let mut selective = 0.0;
        if group.mixer != Mixer::None {
            selective += ACTIVATION_BYTES * (residual + mixer.inner) + operand * mixer.out;
            all += operand * residual;
        }
        if group.ffn != Ffn::None {
            selective += ACTIVATION_BYTES * (residual + (matrices - 1.0).max(0.0) * inner);
            all += ffn_input * (residual + inner);
        }
        all += selective;
        if job.attention == AttentionKernel::Materialised {
            all += 5.0 * mixer.heads * job.document_tokens();
        }
        Self {
            all: all * shape.tokens,
            selective: selective * shape.tokens,
            full: ACTIVATION_BYTES * residual * shape.tokens,
            transient: 0.0,
        }
    }

    fn add_experts(&mut self, experts: &ExpertLayer, job: &TrainingJob, shape: &Shape) {
        let operand = job.format.operand_bytes().max(1.0);
        let pairs = experts.pairs;
        let inner = experts.expert_dim;
        let selective =
            ACTIVATION_BYTES * (experts.matrices - 1.0) * inner + operand * shape.hidden;
        self.selective += pairs * selective;
        self.all += pairs * (selective + operand * inner + ACTIVATION_BYTES * shape.hidden);
        // Buffers of dispatch and combine.
        self.transient += 2.0 * ACTIVATION_BYTES * pairs * shape.hidden;
    }
}

/// Routed experts of one layer on one chip.
struct ExpertLayer {
    local_experts: f64,
    rows: f64,
    /// Token-expert pairs that the chip computes.
    pairs: f64,
    /// Token-expert pairs that leave the chip.
    sent_pairs: f64,
    top_k: f64,
    width: f64,
    expert_dim: f64,
    matrices: f64,
}

impl ExpertLayer {
    /// Source: `T k ep etp / (E tp)` rows an expert on average; the busiest rank has `expert_imbalance` more, with
    /// token dropping the capacity.
    fn new(
        ffn: &Ffn,
        job: &TrainingJob,
        parameters: &TrainingParameters,
        split: &Split,
        shape: &Shape,
    ) -> Option<Self> {
        let Ffn::Moe {
            experts,
            top_k,
            expert_dim,
            matrices,
            latent_dim,
            ..
        } = *ffn
        else {
            return None;
        };
        let ranks = f64::from(split.ep);
        let local_experts = f64::from(experts) / ranks;
        let etp = f64::from(split.etp);
        let own_tokens = shape.tokens / shape.tp;
        let mean = own_tokens * f64::from(top_k) * ranks * etp / f64::from(experts);
        let excess = match job.capacity_factor {
            Some(factor) => factor.max(1.0),
            None => 1.0 + parameters.expert_imbalance * (1.0 - 1.0 / ranks),
        };
        let rows = mean * excess;
        Some(Self {
            local_experts,
            rows,
            pairs: rows * local_experts,
            sent_pairs: own_tokens * f64::from(top_k),
            top_k: f64::from(top_k),
            width: if latent_dim > 0 {
                f64::from(latent_dim)
            } else {
                shape.hidden
            },
            expert_dim: f64::from(expert_dim) / etp,
            matrices: f64::from(matrices),
        })
    }

    fn parameters_on_chip(&self) -> f64 {
        self.local_experts * self.matrices * self.width * self.expert_dim
    }

    /// Weight-gradient seconds, forward and backward times of the routed part.
    fn times(
        &self,
        job: &TrainingJob,
        rates: &Rates,
        parameters: &TrainingParameters,
        split: &Split,
        shape: &Shape,
    ) -> (f64, PassTimes, PassTimes) {
        let faster = 1.0 / parameters.moe_software_factor;
        let mut forward = PassTimes::default();
        let mut backward = PassTimes::default();
        let mut weight_gradient_s = 0.0;
        let mut widths = 0.0;
        for product in [
            Product {
                k: self.width,
                n: (self.matrices - 1.0) * self.expert_dim,
            },
            Product {
                k: self.expert_dim,
                n: self.width,
            },
        ] {
            let times = product_times(
                self.rows,
                product,
                rates.product_flops * parameters.expert_gemm_factor,
                rates.half_rate,
                job.format.operand_bytes(),
                rates.memory_bytes_per_s,
            );
            let gradient_s = if job.recipe.is_frozen() {
                0.0
            } else {
                times.weight_gradient_s
            };
            forward.experts_s += self.local_experts * times.forward_s * faster;
            backward.experts_s +=
                self.local_experts * (times.data_gradient_s + gradient_s) * faster;
            weight_gradient_s += self.local_experts * gradient_s * faster;
            widths += product.k + product.n;
        }
        // Permutation there and back, and the activation between the products.
        let streamed = 4.0 * shape.hidden + 3.0 * self.expert_dim;
        let pass_s = ACTIVATION_BYTES * self.pairs * streamed * parameters.permute_factor
            / rates.memory_bytes_per_s
            * faster;
        forward.elementwise_s = pass_s;
        backward.elementwise_s = 2.0 * pass_s;
        if job.format.is_cast() {
            const CAST_BYTES: f64 = 4.0 / 3.0;
            let cast_s = CAST_BYTES
                * job.format.cast_weight()
                * parameters.cast_factor
                * self.pairs
                * widths
                / rates.memory_bytes_per_s
                * faster;
            forward.cast_s = cast_s;
            backward.cast_s = 2.0 * cast_s;
        }
        let overhead_s = (parameters.moe_layer_overhead_s
            + parameters.expert_overhead_s * self.local_experts)
            * faster;
        forward.overhead_s = overhead_s / 3.0;
        backward.overhead_s = overhead_s * 2.0 / 3.0;
        let exchange_s = self.exchange_s(rates, split) * parameters.expert_exposed * faster;
        forward.expert_exchange_s = exchange_s;
        backward.expert_exchange_s = exchange_s;
        (weight_gradient_s, forward, backward)
    }

    /// Dispatch and combine of one pass, s.
    ///
    /// Source: a token reaches each of the `n (1 - (1 - 1/n)^k)` domains that hold one of its experts once over the
    /// network, and each expert once over the scale-up fabric.
    /// Assumes: routing is not limited to groups of nodes.
    fn exchange_s(&self, rates: &Rates, split: &Split) -> f64 {
        let chips = f64::from(split.ep) * f64::from(split.etp);
        if chips <= 1.0 {
            return 0.0;
        }
        let tokens = self.sent_pairs / self.top_k;
        let token_bytes = ACTIVATION_BYTES * self.width;
        let inside = chips.min(rates.domain_chips);
        let copies = self.top_k * f64::from(split.etp);
        let local_s = tokens * token_bytes * copies * (chips - 1.0)
            / chips
            / rates.fabric.group_bytes_per_s(inside.max(2.0));
        let domains = (chips / rates.domain_chips).ceil();
        let remote_s = if domains > 1.0 {
            let reached = domains * (1.0 - (1.0 - 1.0 / domains).powf(self.top_k));
            tokens * token_bytes * reached * (domains - 1.0) / domains / rates.network_bytes_per_s
        } else {
            0.0
        };
        2.0 * (local_s + remote_s)
    }
}
