//! The scan of one layout: every batch and chunk size, in blocks of lanes, with bounds that skip whole blocks.

use super::best::{Candidate, Findings, Limit, Miss, ServingMode};
use super::problem::{Limits, Objective, SearchProblem};
use super::space::chunk_sizes;
use crate::accelerator::Accelerator;
use crate::money::{undominated_offers, FleetUnit};
use crate::ops::attention::Lengths;
use crate::ops::LANES;
use crate::serving::queueing::{Arrival, MOST_PREFILL_LOAD};
use crate::serving::steady::Operation;
use crate::serving::{
    DraftPlan, Layout, LoadModel, MemoryPlan, Speculation, Stack, SteadyState, StepModel,
};

/// Everything about one layout that does not depend on the batch.
pub struct LayoutModel<'a> {
    pub(super) problem: &'a SearchProblem,
    pub(super) stack_index: usize,
    pub(super) stack: &'a Stack,
    pub(super) accelerator: &'a Accelerator,
    /// The layout.
    pub layout: Layout,
    /// Tokens drafted per step.
    pub depth: u32,
    /// Largest running batch per rank and pipeline slot that is tried.
    pub max_batch: u32,
    /// Step times.
    pub step: StepModel,
    /// Memory of the fullest chip.
    pub memory: MemoryPlan,
    units: Vec<FleetUnit>,
}

/// One chunk size of a layout.
struct ChunkModel {
    chunk_tokens: u32,
    load: LoadModel,
    /// Largest running batch per rank and pipeline slot whose requests fit.
    capacity: u32,
    /// Requests in flight per rank and pipeline slot that fit.
    capacity_in_flight: f64,
}

impl ChunkModel {
    /// The batch to go on with after `batch`; beyond every batch when that was the last.
    fn after(&self, batch: u32) -> u32 {
        if batch < self.capacity {
            batch + 1
        } else {
            u32::MAX
        }
    }
}

/// Latency limits, absent ones infinite.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct LatencyLimits {
    pub tpot_s: f64,
    pub ttft_s: f64,
    pub e2e_s: f64,
}

impl LatencyLimits {
    /// Reads them.
    pub(super) fn of(limits: &Limits) -> Self {
        let unlimited = f64::INFINITY;
        Self {
            tpot_s: limits
                .tpot_s
                .unwrap_or(unlimited)
                .min(limits.min_tps_per_user.map_or(unlimited, |tps| 1.0 / tps)),
            ttft_s: limits.ttft_s.unwrap_or(unlimited),
            e2e_s: limits.e2e_s.unwrap_or(unlimited),
        }
    }
}

/// What a configuration costs.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Score {
    value: f64,
    chips: f64,
}

impl<'a> LayoutModel<'a> {
    /// Hoists everything for one layout of a stack.
    #[must_use]
    pub fn new(
        problem: &'a SearchProblem,
        stack_index: usize,
        layout: Layout,
        depth: u32,
        lengths: &Lengths,
    ) -> Self {
        let stack = &problem.stacks[stack_index];
        let accelerator = &problem.accelerators[stack.accelerator];
        let model = &problem.model;
        let mut step = StepModel::new(model, accelerator, stack, layout, lengths);
        let mut memory = MemoryPlan::new(model, accelerator, stack, layout, lengths);
        if let Some(spec) = problem.speculation.as_ref().filter(|_| depth > 0) {
            let speculation = Speculation {
                depth,
                acceptance: spec.acceptance,
                draft: spec.draft.as_ref(),
            };
            let draft = DraftPlan::new(
                model,
                speculation.draft,
                accelerator,
                stack,
                layout,
                lengths,
            );
            step = step.with_speculation(&draft, &speculation);
            memory = memory.with_draft(&draft);
        }
        // An engine's limit covers all pipeline slots.
        let engine_batch = stack.max_batch.unwrap_or(u32::MAX) / layout.pp;
        Self {
            problem,
            stack_index,
            stack,
            accelerator,
            layout,
            depth,
            max_batch: problem.space.max_batch.min(engine_batch.max(1)),
            step,
            memory,
            units: undominated_offers(&accelerator.offers)
                .iter()
                .filter_map(|offer| FleetUnit::new(accelerator, offer, layout.chips()))
                .collect(),
        }
    }

    /// The units this layout can be bought in.
    #[must_use]
    pub fn units(&self) -> &[FleetUnit] {
        &self.units
    }

