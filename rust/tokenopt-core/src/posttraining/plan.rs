//! Plans: which chips run which stage, how stages share them or overlap, and what a step, a run and a token cost.

use std::sync::atomic::{AtomicBool, Ordering as Order};

use rayon::prelude::*;

use super::answer::{PoolAnswer, PosttrainAnswer, PosttrainPlan, StageCost};
use super::pool::{pool, Pool};
use super::problem::{PassKind, Placement, PlanObjective, PosttrainProblem, StepWork, Switching};
use super::stages::{self, StageLayout, StageTime};
use crate::count::count;
use crate::error::CoreError;
use crate::money::{SECONDS_PER_HOUR, TOKENS_PER_QUOTE};
use crate::training::run::Goodput;

/// Numbers of nodes that are tried.
const NODES: &[u32] = &[
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024,
];

/// Searches for the cheapest plan.
///
/// # Errors
/// [`CoreError::Interrupted`] when `stop` is raised while it runs.
pub fn posttrain(
    problem: &PosttrainProblem,
    stop: &AtomicBool,
) -> Result<PosttrainAnswer, CoreError> {
    let sizes: Vec<(usize, u32)> = problem
        .accelerators
        .iter()
        .enumerate()
        .flat_map(|(index, accelerator)| {
            let node = accelerator.chips_per_node.max(1);
            let parts = [1, 2, 4].into_iter().filter(move |part| *part < node);
            let whole = NODES.iter().map(move |count| count.saturating_mul(node));
            let sizes: Vec<u32> = match &problem.pool_chips {
                Some(sizes) => sizes.clone(),
                None => parts.chain(whole).collect(),
            };
            sizes
                .into_iter()
                .filter(|chips| *chips <= problem.max_chips)
                .map(move |chips| (index, chips))
                .collect::<Vec<_>>()
        })
        .collect();
    let pools: Vec<Pool> = sizes
        .par_iter()
        .map(|(accelerator, chips)| pool(problem, *accelerator, *chips, stop))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect();
    if stop.load(Order::Relaxed) {
        return Err(CoreError::Interrupted);
    }
    let stage_count = problem.passes.len() + usize::from(problem.rollout.is_some());
    let mut search = PlanSearch {
        problem,
        plans: 0,
        feasible: 0,
        kept: Vec::new(),
        nearest: None,
    };
    let is_wanted = |placement| {
        problem
            .placements
            .as_ref()
            .is_none_or(|wanted| wanted.contains(&placement))
    };
    if is_wanted(Placement::Colocated) {
        search.colocated(&pools);
    }
    for placement in [Placement::Split, Placement::Separate] {
        if problem.rollout.is_some() && is_wanted(placement) {
            search.pooled(&pools, placement);
        }
    }
    Ok(search.answer(&pools, (pools.len() * stage_count) as u64))
}

/// Name of the stage that writes answers.
const GENERATION: &str = "generation";

struct PlanSearch<'a> {
    problem: &'a PosttrainProblem,
    plans: u64,
    feasible: u64,
    kept: Vec<PosttrainPlan>,
    nearest: Option<PosttrainPlan>,
}

/// Which stages a pool runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    Generate,
    Score,
    Update,
    ScoreAndUpdate,
}

impl Duty {
    fn takes(self, kind: &PassKind) -> bool {
        let is_update = matches!(kind, PassKind::Update { .. });
        match self {
            Self::Generate => false,
            Self::Score => !is_update,
            Self::Update => is_update,
            Self::ScoreAndUpdate => true,
        }
    }
}

/// A pool with a duty, what it has to do for it, and the time that takes.
struct Candidate<'a> {
    pool: &'a Pool,
    duty: Duty,
    work: PoolWork,
    seconds: f64,
}

/// What a pool's duty takes, as the models say.
#[derive(Debug, Clone, Copy, Default)]
struct PoolWork {
    /// On the accelerators, s.
    seconds: f64,
    /// Off them, s.
    external_s: f64,
    /// Changes of stage.
    changes: f64,
}

