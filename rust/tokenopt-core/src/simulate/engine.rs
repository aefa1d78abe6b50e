//! The event loop: arrivals, wake-ups of ranks, hand-overs from prefill to decode.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, Ordering as AtomicOrdering};

use super::arrivals::{Arrivals, LengthSource, Random, RequestLengths};
use super::rank::{Progress, Rank, Request, Role};
use super::report::Outcomes;
use super::times::StepTimes;
use crate::error::CoreError;

/// Clients of a closed loop that march in step: they send requests of the same lengths at the same moment, again and again.
#[derive(Debug, Clone, Copy)]
struct Burst {
    clients: u32,
    rank: usize,
    /// When its requests were last drawn.
    drawn_s: f64,
    lengths: RequestLengths,
}

/// Replicas of one role that share their step times.
pub(super) struct Pool<'a> {
    pub times: StepTimes<'a>,
    pub ranks: Vec<Rank>,
}

impl<'a> Pool<'a> {
    /// `count` ranks that run at most `most_running` requests each.
    pub(super) fn new(
        mut times: StepTimes<'a>,
        role: Role,
        count: usize,
        most_running: usize,
        context: f64,
        has_bursts: bool,
    ) -> Self {
        let step_s = times.decode_step_s(1, context);
        let most_running = most_running.min(times.max_batch() as usize);
        let tokens = times.tokens_per_step();
        Self {
            times,
            ranks: (0..count)
                .map(|_| Rank::new(role, most_running, tokens, step_s, has_bursts))
                .collect(),
        }
    }

    /// The rank with the fewest requests; the first of equals.
    fn least_loaded(&self) -> usize {
        let mut best = 0;
        for (index, rank) in self.ranks.iter().enumerate() {
            if rank.assigned < self.ranks[best].assigned {
                best = index;
            }
        }
        best
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The next request of an open arrival process.
    Arrival,
    /// A burst of a closed loop begins.
    Start { burst: u32 },
    /// A request reaches its rank.
    Ready { pool: u8, slot: u32 },
    /// A rank's activity ends.
    Wake {
        pool: u8,
        rank: u32,
        generation: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Event {
    at_s: f64,
    /// Events of one time keep the order in which they were made.
    sequence: u64,
    kind: Kind,
}

impl Eq for Event {}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at_s
            .total_cmp(&other.at_s)
            .then(self.sequence.cmp(&other.sequence))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One run of the simulator.
pub(super) struct Engine<'a, 'b> {
    /// One pool that does both, or prefill and decode.
    pub pools: Vec<Pool<'a>>,
    arrivals: &'b Arrivals,
    lengths: LengthSource<'b>,
    random: Random,
    events: BinaryHeap<Reverse<Event>>,
    sequence: u64,
    requests: Vec<Request>,
    free: Vec<u32>,
    arrived: usize,
    bursts: Vec<Burst>,
    /// Seconds from prefill to decode, per prompt token.
    transfer_s_per_token: f64,
    pub outcomes: Outcomes,
    progress: Vec<Progress>,
}

impl<'a, 'b> Engine<'a, 'b> {
    pub(super) fn new(
        pools: Vec<Pool<'a>>,
        arrivals: &'b Arrivals,
        lengths: LengthSource<'b>,
        seed: u64,
        transfer_s_per_token: f64,
        outcomes: Outcomes,
    ) -> Self {
        Self {
            pools,
            arrivals,
            lengths,
            random: Random::new(seed ^ 0x5851_f42d_4c95_7f2d),
            events: BinaryHeap::new(),
            sequence: 0,
            requests: Vec::new(),
            free: Vec::new(),
            arrived: 0,
            bursts: Vec::new(),
            transfer_s_per_token,
            outcomes,
            progress: Vec::new(),
        }
    }

    /// Requests that have arrived and not ended.
    pub(super) fn backlog(&self) -> usize {
        self.requests.len() - self.free.len()
    }

    /// Runs until enough requests have finished, or none is left.
    pub(super) fn run(&mut self, stop: &AtomicBool) -> Result<(), CoreError> {
        match self.arrivals {
            Arrivals::Closed { concurrency } => self.start_bursts(*concurrency),
            Arrivals::Poisson { .. } | Arrivals::Trace { .. } => self.schedule_arrival(0.0),
        }
        let mut handled = 0_u64;
        while let Some(Reverse(event)) = self.events.pop() {
            handled += 1;
            if handled % 4096 == 0 && stop.load(AtomicOrdering::Relaxed) {
                return Err(CoreError::Interrupted);
            }
            self.handle(event);
            if self.outcomes.is_complete() {
                break;
            }
        }
        Ok(())
    }

    /// Spreads the clients of a closed loop over ranks and bursts, which begin evenly over the life of a request.
    fn start_bursts(&mut self, concurrency: u32) {
        let pool = &mut self.pools[0];
        let ranks = index_u32(pool.ranks.len()).min(concurrency);
        for rank in 0..ranks {
            let clients = concurrency / ranks + u32::from(rank < concurrency % ranks);
            let (count, life_s) = self.burst_plan(clients);
            for burst in 0..count {
                let number = index_u32(self.bursts.len());
                self.bursts.push(Burst {
                    clients: clients / count + u32::from(burst < clients % count),
                    rank: rank as usize,
                    drawn_s: f64::NEG_INFINITY,
                    lengths: RequestLengths {
                        isl: 1.0,
                        osl: 1.0,
                        cached: 0.0,
                    },
                });
                let at_s = life_s * f64::from(burst) / f64::from(count);
                self.schedule(at_s, Kind::Start { burst: number });
            }
        }
    }

    /// Number of bursts that `clients` of one rank form, and about how long a request lives.
    ///
    /// The burst share of the prompts that run beside one arrive with it: that is what makes the waits of the steady
    /// state.
    fn burst_plan(&mut self, clients: u32) -> (u32, f64) {
        let sample = self.lengths.typical();
        let last = self.pools.len() - 1;
        let times = &mut self.pools[last].times;
        let kept_bytes = times.kept_bytes(sample.isl + sample.osl);
        let running = f64::from(clients).min((times.cache_bytes() / kept_bytes).floor().max(1.0));
        // Pools of their own have a queue, not bursts.
        let share = if last == 0 { times.burst_share() } else { 0.0 };
        let size = 1.0 + share * (running - 1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and the number of clients"
        )]
        let count = (f64::from(clients) / size)
            .round()
            .clamp(1.0, f64::from(clients)) as u32;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 1 and at most the number of clients"
        )]
        let batch = running as usize;
        let step_s = times.decode_step_s(batch, sample.isl + 0.5 * sample.osl);
        (count, sample.osl * step_s)
    }