    /// The steady state when prompts are cut into chunks of `chunk_tokens`.
    #[must_use]
    pub fn steady(&self, chunk_tokens: u32) -> SteadyState {
        SteadyState::new(
            &self.stack.parameters,
            self.layout,
            &self.step.prefill(f64::from(chunk_tokens)),
            self.problem.workload.osl,
        )
        .with_tokens_per_step(self.step.tokens_per_step)
    }

    /// Tokens that a decode step carries per request.
    #[must_use]
    pub fn tokens_verified(&self) -> f64 {
        1.0 + f64::from(self.depth)
    }

    /// What requests see under the problem's traffic when prompts are cut into chunks of `chunk_tokens`.
    #[must_use]
    pub fn load(&self, chunk_tokens: u32) -> LoadModel {
        let prefill = self.step.prefill(f64::from(chunk_tokens));
        LoadModel::new(
            self.problem.traffic,
            self.steady(chunk_tokens),
            &self.stack.parameters,
            self.layout,
            &prefill,
            self.step.prompt_overhead_s,
            self.problem.workload.osl,
            self.step.tokens_per_step,
        )
    }

    /// Operation of one batch under the problem's traffic.
    #[must_use]
    pub fn operation(&self, load: &LoadModel, batch: f64) -> Operation {
        load.operation(
            batch,
            self.step.decode_step_s(batch),
            self.raised_step_s(load, batch),
        )
    }

    fn raised_step_s(&self, load: &LoadModel, batch: f64) -> f64 {
        if load.needs_raised() {
            self.step.decode_step_s(load.raised_batch(batch))
        } else {
            0.0
        }
    }

    /// The cheapest fleet of such replicas, and its index among [`Self::units`].
    #[must_use]
    pub fn cheapest_unit(&self, replica_tps: f64) -> Option<usize> {
        let demand = &self.problem.demand;
        let price = |unit: &FleetUnit| unit.fleet(replica_tps, demand).usd_per_m_output_tokens();
        (0..self.units.len()).min_by(|a, b| {
            price(&self.units[*a])
                .total_cmp(&price(&self.units[*b]))
                .then(self.units[*a].offer.cmp(&self.units[*b].offer))
        })
    }

    /// What the search minimises, for a replica that delivers `replica_tps`; monotone: never rises with it.
    #[inline(always)]
    fn score(&self, replica_tps: f64) -> Score {
        let demand = &self.problem.demand;
        let mut best_usd = f64::INFINITY;
        let mut chips = f64::INFINITY;
        let mut kwh = f64::INFINITY;
        for unit in &self.units {
            let fleet = unit.fleet(replica_tps, demand);
            let usd = fleet.usd_per_m_output_tokens();
            let is_cheaper = usd < best_usd;
            best_usd = if is_cheaper { usd } else { best_usd };
            chips = if is_cheaper { fleet.chips } else { chips };
            kwh = kwh.min(fleet.kwh_per_m_output_tokens(self.accelerator.power_w));
        }
        let value = match self.problem.objective {
            Objective::Cost => best_usd,
            Objective::Energy => kwh,
            Objective::Throughput => -replica_tps / f64::from(self.layout.chips()),
        };
        Score { value, chips }
    }

    fn chunk_models(&self, findings: &mut Findings) -> Vec<ChunkModel> {
        let max_batch = self.max_batch;
        let stages = f64::from(self.layout.pp);
        let mut models = Vec::new();
        for chunk_tokens in chunk_sizes(&self.problem.space, self.step.prompt_tokens) {
            let capacity_in_flight =
                self.memory.capacity_requests(f64::from(chunk_tokens)) / stages;
            let capacity = whole_batches(capacity_in_flight, max_batch);
            findings.rejected.does_not_fit += u64::from(max_batch - capacity);
            if capacity == 0 {
                self.consider_memory_miss(chunk_tokens, findings);
                continue;
            }
            models.push(ChunkModel {
                chunk_tokens,
                load: self.load(chunk_tokens),
                capacity,
                capacity_in_flight,
            });
        }
        models
    }