impl<'a> PlanSearch<'a> {
    /// What a pool's duty takes; None when it cannot do it.
    fn work(&self, pool: &Pool, duty: Duty) -> Option<PoolWork> {
        let mut work = PoolWork::default();
        if duty == Duty::Generate {
            work.seconds = pool.generation?.seconds;
            return Some(work);
        }
        let mut stages = 0.0;
        for (spec, time) in self.problem.passes.iter().zip(&pool.passes) {
            if duty.takes(&spec.kind) {
                let seconds = (*time)?.seconds;
                if matches!(spec.kind, PassKind::External { .. }) {
                    work.external_s += seconds;
                } else {
                    work.seconds += seconds;
                    stages += 1.0;
                }
            }
        }
        work.changes = f64::max(stages - 1.0, 0.0);
        Some(work)
    }

    /// Seconds of a pool's duty.
    fn seconds(&self, duty: Duty, work: &PoolWork) -> f64 {
        let switching = &self.problem.switching;
        if duty == Duty::Generate {
            switching.generation_factor * work.seconds
        } else {
            switching.pool_s(work.seconds, work.changes) + work.external_s
        }
    }

    /// Pools worth having for a duty: none is cheaper, faster and smaller at once.
    fn candidates<'b>(&self, pools: &'b [Pool], duty: Duty) -> Vec<Candidate<'b>> {
        let mut all: Vec<Candidate<'b>> = pools
            .iter()
            .filter_map(|pool| {
                self.work(pool, duty).map(|work| Candidate {
                    pool,
                    duty,
                    work,
                    seconds: self.seconds(duty, &work),
                })
            })
            .collect();
        all.sort_by(|a, b| {
            a.pool
                .usd_per_hr
                .total_cmp(&b.pool.usd_per_hr)
                .then(a.seconds.total_cmp(&b.seconds))
                .then(a.pool.accelerator.cmp(&b.pool.accelerator))
        });
        let mut kept: Vec<Candidate<'b>> = Vec::new();
        for candidate in all {
            let is_beaten = kept.iter().any(|known| {
                known.seconds <= candidate.seconds && known.pool.chips <= candidate.pool.chips
            });
            if !is_beaten {
                kept.push(candidate);
            }
        }
        kept
    }

    fn refit_s(&self, generating: &Pool, reach_chips: f64) -> f64 {
        stages::refit_s(
            &self.problem.models[0],
            &self.problem.accelerators[generating.accelerator],
            reach_chips,
        )
    }

    fn colocated(&mut self, pools: &[Pool]) {
        let has_rollout = self.problem.rollout.is_some();
        for pool in pools {
            let Some(passes) = self.work(pool, Duty::ScoreAndUpdate) else {
                continue;
            };
            let generation_s = match (has_rollout, pool.generation) {
                (false, _) => 0.0,
                (true, Some(stage)) => stage.seconds,
                (true, None) => continue,
            };
            let mut work = StepWork {
                generation_s,
                training_s: passes.seconds,
                external_s: passes.external_s,
                training_changes: passes.changes,
                ..StepWork::default()
            };
            if has_rollout {
                // Trainer state goes out for the rollout and comes back; the engine sleeps and wakes.
                let times = pool.passes.iter().flatten();
                work.moved_bytes = 2.0 * times.map(|time| time.state_bytes).sum::<f64>();
                work.training_changes += 2.0;
                work.refit_s = self.refit_s(pool, f64::from(pool.used));
            }
            let switching = &self.problem.switching;
            let seconds = self.seconds(Duty::ScoreAndUpdate, &passes)
                + switching.generation_factor * generation_s;
            let candidate = Candidate {
                pool,
                duty: Duty::ScoreAndUpdate,
                work: passes,
                seconds,
            };
            self.consider(Placement::Colocated, &[&candidate], &work);
        }
    }

    fn pooled(&mut self, pools: &[Pool], placement: Placement) {
        let duties: &[Duty] = match placement {
            Placement::Colocated => return,
            Placement::Split => &[Duty::Generate, Duty::ScoreAndUpdate],
            Placement::Separate => &[Duty::Generate, Duty::Score, Duty::Update],
        };
        let has_scores = self
            .problem
            .passes
            .iter()
            .any(|spec| Duty::Score.takes(&spec.kind));
        if placement == Placement::Separate && !has_scores {
            return;
        }
        let options: Vec<Vec<Candidate<'_>>> = duties
            .iter()
            .map(|duty| self.candidates(pools, *duty))
            .collect();
        let mut places = vec![0; duties.len()];
        if options.iter().any(Vec::is_empty) {
            return;
        }
        loop {
            let chosen: Vec<&Candidate<'_>> = places
                .iter()
                .zip(&options)
                .map(|(place, list)| &list[*place])
                .collect();
            let chips: f64 = chosen.iter().map(|candidate| candidate.pool.chips).sum();
            if chips <= f64::from(self.problem.max_chips) {
                // Pools of unlike chips, or of more than a domain, meet over the network.
                let is_alike = chosen
                    .iter()
                    .all(|c| c.pool.accelerator == chosen[0].pool.accelerator);
                let reach = if is_alike { chips } else { f64::INFINITY };
                let (last, scoring) = match chosen.as_slice() {
                    [_, scoring, last] => (last.work, scoring.work),
                    [_, last] => (last.work, PoolWork::default()),
                    _ => return,
                };
                let mut work = StepWork {
                    generation_s: chosen[0].work.seconds,
                    scoring_s: scoring.seconds,
                    training_s: last.seconds,
                    external_s: scoring.external_s + last.external_s,
                    scoring_changes: scoring.changes,
                    training_changes: last.changes,
                    refit_s: self.refit_s(chosen[0].pool, reach),
                    ..StepWork::default()
                };
                self.consider(placement, &chosen, &work);
                if self.problem.may_overlap {
                    work.is_overlapped = true;
                    self.consider(placement, &chosen, &work);
                }
            }
            if !advance(&mut places, &options) {
                return;
            }
        }
    }

    /// Prices a plan and keeps it where it is the best of its kind.
    fn consider(&mut self, placement: Placement, chosen: &[&Candidate<'_>], work: &StepWork) {
        self.plans += 1;
        let problem = self.problem;
        let step_s = problem.switching.step_s(work);
        let is_overlapped = work.is_overlapped;
        let usd_per_hr: f64 = chosen.iter().map(|c| c.pool.usd_per_hr).sum();
        let used: f64 = chosen.iter().map(|c| f64::from(c.pool.used)).sum();
        let goodput = self.goodput(used);
        let wall_s = step_s * problem.steps / goodput;
        let days = wall_s / SECONDS_PER_HOUR / 24.0;
        let usd = wall_s / SECONDS_PER_HOUR * usd_per_hr;
        let is_late = problem.deadline_days.is_some_and(|limit| days > limit);
        if is_late {
            let is_nearer = self.nearest.as_ref().is_none_or(|known| days < known.days);
            if is_nearer && self.feasible == 0 {
                self.nearest = Some(self.plan(placement, chosen, work, goodput));
            }
            return;
        }
        self.feasible += 1;
        let is_same_kind = |known: &PosttrainPlan| {
            known.placement == placement
                && known.is_overlapped == is_overlapped
                && known.pools.len() == chosen.len()
                && known
                    .pools
                    .iter()
                    .zip(chosen)
                    .all(|(pool, c)| pool.accelerator == c.pool.accelerator)
        };
        match self.kept.iter().position(is_same_kind) {
            Some(place)
                if self.score(self.kept[place].usd_per_run, self.kept[place].days)
                    <= self.score(usd, days) => {}
            place => {
                let plan = self.plan(placement, chosen, work, goodput);
                match place {
                    Some(place) => self.kept[place] = plan,
                    None => self.kept.push(plan),
                }
            }
        }
    }

    /// What the search minimises.
    fn score(&self, usd: f64, days: f64) -> f64 {
        match self.problem.objective {
            PlanObjective::Cost => usd,
            PlanObjective::Time => days,
        }
    }

    fn goodput(&self, chips: f64) -> f64 {
        const STATE_BYTES_PER_PARAMETER: f64 = 14.0;
        let problem = self.problem;
        let reliability = &problem.reliability;
        let storage = problem.checkpoint.bytes_per_s_per_chip * chips;
        let trained: f64 = problem
            .passes
            .iter()
            .filter(|spec| matches!(spec.kind, PassKind::Update { .. }))
            .map(|spec| count(&problem.models[spec.model]).total_parameters)
            .sum();
        let read_s = STATE_BYTES_PER_PARAMETER * trained / storage;
        let stall_s = problem.checkpoint.stall_s.unwrap_or(read_s);
        let rate = chips / (reliability.chip_hours_between_failures * SECONDS_PER_HOUR);
        let recovery_s = reliability.detection_s + reliability.restart_s + read_s;
        Goodput::new(rate, recovery_s, stall_s, problem.checkpoint.interval_s).share
    }

    fn plan(
        &self,
        placement: Placement,
        chosen: &[&Candidate<'_>],
        work: &StepWork,
        goodput: f64,
    ) -> PosttrainPlan {
        let problem = self.problem;
        let switching = &problem.switching;
        let step_s = switching.step_s(work);
        let generation_s = switching.generation_factor * work.generation_s;
        let shared_changes = if placement == Placement::Colocated && problem.rollout.is_some() {
            2.0
        } else {
            0.0
        };
        let usd_per_hr: f64 = chosen.iter().map(|c| c.pool.usd_per_hr).sum();
        let chips: f64 = chosen.iter().map(|c| c.pool.chips).sum();
        let wall_s = step_s * problem.steps / goodput;
        let hours = wall_s / SECONDS_PER_HOUR;
        let usd = hours * usd_per_hr;
        let tokens = problem.sequences * problem.sequence_tokens;
        const W_PER_KW: f64 = 1000.0;
        let power_w: f64 = chosen
            .iter()
            .map(|c| c.pool.chips * problem.accelerators[c.pool.accelerator].power_w)
            .sum();
        PosttrainPlan {
            placement,
            is_overlapped: work.is_overlapped,
            pools: chosen
                .iter()
                .map(|candidate| self.pool_answer(placement, candidate, step_s))
                .collect(),
            step_time_s: step_s,
            switch_s: switching.moving_s(work) + shared_changes * switching.phase_overhead_s,
            weight_sync_s: switching.refit_s(work),
            generation_share: (generation_s / step_s).min(1.0),
            chips,
            usd_per_hr,
            usd_per_step: usd / problem.steps,
            usd_per_run: usd,
            usd_per_m_tokens: usd / problem.steps / tokens * TOKENS_PER_QUOTE,
            days: hours / 24.0,
            gpu_hours: chips * hours,
            kwh_per_run: power_w / W_PER_KW * hours,
            goodput,
            tokens_per_s_per_chip: tokens / step_s / chips,
            work: *work,
        }
    }

    fn pool_answer(
        &self,
        placement: Placement,
        candidate: &Candidate<'_>,
        step_s: f64,
    ) -> PoolAnswer {
        let pool = candidate.pool;
        let mut stages = Vec::new();
        if candidate.duty == Duty::Generate || placement == Placement::Colocated {
            stages.extend(
                pool.generation
                    .map(|time| stage_cost(GENERATION, pool, &time, &self.problem.switching)),
            );
        }
        for (spec, time) in self.problem.passes.iter().zip(&pool.passes) {
            if candidate.duty.takes(&spec.kind) {
                stages.extend(
                    time.map(|time| stage_cost(&spec.name, pool, &time, &self.problem.switching)),
                );
            }
        }
        PoolAnswer {
            accelerator: pool.accelerator,
            offer: pool.offer,
            instances: pool.instances,
            chips: pool.chips,
            usd_per_hr: pool.usd_per_hr,
            busy: (candidate.seconds / step_s).min(1.0),
            stages,
        }
    }

    fn answer(mut self, pools: &[Pool], evaluated: u64) -> PosttrainAnswer {
        let objective = self.problem.objective;
        let score = |plan: &PosttrainPlan| match objective {
            PlanObjective::Cost => plan.usd_per_run,
            PlanObjective::Time => plan.days,
        };
        let order = |a: &PosttrainPlan, b: &PosttrainPlan| {
            score(a)
                .total_cmp(&score(b))
                .then(a.usd_per_run.total_cmp(&b.usd_per_run))
                .then(a.days.total_cmp(&b.days))
                .then(a.placement.cmp(&b.placement))
        };
        self.kept.sort_by(order);
        let mut by_placement: Vec<PosttrainPlan> = Vec::new();
        for plan in &self.kept {
            let is_new = !by_placement.iter().any(|known| {
                known.placement == plan.placement && known.is_overlapped == plan.is_overlapped
            });
            if is_new {
                by_placement.push(plan.clone());
            }
        }
        let by_accelerator = self
            .kept
            .iter()
            .filter(|plan| plan.placement == Placement::Colocated)
            .cloned()
            .collect();
        PosttrainAnswer {
            evaluated,
            plans: self.plans,
            feasible: self.feasible,
            by_stage: self.by_stage(pools),
            best: self.kept.iter().take(self.problem.top).cloned().collect(),
            by_placement,
            by_accelerator,
            nearest: self.nearest.filter(|_| self.feasible == 0),
            longest_response_tokens: self
                .problem
                .rollout
                .map(|rollout| rollout.longest_response_tokens()),
        }
    }

    /// The cheapest way to run each stage alone on each accelerator, within the time a step may take.
    fn by_stage(&self, pools: &[Pool]) -> Vec<StageCost> {
        let problem = self.problem;
        let most_s = problem.deadline_days.map_or(f64::INFINITY, |days| {
            days * 24.0 * SECONDS_PER_HOUR / problem.steps
        });
        let mut costs: Vec<StageCost> = Vec::new();
        let mut add = |name: &str, of: &dyn Fn(&Pool) -> Option<StageTime>| {
            let mut best: Vec<StageCost> = Vec::new();
            for pool in pools {
                let Some(time) = of(pool) else {
                    continue;
                };
                let cost = stage_cost(name, pool, &time, &problem.switching);
                if cost.seconds > most_s {
                    continue;
                }
                match best
                    .iter()
                    .position(|known| known.accelerator == pool.accelerator)
                {
                    Some(place) if best[place].usd_per_step <= cost.usd_per_step => {}
                    Some(place) => best[place] = cost,
                    None => best.push(cost),
                }
            }
            best.sort_by(|a, b| a.usd_per_step.total_cmp(&b.usd_per_step));
            costs.extend(best);
        };
        if problem.rollout.is_some() {
            add(GENERATION, &|pool| pool.generation);
        }
        for (place, spec) in problem.passes.iter().enumerate() {
            if !matches!(spec.kind, PassKind::External { .. }) {
                add(&spec.name, &|pool| pool.passes[place]);
            }
        }
        costs
    }
}

/// Moves to the next combination; false after the last.
fn advance(places: &mut [usize], options: &[Vec<Candidate<'_>>]) -> bool {
    for (place, list) in places.iter_mut().zip(options) {
        *place += 1;
        if *place < list.len() {
            return true;
        }
        *place = 0;
    }
    false
}

fn stage_cost(name: &str, pool: &Pool, time: &StageTime, switching: &Switching) -> StageCost {
    let factor = match time.layout {
        StageLayout::Serving { .. } => switching.generation_factor,
        StageLayout::Training(_) => switching.training_factor,
        StageLayout::Host => 1.0,
    };
    let seconds = factor * time.seconds;
    StageCost {
        stage: name.to_owned(),
        accelerator: pool.accelerator,
        stack: time.stack,
        chips: pool.chips,
        seconds,
        usd_per_step: pool.usd_per_hr * seconds / SECONDS_PER_HOUR,
        offer: pool.offer,
        layout: (&time.layout).into(),
    }
}
