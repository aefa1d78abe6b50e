//! One batch of continuous batching: an attention rank and pipeline slot with its queue, its chunked prefill and its
//! decode steps.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::arrivals::RequestLengths;
use super::times::StepTimes;

/// Decode steps advanced at once at most: over so few the context, and with it the step, hardly grows.
const MOST_STEPS_AT_ONCE: u64 = 256;

/// A request in the system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub lengths: RequestLengths,
    /// When the client sent it.
    pub submitted_s: f64,
    /// When it reached the queue of its rank.
    pub ready_s: f64,
    /// When it found room there.
    pub admitted_s: f64,
    /// When its first token was out; NaN before.
    pub first_token_s: f64,
    /// Prompt tokens computed or cached.
    pub position: f64,
    /// Cache it holds on its rank, bytes.
    pub kept_bytes: f64,
    /// Its rank.
    pub rank: u32,
    /// The clients it marches in step with; of a closed loop only.
    pub burst: u32,
}

/// What a rank does with a prompt once it is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Prefill and decode.
    Both,
    /// Prefill, then hand over.
    Prefill,
    /// Decode what was prefilled elsewhere.
    Decode,
}

/// What a rank is at, until it wakes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Activity {
    Idle,
    /// `steps` decode steps of `step_s` each.
    Decode {
        step_s: f64,
        steps: u64,
    },
    /// One step that carries prompt tokens; `prompts` of them end in it, and without them it would take `decode_s`.
    Mixed {
        prompts: usize,
        decode_s: f64,
    },
}

/// What a finished activity did to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Its prompt is done; it goes to another rank.
    HandOver(u32),
    /// Its last token is out.
    Finished(u32),
}

/// Time-weighted sums over a measured stretch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    pub batch_s: f64,
    pub cache_s: f64,
    pub busy_s: f64,
    pub prefill_s: f64,
    pub most_waiting: usize,
    pub most_running: usize,
}

#[derive(Debug)]
pub(super) struct Rank {
    role: Role,
    most_running: usize,
    /// Output tokens that a request gains in a step.
    tokens_per_step: f64,
    waiting: VecDeque<u32>,
    prefilling: VecDeque<u32>,
    /// Whether prompts that arrive at the same moment all prefill before any of them decodes.
    has_bursts: bool,
    /// Prompts of a burst that are done and wait for the others.
    held: Vec<u32>,
    /// Running requests by the step in which they end.
    running: BinaryHeap<Reverse<(u64, u32)>>,
    /// Decode steps done.
    steps: u64,
    /// Sum of the running requests' contexts, tokens.
    context: f64,
    cache_bytes: f64,
    /// Requests sent here that have not left.
    pub assigned: usize,
    /// The latest decode step, s.
    pub step_s: f64,
    /// Seconds that the next steps wait for the prompts of other ranks.
    owed_s: f64,
    activity: Activity,
    started_s: f64,
    /// Wake-ups of older plans are void.
    pub generation: u32,
    pub load: Load,
}

impl Rank {
    pub(super) fn new(
        role: Role,
        most_running: usize,
        tokens_per_step: f64,
        step_s: f64,
        has_bursts: bool,
    ) -> Self {
        Self {
            role,
            most_running,
            tokens_per_step,
            waiting: VecDeque::new(),
            prefilling: VecDeque::new(),
            has_bursts,
            held: Vec::new(),
            running: BinaryHeap::new(),
            steps: 0,
            context: 0.0,
            cache_bytes: 0.0,
            assigned: 0,
            step_s,
            owed_s: 0.0,
            activity: Activity::Idle,
            started_s: 0.0,
            generation: 0,
            load: Load::default(),
        }
    }