    pub(super) fn consider_memory_miss(&self, chunk_tokens: u32, findings: &mut Findings) {
        let needed = self.memory.weight_bytes
            + self.memory.activation_bytes_per_token * f64::from(chunk_tokens)
            + self.memory.request_bytes * f64::from(self.layout.pp);
        findings.consider_miss(Miss {
            // A model that does not fit is further away than any latency that is missed.
            ratio: 1e6 * needed / self.memory.plannable_bytes.max(1.0),
            limit: Limit::Memory,
            value: needed,
            allowed: self.memory.plannable_bytes,
            candidate: self.candidate(f64::INFINITY, f64::INFINITY, f64::INFINITY, chunk_tokens, 1),
        });
    }

    pub(super) fn candidate(
        &self,
        score: f64,
        tpot_s: f64,
        ttft_s: f64,
        chunk_tokens: u32,
        batch: u32,
    ) -> Candidate {
        Candidate {
            score,
            tpot_s,
            ttft_s,
            stack: self.stack_index,
            layout: self.layout,
            chunk_tokens,
            batch,
            depth: self.depth,
            prefill: None,
        }
    }

    /// Evaluates the layout, adds what it finds and returns the best.
    pub fn scan(&self, findings: &mut Findings) -> Option<Candidate> {
        if self.units.is_empty() {
            findings.rejected.no_offer += 1;
            return None;
        }
        let chunks = self.chunk_models(findings);
        let largest = chunks.iter().map(|chunk| chunk.capacity).max()?;
        let limits = LatencyLimits::of(&self.problem.limits);
        let max_chips = self
            .problem
            .limits
            .max_chips
            .map_or(f64::INFINITY, f64::from);
        let mut best: Option<Candidate> = None;
        // Where each chunk size goes on; beyond its capacity when nothing of it is left.
        let mut next = vec![1_u32; chunks.len()];
        let mut first = 1_u32;
        while first <= largest {
            let last = (first + LANES as u32 - 1).min(largest);
            let first_step_s = if self.problem.exhaustive {
                0.0
            } else {
                self.step.decode_step_s(f64::from(first))
            };
            let mut batches = [0.0; LANES];
            let mut steps_s = [0.0; LANES];
            let mut raised_s = [0.0; LANES];
            let mut have_steps = false;
            for (at, chunk) in chunks.iter().enumerate() {
                if next[at] != first || first > chunk.capacity {
                    continue;
                }
                let last_here = last.min(chunk.capacity);
                if !self.problem.exhaustive {
                    let lowest = self.operation(&chunk.load, f64::from(first));
                    let is_saturated = chunk.load.is_saturated(f64::from(first), first_step_s);
                    if is_saturated || self.misses(&lowest, &limits) {
                        // Latencies and load only rise with the batch: nothing further on can meet the limits.
                        findings.pruned += u64::from(chunk.capacity - first + 1);
                        self.consider_miss(chunk, first, first_step_s, &lowest, &limits, findings);
                        next[at] = u32::MAX;
                        continue;
                    }
                    if let Some(reach) =
                        self.ruled_out_to(chunk, first, last_here, &lowest, findings)
                    {
                        findings.pruned += u64::from(reach - first + 1);
                        next[at] = chunk.after(reach);
                        continue;
                    }
                }
                if !have_steps {
                    for (lane, batch) in batches.iter_mut().enumerate() {
                        *batch = f64::from(first) + lane as f64;
                    }
                    self.block_steps(&chunk.load, &batches, &mut steps_s, &mut raised_s);
                    have_steps = true;
                }
                next[at] = chunk.after(last_here);
                self.scan_block(
                    chunk,
                    last_here - first + 1,
                    &batches,
                    &steps_s,
                    &raised_s,
                    &limits,
                    max_chips,
                    &mut best,
                    findings,
                );
            }
            first = next.iter().copied().min().unwrap_or(u32::MAX);
        }
        best
    }

