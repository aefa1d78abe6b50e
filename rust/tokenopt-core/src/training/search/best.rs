//! What a scan keeps: the best of each split, the frontier of days against money, counts, and the closest memory miss.
//! Merging is associative and ties are broken by a total order, so the answer does not depend on how work was split.

use std::cmp::Ordering;

use crate::training::TrainingLayout;

/// One evaluated configuration, by its place in the space.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainCandidate {
    /// What the search minimises.
    pub score: f64,
    /// Wall time, days: of equal scores the faster one wins.
    pub days: f64,
    /// USD of the run.
    pub usd: f64,
    /// Accelerator of the stack.
    pub accelerator: usize,
    /// Stack.
    pub stack: usize,
    /// Layout.
    pub layout: TrainingLayout,
    /// Sequences of a step, rounded to what the layout divides.
    pub global_batch: f64,
}

impl TrainCandidate {
    /// Total order: score, then time, then the place in the space.
    #[must_use]
    pub fn order(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| self.days.total_cmp(&other.days))
            .then_with(|| (self.stack, self.layout).cmp(&(other.stack, other.layout)))
            .then_with(|| self.global_batch.total_cmp(&other.global_batch))
    }

    /// Total order of the frontier: money before the score.
    fn money_order(&self, other: &Self) -> Ordering {
        self.usd
            .total_cmp(&other.usd)
            .then_with(|| self.order(other))
    }

    /// What makes two entries of the best list different layouts to a reader: the split over chips, not how often it
    /// is repeated nor what is recomputed.
    fn kind(&self) -> (usize, u32, u32, u32, u32) {
        let layout = &self.layout;
        (self.stack, layout.tp, layout.pp, layout.cp, layout.ep)
    }
}

/// The `capacity` best kinds of layout, best first.
#[derive(Debug, Clone)]
pub struct TrainTop {
    capacity: usize,
    entries: Vec<TrainCandidate>,
}

impl TrainTop {
    /// An empty list.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: Vec::with_capacity(capacity + 1),
        }
    }

    /// Adds a candidate, in place of a worse one of its kind.
    pub fn push(&mut self, candidate: TrainCandidate) {
        let kind = candidate.kind();
        if let Some(known) = self.entries.iter().position(|entry| entry.kind() == kind) {
            if candidate.order(&self.entries[known]) != Ordering::Less {
                return;
            }
            self.entries.remove(known);
        }
        let place = self
            .entries
            .partition_point(|entry| entry.order(&candidate) == Ordering::Less);
        self.entries.insert(place, candidate);
        self.entries.truncate(self.capacity);
    }

    /// Score above which a candidate cannot enter.
    #[inline(always)]
    #[must_use]
    pub fn threshold(&self) -> f64 {
        if self.entries.len() < self.capacity {
            f64::INFINITY
        } else {
            self.entries
                .last()
                .map_or(f64::NEG_INFINITY, |last| last.score)
        }
    }

    /// The entries, best first.
    #[must_use]
    pub fn entries(&self) -> &[TrainCandidate] {
        &self.entries
    }
}

/// Bands per doubling of the wall time: 32, about 2.2 % wide.
const BAND_BITS: u32 = 5;
/// Wall times from 2^-12 to 2^20 days.
const LOWEST_EXPONENT: u64 = 1023 - 12;
const OCTAVES: u64 = 32;

/// Frontier of wall time against money: the cheapest candidate of each narrow band of days, dominated ones dropped.
#[derive(Debug, Clone)]
pub struct TimeFrontier {
    bands: Vec<Option<TrainCandidate>>,
    /// Least USD of a band and all faster ones.
    envelope: Vec<f64>,
}

impl Default for TimeFrontier {
    fn default() -> Self {
        let count = usize::try_from(OCTAVES << BAND_BITS).unwrap_or(0);
        Self {
            bands: vec![None; count],
            envelope: vec![f64::INFINITY; count],
        }
    }
}

/// Band of a wall time: exponent and leading mantissa bits of the float, a cheap monotone logarithm.
#[inline(always)]
fn band(days: f64) -> usize {
    let bits = days.to_bits() >> (52 - BAND_BITS);
    let lowest = LOWEST_EXPONENT << BAND_BITS;
    bits.saturating_sub(lowest).min((OCTAVES << BAND_BITS) - 1) as usize
}

impl TimeFrontier {
    /// Offers a candidate.
    #[inline(always)]
    pub fn offer(&mut self, candidate: &TrainCandidate) {
        let place = band(candidate.days);
        // Beaten by a band at least as fast: it cannot be on the frontier, now or later.
        if self.envelope[place] < candidate.usd {
            return;
        }
        self.insert(place, candidate);
    }

    fn insert(&mut self, place: usize, candidate: &TrainCandidate) {
        let slot = &mut self.bands[place];
        let is_better = slot
            .as_ref()
            .is_none_or(|known| candidate.money_order(known) == Ordering::Less);
        if is_better {
            *slot = Some(*candidate);
        }
        for best in &mut self.envelope[place..] {
            if *best <= candidate.usd {
                break;
            }
            *best = candidate.usd;
        }
    }

