//! What a scan keeps: the best of each layout, the frontier, counts, and the nearest miss. Merging is associative and
//! ties are broken by a total order, so the answer does not depend on how the work was split.

use std::cmp::Ordering;

use crate::serving::Layout;

/// One evaluated configuration, by its place in the space.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// What the search minimises.
    pub score: f64,
    /// Time per output token, s: of equal scores (whole instances make many) the faster one wins.
    pub tpot_s: f64,
    /// Time to first token, s: then the one that answers first.
    pub ttft_s: f64,
    /// Stack; of a disaggregated fleet the one that decodes.
    pub stack: usize,
    /// Layout; of a disaggregated fleet the decode workers'.
    pub layout: Layout,
    /// Prefill chunk, tokens.
    pub chunk_tokens: u32,
    /// Running batch per rank and pipeline slot.
    pub batch: u32,
    /// Tokens drafted per step.
    pub depth: u32,
    /// The other pool of a disaggregated fleet.
    pub prefill: Option<PrefillPart>,
}

/// The prefill pool of a disaggregated fleet, and how the fleet is sized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PrefillPart {
    /// Stack.
    pub stack: usize,
    /// Layout of a worker.
    pub layout: Layout,
    /// Workers.
    pub workers: u32,
    /// Workers that decode.
    pub decode_workers: u32,
    /// Caller's index of the offer.
    pub offer: u32,
    /// Caller's index of the decode pool's offer.
    pub decode_offer: u32,
}

/// Whether prefill and decode share chips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServingMode {
    /// Prefill and decode on the same chips.
    Agg,
    /// Prefill and decode in pools of their own.
    Disagg,
}

impl ServingMode {
    /// Every mode, in the order of [`Self::index`].
    pub const ALL: [Self; 2] = [Self::Agg, Self::Disagg];

    /// Place among [`Self::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self == Self::Disagg)
    }
}

/// The best candidate of each [`ServingMode`].
pub type ByMode = [Option<Candidate>; 2];

impl Candidate {
    /// Total order: score, then latency, then the place in the space.
    #[must_use]
    pub fn order(&self, other: &Self) -> Ordering {
        // Of equal scores the simpler fleet, the faster one, the one that answers first.
        self.score
            .total_cmp(&other.score)
            .then_with(|| self.mode().index().cmp(&other.mode().index()))
            .then_with(|| self.tpot_s.total_cmp(&other.tpot_s))
            .then_with(|| self.ttft_s.total_cmp(&other.ttft_s))
            .then_with(|| self.place().cmp(&other.place()))
    }

    fn place(&self) -> (usize, Layout, u32, u32, u32, Option<PrefillPart>) {
        (
            self.stack,
            self.layout,
            self.chunk_tokens,
            self.batch,
            self.depth,
            self.prefill,
        )
    }

    /// Whether prefill and decode share chips.
    #[must_use]
    pub fn mode(&self) -> ServingMode {
        match self.prefill {
            None => ServingMode::Agg,
            Some(_) => ServingMode::Disagg,
        }
    }
}

/// The `capacity` best layouts, best first; one candidate a layout.
#[derive(Debug, Clone)]
pub struct TopList {
    capacity: usize,
    entries: Vec<Candidate>,
    /// Score that as many layouts are known to reach from elsewhere; infinite when none is.
    known_score: f64,
}

impl TopList {
    /// An empty list for `capacity` entries.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: Vec::with_capacity(capacity + 1),
            known_score: f64::INFINITY,
        }
    }

    /// An empty list whose threshold is no higher than this one's.
    fn successor(&self) -> Self {
        Self {
            known_score: self.threshold(),
            ..Self::new(self.capacity)
        }
    }

    /// Adds the best candidate of a layout that is not in the list yet.
    pub fn push(&mut self, candidate: Candidate) {
        let place = self
            .entries
            .partition_point(|known| known.order(&candidate) == Ordering::Less);
        if place < self.capacity {
            self.entries.insert(place, candidate);
            self.entries.truncate(self.capacity);
        }
    }

    /// Score above which a candidate cannot enter.
    #[must_use]
    pub fn threshold(&self) -> f64 {
        let own = if self.entries.len() < self.capacity {
            f64::INFINITY
        } else {
            self.entries
                .last()
                .map_or(f64::NEG_INFINITY, |last| last.score)
        };
        own.min(self.known_score)
    }

    /// The entries, best first.
    #[must_use]
    pub fn entries(&self) -> &[Candidate] {
        &self.entries
    }

    /// Adds another list's entries.
    pub fn merge(&mut self, other: &Self) {
        for candidate in &other.entries {
            self.push(*candidate);
        }
    }
}

