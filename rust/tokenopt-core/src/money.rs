//! Money and energy: a fleet of replicas on an offer, and what it costs per token.

use serde::{Deserialize, Serialize};

use crate::accelerator::{Accelerator, OfferTerms};
use crate::error::{require_positive, require_within, CoreError};

/// Seconds in an hour.
pub const SECONDS_PER_HOUR: f64 = 3600.0;
/// Tokens that prices are quoted for.
pub const TOKENS_PER_QUOTE: f64 = 1e6;

/// What the fleet must deliver.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// Output tokens/s of the whole fleet; absent = the smallest unit that is sold, at capacity.
    pub output_tps: Option<f64>,
    /// Share of what the fleet was sized for that is used on average, 0..1.
    #[serde(default = "full")]
    pub utilization: f64,
}

fn full() -> f64 {
    1.0
}

impl Demand {
    /// Checks every figure.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        if let Some(target) = self.output_tps {
            require_positive("output_tps", target)?;
        }
        require_positive("utilization", self.utilization)?;
        require_within("utilization", self.utilization, 0.0, 1.0)?;
        Ok(())
    }
}

/// How replicas of a given size sit on the units that one offer sells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FleetUnit {
    /// Caller's index of the offer.
    pub offer: u32,
    /// USD per instance and hour.
    pub usd_per_instance_hr: f64,
    /// Chips of an instance.
    pub chips_per_instance: f64,
    /// Replicas on one instance; below 1 when a replica spans instances.
    pub replicas_per_instance: f64,
    /// Least number of instances sold.
    pub minimum_instances: f64,
    /// Chips under the offer that share the fast fabric.
    pub fabric_chips: f64,
}

/// A sized fleet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fleet {
    /// Replicas that run.
    pub replicas: f64,
    /// Instances paid for.
    pub instances: f64,
    /// Chips paid for.
    pub chips: f64,
    /// USD per hour.
    pub usd_per_hr: f64,
    /// Output tokens/s delivered on average.
    pub delivered_tps: f64,
}

impl FleetUnit {
    /// Places replicas of `replica_chips` chips on the instances of `offer`; None when the offer's instances cannot
    /// hold such a replica: one that needs more chips than share a fabric under it needs whole nodes.
    #[must_use]
    pub fn new(accelerator: &Accelerator, offer: &OfferTerms, replica_chips: u32) -> Option<Self> {
        let instance = offer.chips_per_instance;
        let fabric = offer.fabric_chips.unwrap_or(instance).max(instance);
        if replica_chips > fabric && fabric < accelerator.chips_per_node {
            return None;
        }
        let replicas_per_instance = if replica_chips <= instance {
            f64::from(instance / replica_chips)
        } else {
            1.0 / f64::from(replica_chips.div_ceil(instance))
        };
        Some(Self {
            offer: offer.id,
            usd_per_instance_hr: offer.usd_per_chip_hr * f64::from(instance),
            chips_per_instance: f64::from(instance),
            replicas_per_instance,
            minimum_instances: f64::from(offer.minimum_instances.max(1)),
            // Whole nodes of one domain stand together.
            fabric_chips: f64::from(if fabric >= accelerator.chips_per_node {
                fabric.max(accelerator.scale_up.domain_chips)
            } else {
                fabric
            }),
        })
    }

    /// Whole instances that hold `chips` chips, at least the least number sold.
    #[inline(always)]
    #[must_use]
    pub fn instances_for(&self, chips: f64) -> f64 {
        // The small slack keeps a share that rounds up by a hair from becoming another instance.
        whole_up(chips / self.chips_per_instance - 1e-9).max(self.minimum_instances)
    }

    /// Sizes the fleet for replicas of `replica_tps` output tokens/s.
    ///
    /// With a target: `ceil(target / replica_tps)` replicas on whole instances, all paid, the target delivered.
    /// Without: the least that is sold, filled with replicas, delivering its capacity.
    #[inline(always)]
    #[must_use]
    pub fn fleet(&self, replica_tps: f64, demand: &Demand) -> Fleet {
        let (replicas, instances, sized_for) = match demand.output_tps {
            Some(target) => {
                let replicas = whole_up(target / replica_tps);
                // The small slack keeps 3 * (1/3) from becoming 4 instances.
                let instances = whole_up(replicas / self.replicas_per_instance - 1e-9)
                    .max(self.minimum_instances);
                (replicas, instances, target)
            }
            None => {
                let instances =
                    whole_up(1.0 / self.replicas_per_instance - 1e-9).max(self.minimum_instances);
                let replicas = (instances * self.replicas_per_instance + 1e-9).floor();
                (replicas, instances, replicas * replica_tps)
            }
        };
        Fleet {
            replicas,
            instances,
            chips: instances * self.chips_per_instance,
            usd_per_hr: instances * self.usd_per_instance_hr,
            delivered_tps: sized_for * demand.utilization,
        }
    }
}