    /// Takes a request into the queue. Returns the time of the new wake-up when the rank's plan changed.
    pub(super) fn enqueue(
        &mut self,
        slot: u32,
        now_s: f64,
        requests: &mut [Request],
        times: &mut StepTimes<'_>,
    ) -> Option<f64> {
        let request = &mut requests[slot as usize];
        request.ready_s = now_s;
        let RequestLengths { isl, osl, .. } = request.lengths;
        request.kept_bytes = times.kept_bytes(if self.role == Role::Prefill {
            isl
        } else {
            isl + osl
        });
        let fits = self.waiting.is_empty() && self.has_room(request.kept_bytes, times);
        self.waiting.push_back(slot);
        self.load.most_waiting = self.load.most_waiting.max(self.waiting.len());
        match self.activity {
            Activity::Idle => self.begin(now_s, requests, times),
            Activity::Decode { step_s, steps } if fits => {
                // The step that runs goes to its end, the ones planned after it make room for the prompt.
                let done = whole_steps((now_s - self.started_s) / step_s).clamp(1, steps);
                (done < steps).then(|| {
                    self.activity = Activity::Decode {
                        step_s,
                        steps: done,
                    };
                    self.generation = self.generation.wrapping_add(1);
                    self.started_s + step_s * done as f64
                })
            }
            _ => None,
        }
    }

    fn has_room(&self, kept_bytes: f64, times: &StepTimes<'_>) -> bool {
        let held = self.running.len() + self.prefilling.len() + self.held.len();
        held < self.most_running && self.cache_bytes + kept_bytes <= times.cache_bytes()
    }

    /// Admits what fits and plans the next activity. Returns when it ends; None when there is nothing to do.
    pub(super) fn begin(
        &mut self,
        now_s: f64,
        requests: &mut [Request],
        times: &mut StepTimes<'_>,
    ) -> Option<f64> {
        self.admit(now_s, requests, times);
        if self.prefilling.is_empty() {
            // The rest of the burst finds no room.
            self.release(now_s, requests);
        }
        self.started_s = now_s;
        self.generation = self.generation.wrapping_add(1);
        let duration_s = if !self.prefilling.is_empty() {
            self.plan_mixed(requests, times)
        } else if let Some(Reverse((next_end, _))) = self.running.peek() {
            let steps = (next_end - self.steps).clamp(1, MOST_STEPS_AT_ONCE);
            let batch = self.running.len();
            // Every step adds a token to each context: the mean step is the one half way.
            let context =
                self.context / batch as f64 + 0.5 * (steps - 1) as f64 * self.tokens_per_step;
            self.step_s = times.decode_step_s(batch, context);
            let step_s = self.step_s + std::mem::take(&mut self.owed_s) / steps as f64;
            self.activity = Activity::Decode { step_s, steps };
            step_s * steps as f64
        } else {
            self.activity = Activity::Idle;
            return None;
        };
        Some(now_s + duration_s)
    }

    fn admit(&mut self, now_s: f64, requests: &mut [Request], times: &StepTimes<'_>) {
        while let Some(&slot) = self.waiting.front() {
            let request = &mut requests[slot as usize];
            if !self.has_room(request.kept_bytes, times) {
                break;
            }
            request.admitted_s = now_s;
            self.cache_bytes += request.kept_bytes;
            self.waiting.pop_front();
            if self.role == Role::Decode {
                // The first token that the prefill made comes out with the first step here.
                request.first_token_s = now_s + self.step_s;
                self.context += request.lengths.isl + 1.0;
                let end =
                    self.steps + whole_steps((request.lengths.osl - 1.0) / self.tokens_per_step);
                self.running.push(Reverse((end, slot)));
            } else {
                self.prefilling.push_back(slot);
            }
        }
        self.load.most_running = self
            .load
            .most_running
            .max(self.running.len() + self.prefilling.len());
    }

    /// One step with as many prompt tokens as a chunk takes, first come first served. Returns its seconds.
    fn plan_mixed(&mut self, requests: &mut [Request], times: &mut StepTimes<'_>) -> f64 {
        let batch = self.running.len();
        let decode_s = if batch == 0 {
            0.0
        } else {
            times.decode_step_s(batch, self.context / batch as f64)
        };
        let mut room = times.chunk_tokens();
        let mut tokens = 0.0;
        let mut prompts = 0;
        let mut own_s = 0.0;
        for &slot in &self.prefilling {
            let request = &mut requests[slot as usize];
            let RequestLengths { isl, cached, .. } = request.lengths;
            let part = (isl - request.position).min(room);
            own_s += times.prompt_core_s(request.position, request.position + part);
            if request.position <= cached {
                own_s += times.prompt_overhead_s();
            }
            request.position += part;
            tokens += part;
            room -= part;
            if request.position < isl {
                break;
            }
            prompts += 1;
            if room <= 0.0 {
                break;
            }
        }
        self.activity = Activity::Mixed { prompts, decode_s };
        if batch > 0 {
            self.step_s = decode_s;
        }
        let owed_s = std::mem::replace(&mut self.owed_s, times.others_s(tokens, own_s));
        times.mixed_step_s(tokens, own_s, decode_s, prompts > 0)
            + if batch > 0 { owed_s } else { 0.0 }
    }

