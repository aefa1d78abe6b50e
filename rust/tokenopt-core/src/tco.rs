//! What an owned chip costs per hour, term by term.
//!
//! Fixed costs (hardware, network, spares, financing, colocation, operations, repairs) accrue whether or not the chip
//! works: they are divided by availability. Energy is drawn while it works. Utilisation (the share of available hours in
//! which the chip is used) is another divisor, kept apart: it turns the price of an available hour into that of a used one.

use serde::{Deserialize, Serialize};

use crate::error::{require_positive, require_within, CoreError};

/// Hours in a year, leap years included.
pub const HOURS_PER_YEAR: f64 = 8766.0;
/// Months in a year.
pub const MONTHS_PER_YEAR: f64 = 12.0;

/// How the purchase is spread over its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Convention {
    /// Equal payments that repay the purchase with interest.
    #[default]
    Annuity,
    /// Equal depreciation, and interest on the average of the first and last book value.
    StraightLine,
}

/// What an owner pays, per chip. Money in USD, power in kW, shares from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcoInputs {
    /// Purchase price of the chip with its share of the server, USD.
    pub capex_usd: f64,
    /// Network, storage and installation beside it, share of `capex_usd`.
    #[serde(default)]
    pub networking_share: f64,
    /// Chips bought and kept to replace others, share of those in service.
    #[serde(default)]
    pub spares_share: f64,
    /// What the whole purchase is sold for at the end, share of it.
    #[serde(default)]
    pub residual_share: f64,
    /// Economic life, years.
    pub years: f64,
    /// Weighted average cost of capital, per year.
    pub wacc: f64,
    /// How the purchase is spread.
    #[serde(default)]
    pub convention: Convention,
    /// Power of the chip with its share of server and network at full load, kW.
    pub kw: f64,
    /// Facility power over IT power; 1 where `kw` is already what the utility delivers.
    #[serde(default = "one")]
    pub pue: f64,
    /// Power when idle, share of `kw`.
    #[serde(default = "one")]
    pub idle_power_share: f64,
    /// Electricity, USD per kWh.
    pub usd_per_kwh: f64,
    /// Rent of space, power and cooling, USD per kW of `kw` and month, electricity apart.
    #[serde(default)]
    pub colocation_usd_per_kw_month: f64,
    /// Staff, support and maintenance, share of the whole purchase per year.
    #[serde(default)]
    pub operations_share_per_year: f64,
    /// Staff, support and maintenance beside that, USD per chip and year.
    #[serde(default)]
    pub operations_usd_per_year: f64,
    /// Hardware lost to failures that no warranty covers, share of `capex_usd` per year.
    #[serde(default)]
    pub repairs_share_per_year: f64,
    /// Hours in which the chip works over all hours.
    #[serde(default = "one")]
    pub availability: f64,
    /// Hours in which it is used over hours in which it works.
    #[serde(default = "one")]
    pub utilization: f64,
}

fn one() -> f64 {
    1.0
}

/// What an available chip-hour costs, each term in USD per chip-hour.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TcoBreakdown {
    /// Loss of value of chip and server.
    pub hardware: f64,
    /// Loss of value of network, storage and installation.
    pub networking: f64,
    /// Loss of value of spares, with their share of the network.
    pub spares: f64,
    /// Cost of the capital that is tied up.
    pub financing: f64,
    /// Electricity, facility overhead included.
    pub energy: f64,
    /// Rent of space, power and cooling.
    pub colocation: f64,
    /// Staff, support and maintenance.
    pub operations: f64,
    /// Failures that no warranty covers.
    pub repairs: f64,
    /// Sum of the terms: the price of an hour in which the chip works.
    pub usd_per_chip_hr: f64,
    /// The same per hour in which it is used.
    pub usd_per_used_chip_hr: f64,
    /// The whole purchase per chip in service, USD.
    pub purchase_usd: f64,
    /// What one available hour takes from the utility on average, kWh.
    pub utility_kwh_per_hr: f64,
}

