//! A run: how much of the wall time makes progress, and what the whole of it takes in days, money and energy.

use serde::{Deserialize, Serialize};

use crate::accelerator::Accelerator;
use crate::error::{require_positive, require_within, CoreError};
use crate::money::{FleetUnit, SECONDS_PER_HOUR, TOKENS_PER_QUOTE};

const HOURS_PER_DAY: f64 = 24.0;

/// What a run is asked to do, and what is known of the machine it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// Tokens to train on.
    pub tokens: f64,
    /// Tokens at the start that run slower: batch ramp, small clusters, first faults.
    #[serde(default)]
    pub ramp_tokens: f64,
    /// Speed of that ramp as a share of the full speed, 0..1.
    #[serde(default = "half")]
    pub ramp_speed: f64,
    /// Steps between evaluations; 0 = none.
    #[serde(default)]
    pub evaluation_every_steps: f64,
    /// Pause of one evaluation, s.
    #[serde(default)]
    pub evaluation_s: f64,
    /// Hours the chips are paid for before the first step.
    #[serde(default)]
    pub startup_hours: f64,
    /// Chips kept idle to replace broken ones, as a share of those that train.
    #[serde(default)]
    pub spare_share: f64,
    /// Failures and what follows them.
    #[serde(default)]
    pub reliability: Reliability,
    /// Checkpoints.
    #[serde(default)]
    pub checkpoint: Checkpointing,
}

fn half() -> f64 {
    0.5
}

/// Failures of the machine and the time until it trains again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reliability {
    /// Chip-hours between failures that stop the run.
    ///
    /// Source: Llama 3 herd of models, section 3.3.4: 419 unexpected interruptions of 16,384 H100 in 54 days.
    pub chip_hours_between_failures: f64,
    /// Time until a failure is noticed, s.
    pub detection_s: f64,
    /// Time to replace the part, start again and warm up, without reading the checkpoint, s.
    ///
    /// Source: Lablup, arXiv 2605.09370: 11 minutes (median) between automatic retries on 504 B200; one minute of it
    /// is counted as detection.
    pub restart_s: f64,
    /// Withdrawals per instance and hour, for offers that may be withdrawn.
    pub withdrawals_per_instance_hr: f64,
    /// Wait for another instance after a withdrawal, on top of the restart, s.
    pub withdrawal_wait_s: f64,
}

impl Default for Reliability {
    fn default() -> Self {
        Self {
            chip_hours_between_failures: 50_700.0,
            detection_s: 60.0,
            restart_s: 600.0,
            withdrawals_per_instance_hr: 0.0,
            withdrawal_wait_s: 0.0,
        }
    }
}

/// Checkpoints: how much is written, how fast, how often.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpointing {
    /// Seconds of training between checkpoints; absent = the interval that loses least.
    pub interval_s: Option<f64>,
    /// Seconds the run stands still for one checkpoint; absent = the bytes over the storage rate.
    pub stall_s: Option<f64>,
    /// Storage rate per chip, bytes/s.
    ///
    /// Source: Llama 3 herd of models: 2 TB/s sustained for 16,384 GPUs; BLOOM: 2.3 TB in 40 s from 384 GPUs, 150 MB/s
    /// each.
    pub bytes_per_s_per_chip: f64,
}

impl Default for Checkpointing {
    fn default() -> Self {
        Self {
            interval_s: None,
            stall_s: None,
            bytes_per_s_per_chip: 122e6,
        }
    }
}

impl RunSpec {
    /// Checks every figure.
    ///
    /// # Errors
    /// [`CoreError::BadInput`] naming the field.
    pub fn validate(&self) -> Result<(), CoreError> {
        require_positive("tokens", self.tokens)?;
        require_within("ramp_tokens", self.ramp_tokens, 0.0, self.tokens)?;
        require_positive("ramp_speed", self.ramp_speed)?;
        require_within("ramp_speed", self.ramp_speed, 0.0, 1.0)?;
        require_within(
            "evaluation_every_steps",
            self.evaluation_every_steps,
            0.0,
            1e12,
        )?;
        require_within("evaluation_s", self.evaluation_s, 0.0, 1e9)?;
        require_within("startup_hours", self.startup_hours, 0.0, 1e6)?;
        require_within("spare_share", self.spare_share, 0.0, 1.0)?;
        let reliability = &self.reliability;
        require_positive(
            "chip_hours_between_failures",
            reliability.chip_hours_between_failures,
        )?;
        require_within("detection_s", reliability.detection_s, 0.0, 1e7)?;
        require_within("restart_s", reliability.restart_s, 0.0, 1e7)?;
        require_within(
            "withdrawals_per_instance_hr",
            reliability.withdrawals_per_instance_hr,
            0.0,
            3600.0,
        )?;
        require_within("withdrawal_wait_s", reliability.withdrawal_wait_s, 0.0, 1e7)?;
        require_positive(
            "checkpoint bytes_per_s_per_chip",
            self.checkpoint.bytes_per_s_per_chip,
        )?;
        for (name, value) in [
            ("checkpoint interval_s", self.checkpoint.interval_s),
            ("checkpoint stall_s", self.checkpoint.stall_s),
        ] {
            if let Some(seconds) = value {
                require_positive(name, seconds)?;
            }
        }
        Ok(())
    }
}