/// The least whole number that is not below `value`, which is at least -0.5: `f64::ceil`, but in arithmetic that
/// vectorises on every x86-64 instead of a call into the mathematical library.
#[inline(always)]
fn whole_up(value: f64) -> f64 {
    /// 2^52: from here on every number is whole, and adding it rounds smaller ones to the nearest whole number.
    const ALL_WHOLE: f64 = 4_503_599_627_370_496.0;
    let nearest = (value + ALL_WHOLE) - ALL_WHOLE;
    let whole = nearest + if nearest < value { 1.0 } else { 0.0 };
    if value < ALL_WHOLE {
        whole
    } else {
        value
    }
}

impl Fleet {
    /// USD per million output tokens delivered.
    #[inline(always)]
    #[must_use]
    pub fn usd_per_m_output_tokens(&self) -> f64 {
        self.usd_per_hr / (self.delivered_tps * SECONDS_PER_HOUR) * TOKENS_PER_QUOTE
    }

    /// kWh per million output tokens delivered, at `power_w` per paid chip.
    ///
    /// Assumes: paid chips draw their all-in power whatever their load, which overstates a fleet with idle chips.
    #[inline(always)]
    #[must_use]
    pub fn kwh_per_m_output_tokens(&self, power_w: f64) -> f64 {
        const W_PER_KW: f64 = 1000.0;
        self.chips * power_w / W_PER_KW / (self.delivered_tps * SECONDS_PER_HOUR) * TOKENS_PER_QUOTE
    }
}

/// What tokens and requests cost when a million output tokens cost this much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenCosts {
    /// USD per million tokens, input and output together.
    pub usd_per_m_tokens: f64,
    /// USD per million input tokens, all the money over the input tokens alone.
    pub usd_per_m_input_tokens: f64,
    /// USD per request.
    pub usd_per_request: f64,
}

impl TokenCosts {
    /// Spreads the price of output tokens over the tokens of requests with `isl` tokens in and `osl` out.
    #[must_use]
    pub fn new(usd_per_m_output_tokens: f64, isl: f64, osl: f64) -> Self {
        Self {
            usd_per_m_tokens: usd_per_m_output_tokens * osl / (isl + osl),
            usd_per_m_input_tokens: usd_per_m_output_tokens * osl / isl,
            usd_per_request: usd_per_m_output_tokens * osl / TOKENS_PER_QUOTE,
        }
    }
}

/// Instances of a fleet of two pools of workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PooledFleet {
    /// Instances paid for, all of them counted with the second pool where the pools share them.
    pub instances: (f64, f64),
    /// Chips paid for, alike.
    pub chips_paid: (f64, f64),
    /// USD per hour.
    pub usd_per_hr: f64,
}

impl PooledFleet {
    /// Chips paid for.
    #[must_use]
    pub fn chips(&self) -> f64 {
        self.chips_paid.0 + self.chips_paid.1
    }

    /// Power of the paid chips, kW, at `power_w` per chip of each pool.
    #[must_use]
    pub fn kw(&self, first_power_w: f64, second_power_w: f64) -> f64 {
        const W_PER_KW: f64 = 1000.0;
        (self.chips_paid.0 * first_power_w + self.chips_paid.1 * second_power_w) / W_PER_KW
    }
}

/// Places two pools of workers, given as unit and number of workers: on the same instances when both are units of one
/// offer (`is_shared`), else each on its own.
///
/// An instance holds workers of both pools as long as the shares that they take of it add up to one at most, which can
/// always be arranged: all instances but one hold workers of one pool alone.
#[must_use]
pub fn pooled_fleet(
    first: (&FleetUnit, f64),
    second: (&FleetUnit, f64),
    is_shared: bool,
) -> PooledFleet {
    let taken = |(unit, workers): (&FleetUnit, f64)| workers / unit.replicas_per_instance;
    // The small slack keeps 3 * (1/3) from becoming 4 instances.
    let whole =
        |instances: f64, unit: &FleetUnit| whole_up(instances - 1e-9).max(unit.minimum_instances);
    let instances = if is_shared {
        (0.0, whole(taken(first) + taken(second), second.0))
    } else {
        (whole(taken(first), first.0), whole(taken(second), second.0))
    };
    PooledFleet {
        instances,
        chips_paid: (
            instances.0 * first.0.chips_per_instance,
            instances.1 * second.0.chips_per_instance,
        ),
        usd_per_hr: instances.0 * first.0.usd_per_instance_hr
            + instances.1 * second.0.usd_per_instance_hr,
    }
}