/// Frontier of interactivity against score: the best candidate of each narrow band of tokens/s/user, dominated bands
/// dropped at the end.
#[derive(Debug, Clone)]
pub struct Frontier {
    bands: Vec<Option<(f64, Candidate)>>,
    /// Least score known of each band and every faster one, here or elsewhere; one more entry than bands.
    least: Vec<f64>,
}

/// Bands per doubling of tokens/s/user: 64, about 1.1% wide.
const BAND_BITS: u32 = 6;
/// Interactivity from 2^-10 to 2^14 tokens/s/user.
const LOWEST_EXPONENT: u64 = 1023 - 10;
const OCTAVES: u64 = 24;

impl Default for Frontier {
    fn default() -> Self {
        Self {
            bands: vec![None; band_count()],
            least: vec![f64::INFINITY; band_count() + 1],
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "1536 bands")]
fn band_count() -> usize {
    (OCTAVES << BAND_BITS) as usize
}

/// Band of an interactivity: exponent and leading mantissa bits of the float, a cheap monotone logarithm.
#[inline(always)]
fn band(tps_per_user: f64) -> usize {
    let bits = tps_per_user.to_bits() >> (52 - BAND_BITS);
    let lowest = LOWEST_EXPONENT << BAND_BITS;
    bits.saturating_sub(lowest).min((OCTAVES << BAND_BITS) - 1) as usize
}

impl Frontier {
    /// An empty frontier that refuses what this one dominates.
    fn successor(&self) -> Self {
        Self {
            bands: vec![None; band_count()],
            least: self.least.clone(),
        }
    }

    /// Offers a point.
    #[inline(always)]
    pub fn offer(&mut self, tps_per_user: f64, score: f64, candidate: impl FnOnce() -> Candidate) {
        let band = band(tps_per_user);
        if self.holds_better(band, score) {
            return;
        }
        let candidate = candidate();
        let slot = &mut self.bands[band];
        let is_better = slot
            .as_ref()
            .is_none_or(|(_, known)| candidate.order(known) == Ordering::Less);
        if is_better {
            *slot = Some((tps_per_user, candidate));
            for least in self.least[..=band].iter_mut().rev() {
                if *least <= score {
                    break;
                }
                *least = score;
            }
        }
    }

    /// Whether a point of `tps_per_user` with a score of at least `bound` cannot enter: its band holds a better score,
    /// or a faster one one as good.
    #[inline(always)]
    #[must_use]
    pub fn rules_out(&self, tps_per_user: f64, bound: f64) -> bool {
        self.holds_better(band(tps_per_user), bound)
    }

    #[inline(always)]
    fn holds_better(&self, band: usize, score: f64) -> bool {
        let faster = self.least[band + 1];
        self.least[band] < score || (faster <= score && faster < f64::INFINITY)
    }

    /// Adds another frontier's points.
    pub fn merge(&mut self, other: &Self) {
        for (tps_per_user, candidate) in other.bands.iter().flatten() {
            self.offer(*tps_per_user, candidate.score, || *candidate);
        }
    }

    /// The undominated candidates, fastest first.
    #[must_use]
    pub fn points(&self) -> Vec<Candidate> {
        let mut best = f64::INFINITY;
        let mut points = Vec::new();
        for (_, candidate) in self.bands.iter().rev().flatten() {
            if candidate.score < best {
                best = candidate.score;
                points.push(*candidate);
            }
        }
        points
    }
}

/// Why configurations were rejected, as counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rejections {
    /// Weights, activations and one request do not fit.
    pub does_not_fit: u64,
    /// Time per output token over its limit.
    pub tpot: u64,
    /// Time to first token over its limit.
    pub ttft: u64,
    /// Whole request over its limit.
    pub e2e: u64,
    /// Fleet over the chip budget.
    pub max_chips: u64,
    /// No offer sells a unit that can hold the replica.
    pub no_offer: u64,
    /// Open arrivals bring more prompts than leave a steady state.
    pub saturated: u64,
    /// The links between two pools cannot carry the caches.
    pub no_link: u64,
}