/// Share of the wall time that makes progress, and where the rest goes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goodput {
    /// Share of the wall time that makes progress.
    pub share: f64,
    /// Interruptions per hour.
    pub failures_per_hr: f64,
    /// Training time between checkpoints, s.
    pub checkpoint_interval_s: f64,
    /// Pause of one checkpoint, s.
    pub checkpoint_stall_s: f64,
    /// Share of the wall time spent writing checkpoints.
    pub checkpoint_share: f64,
    /// Share of the wall time spent noticing failures and starting again.
    pub restart_share: f64,
    /// Share of the wall time whose work was lost and done again.
    pub lost_work_share: f64,
}

impl Goodput {
    /// Goodput when interruptions come at random at `failures_per_s`, each costs `recovery_s` and the work since the
    /// last checkpoint, and a checkpoint stops the run for `stall_s`.
    ///
    /// The wall time of one interval `T` is `exp(rate R) (exp(rate (T + stall)) - 1) / rate`; without a given
    /// interval the one that loses least is used, where `rate T = 1 - exp(-rate (T + stall))`, near
    /// `sqrt(2 stall / rate)` when failures are rare.
    ///
    /// Source: Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, FGCS 22 (2006),
    /// equations 20 and 35 (before the approximation); Young, CACM 17 (1974). Assumes: failures are independent and
    /// come at a constant rate, a checkpoint is whole once its pause is over.
    #[must_use]
    pub fn new(
        failures_per_s: f64,
        recovery_s: f64,
        stall_s: f64,
        interval_s: Option<f64>,
    ) -> Self {
        let optimal = || optimal_interval_s(failures_per_s, stall_s);
        let interval_s = interval_s.unwrap_or_else(optimal);
        let wall_s = (failures_per_s * recovery_s).exp()
            * (failures_per_s * (interval_s + stall_s)).exp_m1()
            / failures_per_s;
        let share = interval_s / wall_s;
        let checkpoint_share = stall_s / wall_s;
        // Recoveries that are themselves interrupted end early: what they take is what keeps 1 = sum of shares.
        let restart_share = 1.0 - (-failures_per_s * recovery_s).exp();
        Self {
            share,
            failures_per_hr: failures_per_s * SECONDS_PER_HOUR,
            checkpoint_interval_s: interval_s,
            checkpoint_stall_s: stall_s,
            checkpoint_share,
            restart_share,
            lost_work_share: (1.0 - share - checkpoint_share - restart_share).max(0.0),
        }
    }
}

/// The interval that loses least, s.
///
/// Source: as for [`Goodput::new`]. The root of `x + exp(-x - d) = 1` with `x = rate T`, `d = rate stall`, is found by
/// Newton's method from Young's `sqrt(2 d)`, which lies at or above it.
#[must_use]
pub fn optimal_interval_s(failures_per_s: f64, stall_s: f64) -> f64 {
    const STEPS: usize = 6;
    let stall = failures_per_s * stall_s;
    let mut x = (2.0 * stall).sqrt().min(1.0);
    for _ in 0..STEPS {
        let decay = (-x - stall).exp();
        let slope = 1.0 - decay;
        if slope <= 0.0 {
            break;
        }
        x -= (x - slope) / slope;
    }
    x.max(f64::MIN_POSITIVE) / failures_per_s
}

/// A run on `chips` chips of one offer: everything that does not depend on the step time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunPlan {
    /// Caller's index of the offer.
    pub offer: u32,
    /// Instances paid for, spares included.
    pub instances: f64,
    /// Chips paid for.
    pub chips: f64,
    /// USD per hour.
    pub usd_per_hr: f64,
    /// Power of the chips paid for, W.
    pub power_w: f64,
    /// What failures and checkpoints leave.
    pub goodput: Goodput,
    /// Tokens, those of the ramp counted as often as they take longer.
    full_speed_tokens: f64,
    /// Evaluation pauses per step, s.
    evaluation_s_per_step: f64,
    tokens: f64,
    startup_s: f64,
}

/// What a run takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunOutcome {
    /// Wall time, s.
    pub wall_s: f64,
    /// USD.
    pub usd: f64,
    /// Share of the wall time spent in steps at full speed.
    pub goodput: f64,
}