    /// Evaluates a few batches of one chunk size, so that a search has bounds before it starts.
    pub fn probe(&self, findings: &mut Findings) -> Option<Candidate> {
        let limits = LatencyLimits::of(&self.problem.limits);
        let sizes = chunk_sizes(&self.problem.space, self.step.prompt_tokens);
        let chunk_tokens = *sizes.get(sizes.len() / 2)?;
        let stages = f64::from(self.layout.pp);
        let capacity_in_flight = self.memory.capacity_requests(f64::from(chunk_tokens)) / stages;
        let capacity = whole_batches(capacity_in_flight, self.max_batch);
        if capacity == 0 || self.units.is_empty() {
            return None;
        }
        let chunk = ChunkModel {
            chunk_tokens,
            load: self.load(chunk_tokens),
            capacity,
            capacity_in_flight,
        };
        // Batches at equal ratios; where the rounded ones repeat, so do the points.
        let ratio = f64::from(capacity).powf(1.0 / (LANES - 1) as f64);
        let mut batches = [0.0; LANES];
        for (lane, batch) in batches.iter_mut().enumerate() {
            *batch = ratio.powf(lane as f64).round().min(f64::from(capacity));
        }
        let mut steps_s = [0.0; LANES];
        let mut raised_s = [0.0; LANES];
        self.block_steps(&chunk.load, &batches, &mut steps_s, &mut raised_s);
        let max_chips = self
            .problem
            .limits
            .max_chips
            .map_or(f64::INFINITY, f64::from);
        let mut best = None;
        self.scan_block(
            &chunk,
            LANES as u32,
            &batches,
            &steps_s,
            &raised_s,
            &limits,
            max_chips,
            &mut best,
            findings,
        );
        best
    }

    /// Decode steps of a block of batches; of the raised batches too where `load` asks for them.
    #[inline(always)]
    fn block_steps(
        &self,
        load: &LoadModel,
        batches: &[f64; LANES],
        steps_s: &mut [f64; LANES],
        raised_s: &mut [f64; LANES],
    ) {
        self.step.decode_steps_s(batches, steps_s);
        if load.needs_raised() {
            let raised = batches.map(|batch| load.raised_batch(batch));
            self.step.decode_steps_s(&raised, raised_s);
        }
    }

    #[inline(always)]
    fn misses(&self, operation: &Operation, limits: &LatencyLimits) -> bool {
        operation.tpot_s > limits.tpot_s
            || operation.ttft_s > limits.ttft_s
            || operation.e2e_s > limits.e2e_s
    }

    /// Whether no batch from `first` to `last` can enter the answer: latencies are at least those of `first`, throughput
    /// at most that of `last` requests at the latencies of `first`.
    #[inline(always)]
    fn cannot_matter(
        &self,
        first: u32,
        last: u32,
        lowest: &Operation,
        findings: &Findings,
    ) -> bool {
        let most_tps = lowest.output_tps * f64::from(last) / f64::from(first);
        let bound = self.score(most_tps).value;
        findings.rule_out(
            Some(self.stack.accelerator),
            ServingMode::Agg,
            1.0 / lowest.tpot_s,
            bound,
        )
    }

    /// The last batch up to which none from `first` on can matter, in whole blocks; None when a block from `first` to
    /// `last` may.
    fn ruled_out_to(
        &self,
        chunk: &ChunkModel,
        first: u32,
        last: u32,
        lowest: &Operation,
        findings: &Findings,
    ) -> Option<u32> {
        if self.cannot_matter(first, last, lowest, findings) {
            let mut reach = last;
            while reach < chunk.capacity {
                let further = (2 * (reach - first + 1) + first - 1).min(chunk.capacity);
                if !self.cannot_matter(first, further, lowest, findings) {
                    break;
                }
                reach = further;
            }
            return Some(reach);
        }
        // A block that spans octaves is too wide for one bound: each octave has its own.
        let mut start = first;
        while start <= last && last >= 2 * first {
            let end = (2 * start - 1).min(last);
            let own = self.operation(&chunk.load, f64::from(start));
            if !self.cannot_matter(start, end, &own, findings) {
                return None;
            }
            start = end + 1;
        }
        (start > last).then_some(last)
    }

