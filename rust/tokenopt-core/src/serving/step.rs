//! The operators of a decode step and of a prefill chunk, for one stack and layout.

use super::memory::ChipParameters;
use super::steady::rank_waiting;
use super::{Layout, Stack};
use crate::accelerator::Accelerator;
use crate::count::GroupParameters;
use crate::format::NumberFormat;
use crate::model::{Ffn, LayerGroup, Mixer, ModelSpec};
use crate::ops::activations::{activation_bytes_per_token, sampling_bytes_per_token};
use crate::ops::attention::{Lengths, MixerWork};
use crate::ops::collective::Fabric;
use crate::ops::experts::{ExpertShape, Experts};
use crate::ops::gemm::Gemm;
use crate::ops::{Cost, Operator, OperatorName, PerRow, LANES};
use crate::parameters::EngineParameters;

/// Step times of one stack on one layout, for requests of given lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct StepModel {
    /// Operators of a decode step; one token per running request.
    pub decode: Vec<Operator>,
    /// Operators of a prefill chunk, without the attention core, which depends on the position in the prompt.
    pub prefill: Vec<Operator>,
    /// Mixer core of a whole prompt, s.
    pub prompt_core_s: f64,
    /// Host time of a prompt, s.
    pub prompt_overhead_s: f64,
    /// Prompt tokens to compute.
    pub prompt_tokens: f64,
    /// Output tokens that a request gains in a step: 1 without speculative decoding.
    pub tokens_per_step: f64,
    /// How much longer a prompt holds up the attention ranks together than the one it prefills on.
    pub rank_waiting: f64,
    fused_share: f64,
    stages: f64,
}

/// Which of the two kinds of step is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Decode,
    Prefill,
}

/// What every operator of one step is built from.
struct Builder<'a> {
    model: &'a ModelSpec,
    accelerator: &'a Accelerator,
    stack: &'a Stack,
    layout: Layout,
    fabric: Fabric,
    phase: Phase,
    operators: Vec<Operator>,
}

impl StepModel {
    /// Hoists everything that does not depend on the batch.
    #[must_use]
    pub fn new(
        model: &ModelSpec,
        accelerator: &Accelerator,
        stack: &Stack,
        layout: Layout,
        lengths: &Lengths,
    ) -> Self {
        let parameters = &stack.parameters;
        let layers: u32 = model.layers.iter().map(|group| group.count).sum();
        let imbalance = layout.stage_imbalance(layers);
        let mut prompt_core_s = 0.0;
        for group in &model.layers {
            let work = MixerWork::new(
                &group.mixer,
                lengths,
                stack.kv_precision.bytes(),
                f64::from(layout.tp),
            );
            prompt_core_s += f64::from(group.count) * imbalance * work.prompt_flops
                / (accelerator.sustained(accelerator.peak_flops.bf16)
                    * parameters.prefill_attention_efficiency);
        }
        let build = |phase| {
            let mut builder = Builder {
                model,
                accelerator,
                stack,
                layout,
                fabric: Fabric::new(accelerator, parameters),
                phase,
                operators: Vec::with_capacity(8 * model.layers.len() + 4),
            };
            for group in &model.layers {
                builder.layer(group, f64::from(group.count) * imbalance, lengths);
            }
            builder.ends();
            builder.operators
        };
        Self {
            decode: build(Phase::Decode),
            prefill: build(Phase::Prefill),
            prompt_core_s: prompt_core_s * parameters.prefill_anchor,
            prompt_overhead_s: parameters.prompt_overhead_s * parameters.prefill_anchor,
            prompt_tokens: lengths.prompt_to_compute(),
            tokens_per_step: 1.0,
            rank_waiting: rank_waiting(parameters, layout),
            fused_share: parameters.fused_share,
            stages: f64::from(layout.pp),
        }
    }

    /// Seconds of a decode step in which each attention rank runs `batch` requests (of one pipeline slot).
    #[must_use]
    pub fn decode_step_s(&self, batch: f64) -> f64 {
        self.decode.iter().map(|op| op.seconds(batch)).sum()
    }

    /// [`Self::decode_step_s`] for a block of batches.
    #[inline(always)]
    pub fn decode_steps_s(&self, batches: &[f64; LANES], step_s: &mut [f64; LANES]) {
        step_s.fill(0.0);
        for operator in &self.decode {
            operator.add_seconds(batches, step_s);
        }
    }

