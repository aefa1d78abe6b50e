//! An accelerator and the fabric around it, as plain numbers.

use serde::{Deserialize, Serialize};

use crate::error::{require_positive, require_within, CoreError};
use crate::format::NumberFormat;

/// One chip with its share of the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accelerator {
    /// Catalogue key.
    pub key: String,
    /// Memory that software can use, bytes.
    pub hbm_bytes: f64,
    /// Peak memory bandwidth, bytes/s.
    pub hbm_bytes_per_s: f64,
    /// Dense peaks.
    pub peak_flops: PeakFlops,
    /// Best measured 16-bit matrix product, FLOP/s; absent = nobody measured it.
    #[serde(default)]
    pub matmul_flops: Option<f64>,
    /// Fast fabric.
    pub scale_up: ScaleUp,
    /// Network bandwidth per chip, one direction, bytes/s.
    pub scale_out_bytes_per_s: f64,
    /// Chips in one host.
    pub chips_per_node: u32,
    /// All-in power per chip at the meter (host, network and facility overhead included), W.
    pub power_w: f64,
    /// Power limit that a GPU's clock is held to under sustained matrix products, W; absent where the clock is fixed
    /// (systolic arrays).
    #[serde(default)]
    pub clock_power_w: Option<f64>,
    /// Prices, empty when only performance is asked for.
    #[serde(default)]
    pub offers: Vec<OfferTerms>,
}

/// Dense peak per arithmetic format, FLOP/s; absent = no fast path.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeakFlops {
    /// 16-bit.
    pub bf16: f64,
    /// 8-bit float.
    #[serde(default)]
    pub fp8: Option<f64>,
    /// 8-bit integer.
    #[serde(default)]
    pub int8: Option<f64>,
    /// 4-bit float.
    #[serde(default)]
    pub fp4: Option<f64>,
}

/// Fast fabric of a scale-up domain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleUp {
    /// Bandwidth per chip, one direction, bytes/s.
    pub bytes_per_s: f64,
    /// Chips that share it.
    pub domain_chips: u32,
    /// How they are wired.
    pub topology: Topology,
}

/// Wiring of a scale-up domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// Every chip reaches every other at full rate through switches.
    Switched,
    /// Direct links between every pair: a subset of chips can use only the links inside it.
    Mesh,
    /// 2D or 3D torus: a small slice has no wrap-around links.
    Torus,
    /// A ring.
    Ring,
    /// Host PCIe.
    Pcie,
    /// No second chip.
    Single,
}

/// What an offer costs and in which units it is sold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferTerms {
    /// Caller's index of the offer.
    pub id: u32,
    /// USD per chip and hour.
    pub usd_per_chip_hr: f64,
    /// Chips that must be taken together.
    pub chips_per_instance: u32,
    /// Least number of instances sold.
    #[serde(default = "one")]
    pub minimum_instances: u32,
    /// Chips under this offer that share the fast fabric; absent = those of one instance. Per-chip price lists of
    /// whole nodes set it to the node.
    #[serde(default)]
    pub fabric_chips: Option<u32>,
    /// Whether the provider may take the instances back (spot).
    #[serde(default)]
    pub may_be_withdrawn: bool,
    /// Caller's index of the place (provider and region) it is sold at; absent = anywhere.
    #[serde(default)]
    pub site: Option<u32>,
}

fn one() -> u32 {
    1
}

impl PeakFlops {
    /// Arithmetic a product of weights in `weights` runs in: the fastest native format that holds them, else 16-bit
    /// after dequantisation.
    ///
    /// Assumes: FP8 and NVFP4/MXFP4 weights meet activations of their own width where the chip has the path
    /// (W8A8, W4A4, or W4A8 which runs at the FP8 rate when FP4 is missing is not assumed); INT4 is weight-only
    /// everywhere.
    #[must_use]
    pub fn for_weights(&self, weights: NumberFormat) -> f64 {
        match weights {
            NumberFormat::Bf16 | NumberFormat::Int4 => self.bf16,
            NumberFormat::Fp8 => self.fp8.unwrap_or(self.bf16),
            NumberFormat::Int8 => self.int8.unwrap_or(self.bf16).max(self.bf16),
            NumberFormat::Mxfp4 | NumberFormat::Nvfp4 => self.fp4.unwrap_or(self.bf16),
        }
    }
}

