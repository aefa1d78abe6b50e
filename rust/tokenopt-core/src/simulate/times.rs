//! Step times at any batch, context and prompt position, from the operators of [`StepModel`]: tables filled on demand,
//! never a second formula.

use crate::ops::attention::Lengths;
use crate::parameters::EngineParameters;
use crate::search::scan::LayoutModel;
use crate::search::SearchProblem;
use crate::serving::steady::rank_waiting;
use crate::serving::{Layout, StepModel};

/// Cells of the length grid per doubling: 8, so that a quadratic is met within 0.2% between two of them.
const CELL_BITS: u32 = 3;
const MANTISSA_BITS: u32 = 52;
const FRACTION_BITS: u32 = MANTISSA_BITS - CELL_BITS;
/// Cell of a length of one token.
const FIRST_CELL: u64 = 1023 << CELL_BITS;

/// What reaches a rank, and through which front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// Clients of a closed loop.
    Closed,
    /// Independent users.
    Open,
    /// The workers of a disaggregated fleet.
    Pool,
}

/// Where a worker runs: what every step time is built from.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Model, chips and engines.
    pub problem: &'a SearchProblem,
    /// Index of the stack.
    pub stack: usize,
    /// Layout of the worker.
    pub layout: Layout,
    /// Tokens drafted per step.
    pub depth: u32,
    /// Prefill chunk, tokens.
    pub chunk_tokens: u32,
    /// What reaches it.
    pub front: Front,
}

impl<'a> Place<'a> {
    fn model(&self, lengths: &Lengths) -> LayoutModel<'a> {
        LayoutModel::new(self.problem, self.stack, self.layout, self.depth, lengths)
    }

    fn parameters(&self) -> &'a EngineParameters {
        &self.problem.stacks[self.stack].parameters
    }
}

/// Times and bytes of one place, by batch and length.
pub struct StepTimes<'a> {
    place: Place<'a>,
    /// The operators at the workload's nominal lengths: what does not depend on a request's own length.
    nominal: StepModel,
    cells: Vec<Option<Box<Cell>>>,
    /// Seconds that one prompt token adds to a step that decodes, in full chunks.
    added_s_per_token: f64,
    prompt_overhead_s: f64,
    rank_waiting: f64,
    stages: f64,
    cache_bytes: f64,
    max_batch: u32,
}

/// What is known at one length of the grid.
#[derive(Debug)]
struct Cell {
    step: StepModel,
    prompt_core_s: f64,
    kept_bytes: f64,
    /// Decode step by batch; NaN where it was not asked for yet.
    decode_step_s: Vec<f64>,
}

impl<'a> StepTimes<'a> {
    /// Hoists what does not depend on a request; `lengths` are the workload's nominal ones.
    #[must_use]
    pub fn new(place: Place<'a>, lengths: &Lengths) -> Self {
        let LayoutModel {
            step: nominal,
            memory,
            max_batch,
            ..
        } = place.model(lengths);
        let chunk_tokens = f64::from(place.chunk_tokens);
        let prefill = nominal.prefill(chunk_tokens);
        let shared_s = prefill.marginal_s - nominal.prompt_core_s - nominal.prompt_overhead_s;
        let stages = f64::from(place.layout.pp);
        Self {
            added_s_per_token: (shared_s / nominal.prompt_tokens).max(0.0),
            prompt_overhead_s: if place.front == Front::Open {
                0.0
            } else {
                nominal.prompt_overhead_s
            },
            rank_waiting: rank_waiting(place.parameters(), place.layout),
            stages,
            // The pipeline slots of a rank share its chips' memory.
            cache_bytes: memory.cache_bytes(chunk_tokens) / stages,
            max_batch,
            nominal,
            cells: Vec::new(),
            place,
        }
    }

    /// Most requests that the engine runs at once on a rank and pipeline slot.
    #[must_use]
    pub fn max_batch(&self) -> u32 {
        self.max_batch
    }

    /// Output tokens that a request gains in a step.
    #[must_use]
    pub fn tokens_per_step(&self) -> f64 {
        self.nominal.tokens_per_step
    }

    /// Share of prompts that arrive together.
    #[must_use]
    pub fn burst_share(&self) -> f64 {
        self.place.parameters().burst_share
    }

    /// Bytes for the caches of one rank and pipeline slot.
    #[must_use]
    pub fn cache_bytes(&self) -> f64 {
        self.cache_bytes
    }

    /// Prompt tokens of a chunk.
    #[must_use]
    pub fn chunk_tokens(&self) -> f64 {
        f64::from(self.place.chunk_tokens)
    }

    /// Seconds between a client and the queue of a rank whose decode step takes `step_s`.
    ///
    /// In a closed loop the engine's own steps until the first token count too, of which the wait for the running one and
    /// the prompt's own are simulated. In an open one they do not, and host work on prompts runs beside the steps: see
    /// [`crate::serving::open_loop`]. Pools of a disaggregated fleet pay the fixed latency alone.
    #[must_use]
    pub fn front_s(&self, step_s: f64) -> f64 {
        const SIMULATED_STEPS: f64 = 1.5;
        let parameters = self.place.parameters();
        let own_s = match self.place.front {
            Front::Closed => (parameters.first_token_steps - SIMULATED_STEPS).max(0.0) * step_s,
            Front::Open => self.nominal.prompt_overhead_s,
            Front::Pool => 0.0,
        };
        parameters.first_token_overhead_s + own_s
    }