    /// Ends the activity at `now_s` and reports what it did.
    pub(super) fn finish(
        &mut self,
        now_s: f64,
        requests: &mut [Request],
        progress: &mut Vec<Progress>,
    ) {
        let seconds = now_s - self.started_s;
        self.load.batch_s += seconds * self.running.len() as f64;
        self.load.cache_s += seconds * self.cache_bytes;
        let steps = match self.activity {
            Activity::Idle => return,
            Activity::Decode { steps, .. } => steps,
            Activity::Mixed { .. } => 1,
        };
        self.load.busy_s += seconds;
        if !self.running.is_empty() {
            self.steps += steps;
            self.context += steps as f64 * self.tokens_per_step * self.running.len() as f64;
        }
        while let Some(&Reverse((end, slot))) = self.running.peek() {
            if end > self.steps {
                break;
            }
            self.running.pop();
            let request = &requests[slot as usize];
            let steps = self.steps_after_first(request) as f64;
            self.context -= request.lengths.isl + 1.0 + steps * self.tokens_per_step;
            self.leave(request.kept_bytes);
            progress.push(Progress::Finished(slot));
        }
        if let Activity::Mixed { prompts, decode_s } = self.activity {
            self.load.prefill_s += seconds - decode_s;
            for _ in 0..prompts {
                if let Some(slot) = self.prefilling.pop_front() {
                    self.end_prompt(slot, now_s, requests, progress);
                }
            }
        }
        if self.running.is_empty() {
            // Sums of many terms drift by rounding: an empty rank starts clean.
            self.context = 0.0;
        }
        self.activity = Activity::Idle;
    }

    /// A prompt is computed: it goes elsewhere, ends, or decodes once its burst is done.
    fn end_prompt(
        &mut self,
        slot: u32,
        now_s: f64,
        requests: &mut [Request],
        progress: &mut Vec<Progress>,
    ) {
        let request = &mut requests[slot as usize];
        let ready_s = request.ready_s;
        request.first_token_s = now_s;
        if self.role == Role::Prefill {
            progress.push(Progress::HandOver(slot));
            return;
        }
        if request.lengths.osl <= 1.0 {
            let kept_bytes = request.kept_bytes;
            self.leave(kept_bytes);
            progress.push(Progress::Finished(slot));
            return;
        }
        self.held.push(slot);
        let next = self.prefilling.front().or(self.waiting.front());
        let is_burst = self.has_bursts
            && next.is_some_and(|&other| requests[other as usize].ready_s == ready_s);
        if !is_burst {
            self.release(now_s, requests);
        }
    }

    /// Lets the prompts that are done decode.
    fn release(&mut self, now_s: f64, requests: &mut [Request]) {
        for slot in std::mem::take(&mut self.held) {
            let request = &mut requests[slot as usize];
            request.first_token_s = now_s;
            self.context += request.lengths.isl + 1.0;
            let end = self.steps + self.steps_after_first(request);
            self.running.push(Reverse((end, slot)));
        }
    }

    /// Decode steps of a request after its first token.
    fn steps_after_first(&self, request: &Request) -> u64 {
        whole_steps((request.lengths.osl - 1.0) / self.tokens_per_step)
    }

    /// Frees what a request held.
    pub(super) fn leave(&mut self, kept_bytes: f64) {
        self.cache_bytes -= kept_bytes;
        self.assigned -= 1;
        if self.assigned == 0 {
            self.cache_bytes = 0.0;
        }
    }

    /// Whether nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        self.activity == Activity::Idle
    }

    /// Requests waiting for room.
    pub(super) fn queue(&self) -> usize {
        self.waiting.len()
    }
}

/// The next whole number from `steps` on.
fn whole_steps(steps: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped first; a token count"
    )]
    let whole = (steps - 1e-9).ceil().clamp(0.0, 1e12) as u64;
    whole
}