/// What of a run does not depend on the offer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunScale {
    /// Chips that train.
    pub chips: u32,
    /// Bytes of a whole checkpoint.
    pub checkpoint_bytes: f64,
    /// Whether the offer may be withdrawn.
    pub may_be_withdrawn: bool,
}

impl RunPlan {
    /// Places a run on whole instances of one offer.
    ///
    /// Assumes: chips draw their all-in power whatever they do; every failure stops the whole run.
    #[must_use]
    pub fn new(
        spec: &RunSpec,
        accelerator: &Accelerator,
        unit: &FleetUnit,
        scale: &RunScale,
    ) -> Self {
        let training = f64::from(scale.chips);
        let instances = unit.instances_for(training * (1.0 + spec.spare_share));
        let chips = instances * unit.chips_per_instance;
        let reliability = &spec.reliability;
        let storage = spec.checkpoint.bytes_per_s_per_chip * training;
        let read_s = scale.checkpoint_bytes / storage;
        let stall_s = spec.checkpoint.stall_s.unwrap_or(read_s);
        let failures = training / (reliability.chip_hours_between_failures * SECONDS_PER_HOUR);
        let withdrawals = if scale.may_be_withdrawn {
            reliability.withdrawals_per_instance_hr * instances / SECONDS_PER_HOUR
        } else {
            0.0
        };
        let rate = failures + withdrawals;
        let recovery_s = reliability.detection_s
            + reliability.restart_s
            + read_s
            + reliability.withdrawal_wait_s * withdrawals / rate;
        let evaluation_s_per_step = if spec.evaluation_every_steps > 0.0 {
            spec.evaluation_s / spec.evaluation_every_steps
        } else {
            0.0
        };
        Self {
            offer: unit.offer,
            instances,
            chips,
            usd_per_hr: instances * unit.usd_per_instance_hr,
            power_w: chips * accelerator.power_w,
            goodput: Goodput::new(rate, recovery_s, stall_s, spec.checkpoint.interval_s),
            full_speed_tokens: spec.tokens + spec.ramp_tokens * (1.0 / spec.ramp_speed - 1.0),
            evaluation_s_per_step,
            tokens: spec.tokens,
            startup_s: spec.startup_hours * SECONDS_PER_HOUR,
        }
    }

    /// The run when an undisturbed step of `batch_tokens` tokens takes `step_s`.
    #[inline(always)]
    #[must_use]
    pub fn outcome(&self, step_s: f64, batch_tokens: f64) -> RunOutcome {
        let productive_s = (self.full_speed_tokens * step_s
            + self.tokens * self.evaluation_s_per_step)
            / batch_tokens;
        let wall_s = self.startup_s + productive_s / self.goodput.share;
        RunOutcome {
            wall_s,
            usd: wall_s / SECONDS_PER_HOUR * self.usd_per_hr,
            goodput: self.tokens / batch_tokens * step_s / wall_s,
        }
    }

    /// kWh of the run.
    #[inline(always)]
    #[must_use]
    pub fn kwh(&self, outcome: &RunOutcome) -> f64 {
        const W_PER_KW: f64 = 1000.0;
        self.power_w / W_PER_KW * outcome.wall_s / SECONDS_PER_HOUR
    }

    /// kWh per million tokens trained.
    #[inline(always)]
    #[must_use]
    pub fn kwh_per_m_tokens(&self, outcome: &RunOutcome) -> f64 {
        self.kwh(outcome) / self.tokens * TOKENS_PER_QUOTE
    }

    /// USD per million tokens trained.
    #[inline(always)]
    #[must_use]
    pub fn usd_per_m_tokens(&self, outcome: &RunOutcome) -> f64 {
        outcome.usd / self.tokens * TOKENS_PER_QUOTE
    }

    /// Chip-hours paid for.
    #[must_use]
    pub fn chip_hours(&self, outcome: &RunOutcome) -> f64 {
        self.chips * outcome.wall_s / SECONDS_PER_HOUR
    }
}