impl Rejections {
    fn merge(&mut self, other: &Self) {
        self.does_not_fit += other.does_not_fit;
        self.tpot += other.tpot;
        self.ttft += other.ttft;
        self.e2e += other.e2e;
        self.max_chips += other.max_chips;
        self.no_offer += other.no_offer;
        self.saturated += other.saturated;
        self.no_link += other.no_link;
    }
}

/// A limit that a configuration misses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Time per output token.
    TpotS,
    /// Time to first token.
    TtftS,
    /// Whole request.
    E2eS,
    /// Chip budget.
    MaxChips,
    /// Memory of the chip.
    Memory,
    /// Share of time that prompts take under open arrivals.
    PrefillLoad,
}

/// How close the closest configuration came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Miss {
    /// Largest ratio of a value to its limit.
    pub ratio: f64,
    /// Which limit that is.
    pub limit: Limit,
    /// The value reached.
    pub value: f64,
    /// The limit.
    pub allowed: f64,
    /// Where.
    pub candidate: Candidate,
}

/// Everything a scan returns.
#[derive(Debug, Clone)]
pub struct Findings {
    /// Configurations evaluated in full.
    pub evaluated: u64,
    /// Configurations skipped because a bound showed that they cannot matter.
    pub pruned: u64,
    /// Configurations that met every limit.
    pub feasible: u64,
    /// Why the others did not.
    pub rejected: Rejections,
    /// Best layouts over everything.
    pub top: TopList,
    /// Best candidates over everything.
    pub by_mode: ByMode,
    /// Best candidates of each accelerator.
    pub by_accelerator: Vec<ByMode>,
    /// Frontier over everything.
    pub frontier: Frontier,
    /// Closest miss.
    pub miss: Option<Miss>,
    known: KnownScores,
}

/// Scores that are known to be reached elsewhere, infinite where none is.
#[derive(Debug, Clone)]
struct KnownScores {
    by_mode: [f64; 2],
    by_accelerator: Vec<[f64; 2]>,
}

impl KnownScores {
    fn best(&self, accelerator: Option<usize>, mode: ServingMode) -> f64 {
        accelerator.map_or(&self.by_mode, |own| &self.by_accelerator[own])[mode.index()]
    }
}

impl Findings {
    /// Nothing found yet.
    #[must_use]
    pub fn new(top: usize, accelerators: usize) -> Self {
        Self {
            evaluated: 0,
            pruned: 0,
            feasible: 0,
            rejected: Rejections::default(),
            top: TopList::new(top.max(1)),
            by_mode: [None; 2],
            by_accelerator: vec![[None; 2]; accelerators],
            frontier: Frontier::default(),
            miss: None,
            known: KnownScores {
                by_mode: [f64::INFINITY; 2],
                by_accelerator: vec![[f64::INFINITY; 2]; accelerators],
            },
        }
    }

    /// Findings for further work on the same problem: they hold nothing, but rule out what cannot matter beside these.
    ///
    /// Merged with the findings that hold the candidates themselves, they give the answer that a search without these
    /// bounds would give.
    #[must_use]
    pub fn successor(&self) -> Self {
        let scores = |best: &ByMode, known: &[f64; 2]| {
            [0, 1].map(|mode| best[mode].map_or(known[mode], |found| found.score.min(known[mode])))
        };
        let mut next = Self::new(self.top.capacity, self.by_accelerator.len());
        next.top = self.top.successor();
        next.frontier = self.frontier.successor();
        next.known.by_mode = scores(&self.by_mode, &self.known.by_mode);
        for (index, known) in next.known.by_accelerator.iter_mut().enumerate() {
            *known = scores(
                &self.by_accelerator[index],
                &self.known.by_accelerator[index],
            );
        }
        next
    }

