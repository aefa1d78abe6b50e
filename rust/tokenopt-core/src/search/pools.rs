//! The search for disaggregated fleets: the workers of both pools, matched, sized and priced.
//!
//! Workers are enumerated once a pool, so the work is a sum and not a product: a pair is evaluated in full only when a
//! lower bound of its score (fractions of workers and instances, prefill at its highest load) can still matter.

use std::cmp::Ordering;
use std::sync::atomic::{AtomicBool, Ordering as AtomicOrdering};

use super::best::{Candidate, Findings, Limit, Miss, PrefillPart, ServingMode};
use super::problem::{Objective, SearchProblem};
use super::scan::LatencyLimits;
use super::workers::{decode_options, whole, DecodeOption, Links, OfferPairs, PrefillOption};
use crate::money::{pooled_fleet, PooledFleet, SECONDS_PER_HOUR, TOKENS_PER_QUOTE};
use crate::serving::disagg::{CacheTransfer, DecodeWorker, PrefillWorker};

/// Most decode workers of a group when no target says how large the fleet is: with eight, the ratio of the pools is met
/// to within a few percent.
const MOST_DECODE_WORKERS: u32 = 8;
/// A pair of workers with its links, before it is sized.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    /// Prefill worker.
    pub prefill: PrefillWorker,
    /// Decode worker.
    pub decode: DecodeWorker,
    /// Link between them.
    pub transfer: CacheTransfer,
    /// Time to first token without the queue, s.
    pub unqueued_s: f64,
    /// Whole request after its first token, s.
    pub after_first_s: f64,
}

impl Pair {
    /// Joins two workers.
    pub(super) fn new(
        prefill: PrefillWorker,
        decode: DecodeWorker,
        transfer: CacheTransfer,
        osl: f64,
    ) -> Self {
        Self {
            prefill,
            decode,
            transfer,
            unqueued_s: prefill.alone_s
                + transfer.exposed_s(prefill.links, decode.links)
                + decode.step_s,
            after_first_s: decode.tpot_s * (osl - 1.0),
        }
    }

    /// Load at which prefill workers keep the latency limits; 0 when none does.
    pub(super) fn utilization(&self, limits: &LatencyLimits) -> f64 {
        let slack_s = (limits.ttft_s - self.unqueued_s)
            .min(limits.e2e_s - self.after_first_s - self.unqueued_s);
        self.prefill.utilization_for(slack_s)
    }

    /// Prompts/s of a prefill worker at `utilization`, within what its links carry.
    pub(super) fn prefill_rate(&self, utilization: f64) -> f64 {
        (self.prefill.requests_per_s * utilization)
            .min(self.transfer.most_requests_per_s(self.prefill.chips))
    }

    /// Time to first token when `workers` prefill workers take `requests_per_s`, s.
    pub(super) fn ttft_s(&self, requests_per_s: f64, workers: f64) -> f64 {
        let utilization = requests_per_s / (workers * self.prefill.requests_per_s);
        self.unqueued_s + self.prefill.wait_s(utilization)
    }
}

/// A sized and priced pair.
#[derive(Debug, Clone, Copy)]
struct Sized {
    score: f64,
    chips: f64,
    ttft_s: f64,
    workers: (u32, u32),
    offers: (u32, u32),
}

/// What the pools of one decode stack are matched from.
pub(super) struct Matcher<'a> {
    problem: &'a SearchProblem,
    stack: usize,
    limits: LatencyLimits,
    senders: Vec<Sender>,
    /// Place among `senders` by stack.
    sender_of: Vec<Option<usize>>,
    is_mixed: bool,
}

/// A stack that prefills for the decode stack.
struct Sender {
    offers: OfferPairs,
    links: Links,
}

impl<'a> Matcher<'a> {
    /// Prepares the matching of `stack`'s decode workers with prefill workers of the stacks `prefill`.
    pub(super) fn new(problem: &'a SearchProblem, stack: usize, prefill: &[usize]) -> Self {
        let own = problem.stacks[stack].accelerator;
        let accelerator = |stack: usize| problem.stacks[stack].accelerator;
        let mut sender_of = vec![None; problem.stacks.len()];
        for (place, sender) in prefill.iter().enumerate() {
            sender_of[*sender] = Some(place);
        }
        Self {
            problem,
            stack,
            limits: LatencyLimits::of(&problem.limits),
            senders: prefill
                .iter()
                .map(|sender| Sender {
                    offers: OfferPairs::new(problem, accelerator(*sender), own),
                    links: Links::new(problem, *sender, stack),
                })
                .collect(),
            sender_of,
            is_mixed: prefill.iter().any(|sender| accelerator(*sender) != own),
        }
    }