/// Share of the sheet's 16-bit peak that the best matrix product reaches on the chips that the efficiencies of a
/// calibration are fitted on.
///
/// Source: maximum achievable matmul tables (ml-engineering): H100 SXM 80%, B200 78%.
pub const REFERENCE_MATMUL_SHARE: f64 = 0.80;

impl PeakFlops {
    /// Whether products of weights in `weights` run in fewer than 16 bits, faster than 16-bit ones.
    #[must_use]
    pub fn is_narrow(&self, weights: NumberFormat) -> bool {
        self.for_weights(weights) > self.bf16
    }

    /// Whether products unpack weights in `weights` to 16 bits on the way: 4-bit formats without arithmetic of their own.
    #[must_use]
    pub fn unpacks(&self, weights: NumberFormat) -> bool {
        weights == NumberFormat::Int4 || (weights.is_four_bit() && self.fp4.is_none())
    }
}

impl Accelerator {
    /// Rate that stands for a sheet `peak` of this chip, FLOP/s: what its best matrix product shows that clocks and power
    /// sustain, relative to the chips that efficiencies are fitted on.
    ///
    /// Assumes: formats lose the same share, as all run under one power limit; a chip without a measured product
    /// loses what the reference chips lose.
    #[must_use]
    pub fn sustained(&self, peak: f64) -> f64 {
        let share = self.matmul_flops.map_or(1.0, |flops| {
            flops / self.peak_flops.bf16 / REFERENCE_MATMUL_SHARE
        });
        peak * share
    }

    /// Checks every figure.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the accelerator and the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        let named = |field: &str| format!("{} {field}", self.key);
        require_positive(&named("hbm_bytes"), self.hbm_bytes)?;
        require_positive(&named("hbm_bytes_per_s"), self.hbm_bytes_per_s)?;
        require_positive(&named("peak_flops.bf16"), self.peak_flops.bf16)?;
        for (name, peak) in [
            ("peak_flops.fp8", self.peak_flops.fp8),
            ("peak_flops.int8", self.peak_flops.int8),
            ("peak_flops.fp4", self.peak_flops.fp4),
        ] {
            if let Some(value) = peak {
                require_positive(&named(name), value)?;
            }
        }
        if let Some(flops) = self.matmul_flops {
            require_within(&named("matmul_flops"), flops, 0.0, self.peak_flops.bf16)?;
            require_positive(&named("matmul_flops"), flops)?;
        }
        if self.scale_up.topology != Topology::Single {
            require_positive(&named("scale_up.bytes_per_s"), self.scale_up.bytes_per_s)?;
        }
        require_positive(
            &named("scale_up.domain_chips"),
            f64::from(self.scale_up.domain_chips),
        )?;
        require_positive(&named("chips_per_node"), f64::from(self.chips_per_node))?;
        require_positive(&named("power_w"), self.power_w)?;
        if !(self.scale_out_bytes_per_s.is_finite() && self.scale_out_bytes_per_s >= 0.0) {
            return Err(CoreError::bad_input(
                named("scale_out_bytes_per_s"),
                self.scale_out_bytes_per_s,
                "expected a finite number of at least 0",
            ));
        }
        for offer in &self.offers {
            require_positive(&named("offer usd_per_chip_hr"), offer.usd_per_chip_hr)?;
            require_positive(
                &named("offer chips_per_instance"),
                f64::from(offer.chips_per_instance),
            )?;
        }
        Ok(())
    }
}