impl TcoInputs {
    /// Checks every figure.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        require_positive("capex_usd", self.capex_usd)?;
        require_positive("years", self.years)?;
        require_within("years", self.years, 0.0, 30.0)?;
        require_positive("kw", self.kw)?;
        require_positive("availability", self.availability)?;
        require_positive("utilization", self.utilization)?;
        for (field, value, high) in [
            ("capex_usd", self.capex_usd, 1e8),
            ("kw", self.kw, 1e3),
            ("networking_share", self.networking_share, 5.0),
            ("spares_share", self.spares_share, 1.0),
            ("residual_share", self.residual_share, 1.0),
            ("wacc", self.wacc, 1.0),
            ("idle_power_share", self.idle_power_share, 1.0),
            ("usd_per_kwh", self.usd_per_kwh, 10.0),
            (
                "colocation_usd_per_kw_month",
                self.colocation_usd_per_kw_month,
                1e5,
            ),
            (
                "operations_share_per_year",
                self.operations_share_per_year,
                1.0,
            ),
            ("operations_usd_per_year", self.operations_usd_per_year, 1e7),
            ("repairs_share_per_year", self.repairs_share_per_year, 1.0),
            ("availability", self.availability, 1.0),
            ("utilization", self.utilization, 1.0),
        ] {
            require_within(field, value, 0.0, high)?;
        }
        require_within("pue", self.pue, 1.0, 5.0)?;
        Ok(())
    }

    /// Purchase over the price of the bare chip and server.
    fn purchase_factor(&self) -> f64 {
        (1.0 + self.networking_share) * (1.0 + self.spares_share)
    }

    /// Yearly cost of a purchase of 1 USD: loss of value, and cost of capital.
    ///
    /// Source: annuity `CRF(w, n) = w / (1 - (1 + w)^-n)` on the purchase less the present value of the residual;
    /// straight line with interest on the average book value (capital budgeting, any textbook).
    fn yearly_share(&self) -> (f64, f64) {
        let depreciation = (1.0 - self.residual_share) / self.years;
        let total = match self.convention {
            Convention::StraightLine => {
                depreciation + self.wacc * (1.0 + self.residual_share) / 2.0
            }
            Convention::Annuity => {
                let discount = (1.0 + self.wacc).powf(-self.years);
                (1.0 - self.residual_share * discount) * capital_recovery(self.wacc, self.years)
            }
        };
        (depreciation, total - depreciation)
    }

    /// The cost of an available chip-hour, term by term.
    ///
    /// Assumes: load follows `utilization` between idle and full power; energy of hours out of service is not counted
    /// (errs low by what a broken server draws); taxes, insurance and decommissioning are left out unless put into
    /// `operations_usd_per_year`.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn breakdown(&self) -> Result<TcoBreakdown, CoreError> {
        self.validate()?;
        let available_hours = HOURS_PER_YEAR * self.availability;
        let (depreciation, financing) = self.yearly_share();
        let network_usd = self.capex_usd * self.networking_share;
        let spares_usd = (self.capex_usd + network_usd) * self.spares_share;
        let purchase_usd = self.capex_usd * self.purchase_factor();
        let load = self.idle_power_share + (1.0 - self.idle_power_share) * self.utilization;
        let utility_kwh_per_hr = self.kw * load * self.pue;

        let hardware = self.capex_usd * depreciation / available_hours;
        let networking = network_usd * depreciation / available_hours;
        let spares = spares_usd * depreciation / available_hours;
        let financing = purchase_usd * financing / available_hours;
        let energy = utility_kwh_per_hr * self.usd_per_kwh;
        let colocation =
            self.colocation_usd_per_kw_month * self.kw * MONTHS_PER_YEAR / available_hours;
        let operations = (self.operations_share_per_year * purchase_usd
            + self.operations_usd_per_year)
            / available_hours;
        let repairs = self.repairs_share_per_year * self.capex_usd / available_hours;
        let usd_per_chip_hr =
            hardware + networking + spares + financing + energy + colocation + operations + repairs;
        Ok(TcoBreakdown {
            hardware,
            networking,
            spares,
            financing,
            energy,
            colocation,
            operations,
            repairs,
            usd_per_chip_hr,
            usd_per_used_chip_hr: usd_per_chip_hr / self.utilization,
            purchase_usd,
            utility_kwh_per_hr,
        })
    }

    /// The `capex_usd` at which an available chip-hour would cost `usd_per_chip_hr`, all else as it is. Every term is
    /// linear in `capex_usd`, so two evaluations give it.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] where the rest alone costs as much.
    pub fn implied_capex_usd(&self, usd_per_chip_hr: f64) -> Result<f64, CoreError> {
        require_positive("usd_per_chip_hr", usd_per_chip_hr)?;
        let here = self.breakdown()?.usd_per_chip_hr;
        let twice = Self {
            capex_usd: 2.0 * self.capex_usd,
            ..*self
        };
        let slope = (twice.breakdown()?.usd_per_chip_hr - here) / self.capex_usd;
        let rest = here - slope * self.capex_usd;
        if slope <= 0.0 || usd_per_chip_hr <= rest {
            return Err(CoreError::bad_input(
                "usd_per_chip_hr",
                usd_per_chip_hr,
                format!("expected more than the {rest:.4} that all but the purchase costs"),
            ));
        }
        Ok((usd_per_chip_hr - rest) / slope)
    }
}