    /// Matches every decode worker of the stack with `prefills` and adds what is found.
    pub(super) fn run(
        &self,
        prefills: &mut [PrefillOption],
        findings: &mut Findings,
        stop: &AtomicBool,
    ) {
        if self.problem.workload.osl < 2.0 {
            return;
        }
        let mut groups = decode_options(
            self.problem,
            self.stack,
            self.is_mixed,
            &self.limits,
            findings,
        );
        if prefills.is_empty() || groups.is_empty() {
            return;
        }
        prefills.sort_by(|a, b| {
            (a.least_share.total_cmp(&b.least_share)).then_with(|| a.place().cmp(&b.place()))
        });
        // The cheapest first: the thresholds are low from the start. The answer does not depend on the order.
        groups.sort_by(|a, b| {
            let least = |group: &[DecodeOption]| {
                group
                    .iter()
                    .map(|option| option.least_share)
                    .fold(f64::INFINITY, f64::min)
            };
            least(a)
                .total_cmp(&least(b))
                .then_with(|| a[0].layout.cmp(&b[0].layout))
        });
        for group in &groups {
            if stop.load(AtomicOrdering::Relaxed) {
                break;
            }
            let mut best = None;
            for decode in group {
                self.match_one(decode, prefills, &mut best, findings);
            }
            if let Some(candidate) = best {
                let home = candidate.prefill.and_then(|part| self.home(part.stack));
                findings.best_of_layout(home, candidate);
            }
        }
    }

    /// The accelerator that fleets with prefill workers of a stack count for; None when their pools differ.
    fn home(&self, prefill: usize) -> Option<usize> {
        let own = self.problem.stacks[self.stack].accelerator;
        (self.problem.stacks[prefill].accelerator == own).then_some(own)
    }

    fn match_one(
        &self,
        decode: &DecodeOption,
        prefills: &[PrefillOption],
        best: &mut Option<Candidate>,
        findings: &mut Findings,
    ) {
        let tps_per_user = 1.0 / decode.worker.tpot_s;
        for (index, prefill) in prefills.iter().enumerate() {
            let bound = self.score_of_shares(prefill.least_share + decode.least_share);
            if !self.problem.exhaustive
                && findings.rule_out(
                    self.home(prefill.stack),
                    ServingMode::Disagg,
                    tps_per_user,
                    bound,
                )
            {
                // Prefill workers come cheapest first: no further one can matter either.
                findings.pruned += (prefills.len() - index) as u64;
                return;
            }
            findings.evaluated += 1;
            let Some(sized) = self.evaluate(prefill, decode, findings) else {
                continue;
            };
            findings.feasible += 1;
            let candidate = Candidate {
                score: sized.score,
                tpot_s: decode.worker.tpot_s,
                ttft_s: sized.ttft_s,
                stack: self.stack,
                layout: decode.layout,
                chunk_tokens: prefill.chunk_tokens,
                batch: decode.batch,
                depth: decode.depth,
                prefill: Some(PrefillPart {
                    stack: prefill.stack,
                    layout: prefill.layout,
                    workers: sized.workers.0,
                    decode_workers: sized.workers.1,
                    offer: sized.offers.0,
                    decode_offer: sized.offers.1,
                }),
            };
            if best.is_none_or(|known: Candidate| candidate.order(&known) == Ordering::Less) {
                *best = Some(candidate);
            }
            findings
                .frontier
                .offer(tps_per_user, sized.score, || candidate);
        }
    }

    /// The objective when a request/s takes `share` of the resource.
    fn score_of_shares(&self, share: f64) -> f64 {
        let osl = self.problem.workload.osl;
        match self.problem.objective {
            Objective::Throughput => -osl / share,
            Objective::Cost | Objective::Energy => {
                share / (osl * self.problem.demand.utilization * SECONDS_PER_HOUR)
                    * TOKENS_PER_QUOTE
            }
        }
    }