    /// Seconds of a prefill chunk of `tokens` tokens per attention rank, attention core excluded.
    #[must_use]
    pub fn chunk_s(&self, tokens: f64) -> f64 {
        self.prefill.iter().map(|op| op.seconds(tokens)).sum()
    }

    /// Prefill times when prompts are cut into chunks of `chunk_tokens`.
    #[must_use]
    pub fn prefill(&self, chunk_tokens: f64) -> Prefill {
        self.prefill_sharing(chunk_tokens, self.fused_share)
    }

    /// [`Self::prefill`] where no decode step shares the weights that a chunk streams.
    #[must_use]
    pub fn prefill_alone(&self, chunk_tokens: f64) -> Prefill {
        self.prefill_sharing(chunk_tokens, 0.0)
    }

    fn prefill_sharing(&self, chunk_tokens: f64, fused_share: f64) -> Prefill {
        let chunks = (self.prompt_tokens / chunk_tokens).ceil();
        let last = self.prompt_tokens - (chunks - 1.0) * chunk_tokens;
        let full_chunk_s = self.chunk_s(chunk_tokens);
        let whole_chunks_s = (chunks - 1.0) * full_chunk_s;
        // Chunks follow each other through the pipeline; only the first waits for every stage.
        let overlapped = if self.stages > 1.0 {
            whole_chunks_s / self.stages
        } else {
            whole_chunks_s
        };
        let shared_s = fused_share * self.chunk_s(0.0);
        Prefill {
            chunks,
            alone_s: self.chunk_s(last) + overlapped + self.prompt_core_s + self.prompt_overhead_s,
            marginal_s: self.prompt_tokens / chunk_tokens * (full_chunk_s - shared_s).max(0.0)
                + self.prompt_core_s
                + self.prompt_overhead_s,
        }
    }
}

/// Prefill times of one prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prefill {
    /// Chunks of a prompt.
    pub chunks: f64,
    /// Seconds of one prompt that has the replica to itself.
    pub alone_s: f64,
    /// Seconds that one more prompt adds when prompts share full chunks.
    pub marginal_s: f64,
}