    fn handle(&mut self, event: Event) {
        match event.kind {
            Kind::Arrival => {
                let lengths = self.lengths.draw();
                if self.can_hold(&lengths) {
                    self.outcomes.accept();
                    let rank = self.pools[0].least_loaded();
                    self.submit(event.at_s, lengths, rank, 0);
                } else {
                    self.outcomes.refuse();
                    self.arrived += 1;
                }
                self.schedule_arrival(event.at_s);
            }
            Kind::Start { burst } => {
                for _ in 0..self.bursts[burst as usize].clients {
                    self.submit_of_burst(event.at_s, burst);
                }
            }
            Kind::Ready { pool, slot } => self.arrive(pool, slot, event.at_s),
            Kind::Wake {
                pool,
                rank,
                generation,
            } => {
                if self.pools[usize::from(pool)].ranks[rank as usize].generation == generation {
                    self.wake(pool, rank, event.at_s);
                }
            }
        }
    }

    fn schedule(&mut self, at_s: f64, kind: Kind) {
        self.sequence += 1;
        self.events.push(Reverse(Event {
            at_s,
            sequence: self.sequence,
            kind,
        }));
    }

    /// Plans the next request of an open arrival process.
    fn schedule_arrival(&mut self, now_s: f64) {
        let next_s = match self.arrivals {
            Arrivals::Closed { .. } => None,
            Arrivals::Poisson { requests_per_s } => {
                Some(now_s + self.random.exponential() / requests_per_s)
            }
            Arrivals::Trace { at_s } => at_s.get(self.arrived).copied(),
        };
        if let Some(at_s) = next_s {
            self.schedule(at_s, Kind::Arrival);
        }
    }

    /// A client of a closed loop sends its next request, with the lengths of those that its burst sends at this moment.
    fn submit_of_burst(&mut self, now_s: f64, burst: u32) {
        let Burst {
            rank,
            drawn_s,
            mut lengths,
            ..
        } = self.bursts[burst as usize];
        if drawn_s != now_s {
            lengths = self.lengths.draw();
            while !self.can_hold(&lengths) {
                self.outcomes.refuse();
                if self.outcomes.is_complete() {
                    return;
                }
                lengths = self.lengths.draw();
            }
            self.outcomes.accept();
            let known = &mut self.bursts[burst as usize];
            known.drawn_s = now_s;
            known.lengths = lengths;
        }
        self.submit(now_s, lengths, rank, burst);
    }