impl RunOutcome {
    /// Wall time in days.
    #[inline(always)]
    #[must_use]
    pub fn days(&self) -> f64 {
        self.wall_s / SECONDS_PER_HOUR / HOURS_PER_DAY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rare_failures_give_youngs_interval() {
        // 16,384 chips, one failure per 50,700 chip-hours each: 0.3232 per hour. A checkpoint of 10 s: Young gives
        // sqrt(2 * 10 s / (0.3232 / 3600 s)) = 472.0 s; Daly's T = Young - stall + ... = 465.5 s.
        let rate: f64 = 16_384.0 / (50_700.0 * 3600.0);
        let young: f64 = (2.0 * 10.0 / rate).sqrt();
        assert!((young - 472.0).abs() < 0.1);
        let daly = optimal_interval_s(rate, 10.0);
        assert!((daly - (young - 10.0 * 2.0 / 3.0)).abs() < 0.5, "{daly}");
        // Lost: 10/472 + 0.3232 * (472/2 + 660)/3600 = 2.1 % + 8.0 %; the exact form multiplies the survivors.
        let goodput = Goodput::new(rate, 660.0, 10.0, None);
        assert!((goodput.share - 0.903).abs() < 0.002, "{}", goodput.share);
    }

    #[test]
    fn shares_add_up() {
        let goodput = Goodput::new(1e-4, 660.0, 10.0, Some(900.0));
        let total = goodput.share
            + goodput.checkpoint_share
            + goodput.restart_share
            + goodput.lost_work_share;
        assert!((total - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_run_is_tokens_over_rate_over_goodput() {
        // 1e12 tokens at 1e6 tokens/s: 1e6 s = 11.57 days when nothing fails; 16 USD per hour: 4,444 USD.
        let unit = FleetUnit {
            offer: 0,
            usd_per_instance_hr: 16.0,
            chips_per_instance: 8.0,
            replicas_per_instance: 1.0,
            minimum_instances: 1.0,
            fabric_chips: 8.0,
        };
        let mut spec = spec(1e12);
        spec.reliability.chip_hours_between_failures = 1e12;
        let plan = RunPlan::new(&spec, &accelerator(), &unit, &scale(8));
        let outcome = plan.outcome(1.0, 1e6);
        assert!((outcome.days() - 11.574).abs() < 0.01);
        assert!((outcome.usd - 4444.4).abs() < 2.0);
        assert!((plan.usd_per_m_tokens(&outcome) - 0.00444).abs() < 1e-5);
    }

    #[test]
    fn spares_and_broken_instances_are_paid_for() {
        let unit = FleetUnit {
            offer: 0,
            usd_per_instance_hr: 16.0,
            chips_per_instance: 8.0,
            replicas_per_instance: 0.1,
            minimum_instances: 1.0,
            fabric_chips: 8.0,
        };
        let mut spec = spec(1e12);
        spec.spare_share = 0.05;
        // 20 chips and one spare: 21 chips in 3 instances of 8.
        let plan = RunPlan::new(&spec, &accelerator(), &unit, &scale(20));
        assert_eq!((plan.instances, plan.chips), (3.0, 24.0));
    }

    fn spec(tokens: f64) -> RunSpec {
        RunSpec {
            tokens,
            ramp_tokens: 0.0,
            ramp_speed: 0.5,
            evaluation_every_steps: 0.0,
            evaluation_s: 0.0,
            startup_hours: 0.0,
            spare_share: 0.0,
            reliability: Reliability::default(),
            checkpoint: Checkpointing::default(),
        }
    }

    fn scale(chips: u32) -> RunScale {
        RunScale {
            chips,
            checkpoint_bytes: 1e9,
            may_be_withdrawn: false,
        }
    }

    fn accelerator() -> Accelerator {
        use crate::accelerator::{PeakFlops, ScaleUp, Topology};
        Accelerator {
            key: "test".into(),
            hbm_bytes: 80e9,
            hbm_bytes_per_s: 3.35e12,
            peak_flops: PeakFlops {
                bf16: 989e12,
                fp8: None,
                int8: None,
                fp4: None,
            },
            matmul_flops: None,
            scale_up: ScaleUp {
                bytes_per_s: 450e9,
                domain_chips: 8,
                topology: Topology::Switched,
            },
            scale_out_bytes_per_s: 50e9,
            chips_per_node: 8,
            power_w: 1400.0,
            clock_power_w: None,
            offers: vec![],
        }
    }

    proptest! {
        #[test]
        fn no_other_interval_loses_less(
            rate in 1e-9_f64..1e-3, recovery in 0.0_f64..3600.0, stall in 0.01_f64..600.0, factor in 0.2_f64..5.0
        ) {
            let best = Goodput::new(rate, recovery, stall, None);
            let other = Goodput::new(rate, recovery, stall, Some(best.checkpoint_interval_s * factor));
            prop_assert!(other.share <= best.share * (1.0 + 1e-9));
            prop_assert!(best.share > 0.0 && best.share < 1.0);
        }

        #[test]
        fn more_failures_longer_recovery_longer_stalls_never_help(
            rate in 1e-9_f64..1e-4, recovery in 0.0_f64..3600.0, stall in 0.01_f64..600.0, factor in 1.0_f64..5.0
        ) {
            let base = Goodput::new(rate, recovery, stall, None).share;
            prop_assert!(Goodput::new(rate * factor, recovery, stall, None).share <= base + 1e-12);
            prop_assert!(Goodput::new(rate, recovery * factor, stall, None).share <= base + 1e-12);
            prop_assert!(Goodput::new(rate, recovery, stall * factor, None).share <= base + 1e-12);
        }
    }
}