impl Builder<'_> {
    fn parameters(&self) -> &EngineParameters {
        &self.stack.parameters
    }

    fn compute_efficiency(&self) -> f64 {
        match self.phase {
            Phase::Decode => self.parameters().decode_compute_efficiency,
            Phase::Prefill => self.parameters().prefill_compute_efficiency,
        }
    }

    /// Share of the rate of dense products that grouped products of experts of `width` reach.
    fn grouping(&self, format: NumberFormat, width: f64) -> f64 {
        let share = width / (width + self.parameters().expert_half_rate_width);
        if self.accelerator.peak_flops.is_narrow(format) {
            share
        } else {
            share.sqrt()
        }
    }

    /// Share of the arithmetic rate left after unpacking weights.
    fn unpacking(&self, format: NumberFormat) -> f64 {
        if self.accelerator.peak_flops.unpacks(format) {
            self.parameters().unpacking_compute_share
        } else {
            1.0
        }
    }

    /// Adds an operator, merged with an equal one of another layer group.
    fn push(&mut self, name: OperatorName, count: f64, rows_per_token: f64, cost: Cost) {
        if count == 0.0 {
            return;
        }
        let count = count
            * match self.phase {
                Phase::Decode => self.parameters().decode_anchor,
                Phase::Prefill => self.parameters().prefill_anchor,
            };
        let twin = self.operators.iter_mut().find(|known| {
            known.name == name && known.rows_per_token == rows_per_token && known.cost == cost
        });
        match twin {
            Some(known) => known.count += count,
            None => self.operators.push(Operator {
                name,
                count,
                rows_per_token,
                cost,
            }),
        }
    }

    fn gemm(&self, parameters_on_chip: f64, format: NumberFormat) -> Gemm {
        let p = self.parameters();
        let unpacking = if format.is_four_bit() {
            p.four_bit_dense_bandwidth
        } else {
            1.0
        };
        Gemm::new(
            parameters_on_chip,
            format.bytes(),
            self.accelerator.hbm_bytes_per_s * p.weight_bandwidth_efficiency * unpacking,
            self.accelerator
                .sustained(self.accelerator.peak_flops.for_weights(format))
                * self.compute_efficiency()
                * self.unpacking(format),
            p.dense_tile_tokens,
        )
    }

    fn layer(&mut self, group: &LayerGroup, count: f64, lengths: &Lengths) {
        let layout = self.layout;
        let counted = GroupParameters::new(group, self.model.hidden);
        let chip = ChipParameters::new(&counted, group, self.model, layout);
        let weights = self.stack.weights;
        let tp = f64::from(layout.tp);
        let ranks = f64::from(layout.attn_dp);
        let residual_bytes = f64::from(self.model.hidden) * NumberFormat::Bf16.bytes();

        if group.mixer != Mixer::None {
            let projections = self.gemm(chip.mixer, weights.mixer);
            self.push(
                OperatorName::MixerProjections,
                count,
                1.0,
                Cost::Gemm(projections),
            );
            if self.phase == Phase::Decode {
                let work =
                    MixerWork::new(&group.mixer, lengths, self.stack.kv_precision.bytes(), tp);
                let p = self.parameters();
                let core = PerRow {
                    memory_s: work.decode_bytes
                        / (self.accelerator.hbm_bytes_per_s * p.kv_bandwidth_efficiency),
                    compute_s: work.decode_flops
                        / (self.accelerator.sustained(self.accelerator.peak_flops.bf16)
                            * p.attention_compute_efficiency),
                    latency_s: 0.0,
                };
                self.push(OperatorName::MixerCore, count, 1.0, Cost::PerRow(core));
            }
            if layout.tp > 1 {
                let reduce = self.fabric.all_reduce(tp, residual_bytes);
                self.push(
                    OperatorName::AllReduce,
                    count,
                    1.0,
                    Cost::Collective(reduce),
                );
            }
        }
        match group.ffn {
            Ffn::None => {}
            Ffn::Dense { .. } => {
                let dense = self.gemm(chip.dense, weights.dense);
                self.push(OperatorName::DenseFfn, count, 1.0, Cost::Gemm(dense));
                if layout.tp > 1 {
                    let reduce = self.fabric.all_reduce(tp, residual_bytes);
                    self.push(
                        OperatorName::AllReduce,
                        count,
                        1.0,
                        Cost::Collective(reduce),
                    );
                }
            }
            Ffn::Moe {
                experts,
                top_k,
                expert_dim,
                shared_dim,
                latent_dim,
                ..
            } => {
                let router = self.gemm(chip.router, NumberFormat::Bf16);
                self.push(OperatorName::Router, count, 1.0, Cost::Gemm(router));
                if shared_dim > 0 || latent_dim > 0 {
                    let shared = self.gemm(chip.dense, weights.dense);
                    self.push(OperatorName::SharedExperts, count, 1.0, Cost::Gemm(shared));
                }
                let p = *self.parameters();
                let outer = f64::from(if latent_dim > 0 {
                    latent_dim
                } else {
                    self.model.hidden
                });
                let inner = f64::from(expert_dim);
                let width = outer * inner / (outer + inner);
                let routed = Experts::new(
                    &ExpertShape {
                        experts: f64::from(experts),
                        top_k: f64::from(top_k),
                        ranks: f64::from(layout.ep),
                        parameters_per_expert: counted.experts
                            / f64::from(experts)
                            / f64::from(layout.expert_tp()),
                        bytes_per_parameter: weights.experts.bytes(),
                    },
                    self.accelerator.hbm_bytes_per_s * p.expert_bandwidth_efficiency,
                    self.accelerator
                        .sustained(self.accelerator.peak_flops.for_weights(weights.experts))
                        * self.compute_efficiency()
                        * self.grouping(weights.experts, width)
                        * self.unpacking(weights.experts),
                    p.expert_tile_tokens,
                    p.expert_imbalance,
                    p.expert_skew,
                );
                self.push(
                    OperatorName::RoutedExperts,
                    count,
                    ranks,
                    Cost::Experts(routed),
                );
                self.expert_exchange(count, f64::from(top_k), residual_bytes);
            }
        }
        let moved = PerRow {
            memory_s: activation_bytes_per_token(group, self.model.hidden, tp)
                / self.elementwise_bytes_per_s(),
            compute_s: 0.0,
            latency_s: 0.0,
        };
        self.push(OperatorName::Elementwise, count, 1.0, Cost::PerRow(moved));
        self.layer_overhead(group, count);
    }

    fn elementwise_bytes_per_s(&self) -> f64 {
        self.accelerator.hbm_bytes_per_s * self.parameters().elementwise_bandwidth_efficiency
    }

    /// How tokens reach the experts: an all-reduce with tensor parallelism alone; with attention data parallelism an
    /// all-to-all to the experts' ranks, or a gather of all ranks' tokens when every rank holds part of every expert.
    fn expert_exchange(&mut self, count: f64, top_k: f64, residual_bytes: f64) {
        let layout = self.layout;
        let chips = f64::from(layout.stage_chips());
        if layout.stage_chips() == 1 {
            return;
        }
        let (name, op) = if layout.attn_dp == 1 {
            (
                OperatorName::AllReduce,
                self.fabric.all_reduce(chips, residual_bytes),
            )
        } else if layout.ep > 1 {
            // In 8 bits out and 16 bits back; the tensor-parallel chips of an attention rank share its tokens.
            let bytes = residual_bytes / f64::from(layout.tp);
            let ranks = f64::from(layout.ep);
            (
                OperatorName::ExpertExchange,
                self.fabric
                    .all_to_all(chips, ranks, top_k, 0.5 * bytes, bytes),
            )
        } else {
            (
                OperatorName::ExpertExchange,
                self.fabric.gather_scatter(
                    f64::from(layout.attn_dp),
                    f64::from(layout.tp),
                    residual_bytes / f64::from(layout.tp),
                ),
            )
        };
        self.push(name, count, 1.0, Cost::Collective(op));
    }

    /// Latency-bound kernels of a layer; a block that stands alone (mixer or FFN only) is half a layer.
    fn layer_overhead(&mut self, group: &LayerGroup, count: f64) {
        let p = self.parameters();
        let blocks = f64::from(u8::from(group.mixer != Mixer::None))
            + f64::from(u8::from(group.ffn != Ffn::None));
        let mut seconds = p.layer_overhead_s * 0.5 * blocks;
        if matches!(group.ffn, Ffn::Moe { .. }) {
            seconds += p.moe_layer_overhead_s;
        }
        match &group.mixer {
            Mixer::Mla { indexer, .. } => {
                seconds += p.mla_layer_overhead_s;
                if indexer.is_some() {
                    seconds += p.linear_layer_overhead_s;
                }
            }
            Mixer::CompressedAttention { .. } => {
                seconds += p.mla_layer_overhead_s + p.linear_layer_overhead_s;
            }
            Mixer::GatedDeltaNet { .. }
            | Mixer::KimiDeltaAttention { .. }
            | Mixer::Mamba1 { .. }
            | Mixer::Mamba2 { .. } => seconds += p.linear_layer_overhead_s,
            Mixer::None | Mixer::Attention { .. } => {}
        }
        self.push(OperatorName::Overhead, count, 1.0, Cost::Fixed(seconds));
    }

    /// LM head, step and request overheads, and transfers between pipeline stages.
    fn ends(&mut self) {
        let layout = self.layout;
        let p = *self.parameters();
        if self.phase == Phase::Decode {
            let parameters =
                f64::from(self.model.vocab) * f64::from(self.model.hidden) / f64::from(layout.tp);
            let head = self.gemm(parameters, self.stack.weights.head);
            self.push(OperatorName::Head, 1.0, 1.0, Cost::Gemm(head));
            let sampling = PerRow {
                memory_s: sampling_bytes_per_token(self.model.vocab, f64::from(layout.tp))
                    / self.elementwise_bytes_per_s(),
                compute_s: 0.0,
                latency_s: 0.0,
            };
            self.push(OperatorName::Head, 1.0, 1.0, Cost::PerRow(sampling));
            let host = PerRow {
                memory_s: 0.0,
                compute_s: 0.0,
                latency_s: p.request_overhead_s,
            };
            self.push(OperatorName::Overhead, 1.0, 1.0, Cost::PerRow(host));
        }
        self.push(
            OperatorName::Overhead,
            1.0,
            1.0,
            Cost::Fixed(p.step_overhead_s),
        );
        if layout.pp > 1 {
            let inside = self.fabric.is_inside_domain(f64::from(layout.chips()));
            let bytes = f64::from(self.model.hidden) * NumberFormat::Bf16.bytes();
            let send = self.fabric.send(inside, bytes);
            self.push(
                OperatorName::PipelineTransfer,
                f64::from(layout.pp - 1),
                1.0,
                Cost::Collective(send),
            );
        }
    }
}