/// Yearly payment that repays 1 USD with interest in `years` years.
fn capital_recovery(wacc: f64, years: f64) -> f64 {
    // Below this the power loses all digits; the limit is equal repayment without interest.
    const NO_INTEREST: f64 = 1e-9;
    if wacc < NO_INTEREST {
        1.0 / years
    } else {
        wacc / (1.0 - (1.0 + wacc).powf(-years))
    }
}

/// What crosses the border for one question: inputs, and a rate to explain where one is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcoProblem {
    /// What the owner pays.
    pub inputs: TcoInputs,
    /// A published rate, USD per chip-hour, whose purchase price is asked for.
    #[serde(default)]
    pub published_usd_per_chip_hr: Option<f64>,
}

/// The answer to a [`TcoProblem`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TcoAnswer {
    /// Every term.
    pub breakdown: TcoBreakdown,
    /// Purchase price at which the published rate would come out, USD per chip; absent where none was asked about.
    pub implied_capex_usd: Option<f64>,
}

/// Answers a problem in JSON.
///
/// # Errors
/// [`CoreError::Unreadable`] for text that is no problem, [`CoreError::BadInput`] naming a field.
pub fn tco(problem_json: &str) -> Result<TcoAnswer, CoreError> {
    let problem: TcoProblem = serde_json::from_str(problem_json)
        .map_err(|error| CoreError::Unreadable(error.to_string()))?;
    Ok(TcoAnswer {
        breakdown: problem.inputs.breakdown()?,
        implied_capex_usd: problem
            .published_usd_per_chip_hr
            .map(|rate| problem.inputs.implied_capex_usd(rate))
            .transpose()?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]

    use super::*;
    use proptest::prelude::*;

    fn plain() -> TcoInputs {
        TcoInputs {
            capex_usd: 30_000.0,
            networking_share: 0.0,
            spares_share: 0.0,
            residual_share: 0.0,
            years: 4.0,
            wacc: 0.1,
            convention: Convention::Annuity,
            kw: 1.73,
            pue: 1.0,
            idle_power_share: 1.0,
            usd_per_kwh: 0.08,
            colocation_usd_per_kw_month: 0.0,
            operations_share_per_year: 0.0,
            operations_usd_per_year: 0.0,
            repairs_share_per_year: 0.0,
            availability: 1.0,
            utilization: 1.0,
        }
    }

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!(
            (found - expected).abs() <= tolerance,
            "{found} is not {expected}"
        );
    }

    #[test]
    fn annuity_by_hand() {
        // CRF(10%, 4) = 0.1 / (1 - 1.1^-4) = 0.1 / (1 - 0.68301346) = 0.31547080
        let terms = plain().breakdown().unwrap();
        // 30,000 / 4 / 8766 = 0.85558
        close(terms.hardware, 0.855_578, 1e-6);
        // 30,000 x (0.31547080 - 0.25) / 8766 = 0.22406
        close(terms.financing, 0.224_061, 1e-6);
        // 1.73 kW x 0.08
        close(terms.energy, 0.1384, 1e-12);
        close(terms.usd_per_chip_hr, 1.218_039, 1e-6);
    }

    #[test]
    fn straight_line_by_hand() {
        let inputs = TcoInputs {
            convention: Convention::StraightLine,
            residual_share: 0.2,
            ..plain()
        };
        let terms = inputs.breakdown().unwrap();
        // 30,000 x 0.8 / 4 = 6,000 a year / 8766 = 0.684463
        close(terms.hardware, 0.684_463, 1e-6);
        // average book value (30,000 + 6,000) / 2 = 18,000 x 10% = 1,800 a year / 8766 = 0.205339
        close(terms.financing, 0.205_339, 1e-6);
    }

    #[test]
    fn annuity_with_residual_by_hand() {
        let inputs = TcoInputs {
            residual_share: 0.2,
            ..plain()
        };
        let terms = inputs.breakdown().unwrap();
        // (30,000 - 6,000 x 0.68301346) x 0.31547080 = 25,901.92 x 0.31547080 = 8,171.30 a year; 2,171.30 of it interest
        close(
            (terms.hardware + terms.financing) * HOURS_PER_YEAR,
            8171.30,
            0.01,
        );
        close(terms.financing * HOURS_PER_YEAR, 2171.30, 0.01);
    }

    #[test]
    fn every_other_term_by_hand() {
        let inputs = TcoInputs {
            networking_share: 0.2,
            spares_share: 0.05,
            pue: 1.25,
            idle_power_share: 0.4,
            colocation_usd_per_kw_month: 150.0,
            operations_share_per_year: 0.08,
            operations_usd_per_year: 100.0,
            repairs_share_per_year: 0.03,
            availability: 0.95,
            utilization: 0.5,
            ..plain()
        };
        let terms = inputs.breakdown().unwrap();
        let hours = 8766.0 * 0.95;
        // Network 6,000; spares 5% of 36,000 = 1,800; purchase 37,800.
        close(terms.purchase_usd, 37_800.0, 1e-6);
        close(terms.networking, 6000.0 / 4.0 / hours, 1e-12);
        close(terms.spares, 1800.0 / 4.0 / hours, 1e-12);
        // Load 0.4 + 0.6 x 0.5 = 0.7; 1.73 x 0.7 x 1.25 = 1.51375 kW
        close(terms.utility_kwh_per_hr, 1.513_75, 1e-12);
        close(terms.energy, 0.1211, 1e-12);
        // 150 x 1.73 x 12 = 3,114 a year
        close(terms.colocation, 3114.0 / hours, 1e-12);
        // 8% of 37,800 + 100 = 3,124
        close(terms.operations, 3124.0 / hours, 1e-12);
        close(terms.repairs, 900.0 / hours, 1e-12);
        close(
            terms.usd_per_used_chip_hr,
            terms.usd_per_chip_hr / 0.5,
            1e-12,
        );
    }

    #[test]
    fn a_published_rate_gives_its_purchase_back() {
        // H100, hyperscaler: 1.30 USD/h at 1.73 kW of utility power. With 10%, 4 years, 2% operations and 0.08 USD/kWh:
        // (1.30 - 0.1384) x 8766 / (0.31547080 + 0.02) = 30,353 USD.
        let inputs = TcoInputs {
            operations_share_per_year: 0.02,
            ..plain()
        };
        let capex_usd = inputs.implied_capex_usd(1.30).unwrap();
        close(capex_usd, 30_353.0, 1.0);
        let again = TcoInputs {
            capex_usd,
            ..inputs
        };
        close(again.breakdown().unwrap().usd_per_chip_hr, 1.30, 1e-12);
        assert!(inputs.implied_capex_usd(0.1).is_err());
    }

    #[test]
    fn no_interest_is_the_limit() {
        let free = TcoInputs {
            wacc: 0.0,
            ..plain()
        };
        assert_eq!(free.breakdown().unwrap().financing, 0.0);
        let almost = TcoInputs {
            wacc: 1e-6,
            ..plain()
        };
        close(almost.breakdown().unwrap().financing, 0.0, 1e-5);
    }

    #[test]
    fn bad_figures_are_named() {
        for (inputs, field) in [
            (
                TcoInputs {
                    capex_usd: f64::NAN,
                    ..plain()
                },
                "capex_usd",
            ),
            (
                TcoInputs {
                    years: 0.0,
                    ..plain()
                },
                "years",
            ),
            (
                TcoInputs {
                    wacc: -0.1,
                    ..plain()
                },
                "wacc",
            ),
            (
                TcoInputs {
                    pue: 0.9,
                    ..plain()
                },
                "pue",
            ),
            (
                TcoInputs {
                    availability: 0.0,
                    ..plain()
                },
                "availability",
            ),
            (
                TcoInputs {
                    utilization: 1.5,
                    ..plain()
                },
                "utilization",
            ),
        ] {
            assert!(inputs.breakdown().unwrap_err().to_string().contains(field));
        }
    }

    #[test]
    fn json_in_and_unknown_fields_refused() {
        let text = r#"{"inputs": {"capex_usd": 30000, "years": 4, "wacc": 0.1, "kw": 1.73, "usd_per_kwh": 0.08},
                       "published_usd_per_chip_hr": 1.30}"#;
        let answer = tco(text).unwrap();
        close(answer.breakdown.usd_per_chip_hr, 1.218_039, 1e-6);
        assert!(answer.implied_capex_usd.unwrap() > 30_000.0);
        assert!(tco(&text.replace("\"kw\"", "\"kilowatt\"")).is_err());
    }

    proptest! {
        #[test]
        fn laws(
            capex_usd in 1e3..1e5f64, years in 1.0..10.0f64, wacc in 0.0..0.3f64, kw in 0.1..5.0f64,
            residual_share in 0.0..0.9f64, availability in 0.5..1.0f64, utilization in 0.1..1.0f64,
            is_straight in any::<bool>(),
        ) {
            let inputs = TcoInputs {
                capex_usd, years, wacc, kw, residual_share, availability, utilization,
                convention: if is_straight { Convention::StraightLine } else { Convention::Annuity },
                operations_share_per_year: 0.05, idle_power_share: 0.3, pue: 1.2, ..plain()
            };
            let base = inputs.breakdown().unwrap();
            let sum = base.hardware + base.networking + base.spares + base.financing + base.energy + base.colocation
                + base.operations + base.repairs;
            prop_assert!((sum - base.usd_per_chip_hr).abs() < 1e-12 * sum.max(1.0));
            prop_assert!(base.financing >= -1e-12);
            let dearer = |changed: TcoInputs| changed.breakdown().unwrap().usd_per_chip_hr >= base.usd_per_chip_hr - 1e-12;
            prop_assert!(dearer(TcoInputs { capex_usd: capex_usd * 1.1, ..inputs }), "capex");
            prop_assert!(dearer(TcoInputs { wacc: wacc + 0.01, ..inputs }), "wacc");
            prop_assert!(dearer(TcoInputs { kw: kw * 1.1, ..inputs }), "kw");
            prop_assert!(dearer(TcoInputs { availability: availability * 0.9, ..inputs }), "availability");
            prop_assert!(dearer(TcoInputs { pue: 1.3, ..inputs }), "pue");
            prop_assert!(base.usd_per_used_chip_hr >= base.usd_per_chip_hr);
        }
    }
}