    /// Seconds of a decode step of `batch` requests whose contexts average `context` tokens.
    ///
    /// Assumes: the step depends on the mean context alone, which is exact where attention reads the whole context and
    /// close where a window cuts it.
    #[must_use]
    pub fn decode_step_s(&mut self, batch: usize, context: f64) -> f64 {
        self.between(context, |cell| cell.decode_step_s(batch))
    }

    /// Seconds of a step that prefills `tokens` prompt tokens, whose attention and host work take `own_s`, and decodes
    /// one token of each running request, which alone takes `decode_s` (0 = none is running). `is_last` where a prompt
    /// ends in this chunk.
    ///
    /// Beside decode, weights stream once and a prompt token costs its share of a full chunk, as in the steady state;
    /// no step is shorter than its chunk alone.
    #[must_use]
    pub fn mixed_step_s(&self, tokens: f64, own_s: f64, decode_s: f64, is_last: bool) -> f64 {
        let alone_s = self.nominal.chunk_s(tokens);
        if decode_s > 0.0 {
            let added_s = tokens * self.added_s_per_token + own_s;
            return (decode_s + added_s).max(alone_s + own_s);
        }
        // Chunks of one prompt follow each other through the pipeline; only the last waits for every stage.
        own_s
            + if is_last {
                alone_s
            } else {
                alone_s / self.stages
            }
    }

    /// Seconds that the decode steps of a rank wait for the prompts of other attention ranks while as many prompt tokens
    /// as `tokens`, with `own_s` for their attention and host work, are its own: balanced ranks prefill as much as each
    /// other.
    #[must_use]
    pub fn others_s(&self, tokens: f64, own_s: f64) -> f64 {
        (tokens * self.added_s_per_token + own_s) * (self.rank_waiting - 1.0)
    }

    /// Seconds of the mixer core for the prompt tokens from `from` to `to`.
    #[must_use]
    pub fn prompt_core_s(&mut self, from: f64, to: f64) -> f64 {
        self.prompt_core_up_to(to) - self.prompt_core_up_to(from)
    }

    fn prompt_core_up_to(&mut self, tokens: f64) -> f64 {
        if tokens < 1.0 {
            return 0.0;
        }
        self.between(tokens, |cell| cell.prompt_core_s)
    }

    /// Host seconds that a prompt adds to its first step.
    #[must_use]
    pub fn prompt_overhead_s(&self) -> f64 {
        self.prompt_overhead_s
    }

    /// Bytes a request keeps on the fullest chip at `tokens` tokens.
    #[must_use]
    pub fn kept_bytes(&mut self, tokens: f64) -> f64 {
        self.between(tokens, |cell| cell.kept_bytes)
    }

    /// A figure at `length`, linear between the two cells around it.
    fn between(&mut self, length: f64, mut figure: impl FnMut(&mut Cell) -> f64) -> f64 {
        let bits = length.max(1.0).to_bits();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "8 cells an octave of a length"
        )]
        let index = ((bits >> FRACTION_BITS) - FIRST_CELL) as usize;
        let fraction = (bits & ((1 << FRACTION_BITS) - 1)) as f64 / (1_u64 << FRACTION_BITS) as f64;
        let low = figure(self.cell(index));
        if fraction == 0.0 {
            return low;
        }
        let high = figure(self.cell(index + 1));
        low + (high - low) * fraction
    }

    fn cell(&mut self, index: usize) -> &mut Cell {
        if self.cells.len() <= index {
            self.cells.resize_with(index + 1, || None);
        }
        let place = self.place;
        self.cells[index].get_or_insert_with(|| {
            let length = f64::from_bits((index as u64 + FIRST_CELL) << FRACTION_BITS);
            Box::new(Cell::new(&place, length))
        })
    }
}

impl Cell {
    fn new(place: &Place<'_>, length: f64) -> Self {
        // A request that has its whole length in the prompt decodes at exactly that context.
        let lengths = Lengths {
            isl: length,
            osl: 0.0,
            cached: 0.0,
        };
        let LayoutModel { step, memory, .. } = place.model(&lengths);
        Self {
            prompt_core_s: step.prompt_core_s,
            kept_bytes: memory.request_bytes,
            step,
            decode_step_s: Vec::new(),
        }
    }

    fn decode_step_s(&mut self, batch: usize) -> f64 {
        if self.decode_step_s.len() <= batch {
            self.decode_step_s.resize(batch + 1, f64::NAN);
        }
        let known = &mut self.decode_step_s[batch];
        if known.is_nan() {
            *known = self.step.decode_step_s(batch as f64);
        }
        *known
    }
}