/// The offers worth pricing: of those that sell the same unit, the cheapest (ties: the lower id).
#[must_use]
pub fn undominated_offers(offers: &[OfferTerms]) -> Vec<OfferTerms> {
    undominated_offers_by(offers, false)
}

/// [`undominated_offers`], and with `by_site` of those at the same place only.
#[must_use]
pub fn undominated_offers_by(offers: &[OfferTerms], by_site: bool) -> Vec<OfferTerms> {
    let mut best: Vec<OfferTerms> = Vec::new();
    for offer in offers {
        let same_unit = |known: &&mut OfferTerms| {
            known.chips_per_instance == offer.chips_per_instance
                && known.minimum_instances == offer.minimum_instances
                && known.fabric_chips == offer.fabric_chips
                && known.may_be_withdrawn == offer.may_be_withdrawn
                && (!by_site || known.site == offer.site)
        };
        match best.iter_mut().find(same_unit) {
            Some(known) => {
                if (offer.usd_per_chip_hr, offer.id) < (known.usd_per_chip_hr, known.id) {
                    *known = *offer;
                }
            }
            None => best.push(*offer),
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_up_is_that_of_the_library() {
        let values = [
            0.0,
            1e-9,
            0.49,
            0.5,
            0.51,
            1.0,
            1.5,
            2.0 + 4e-16,
            2.5,
            1e6 + 1e-9,
            4e15 + 0.5,
        ];
        for value in values {
            assert_eq!(whole_up(value), f64::ceil(value), "{value}");
            assert_eq!(
                whole_up(value + 1.0),
                f64::ceil(value + 1.0),
                "{value} and one"
            );
        }
        assert_eq!(whole_up(-1e-9), 0.0);
        assert_eq!(whole_up(1e300), 1e300);
        assert_eq!(whole_up(f64::INFINITY), f64::INFINITY);
        assert!(whole_up(f64::NAN).is_nan());
    }

    fn unit(replicas_per_instance: f64) -> FleetUnit {
        FleetUnit {
            offer: 0,
            usd_per_instance_hr: 16.0,
            chips_per_instance: 8.0,
            replicas_per_instance,
            minimum_instances: 1.0,
            fabric_chips: 8.0,
        }
    }

    #[test]
    fn whole_instances_are_paid_for() {
        // 10 replicas of 2 chips, 4 on an instance: 3 instances, 48 USD/h for 1000 tokens/s = 13.33 USD/M
        let demand = Demand {
            output_tps: Some(1000.0),
            utilization: 1.0,
        };
        let fleet = unit(4.0).fleet(100.0, &demand);
        assert_eq!(
            (fleet.replicas, fleet.instances, fleet.chips),
            (10.0, 3.0, 24.0)
        );
        assert!((fleet.usd_per_m_output_tokens() - 48.0 / 3.6).abs() < 1e-9);
    }

    #[test]
    fn half_the_use_doubles_the_price() {
        let at = |utilization| {
            let demand = Demand {
                output_tps: Some(1000.0),
                utilization,
            };
            unit(4.0).fleet(100.0, &demand).usd_per_m_output_tokens()
        };
        assert!((at(0.5) / at(1.0) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn a_replica_may_span_instances() {
        let fleet = unit(1.0 / 3.0).fleet(
            100.0,
            &Demand {
                output_tps: Some(250.0),
                utilization: 1.0,
            },
        );
        assert_eq!((fleet.replicas, fleet.instances), (3.0, 9.0));
    }

    #[test]
    fn two_pools_share_the_instances_of_one_offer() {
        // 3 workers of a quarter and 5 of a half: 0.75 + 2.5 instances, 4 at 16 USD/h; apart 1 + 3
        let (small, large) = (unit(4.0), unit(2.0));
        let shared = pooled_fleet((&small, 3.0), (&large, 5.0), true);
        assert_eq!((shared.instances, shared.usd_per_hr), ((0.0, 4.0), 64.0));
        let apart = pooled_fleet((&small, 1.0), (&large, 1.0), false);
        assert_eq!((apart.instances, apart.usd_per_hr), ((1.0, 1.0), 32.0));
        let together = pooled_fleet((&small, 1.0), (&large, 1.0), true);
        assert_eq!((together.instances.1, together.chips()), (1.0, 8.0));
        // 8 chips at 500 W and 8 at 1500 W
        assert!((apart.kw(500.0, 1500.0) - 16.0).abs() < 1e-12);
    }

    #[test]
    fn without_a_target_the_smallest_unit_is_filled() {
        let demand = Demand {
            output_tps: None,
            utilization: 1.0,
        };
        let fleet = unit(4.0).fleet(100.0, &demand);
        assert_eq!(
            (fleet.replicas, fleet.instances, fleet.delivered_tps),
            (4.0, 1.0, 400.0)
        );
    }
}
