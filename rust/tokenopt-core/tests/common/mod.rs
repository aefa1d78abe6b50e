//! Small problems for tests and benches.
#![allow(dead_code, missing_docs, unreachable_pub)]

use tokenopt_core::accelerator::{Accelerator, OfferTerms, PeakFlops, ScaleUp, Topology};
use tokenopt_core::format::NumberFormat;
use tokenopt_core::model::{Ffn, Gate, LayerGroup, Mixer, ModelSpec, Scope, WeightFormats};
use tokenopt_core::money::Demand;
use tokenopt_core::parameters::EngineParameters;
use tokenopt_core::search::problem::{DisaggSpec, Limits, Objective, SpaceSpec};
use tokenopt_core::search::SearchProblem;
use tokenopt_core::serving::{Stack, Traffic, Workload};

pub fn formats(format: NumberFormat) -> WeightFormats {
    WeightFormats {
        mixer: format,
        dense: format,
        experts: format,
        head: NumberFormat::Bf16,
    }
}

pub fn attention(heads: u32, kv_heads: u32, scope: Scope) -> Mixer {
    Mixer::Attention {
        heads,
        kv_heads,
        qk_head_dim: 64,
        v_head_dim: 64,
        scope,
        gate: Gate::None,
        shared_kv: false,
    }
}

/// A mixture of experts with the dimensions of gpt-oss-120b.
pub fn mixture_of_experts() -> ModelSpec {
    let ffn = Ffn::Moe {
        experts: 128,
        top_k: 4,
        expert_dim: 2880,
        matrices: 3,
        shared_dim: 0,
        latent_dim: 0,
        router_bias: true,
    };
    let group = |scope| LayerGroup {
        count: 18,
        mixer: attention(64, 8, scope),
        ffn: ffn.clone(),
        small_parameters: 5760,
    };
    ModelSpec {
        key: "moe".to_owned(),
        hidden: 2880,
        vocab: 201_088,
        tie_embeddings: false,
        learned_positions: 0,
        max_context: 131_072,
        native_formats: WeightFormats {
            experts: NumberFormat::Mxfp4,
            ..formats(NumberFormat::Bf16)
        },
        layers: vec![group(Scope::Full), group(Scope::Sliding(128))],
        mtp_layers: 0,
    }
}

/// A dense model of about 8 billion parameters.
pub fn dense() -> ModelSpec {
    ModelSpec {
        key: "dense".to_owned(),
        hidden: 4096,
        vocab: 128_256,
        tie_embeddings: false,
        learned_positions: 0,
        max_context: 131_072,
        native_formats: formats(NumberFormat::Bf16),
        layers: vec![LayerGroup {
            count: 32,
            mixer: attention(32, 8, Scope::Full),
            ffn: Ffn::Dense {
                dim: 14_336,
                matrices: 3,
            },
            small_parameters: 8192,
        }],
        mtp_layers: 0,
    }
}

pub fn accelerator(key: &str, hbm_gb: f64, bytes_per_s: f64, bf16: f64, usd: f64) -> Accelerator {
    Accelerator {
        key: key.to_owned(),
        hbm_bytes: hbm_gb * 1e9,
        hbm_bytes_per_s: bytes_per_s,
        peak_flops: PeakFlops {
            bf16,
            fp8: Some(2.0 * bf16),
            int8: None,
            fp4: Some(4.0 * bf16),
        },
        matmul_flops: None,
        scale_up: ScaleUp {
            bytes_per_s: 450e9,
            domain_chips: 8,
            topology: Topology::Switched,
        },
        scale_out_bytes_per_s: 50e9,
        chips_per_node: 8,
        power_w: 1500.0,
        clock_power_w: None,
        offers: vec![
            OfferTerms {
                id: 0,
                usd_per_chip_hr: usd,
                chips_per_instance: 8,
                minimum_instances: 1,
                fabric_chips: None,
                may_be_withdrawn: false,
                site: None,
            },
            OfferTerms {
                id: 1,
                usd_per_chip_hr: usd * 1.1,
                chips_per_instance: 1,
                minimum_instances: 1,
                fabric_chips: Some(8),
                may_be_withdrawn: false,
                site: None,
            },
        ],
    }
}

pub fn problem(model: ModelSpec, accelerators: Vec<Accelerator>) -> SearchProblem {
    let stacks = (0..accelerators.len())
        .flat_map(|index| {
            [NumberFormat::Bf16, NumberFormat::Fp8].map(|kv_precision| Stack {
                accelerator: index,
                label: "engine".to_owned(),
                weight_precision: "native".to_owned(),
                weights: model.native_formats,
                kv_precision,
                parameters: EngineParameters::default(),
                max_batch: None,
                cache_group: 0,
            })
        })
        .collect();
    SearchProblem {
        model,
        workload: Workload {
            isl: 1024.0,
            osl: 1024.0,
            prefix_hit: 0.0,
        },
        traffic: Traffic::default(),
        limits: Limits {
            tpot_s: Some(0.05),
            ..Limits::default()
        },
        demand: Demand {
            output_tps: Some(1e5),
            utilization: 1.0,
        },
        accelerators,
        stacks,
        space: SpaceSpec {
            tp: None,
            pp: None,
            ep: None,
            attn_dp: None,
            chunk_tokens: None,
            max_batch: 512,
            max_chips_per_replica: 16,
        },
        objective: Objective::Cost,
        top: 5,
        exhaustive: false,
        threads: 1,
        disagg: DisaggSpec::default(),
        speculation: None,
        point: None,
    }
}
