//! Prices of operation that is known, measured for instance: the fleet and the money of the search, without its model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::accelerator::Accelerator;
use crate::error::{require_positive, CoreError};
use crate::money::{undominated_offers, Demand, FleetUnit, TokenCosts};
use crate::serving::Workload;

/// Replicas whose throughput is known, and what may be paid for them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PricingProblem {
    /// Lengths of the requests.
    pub workload: Workload,
    /// What the fleet must deliver.
    pub demand: Demand,
    /// Accelerators with their offers.
    pub accelerators: Vec<Accelerator>,
    /// What is priced.
    pub replicas: Vec<KnownReplica>,
}

/// One replica in a known state of operation.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownReplica {
    /// Index of the accelerator.
    pub accelerator: usize,
    /// Chips of the replica.
    pub chips: u32,
    /// Output tokens/s of the replica.
    pub output_tps: f64,
    /// All-in power of a chip at the wall, W; absent = the accelerator's.
    #[serde(default)]
    pub power_w: Option<f64>,
}

/// A priced fleet of one kind of replica.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PricedFleet {
    /// Caller's id of the offer.
    pub offer: u32,
    /// Replicas that run.
    pub replicas: f64,
    /// Instances paid for.
    pub instances: f64,
    /// Chips paid for.
    pub chips: f64,
    /// Output tokens/s delivered on average.
    pub output_tps: f64,
    /// USD per hour.
    pub usd_per_hr: f64,
    /// USD per million output tokens.
    pub usd_per_m_output_tokens: f64,
    /// USD per million tokens, input and output together.
    pub usd_per_m_tokens: f64,
    /// USD per million input tokens.
    pub usd_per_m_input_tokens: f64,
    /// USD per request.
    pub usd_per_request: f64,
    /// kWh per million tokens, input and output together.
    pub kwh_per_m_tokens: f64,
}

impl PricingProblem {
    /// Reads a problem from JSON and checks it.
    ///
    /// # Errors
    /// [`CoreError`] naming what cannot be used.
    pub fn from_json(text: &str) -> Result<Self, CoreError> {
        let problem: Self =
            serde_json::from_str(text).map_err(|error| CoreError::Unreadable(error.to_string()))?;
        problem.workload.validate()?;
        problem.demand.validate()?;
        for accelerator in &problem.accelerators {
            accelerator.validate()?;
        }
        for replica in &problem.replicas {
            if replica.accelerator >= problem.accelerators.len() || replica.chips == 0 {
                return Err(CoreError::bad_input(
                    "replica",
                    format!(
                        "accelerator {} chips {}",
                        replica.accelerator, replica.chips
                    ),
                    "expected a known accelerator and at least one chip",
                ));
            }
            require_positive("output_tps", replica.output_tps)?;
            if let Some(power_w) = replica.power_w {
                require_positive("power_w", power_w)?;
            }
        }
        Ok(problem)
    }

    /// The cheapest fleet for every replica; None where no offer can hold it.
    #[must_use]
    pub fn price(&self) -> Vec<Option<PricedFleet>> {
        self.replicas
            .iter()
            .map(|replica| self.price_one(replica))
            .collect()
    }

    fn price_one(&self, replica: &KnownReplica) -> Option<PricedFleet> {
        let accelerator = &self.accelerators[replica.accelerator];
        let (unit, fleet) = undominated_offers(&accelerator.offers)
            .iter()
            .filter_map(|offer| FleetUnit::new(accelerator, offer, replica.chips))
            .map(|unit| (unit, unit.fleet(replica.output_tps, &self.demand)))
            .min_by(|(unit, fleet), (other_unit, other)| {
                fleet
                    .usd_per_m_output_tokens()
                    .total_cmp(&other.usd_per_m_output_tokens())
                    .then(unit.offer.cmp(&other_unit.offer))
            })?;
        let (isl, osl) = (self.workload.isl, self.workload.osl);
        let usd_per_m_output_tokens = fleet.usd_per_m_output_tokens();
        let costs = TokenCosts::new(usd_per_m_output_tokens, isl, osl);
        let kwh_per_m_output =
            fleet.kwh_per_m_output_tokens(replica.power_w.unwrap_or(accelerator.power_w));
        Some(PricedFleet {
            offer: unit.offer,
            replicas: fleet.replicas,
            instances: fleet.instances,
            chips: fleet.chips,
            output_tps: fleet.delivered_tps,
            usd_per_hr: fleet.usd_per_hr,
            usd_per_m_output_tokens,
            usd_per_m_tokens: costs.usd_per_m_tokens,
            usd_per_m_input_tokens: costs.usd_per_m_input_tokens,
            usd_per_request: costs.usd_per_request,
            kwh_per_m_tokens: kwh_per_m_output * osl / (isl + osl),
        })
    }
}

