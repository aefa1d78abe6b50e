//! When requests arrive and how long they are: deterministic by seed.

use serde::{Deserialize, Serialize};

use crate::error::{require_positive, require_within, CoreError};
use crate::serving::Workload;

/// How requests arrive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Arrivals {
    /// A fixed number in flight, as benchmarks run: all start at once, each finished one is replaced.
    Closed {
        /// Requests in flight on the replica.
        concurrency: u32,
    },
    /// Independent users.
    Poisson {
        /// Mean requests/s of the replica.
        requests_per_s: f64,
    },
    /// Given times.
    Trace {
        /// Seconds from the start, in order.
        at_s: Vec<f64>,
    },
}

/// How long requests are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum LengthModel {
    /// All alike.
    #[default]
    Fixed,
    /// Prompt and output each spread evenly from `low` times the nominal length to the nominal length.
    Uniform {
        /// Shortest length over the nominal one.
        low: f64,
    },
    /// Prompt and output each log-normal around the nominal mean.
    Lognormal {
        /// Standard deviation over mean, prompts.
        isl_cv: f64,
        /// Standard deviation over mean, outputs.
        osl_cv: f64,
    },
    /// Given, one by one; used again from the start when they run out.
    Given {
        /// Prompt tokens.
        isl: Vec<f64>,
        /// Output tokens.
        osl: Vec<f64>,
        /// Prompt tokens found in the prefix cache; empty = the workload's share.
        #[serde(default)]
        cached: Vec<f64>,
    },
}

/// Lengths of one request, tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestLengths {
    /// Prompt.
    pub isl: f64,
    /// Output.
    pub osl: f64,
    /// Prompt tokens found in the prefix cache.
    pub cached: f64,
}

impl Arrivals {
    /// Checks every figure.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        match self {
            Self::Closed { concurrency: 0 } => Err(CoreError::bad_input(
                "concurrency",
                0,
                "expected at least 1",
            )),
            Self::Closed { .. } => Ok(()),
            Self::Poisson { requests_per_s } => {
                require_positive("requests_per_s", *requests_per_s).map(drop)
            }
            Self::Trace { at_s } => {
                let mut before = 0.0;
                for at in at_s {
                    if !(at.is_finite() && *at >= before) {
                        return Err(CoreError::bad_input(
                            "arrival",
                            at,
                            format!(
                                "expected a time from {before} s on: arrivals must be in order"
                            ),
                        ));
                    }
                    before = *at;
                }
                if at_s.is_empty() {
                    return Err(CoreError::bad_input(
                        "arrivals",
                        "none",
                        "expected at least one",
                    ));
                }
                Ok(())
            }
        }
    }
}

impl LengthModel {
    /// Checks every figure.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        match self {
            Self::Fixed => Ok(()),
            Self::Uniform { low } => require_within("low", *low, 0.0, 1.0).map(drop),
            Self::Lognormal { isl_cv, osl_cv } => {
                require_within("isl_cv", *isl_cv, 0.0, 10.0)?;
                require_within("osl_cv", *osl_cv, 0.0, 10.0).map(drop)
            }
            Self::Given { isl, osl, cached } => {
                if isl.is_empty()
                    || isl.len() != osl.len()
                    || !(cached.is_empty() || cached.len() == isl.len())
                {
                    return Err(CoreError::bad_input(
                        "lengths",
                        format!(
                            "{} prompts, {} outputs, {} cached",
                            isl.len(),
                            osl.len(),
                            cached.len()
                        ),
                        "expected as many of each, and at least one",
                    ));
                }
                for (name, values) in [("isl", isl), ("osl", osl)] {
                    for value in values {
                        require_within(name, *value, 1.0, 1e9)?;
                    }
                }
                for (value, prompt) in cached.iter().zip(isl) {
                    require_within("cached", *value, 0.0, *prompt)?;
                }
                Ok(())
            }
        }
    }
}

/// Draws the lengths of one request after the other.
#[derive(Debug)]
pub struct LengthSource<'a> {
    model: &'a LengthModel,
    workload: Workload,
    max_context: f64,
    random: Random,
    drawn: usize,
}