    /// Whether a strictly faster band already holds a run of at most `usd`.
    #[inline(always)]
    #[must_use]
    pub fn dominates(&self, days: f64, usd: f64) -> bool {
        let place = band(days);
        place > 0 && self.envelope[place - 1] <= usd
    }

    /// Adds another frontier's points.
    pub fn merge(&mut self, other: &Self) {
        for candidate in other.bands.iter().flatten() {
            self.offer(candidate);
        }
    }

    /// The undominated candidates, fastest first.
    #[must_use]
    pub fn points(&self) -> Vec<TrainCandidate> {
        let mut best = f64::INFINITY;
        let mut points = Vec::new();
        for candidate in self.bands.iter().flatten() {
            if candidate.usd < best {
                best = candidate.usd;
                points.push(*candidate);
            }
        }
        points
    }
}

/// Why configurations were rejected, as counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct TrainRejections {
    /// Weights, optimizer state and activations do not fit.
    pub does_not_fit: u64,
    /// Takes longer than the deadline.
    pub deadline: u64,
    /// Costs more than the budget.
    pub budget: u64,
    /// Pays for more chips than allowed.
    pub max_chips: u64,
    /// No offer sells units that can run it.
    pub no_offer: u64,
    /// The global batch does not divide over ranks and micro-batches.
    pub batch: u64,
}

impl TrainRejections {
    pub(super) fn merge(&mut self, other: &Self) {
        self.does_not_fit += other.does_not_fit;
        self.deadline += other.deadline;
        self.budget += other.budget;
        self.max_chips += other.max_chips;
        self.no_offer += other.no_offer;
        self.batch += other.batch;
    }
}

/// How close the closest layout came to fitting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryMiss {
    /// Bytes needed over bytes that may be used.
    pub ratio: f64,
    /// Bytes needed.
    pub needed_bytes: f64,
    /// Bytes that may be used.
    pub plannable_bytes: f64,
    /// Where.
    pub candidate: TrainCandidate,
}

/// Everything a scan returns.
#[derive(Debug, Clone)]
pub struct TrainFindings {
    /// Configurations evaluated in full.
    pub evaluated: u64,
    /// Configurations skipped because a bound showed that they cannot matter.
    pub pruned: u64,
    /// Configurations that met every limit.
    pub feasible: u64,
    /// Why the others did not.
    pub rejected: TrainRejections,
    /// Best layouts over everything.
    pub top: TrainTop,
    /// Best candidate of each accelerator.
    pub by_accelerator: Vec<Option<TrainCandidate>>,
    /// Frontier over everything.
    pub frontier: TimeFrontier,
    /// Closest memory miss.
    pub memory_miss: Option<MemoryMiss>,
}

impl TrainFindings {
    /// Nothing found yet.
    #[must_use]
    pub fn new(top: usize, accelerators: usize) -> Self {
        Self {
            evaluated: 0,
            pruned: 0,
            feasible: 0,
            rejected: TrainRejections::default(),
            top: TrainTop::new(top.max(1)),
            by_accelerator: vec![None; accelerators],
            frontier: TimeFrontier::default(),
            memory_miss: None,
        }
    }

    /// Records the best candidate of one frame.
    pub fn best_of_frame(&mut self, candidate: TrainCandidate) {
        self.top.push(candidate);
        keep_better(&mut self.by_accelerator[candidate.accelerator], candidate);
    }

    /// Records a memory miss if it is closer than the known one.
    pub fn consider_miss(&mut self, miss: MemoryMiss) {
        let is_closer = self.memory_miss.as_ref().is_none_or(|known| {
            miss.ratio
                .total_cmp(&known.ratio)
                .then_with(|| miss.candidate.order(&known.candidate))
                == Ordering::Less
        });
        if is_closer {
            self.memory_miss = Some(miss);
        }
    }

    /// Adds another scan's findings.
    #[must_use]
    pub fn merge(mut self, other: &Self) -> Self {
        self.evaluated += other.evaluated;
        self.pruned += other.pruned;
        self.feasible += other.feasible;
        self.rejected.merge(&other.rejected);
        for candidate in other.top.entries() {
            self.top.push(*candidate);
        }
        for (known, new) in self.by_accelerator.iter_mut().zip(&other.by_accelerator) {
            if let Some(candidate) = new {
                keep_better(known, *candidate);
            }
        }
        self.frontier.merge(&other.frontier);
        if let Some(miss) = other.memory_miss {
            self.consider_miss(miss);
        }
        self
    }
}

fn keep_better(known: &mut Option<TrainCandidate>, candidate: TrainCandidate) {
    let is_better = known
        .as_ref()
        .is_none_or(|best| candidate.order(best) == Ordering::Less);
    if is_better {
        *known = Some(candidate);
    }
}