    /// Whether a candidate of at most `tps_per_user` with a score of at least `bound` cannot matter: neither for the
    /// best layouts, nor as the best of its accelerator (of its mode, where it counts for none), nor on the frontier.
    #[inline(always)]
    #[must_use]
    pub fn rule_out(
        &self,
        accelerator: Option<usize>,
        mode: ServingMode,
        tps_per_user: f64,
        bound: f64,
    ) -> bool {
        let own = accelerator.map_or(&self.by_mode, |own| &self.by_accelerator[own]);
        let is_beaten = own[mode.index()].is_some_and(|found| found.score < bound)
            || self.known.best(accelerator, mode) < bound;
        is_beaten && bound > self.top.threshold() && self.frontier.rules_out(tps_per_user, bound)
    }

    /// Records the best candidate of one layout; a fleet on several accelerators counts for none of them.
    pub fn best_of_layout(&mut self, accelerator: Option<usize>, candidate: Candidate) {
        self.top.push(candidate);
        let mode = candidate.mode().index();
        keep_better(&mut self.by_mode[mode], candidate);
        if let Some(accelerator) = accelerator {
            keep_better(&mut self.by_accelerator[accelerator][mode], candidate);
        }
    }

    /// Records a miss if it is closer than the known one.
    pub fn consider_miss(&mut self, miss: Miss) {
        let is_closer = self.miss.as_ref().is_none_or(|known| {
            miss.ratio
                .total_cmp(&known.ratio)
                .then_with(|| miss.candidate.order(&known.candidate))
                == Ordering::Less
        });
        if is_closer {
            self.miss = Some(miss);
        }
    }

    /// Adds another scan's findings.
    #[must_use]
    pub fn merge(mut self, other: &Self) -> Self {
        self.evaluated += other.evaluated;
        self.pruned += other.pruned;
        self.feasible += other.feasible;
        self.rejected.merge(&other.rejected);
        self.top.merge(&other.top);
        let known = self.by_accelerator.iter_mut().flatten();
        let new = other.by_accelerator.iter().flatten();
        let known = known.chain(&mut self.by_mode);
        for (known, new) in known.zip(new.chain(&other.by_mode)) {
            if let Some(candidate) = new {
                keep_better(known, *candidate);
            }
        }
        self.frontier.merge(&other.frontier);
        if let Some(miss) = other.miss {
            self.consider_miss(miss);
        }
        self
    }
}

fn keep_better(known: &mut Option<Candidate>, candidate: Candidate) {
    let is_better = known
        .as_ref()
        .is_none_or(|best| candidate.order(best) == Ordering::Less);
    if is_better {
        *known = Some(candidate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(score: f64) -> Candidate {
        Candidate {
            score,
            tpot_s: 0.025,
            ttft_s: 0.1,
            stack: 0,
            layout: Layout {
                tp: 1,
                pp: 1,
                attn_dp: 1,
                ep: 1,
            },
            chunk_tokens: 2048,
            batch: 8,
            depth: 0,
            prefill: None,
        }
    }

    #[test]
    fn a_successor_rules_out_what_cannot_matter_and_only_that() {
        let mut known = Findings::new(1, 2);
        let found = at(1.0);
        known.best_of_layout(Some(0), found);
        known.frontier.offer(40.0, 1.0, || found);
        let next = known.successor();
        assert_eq!(next.top.entries(), []);
        assert!(next.frontier.points().is_empty());
        let is_out =
            |accelerator, tps, bound| next.rule_out(accelerator, ServingMode::Agg, tps, bound);
        assert!(is_out(Some(0), 30.0, 1.5));
        // As cheap as the best, or faster than anything known, or on an accelerator of which nothing is known.
        assert!(!is_out(Some(0), 40.0, 1.0));
        assert!(!is_out(Some(0), 80.0, 1.5));
        assert!(!is_out(Some(1), 30.0, 1.5));
        assert!(!next.rule_out(Some(0), ServingMode::Disagg, 30.0, 1.5));
        // What was known is taken again when it is found again.
        let mut again = next;
        again.best_of_layout(Some(0), found);
        again.frontier.offer(40.0, 1.0, || found);
        assert_eq!(again.top.entries(), [found]);
        assert_eq!(again.frontier.points(), [found]);
    }
}