    fn evaluate(
        &self,
        prefill: &PrefillOption,
        decode: &DecodeOption,
        findings: &mut Findings,
    ) -> Option<Sized> {
        let problem = self.problem;
        let accelerator = &problem.accelerators[problem.stacks[self.stack].accelerator];
        let sender = &self.senders[self.sender_of[prefill.stack]?];
        let (offers, links) = (&sender.offers, &sender.links);
        let osl = self.problem.workload.osl;
        let mut nearest: Option<Sized> = None;
        let mut best: Option<Sized> = None;
        let mut is_reachable = false;
        let mut fits = false;
        let mut latency: Option<Pair> = None;
        for (first, second) in &offers.pairs {
            let (Some(unit), Some(decode_unit)) = (&prefill.units[*first], &decode.units[*second])
            else {
                continue;
            };
            let transfer = links.between(
                &prefill.worker,
                &decode.worker,
                accelerator,
                offers.is_shared.then_some(unit.fabric_chips),
            );
            if transfer.link_bytes_per_s <= 0.0
                || transfer.most_requests_per_s(decode.worker.chips) < decode.worker.requests_per_s
            {
                continue;
            }
            is_reachable = true;
            let transfer_s = transfer.seconds(prefill.worker.links, decode.worker.links);
            if decode.worker.held_per_slot(transfer_s) > decode.capacity {
                continue;
            }
            fits = true;
            let pair = Pair::new(prefill.worker, decode.worker, transfer, osl);
            let utilization = pair.utilization(&self.limits);
            if utilization <= 0.0 {
                latency = Some(pair);
                continue;
            }
            let rate = pair.prefill_rate(utilization);
            self.size(&pair, rate, |sized_for, workers| {
                let fleet = pooled_fleet(
                    (unit, f64::from(workers.0)),
                    (decode_unit, f64::from(workers.1)),
                    offers.is_shared,
                );
                let sized = Sized {
                    score: self.score(prefill, &pair, &fleet, sized_for, rate, workers),
                    chips: fleet.chips(),
                    ttft_s: pair.ttft_s(sized_for, f64::from(workers.0)),
                    workers,
                    offers: (unit.offer, decode_unit.offer),
                };
                let most = self
                    .problem
                    .limits
                    .max_chips
                    .map_or(f64::INFINITY, f64::from);
                let slot = if sized.chips <= most {
                    &mut best
                } else {
                    &mut nearest
                };
                if slot.is_none_or(|known| sized.is_before(&known)) {
                    *slot = Some(sized);
                }
            });
        }
        if best.is_none() {
            let (count, limit, value, allowed) = if let Some(sized) = nearest {
                let most = self.problem.limits.max_chips.map_or(0.0, f64::from);
                (
                    &mut findings.rejected.max_chips,
                    Limit::MaxChips,
                    sized.chips,
                    most,
                )
            } else if let Some(pair) = latency {
                let e2e_s = pair.unqueued_s + pair.after_first_s;
                if pair.unqueued_s / self.limits.ttft_s >= e2e_s / self.limits.e2e_s {
                    (
                        &mut findings.rejected.ttft,
                        Limit::TtftS,
                        pair.unqueued_s,
                        self.limits.ttft_s,
                    )
                } else {
                    (
                        &mut findings.rejected.e2e,
                        Limit::E2eS,
                        e2e_s,
                        self.limits.e2e_s,
                    )
                }
            } else {
                if fits || !is_reachable {
                    findings.rejected.no_link += 1;
                } else {
                    findings.rejected.does_not_fit += 1;
                }
                return None;
            };
            *count += 1;
            if findings.feasible == 0 {
                findings.consider_miss(Miss {
                    ratio: value / allowed,
                    limit,
                    value,
                    allowed,
                    candidate: self.plain_candidate(decode, prefill.chunk_tokens),
                });
            }
        }
        best
    }

    /// Calls `price` with the requests/s and the prefill and decode workers of every fleet to consider.
    fn size(&self, pair: &Pair, prefill_rate: f64, mut price: impl FnMut(f64, (u32, u32))) {
        let decode_rate = pair.decode.requests_per_s;
        match self.problem.demand.output_tps {
            Some(target) => {
                let requests_per_s = target / self.problem.workload.osl;
                let workers = |rate: f64| whole(requests_per_s / rate);
                price(
                    requests_per_s,
                    (workers(prefill_rate), workers(decode_rate)),
                );
            }
            None => {
                for decode_workers in 1..=MOST_DECODE_WORKERS {
                    let requests_per_s = f64::from(decode_workers) * decode_rate;
                    price(
                        requests_per_s,
                        (whole(requests_per_s / prefill_rate), decode_workers),
                    );
                }
            }
        }
    }

    fn score(
        &self,
        prefill: &PrefillOption,
        pair: &Pair,
        fleet: &PooledFleet,
        requests_per_s: f64,
        prefill_rate: f64,
        workers: (u32, u32),
    ) -> f64 {
        let power_w = |stack: usize| {
            self.problem.accelerators[self.problem.stacks[stack].accelerator].power_w
        };
        match self.problem.objective {
            Objective::Cost => self.score_of_shares(fleet.usd_per_hr / requests_per_s),
            Objective::Energy => self.score_of_shares(
                fleet.kw(power_w(prefill.stack), power_w(self.stack)) / requests_per_s,
            ),
            Objective::Throughput => {
                let (first, second) = (f64::from(workers.0), f64::from(workers.1));
                let capacity = (first * prefill_rate).min(second * pair.decode.requests_per_s);
                self.score_of_shares(
                    (first * pair.prefill.chips + second * pair.decode.chips) / capacity,
                )
            }
        }
    }

    fn plain_candidate(&self, decode: &DecodeOption, chunk_tokens: u32) -> Candidate {
        Candidate {
            score: f64::INFINITY,
            tpot_s: decode.worker.tpot_s,
            ttft_s: f64::INFINITY,
            stack: self.stack,
            layout: decode.layout,
            chunk_tokens,
            batch: decode.batch,
            depth: decode.depth,
            prefill: None,
        }
    }
}

impl Sized {
    fn is_before(&self, other: &Self) -> bool {
        (self.score.total_cmp(&other.score))
            .then_with(|| self.ttft_s.total_cmp(&other.ttft_s))
            .then_with(|| self.workers.cmp(&other.workers))
            .then_with(|| self.offers.cmp(&other.offers))
            == Ordering::Less
    }
}
