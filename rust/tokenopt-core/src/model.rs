//! A model's architecture: enough to count parameters, FLOPs, bytes and messages exactly.
//!
//! A model is an embedding, a list of layer groups and a head. A layer group is `count` equal layers, each with at
//! most one token mixer (attention, state space, linear attention) and at most one feed-forward block; hybrid models
//! whose blocks stand alone (a Mamba block without FFN) leave the other part [`Mixer::None`] or [`Ffn::None`].

use serde::{Deserialize, Serialize};

use crate::format::NumberFormat;

/// Architecture of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Catalogue key, e.g. `gpt-oss-120b`.
    pub key: String,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Rows of the embedding (padded vocabulary where the checkpoint pads it).
    pub vocab: u32,
    /// Whether the LM head shares the embedding's weights.
    pub tie_embeddings: bool,
    /// Learned position embeddings (rows of width `hidden`); 0 for rotary, ALiBi or none.
    #[serde(default)]
    pub learned_positions: u32,
    /// Longest context (tokens) the checkpoint supports.
    pub max_context: u32,
    /// Formats the published checkpoint stores its weights in.
    pub native_formats: WeightFormats,
    /// The layers, in any order: only the counts matter to the cost of a step.
    pub layers: Vec<LayerGroup>,
    /// Multi-token-prediction heads published with the checkpoint (0 = none).
    #[serde(default)]
    pub mtp_layers: u32,
}

/// Number format of each class of weights. Embedding and norms stay in 16 bits in every published checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightFormats {
    /// Projections of attention and other mixers.
    pub mixer: NumberFormat,
    /// Dense FFN and shared experts.
    pub dense: NumberFormat,
    /// Routed experts.
    pub experts: NumberFormat,
    /// LM head.
    pub head: NumberFormat,
}

/// `count` equal layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerGroup {
    /// How many layers of this kind the model has.
    pub count: u32,
    /// Token mixer of the layer.
    pub mixer: Mixer,
    /// Feed-forward block of the layer.
    pub ffn: Ffn,
    /// Small per-layer parameters that move no roofline but belong to the published count: norms, biases, sinks,
    /// residual mixers. In parameters per layer.
    #[serde(default)]
    pub small_parameters: u64,
}

/// How far back a token attends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The whole context.
    Full,
    /// The last `n` tokens.
    Sliding(u32),
    /// Tokens inside the current chunk of `n` (Llama 4): on average half a chunk.
    Chunked(u32),
}

/// Token mixer of a layer. Dimensions are per layer, before any parallel split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Mixer {
    /// The layer has no mixer.
    None,
    /// Multi-head, grouped-query or multi-query attention.
    Attention {
        /// Query heads.
        heads: u32,
        /// Key/value heads (= heads for MHA, 1 for MQA).
        kv_heads: u32,
        /// Width of a query or key head.
        qk_head_dim: u32,
        /// Width of a value head.
        v_head_dim: u32,
        /// How far back a token attends.
        scope: Scope,
        /// Output gate: a further `hidden x heads*v_head_dim` projection (or `hidden x heads` when per head).
        #[serde(default)]
        gate: Gate,
        /// Keys and values share one projection and one cache (Gemma 4 full layers).
        #[serde(default)]
        shared_kv: bool,
    },
    /// Multi-head latent attention (DeepSeek): caches one latent of `kv_lora_rank + qk_rope_head_dim` per token.
    Mla {
        /// Query heads.
        heads: u32,
        /// Rank of the query bottleneck; 0 = a full projection.
        q_lora_rank: u32,
        /// Rank of the cached latent.
        kv_lora_rank: u32,
        /// Width of the part of a key without positions.
        qk_nope_head_dim: u32,
        /// Width of the rotary part, shared by all heads.
        qk_rope_head_dim: u32,
        /// Width of a value head.
        v_head_dim: u32,
        /// Output gate, as in [`Mixer::Attention`].
        #[serde(default)]
        gate: Gate,
        /// Sparse attention: a light indexer picks `top_k` tokens that full attention then reads (DeepSeek-V3.2).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        indexer: Option<Indexer>,
    },
    /// Attention over a compressed cache plus a short window (DeepSeek-V4): keys and values are one shared latent.
    CompressedAttention {
        /// Query heads.
        heads: u32,
        /// Width of a head and of the shared latent.
        head_dim: u32,
        /// Rank of the query bottleneck.
        q_lora_rank: u32,
        /// Rank of the output bottleneck, per group.
        o_lora_rank: u32,
        /// Output groups.
        o_groups: u32,
        /// Tokens per cached entry.
        compression: u32,
        /// Tokens of the uncompressed window.
        window: u32,
        /// Indexer over the compressed entries, on the layers that have one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        indexer: Option<Indexer>,
    },
    /// Gated DeltaNet linear attention (Qwen3-Next, Qwen3.5).
    GatedDeltaNet {
        /// Key heads.
        key_heads: u32,
        /// Value heads.
        value_heads: u32,
        /// Width of a key head.
        key_head_dim: u32,
        /// Width of a value head.
        value_head_dim: u32,
        /// Taps of the short convolution.
        conv_kernel: u32,
    },
    /// Kimi Delta Attention.
    KimiDeltaAttention {
        /// Heads.
        heads: u32,
        /// Width of a head.
        head_dim: u32,
        /// Taps of the short convolution.
        conv_kernel: u32,
    },
    /// Mamba-2 state space block.
    Mamba2 {
        /// Heads.
        heads: u32,
        /// Width of a head.
        head_dim: u32,
        /// State size.
        state: u32,
        /// Groups sharing B and C.
        groups: u32,
        /// Taps of the short convolution.
        conv_kernel: u32,
    },
    /// Mamba-1 state space block (Jamba).
    Mamba1 {
        /// Inner width.
        inner: u32,
        /// State size per channel.
        state: u32,
        /// Rank of the step-size projection.
        dt_rank: u32,
        /// Taps of the short convolution.
        conv_kernel: u32,
    },
}

/// Output gate of an attention block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// No gate.
    #[default]
    None,
    /// One gate value per head.
    PerHead,
    /// One gate value per output channel.
    PerChannel,
}

/// The light attention that selects tokens in sparse attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Indexer {
    /// Indexer heads.
    pub heads: u32,
    /// Width of an indexer head (its keys are cached, one head per token).
    pub head_dim: u32,
    /// Entries that full attention reads afterwards.
    pub top_k: u32,
}

/// Feed-forward block of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ffn {
    /// The layer has no FFN.
    None,
    /// Dense FFN of `matrices` (3 gated, 2 plain) matrices of `hidden x dim`.
    Dense {
        /// Inner width.
        dim: u32,
        /// Number of matrices: 3 with a gate, 2 without.
        matrices: u32,
    },
    /// Mixture of experts.
    Moe {
        /// Routed experts.
        experts: u32,
        /// Routed experts per token.
        top_k: u32,
        /// Inner width of a routed expert.
        expert_dim: u32,
        /// Matrices of an expert: 3 gated, 2 plain.
        matrices: u32,
        /// Whole inner width of the shared expert(s) or of a dense FFN beside the experts; 0 = none.
        #[serde(default)]
        shared_dim: u32,
        /// Width the routed experts work in when they sit in a latent space (Nemotron); 0 = hidden.
        #[serde(default)]
        latent_dim: u32,
        /// Whether the router adds one bias per expert.
        #[serde(default)]
        router_bias: bool,
    },
}