    #[inline(always)]
    #[expect(
        clippy::too_many_arguments,
        reason = "the block's inputs, hoisted by the caller"
    )]
    fn scan_block(
        &self,
        chunk: &ChunkModel,
        count: u32,
        batches: &[f64; LANES],
        steps_s: &[f64; LANES],
        raised_s: &[f64; LANES],
        limits: &LatencyLimits,
        max_chips: f64,
        best: &mut Option<Candidate>,
        findings: &mut Findings,
    ) {
        let mut tpot_s = [0.0; LANES];
        let mut ttft_s = [0.0; LANES];
        let mut e2e_s = [0.0; LANES];
        let mut in_flight = [0.0; LANES];
        let mut scores = [0.0; LANES];
        let mut chips = [0.0; LANES];
        let load = &chunk.load;
        let ranks = load.steady().batches();
        macro_rules! evaluate {
            ($operation:expr) => {
                for lane in 0..LANES {
                    let operation = $operation(lane);
                    tpot_s[lane] = operation.tpot_s;
                    ttft_s[lane] = operation.ttft_s;
                    e2e_s[lane] = operation.e2e_s;
                    in_flight[lane] = operation.in_flight / ranks;
                    let score = self.score(operation.output_tps);
                    scores[lane] = score.value;
                    chips[lane] = score.chips;
                }
            };
        }
        // Two loops, so that the plain one stays straight-line arithmetic.
        let is_plain = !load.needs_raised();
        if is_plain {
            let steady = load.steady();
            evaluate!(|lane: usize| steady.operation(batches[lane], steps_s[lane]));
        } else {
            evaluate!(|lane: usize| load.operation(batches[lane], steps_s[lane], raised_s[lane]));
        }
        let lanes = count as usize;
        findings.evaluated += lanes as u64;
        for lane in 0..lanes {
            if !is_plain && load.is_saturated(batches[lane], steps_s[lane]) {
                findings.rejected.saturated += 1;
            } else if in_flight[lane] > chunk.capacity_in_flight {
                findings.rejected.does_not_fit += 1;
            } else if tpot_s[lane] > limits.tpot_s {
                findings.rejected.tpot += 1;
            } else if ttft_s[lane] > limits.ttft_s {
                findings.rejected.ttft += 1;
            } else if e2e_s[lane] > limits.e2e_s {
                findings.rejected.e2e += 1;
            } else if chips[lane] > max_chips {
                findings.rejected.max_chips += 1;
            } else {
                findings.feasible += 1;
                let batch = whole_batches(batches[lane], self.max_batch);
                let score = scores[lane];
                let candidate =
                    || self.candidate(score, tpot_s[lane], ttft_s[lane], chunk.chunk_tokens, batch);
                if best.as_ref().is_none_or(|known| score <= known.score) {
                    let new = candidate();
                    if best.as_ref().is_none_or(|known| new.order(known).is_lt()) {
                        *best = Some(new);
                    }
                }
                findings
                    .frontier
                    .offer(1.0 / tpot_s[lane], score, candidate);
                continue;
            }
            let operation = load.operation(batches[lane], steps_s[lane], raised_s[lane]);
            let batch = whole_batches(batches[lane], self.max_batch);
            self.consider_miss(chunk, batch, steps_s[lane], &operation, limits, findings);
        }
    }

    /// Records how far a configuration is from the limit it misses by most, while nothing is feasible.
    fn consider_miss(
        &self,
        chunk: &ChunkModel,
        batch: u32,
        step_s: f64,
        operation: &Operation,
        limits: &LatencyLimits,
        findings: &mut Findings,
    ) {
        if findings.feasible > 0 {
            return;
        }
        let max_chips = self
            .problem
            .limits
            .max_chips
            .map_or(f64::INFINITY, f64::from);
        let chips = if max_chips.is_finite() {
            self.score(operation.output_tps).chips
        } else {
            1.0
        };
        let load = if self.problem.traffic.arrival == Arrival::Poisson {
            chunk.load.saturation(f64::from(batch), step_s)
        } else {
            0.0
        };
        let missed = [
            (Limit::PrefillLoad, load, MOST_PREFILL_LOAD),
            (Limit::MaxChips, chips, max_chips),
            (Limit::TpotS, operation.tpot_s, limits.tpot_s),
            (Limit::TtftS, operation.ttft_s, limits.ttft_s),
            (Limit::E2eS, operation.e2e_s, limits.e2e_s),
        ]
        .into_iter()
        .max_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2)));
        if let Some((limit, value, allowed)) = missed.filter(|(_, value, allowed)| value > allowed)
        {
            findings.consider_miss(Miss {
                ratio: value / allowed,
                limit,
                value,
                allowed,
                candidate: self.candidate(
                    f64::INFINITY,
                    operation.tpot_s,
                    operation.ttft_s,
                    chunk.chunk_tokens,
                    batch,
                ),
            });
        }
    }
}

/// Whole batches below `capacity`, at most `most`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 0..=most first"
)]
fn whole_batches(capacity: f64, most: u32) -> u32 {
    capacity.floor().clamp(0.0, f64::from(most)) as u32
}