/// What an hour of a chip buys, whatever runs on it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChipHour {
    /// USD per GB (10^9 bytes) of memory and hour.
    pub usd_per_gb_hr: f64,
    /// USD per TB/s of memory bandwidth and hour.
    pub usd_per_tb_per_s_hr: f64,
    /// USD per dense PFLOP/s and hour, by number format.
    pub usd_per_pflop_hr: BTreeMap<&'static str, f64>,
}

impl ChipHour {
    /// Spreads `usd_per_chip_hr` over memory, bandwidth and arithmetic of the chip, each alone.
    #[must_use]
    pub fn new(accelerator: &Accelerator, usd_per_chip_hr: f64) -> Self {
        const GB: f64 = 1e9;
        const TB: f64 = 1e12;
        const PETA: f64 = 1e15;
        let peaks = accelerator.peak_flops;
        let formats = [
            ("bf16", Some(peaks.bf16)),
            ("fp8", peaks.fp8),
            ("int8", peaks.int8),
            ("fp4", peaks.fp4),
        ];
        Self {
            usd_per_gb_hr: usd_per_chip_hr / (accelerator.hbm_bytes / GB),
            usd_per_tb_per_s_hr: usd_per_chip_hr / (accelerator.hbm_bytes_per_s / TB),
            usd_per_pflop_hr: formats
                .into_iter()
                .filter_map(|(name, peak)| Some((name, usd_per_chip_hr / (peak? / PETA))))
                .collect(),
        }
    }

    /// Reads an accelerator and its price from JSON (`{"accelerator": …, "usd_per_chip_hr": …}`).
    ///
    /// # Errors
    /// [`CoreError`] naming what cannot be used.
    pub fn from_json(text: &str) -> Result<Self, CoreError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Question {
            accelerator: Accelerator,
            usd_per_chip_hr: f64,
        }
        let question: Question =
            serde_json::from_str(text).map_err(|error| CoreError::Unreadable(error.to_string()))?;
        question.accelerator.validate()?;
        require_positive("usd_per_chip_hr", question.usd_per_chip_hr)?;
        Ok(Self::new(&question.accelerator, question.usd_per_chip_hr))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn problem(price: f64, output_tps: f64) -> PricingProblem {
        let text = format!(
            r#"{{"workload": {{"isl": 1024, "osl": 1024, "prefix_hit": 0}}, "demand": {{"output_tps": null}},
            "accelerators": [{{"key": "chip", "hbm_bytes": 1e11, "hbm_bytes_per_s": 1e12, "peak_flops": {{"bf16": 1e15}},
            "scale_up": {{"bytes_per_s": 1e11, "domain_chips": 8, "topology": "switched"}},
            "scale_out_bytes_per_s": 1e10, "chips_per_node": 8, "power_w": 1000,
            "offers": [{{"id": 7, "usd_per_chip_hr": {price}, "chips_per_instance": 1, "minimum_instances": 1}}]}}],
            "replicas": [{{"accelerator": 0, "chips": 1, "output_tps": {output_tps}}}]}}"#
        );
        PricingProblem::from_json(&text).unwrap()
    }

    #[test]
    fn a_chip_at_a_known_rate_costs_its_hour_over_its_tokens() {
        // 1.95 USD/h over 14,006.45 output tokens/s: 1.95 / (14006.45 x 3600 / 1e6) = 0.038673 USD/M, half of it per token.
        let priced = problem(1.95, 14_006.45).price()[0].unwrap();
        assert!((priced.usd_per_m_output_tokens - 0.038_673).abs() < 1e-6);
        assert!((priced.usd_per_m_tokens - 0.019_336).abs() < 1e-6);
        assert_eq!((priced.offer, priced.chips), (7, 1.0));
        // 1 kW over 28,012.9 tokens/s = 0.009916 kWh per million.
        assert!((priced.kwh_per_m_tokens - 0.009_916).abs() < 1e-6);
    }

    #[test]
    fn twice_the_price_is_twice_the_cost() {
        let one = problem(1.0, 100.0).price()[0].unwrap();
        let two = problem(2.0, 100.0).price()[0].unwrap();
        assert!((two.usd_per_m_tokens / one.usd_per_m_tokens - 2.0).abs() < 1e-12);
    }

    #[test]
    fn a_replica_that_no_offer_holds_has_no_price() {
        let mut wide = problem(1.0, 100.0);
        wide.replicas[0].chips = 2;
        assert_eq!(wide.price()[0], None);
    }
}
