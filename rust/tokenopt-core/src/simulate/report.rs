//! What a run measured: latencies by percentile, throughput, attainment of the limits.

use serde::Serialize;

use super::rank::Request;

/// A distribution, by mean and percentiles.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distribution {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Distribution {
    /// Percentiles of a sample by nearest rank; None for an empty one.
    #[must_use]
    pub fn new(mut sample: Vec<f64>) -> Option<Self> {
        if sample.is_empty() {
            return None;
        }
        let mean = sample.iter().sum::<f64>() / sample.len() as f64;
        let count = sample.len();
        let mut at = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a place in the sample"
            )]
            let place = ((share * count as f64).ceil() as usize).clamp(1, count) - 1;
            *sample.select_nth_unstable_by(place, f64::total_cmp).1
        };
        Some(Self {
            mean,
            p50: at(0.50),
            p90: at(0.90),
            p99: at(0.99),
        })
    }

    /// The same in another unit.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            mean: self.mean * factor,
            p50: self.p50 * factor,
            p90: self.p90 * factor,
            p99: self.p99 * factor,
        }
    }
}

/// Limits that a request may meet, s; infinite = none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestLimits {
    /// Time per output token.
    pub tpot_s: f64,
    /// Time to first token.
    pub ttft_s: f64,
    /// Whole request.
    pub e2e_s: f64,
}

/// Shares of requests within each limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Attainment {
    /// Within all limits.
    pub all: f64,
    /// Within the limit on time per output token.
    pub tpot: f64,
    /// Within the limit on time to first token.
    pub ttft: f64,
    /// Within the limit on the whole request.
    pub e2e: f64,
}

/// Refusals in a row after which nothing that fits is expected any more.
const MOST_REFUSED_IN_A_ROW: usize = 100_000;

/// Collects finished requests.
#[derive(Debug)]
pub(super) struct Outcomes {
    limits: RequestLimits,
    /// Finished requests that are not measured, at the start.
    warmup: usize,
    /// Measured requests wanted; None = all there are.
    wanted: Option<usize>,
    finished: usize,
    pub refused: usize,
    refused_in_a_row: usize,
    /// When measuring began.
    pub measured_from_s: f64,
    /// When the last measured request ended.
    pub measured_to_s: f64,
    pub ttft_s: Vec<f64>,
    pub tpot_s: Vec<f64>,
    pub e2e_s: Vec<f64>,
    pub waited_s: f64,
    pub output_tokens: f64,
    pub input_tokens: f64,
    met: [usize; 4],
    /// Requests in the system when half of the measured ones had ended.
    pub backlog_half_way: usize,
}

impl Outcomes {
    pub(super) fn new(limits: RequestLimits, warmup: usize, wanted: Option<usize>) -> Self {
        let room = wanted.unwrap_or(0).min(1 << 20);
        Self {
            limits,
            warmup,
            wanted,
            finished: 0,
            refused: 0,
            refused_in_a_row: 0,
            measured_from_s: 0.0,
            measured_to_s: 0.0,
            ttft_s: Vec::with_capacity(room),
            tpot_s: Vec::with_capacity(room),
            e2e_s: Vec::with_capacity(room),
            waited_s: 0.0,
            output_tokens: 0.0,
            input_tokens: 0.0,
            met: [0; 4],
            backlog_half_way: 0,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.wanted.is_some_and(|wanted| self.e2e_s.len() >= wanted)
            || self.refused_in_a_row > MOST_REFUSED_IN_A_ROW
    }

    /// Counts a request that no rank can ever hold.
    pub(super) fn refuse(&mut self) {
        self.refused += 1;
        self.refused_in_a_row += 1;
    }

    /// Notes a request that some rank can hold.
    pub(super) fn accept(&mut self) {
        self.refused_in_a_row = 0;
    }

    /// Adds a finished request. Returns whether measuring begins with the next one.
    pub(super) fn record(&mut self, request: &Request, now_s: f64) -> bool {
        if self.is_complete() {
            return false;
        }
        self.finished += 1;
        if self.finished <= self.warmup {
            self.measured_from_s = now_s;
            return self.finished == self.warmup;
        }
        let ttft_s = request.first_token_s - request.submitted_s;
        let e2e_s = now_s - request.submitted_s;
        self.waited_s += request.admitted_s - request.ready_s;
        let after_first = request.lengths.osl - 1.0;
        let tpot_s = (now_s - request.first_token_s) / after_first;
        self.ttft_s.push(ttft_s);
        self.e2e_s.push(e2e_s);
        let mut meets_tpot = true;
        if after_first > 0.0 {
            self.tpot_s.push(tpot_s);
            meets_tpot = tpot_s <= self.limits.tpot_s;
        }
        let met = [
            meets_tpot,
            ttft_s <= self.limits.ttft_s,
            e2e_s <= self.limits.e2e_s,
        ];
        self.met[0] += usize::from(met == [true; 3]);
        for (count, is_met) in self.met[1..].iter_mut().zip(met) {
            *count += usize::from(is_met);
        }
        self.output_tokens += request.lengths.osl;
        self.input_tokens += request.lengths.isl;
        self.measured_to_s = now_s;
        false
    }

    /// Whether half of the measured requests have just ended.
    pub(super) fn is_half_way(&self) -> bool {
        self.wanted
            .is_some_and(|wanted| self.e2e_s.len() == wanted.div_ceil(2))
    }

    /// Whether the requests in the system, `backlog` at the end, grew by more over the second half than a steady state
    /// would let them: a tenth of what ended, and four standard deviations of a Poisson count at both ends.
    pub(super) fn is_growing(&self, backlog: usize) -> bool {
        const SHARE: f64 = 0.1;
        const DEVIATIONS: f64 = 4.0;
        let before = self.backlog_half_way as f64;
        let ended = 0.5 * self.e2e_s.len() as f64;
        backlog as f64 > before + SHARE * ended + DEVIATIONS * (2.0 * before + 1.0).sqrt()
    }

    pub(super) fn attainment(&self) -> Option<Attainment> {
        let measured = self.e2e_s.len();
        let share = |count: usize| count as f64 / measured as f64;
        (measured > 0).then(|| Attainment {
            all: share(self.met[0]),
            tpot: share(self.met[1]),
            ttft: share(self.met[2]),
            e2e: share(self.met[3]),
        })
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_sample() {
        let sample: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let found = Distribution::new(sample).expect("not empty");
        assert_eq!(
            (found.mean, found.p50, found.p90, found.p99),
            (100.5, 100.0, 180.0, 198.0)
        );
        assert!(Distribution::new(Vec::new()).is_none());
    }
}
