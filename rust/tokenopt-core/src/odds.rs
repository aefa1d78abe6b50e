//! How likely each candidate is the cheapest, when costs are known only within intervals.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{require_positive, require_within, CoreError};
use crate::simulate::arrivals::Random;

/// Candidates and how their costs may be wrong.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OddsProblem {
    /// The candidates.
    pub candidates: Vec<OddsCandidate>,
    /// Share of the variance that candidates of one group have in common: an error of the model on a chip family is an
    /// error on all its chips.
    #[serde(default)]
    pub shared_variance: f64,
    /// Draws.
    pub draws: u32,
    /// Seed; the same seed gives the same answer on any number of threads.
    #[serde(default)]
    pub seed: u64,
}

/// One candidate.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OddsCandidate {
    /// Predicted cost, the median.
    pub usd: f64,
    /// Log standard deviation of true over predicted cost.
    pub log_sd: f64,
    /// Group whose errors are shared in part.
    pub group: u32,
}

/// Chances of one candidate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Odds {
    /// Share of draws in which it is the cheapest.
    pub probability: f64,
    /// Mean of its cost over that of the cheapest, less one: what choosing it is expected to lose.
    pub regret: f64,
    /// Share of draws in which it costs at most a tenth more than the cheapest.
    pub within_tenth: f64,
}

/// Draws that one task takes: the same cut on any machine.
const DRAWS_PER_TASK: u32 = 4096;

#[derive(Clone)]
struct Tally {
    wins: Vec<u64>,
    near: Vec<u64>,
    regret: Vec<f64>,
}

impl Tally {
    fn new(candidates: usize) -> Self {
        Self {
            wins: vec![0; candidates],
            near: vec![0; candidates],
            regret: vec![0.0; candidates],
        }
    }

    fn add(mut self, other: &Self) -> Self {
        for index in 0..self.wins.len() {
            self.wins[index] += other.wins[index];
            self.near[index] += other.near[index];
            self.regret[index] += other.regret[index];
        }
        self
    }
}

impl OddsProblem {
    /// Reads a problem from JSON and checks it.
    ///
    /// # Errors
    /// [`CoreError`] naming what cannot be used.
    pub fn from_json(text: &str) -> Result<Self, CoreError> {
        let problem: Self =
            serde_json::from_str(text).map_err(|error| CoreError::Unreadable(error.to_string()))?;
        require_within("shared_variance", problem.shared_variance, 0.0, 1.0)?;
        require_positive("draws", f64::from(problem.draws))?;
        for candidate in &problem.candidates {
            require_positive("usd", candidate.usd)?;
            require_within("log_sd", candidate.log_sd, 0.0, 10.0)?;
        }
        Ok(problem)
    }

    /// Draws costs and counts who is cheapest.
    ///
    /// `cost = usd exp(log_sd (sqrt(s) z_group + sqrt(1 - s) z_own))` with standard normal `z` and the shared variance
    /// `s`. Source: Monte Carlo over the log-normal residuals of the calibration.
    /// Assumes: errors of different groups are independent.
    #[must_use]
    pub fn odds(&self) -> Vec<Odds> {
        let tasks: Vec<(u32, u32)> = (0..self.draws.div_ceil(DRAWS_PER_TASK))
            .map(|task| {
                let first = task * DRAWS_PER_TASK;
                (task, DRAWS_PER_TASK.min(self.draws - first))
            })
            .collect();
        let parts: Vec<Tally> = tasks
            .par_iter()
            .map(|(task, draws)| self.tally(*task, *draws))
            .collect();
        // Added in order, so that rounding does not depend on the threads.
        let total = parts
            .iter()
            .fold(Tally::new(self.candidates.len()), |sum, part| sum.add(part));
        let draws = f64::from(self.draws);
        (0..self.candidates.len())
            .map(|index| Odds {
                probability: total.wins[index] as f64 / draws,
                regret: total.regret[index] / draws,
                within_tenth: total.near[index] as f64 / draws,
            })
            .collect()
    }

    fn tally(&self, task: u32, draws: u32) -> Tally {
        const NEAR: f64 = 1.1;
        let mut random = Random::new(self.seed ^ (u64::from(task) + 1).wrapping_mul(0x9e37_79b9));
        let groups = self
            .candidates
            .iter()
            .map(|candidate| candidate.group as usize + 1)
            .max()
            .unwrap_or(0);
        let shared = self.shared_variance.sqrt();
        let own = (1.0 - self.shared_variance).sqrt();
        let mut of_group = vec![0.0; groups];
        let mut costs = vec![0.0; self.candidates.len()];
        let mut tally = Tally::new(self.candidates.len());
        for _ in 0..draws {
            of_group.iter_mut().for_each(|z| *z = random.normal());
            let mut cheapest = 0;
            for (index, candidate) in self.candidates.iter().enumerate() {
                let z = shared * of_group[candidate.group as usize] + own * random.normal();
                costs[index] = candidate.usd * (candidate.log_sd * z).exp();
                if costs[index] < costs[cheapest] {
                    cheapest = index;
                }
            }
            if self.candidates.is_empty() {
                continue;
            }
            tally.wins[cheapest] += 1;
            for (index, cost) in costs.iter().enumerate() {
                let ratio = cost / costs[cheapest];
                tally.regret[index] += ratio - 1.0;
                tally.near[index] += u64::from(ratio <= NEAR);
            }
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(candidates: &[(f64, f64, u32)], shared_variance: f64) -> OddsProblem {
        OddsProblem {
            candidates: candidates
                .iter()
                .map(|&(usd, log_sd, group)| OddsCandidate { usd, log_sd, group })
                .collect(),
            shared_variance,
            draws: 100_000,
            seed: 1,
        }
    }

    #[test]
    fn two_equal_candidates_share_the_chances() {
        let odds = problem(&[(1.0, 0.2, 0), (1.0, 0.2, 1)], 0.5).odds();
        assert!((odds[0].probability - 0.5).abs() < 0.01);
        assert!((odds[0].probability + odds[1].probability - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_chance_is_that_of_a_difference_of_normals() {
        // ln 1.2 apart, sd 0.1 each: P(z < ln 1.2 / (0.1 sqrt 2)) = P(z < 1.289) = 0.9013
        let odds = problem(&[(1.0, 0.1, 0), (1.2, 0.1, 1)], 0.0).odds();
        assert!((odds[0].probability - 0.9013).abs() < 0.004);
    }

    #[test]
    fn a_wholly_shared_error_changes_no_order() {
        let odds = problem(&[(1.0, 0.5, 0), (1.01, 0.5, 0)], 1.0).odds();
        assert_eq!(odds[0].probability, 1.0);
        assert!((odds[1].regret - 0.01).abs() < 1e-9);
    }

    #[test]
    fn the_answer_does_not_depend_on_the_threads() {
        let wanted = problem(&[(1.0, 0.3, 0), (1.1, 0.4, 1), (1.2, 0.2, 0)], 0.3);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        assert_eq!(
            one.map(|pool| pool.install(|| wanted.odds())).ok(),
            Some(wanted.odds())
        );
    }
}