impl<'a> LengthSource<'a> {
    /// A source of requests that fit a context of `max_context` tokens.
    #[must_use]
    pub fn new(model: &'a LengthModel, workload: Workload, max_context: f64, seed: u64) -> Self {
        Self {
            model,
            workload,
            max_context,
            random: Random::new(seed),
            drawn: 0,
        }
    }

    /// A request of nominal lengths, for plans.
    #[must_use]
    pub fn typical(&self) -> RequestLengths {
        let Workload { isl, osl, .. } = self.workload;
        RequestLengths {
            isl,
            osl,
            cached: 0.0,
        }
    }

    /// The next request. A request beyond the model's context is cut, prompt last.
    pub fn draw(&mut self) -> RequestLengths {
        let Workload {
            isl,
            osl,
            prefix_hit,
        } = self.workload;
        let (isl, osl, given) = match self.model {
            LengthModel::Fixed => (isl, osl, None),
            LengthModel::Uniform { low } => {
                let mut scale = || low + (1.0 - low) * self.random.uniform();
                (isl * scale(), osl * scale(), None)
            }
            LengthModel::Lognormal { isl_cv, osl_cv } => (
                isl * self.random.lognormal(*isl_cv),
                osl * self.random.lognormal(*osl_cv),
                None,
            ),
            LengthModel::Given { isl, osl, cached } => {
                let index = self.drawn % isl.len();
                (isl[index], osl[index], cached.get(index).copied())
            }
        };
        self.drawn += 1;
        let isl = isl.round().clamp(1.0, (self.max_context - 1.0).max(1.0));
        let osl = osl.round().clamp(1.0, (self.max_context - isl).max(1.0));
        // At least one prompt token is always computed.
        let cached = given.unwrap_or(isl * prefix_hit).min(isl - 1.0).max(0.0);
        RequestLengths { isl, osl, cached }
    }
}

/// A small generator with its own fixed sequence on every platform (splitmix64).
///
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator for `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Even over (0, 1].
    pub fn uniform(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1_u64 << 53) as f64;
        ((self.bits() >> 11) + 1) as f64 * STEP
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -self.uniform().ln()
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let angle = std::f64::consts::TAU * self.uniform();
        (2.0 * self.exponential()).sqrt() * angle.cos()
    }

    /// Log-normal with mean 1 and the given standard deviation.
    pub fn lognormal(&mut self, cv: f64) -> f64 {
        if cv <= 0.0 {
            return 1.0;
        }
        let variance = (cv * cv).ln_1p();
        (variance.sqrt() * self.normal() - 0.5 * variance).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_draws_have_their_moments() {
        let mut random = Random::new(7);
        let count = 200_000;
        let (mut exponential, mut mean, mut square) = (0.0, 0.0, 0.0);
        for _ in 0..count {
            exponential += random.exponential();
            let value = random.lognormal(0.5);
            mean += value;
            square += value * value;
        }
        let n = f64::from(count);
        assert!((exponential / n - 1.0).abs() < 0.01);
        assert!((mean / n - 1.0).abs() < 0.01);
        assert!((square / n - 1.25).abs() < 0.03, "1 + cv^2");
    }

    #[test]
    fn given_lengths_repeat_and_long_ones_are_cut() {
        let lengths = LengthModel::Given {
            isl: vec![10.0, 90.0],
            osl: vec![5.0, 50.0],
            cached: vec![],
        };
        let workload = Workload {
            isl: 1.0,
            osl: 1.0,
            prefix_hit: 0.5,
        };
        let mut source = LengthSource::new(&lengths, workload, 100.0, 1);
        assert_eq!(
            source.draw(),
            RequestLengths {
                isl: 10.0,
                osl: 5.0,
                cached: 5.0
            }
        );
        assert_eq!(
            source.draw(),
            RequestLengths {
                isl: 90.0,
                osl: 10.0,
                cached: 45.0
            }
        );
        assert_eq!(source.draw().isl, 10.0);
    }

    #[test]
    fn arrivals_must_be_in_order() {
        assert!(Arrivals::Trace {
            at_s: vec![0.0, 2.0, 1.0]
        }
        .validate()
        .is_err());
        assert!(Arrivals::Trace {
            at_s: vec![0.0, 0.0, 1.0]
        }
        .validate()
        .is_ok());
    }
}