    /// A client sends a request: it reaches its rank after what the front end takes.
    fn submit(&mut self, now_s: f64, lengths: RequestLengths, rank: usize, burst: u32) {
        self.arrived += 1;
        let pool = &mut self.pools[0];
        pool.ranks[rank].assigned += 1;
        let lag_s = pool.times.front_s(pool.ranks[rank].step_s);
        let slot = self.slot(lengths, now_s, rank, burst);
        self.schedule(now_s + lag_s, Kind::Ready { pool: 0, slot });
    }

    /// Whether a rank could ever hold the request, alone.
    fn can_hold(&mut self, lengths: &RequestLengths) -> bool {
        let last = self.pools.len() - 1;
        let fits =
            |pool: &mut Pool<'_>, tokens| pool.times.kept_bytes(tokens) <= pool.times.cache_bytes();
        fits(&mut self.pools[0], lengths.isl)
            && fits(&mut self.pools[last], lengths.isl + lengths.osl)
    }

    fn slot(&mut self, lengths: RequestLengths, now_s: f64, rank: usize, burst: u32) -> u32 {
        let request = Request {
            lengths,
            submitted_s: now_s,
            ready_s: now_s,
            admitted_s: now_s,
            first_token_s: f64::NAN,
            position: lengths.cached,
            kept_bytes: 0.0,
            rank: index_u32(rank),
            burst,
        };
        if let Some(slot) = self.free.pop() {
            self.requests[slot as usize] = request;
            return slot;
        }
        self.requests.push(request);
        index_u32(self.requests.len() - 1)
    }

    fn arrive(&mut self, pool: u8, slot: u32, now_s: f64) {
        if pool == 1 {
            self.leave_prefill(slot, now_s);
        }
        let here = &mut self.pools[usize::from(pool)];
        let index = self.requests[slot as usize].rank;
        let rank = &mut here.ranks[index as usize];
        if let Some(at_s) = rank.enqueue(slot, now_s, &mut self.requests, &mut here.times) {
            let generation = rank.generation;
            self.schedule(
                at_s,
                Kind::Wake {
                    pool,
                    rank: index,
                    generation,
                },
            );
        }
    }

    /// A prompt's cache has moved: its prefill rank has room again, and the request belongs to a decode rank.
    fn leave_prefill(&mut self, slot: u32, now_s: f64) {
        let request = self.requests[slot as usize];
        let old = request.rank;
        let prefill = &mut self.pools[0];
        let rank = &mut prefill.ranks[old as usize];
        rank.leave(request.kept_bytes);
        if rank.is_idle() && rank.queue() > 0 {
            if let Some(at_s) = rank.begin(now_s, &mut self.requests, &mut prefill.times) {
                let generation = rank.generation;
                self.schedule(
                    at_s,
                    Kind::Wake {
                        pool: 0,
                        rank: old,
                        generation,
                    },
                );
            }
        }
        let new = self.pools[1].least_loaded();
        self.pools[1].ranks[new].assigned += 1;
        self.requests[slot as usize].rank = index_u32(new);
    }

    fn wake(&mut self, pool: u8, index: u32, now_s: f64) {
        let mut progress = std::mem::take(&mut self.progress);
        progress.clear();
        let here = &mut self.pools[usize::from(pool)];
        let rank = &mut here.ranks[index as usize];
        rank.finish(now_s, &mut self.requests, &mut progress);
        if let Some(at_s) = rank.begin(now_s, &mut self.requests, &mut here.times) {
            let generation = rank.generation;
            self.schedule(
                at_s,
                Kind::Wake {
                    pool,
                    rank: index,
                    generation,
                },
            );
        }
        for done in &progress {
            match *done {
                Progress::HandOver(slot) => {
                    let moved = self.requests[slot as usize].lengths.isl;
                    let at_s = now_s + self.transfer_s_per_token * moved;
                    self.schedule(at_s, Kind::Ready { pool: 1, slot });
                }
                Progress::Finished(slot) => self.complete(slot, now_s),
            }
        }
        self.progress = progress;
    }

    fn complete(&mut self, slot: u32, now_s: f64) {
        let request = self.requests[slot as usize];
        self.free.push(slot);
        if self.outcomes.record(&request, now_s) {
            for rank in self.pools.iter_mut().flat_map(|pool| &mut pool.ranks) {
                rank.load = super::rank::Load::default();
            }
        }
        if self.outcomes.is_half_way() {
            self.outcomes.backlog_half_way = self.backlog();
        }
        if matches!(self.arrivals, Arrivals::Closed { .. }) && !self.outcomes.is_complete() {
            self.submit_of_burst(now_s, request.burst);
        }
    }
}

/// A place in a list that is never longer than 2^32.
fn index_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
