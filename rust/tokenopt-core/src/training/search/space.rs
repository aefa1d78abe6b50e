//! The space of layouts of one stack: described by its axes, decoded by index, never listed.
//!
//! The expensive part of a step depends on the split of a micro-batch alone ([`SplitSpace`]); pipelines, schedules,
//! recomputation and sharding ([`FrameSpace`]) and the data-parallel degree follow inside it.

use super::problem::{TrainProblem, TrainSpaceSpec};
use crate::accelerator::Accelerator;
use crate::model::{Ffn, ModelSpec};
use crate::training::{
    ContextExchange, Recompute, Schedule, Sharding, Split, TrainingJob, TrainingLayout,
};

/// Micro-batches tried by default; larger ones only grow activations once the products are long.
const MICRO_BATCHES: &[u32] = &[1, 2, 3, 4, 6, 8, 12, 16, 24, 32];
/// Pipeline depths tried besides those that divide the layers.
const DEPTHS: &[u32] = &[1, 2, 4, 8, 16, 32, 64];
/// Least tokens of a sequence that a context-parallel rank keeps by default: shorter pieces leave products too short.
const LEAST_TOKENS_PER_RANK: f64 = 256.0;

/// Divisors of `number`, ascending.
#[must_use]
pub fn divisors(number: u32) -> Vec<u32> {
    let mut low: Vec<u32> = (1..)
        .take_while(|divisor| u64::from(*divisor) * u64::from(*divisor) <= u64::from(number))
        .filter(|divisor| number % divisor == 0)
        .collect();
    let high: Vec<u32> = low
        .iter()
        .rev()
        .map(|divisor| number / divisor)
        .filter(|divisor| divisor * divisor != number)
        .collect();
    low.extend(high);
    low
}

fn sorted(mut values: Vec<u32>) -> Vec<u32> {
    values.sort_unstable();
    values.dedup();
    values
}

/// Splits of a micro-batch: tensor, context and expert parallelism, and how many sequences it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitSpace {
    tp: Vec<u32>,
    cp: Vec<u32>,
    ep: Vec<u32>,
    /// Whether tensor parallelism also cuts the experts.
    expert_tp: Vec<bool>,
    micro_batch: Vec<u32>,
}

impl SplitSpace {
    /// Axes for a problem on one accelerator.
    #[must_use]
    pub fn new(problem: &TrainProblem, accelerator: &Accelerator) -> Self {
        let spec = &problem.space;
        let model = &problem.model;
        let most = problem.limits.max_chips;
        let experts = expert_count(model);
        let tp = spec
            .tp
            .clone()
            .unwrap_or_else(|| (1..=accelerator.scale_up.domain_chips.max(1).min(most)).collect());
        let cp = spec.cp.clone().unwrap_or_else(|| {
            let tokens = problem.job.seq_len;
            let mut values = vec![1];
            if tokens.fract() == 0.0 && tokens <= f64::from(u32::MAX) {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "checked above"
                )]
                let half = tokens as u32 / 2;
                values.extend(divisors(half.max(1)).into_iter().filter(|degree| {
                    *degree > 1 && tokens / f64::from(*degree) >= LEAST_TOKENS_PER_RANK
                }));
            }
            values
        });
        let ep = spec.ep.clone().unwrap_or_else(|| divisors(experts.max(1)));
        let batch = problem.job.global_batch * (1.0 + problem.batch_tolerance);
        let micro_batch = spec
            .micro_batch
            .clone()
            .unwrap_or_else(|| MICRO_BATCHES.to_vec());
        Self {
            tp: sorted(tp),
            cp: sorted(cp.into_iter().filter(|degree| *degree <= most).collect()),
            ep: sorted(ep.into_iter().filter(|degree| *degree <= most).collect()),
            expert_tp: if experts > 0 {
                vec![false, true]
            } else {
                vec![false]
            },
            micro_batch: sorted(
                micro_batch
                    .into_iter()
                    .filter(|size| f64::from(*size) <= batch)
                    .collect(),
            ),
        }
    }

    /// Points of the product, legal or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tp.len()
            * self.cp.len()
            * self.ep.len()
            * self.expert_tp.len()
            * self.micro_batch.len()
    }

    /// Whether an axis is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The split at `index`.
    #[must_use]
    pub fn decode(&self, index: usize) -> Split {
        let mut rest = index;
        let mut place = |length: usize| {
            let value = rest % length;
            rest /= length;
            value
        };
        let micro_batch = self.micro_batch[place(self.micro_batch.len())];
        let is_cut = self.expert_tp[place(self.expert_tp.len())];
        let ep = self.ep[place(self.ep.len())];
        let cp = self.cp[place(self.cp.len())];
        let tp = self.tp[place(self.tp.len())];
        Split {
            tp,
            sequence_parallel: tp > 1,
            cp,
            ep,
            etp: if is_cut { tp } else { 1 },
            micro_batch,
            async_tensor: false,
            context_exchange: ContextExchange::Ring,
        }
    }

    /// Index of a split, None when it is not in the space.
    #[must_use]
    pub fn encode(&self, split: &Split) -> Option<usize> {
        let place = |axis: &[u32], value: u32| axis.iter().position(|known| *known == value);
        let is_cut = split.etp > 1;
        let places = [
            (place(&self.tp, split.tp)?, self.tp.len()),
            (place(&self.cp, split.cp)?, self.cp.len()),
            (place(&self.ep, split.ep)?, self.ep.len()),
            (
                self.expert_tp.iter().position(|known| *known == is_cut)?,
                self.expert_tp.len(),
            ),
            (
                place(&self.micro_batch, split.micro_batch)?,
                self.micro_batch.len(),
            ),
        ];
        Some(
            places
                .into_iter()
                .fold(0, |index, (value, length)| index * length + value),
        )
    }

    /// Whether some layout with this split can train the model (memory aside). An expert split that equals the plain
    /// one (`tp` 1) is left to its twin.
    #[must_use]
    pub fn is_legal(
        &self,
        split: &Split,
        is_cut: bool,
        model: &ModelSpec,
        accelerator: &Accelerator,
        job: &TrainingJob,
    ) -> bool {
        if is_cut && split.tp == 1 {
            return false;
        }
        // The smallest job that holds one copy of the experts.
        let group = split.ep * split.etp;
        let ranks = split.tp * split.cp;
        let dp = group / common_divisor(group, ranks);
        let layout = layout_of(
            split,
            1,
            1,
            dp,
            Sharding::Zero1,
            Recompute::None,
            Schedule::default(),
        );
        let smallest = TrainingJob {
            global_batch: f64::from(dp) * f64::from(split.micro_batch),
            ..*job
        };
        layout.refusal(model, accelerator, &smallest).is_none()
    }

    /// Whether the split at `index` cuts the experts.
    #[must_use]
    pub fn cuts_experts(&self, index: usize) -> bool {
        self.expert_tp[index / self.micro_batch.len() % self.expert_tp.len()]
    }
}

/// Greatest common divisor.
#[must_use]
pub fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 {
        a
    } else {
        common_divisor(b, a % b)
    }
}

/// Most routed experts of a layer; 0 for a dense model.
#[must_use]
pub fn expert_count(model: &ModelSpec) -> u32 {
    model
        .layers
        .iter()
        .map(|group| match group.ffn {
            Ffn::Moe { experts, .. } => experts,
            _ => 0,
        })
        .max()
        .unwrap_or(0)
}

/// A layout from its parts.
#[must_use]
pub fn layout_of(
    split: &Split,
    pp: u32,
    vpp: u32,
    dp: u32,
    sharding: Sharding,
    recompute: Recompute,
    schedule: Schedule,
) -> TrainingLayout {
    TrainingLayout {
        tp: split.tp,
        sequence_parallel: split.sequence_parallel,
        pp,
        vpp,
        cp: split.cp,
        ep: split.ep,
        etp: split.etp,
        dp,
        sharding,
        micro_batch: split.micro_batch,
        recompute,
        schedule,
        async_tensor: split.async_tensor,
        context_exchange: split.context_exchange,
    }
}

/// Everything of a layout but split and data parallelism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Pipeline stages.
    pub pp: u32,
    /// Chunks of layers a stage holds.
    pub vpp: u32,
    /// Sharding.
    pub sharding: Sharding,
    /// Recomputation.
    pub recompute: Recompute,
    /// Pipeline schedule.
    pub schedule: Schedule,
}

/// Pipelines, schedules, recomputation and sharding for one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameSpace {
    pipelines: Vec<(u32, u32)>,
    schedules: Vec<Schedule>,
    recompute: Vec<Recompute>,
    sharding: Vec<Sharding>,
}

impl FrameSpace {
    /// Axes for one model on one accelerator and split.
    #[must_use]
    pub fn new(
        spec: &TrainSpaceSpec,
        model: &ModelSpec,
        accelerator: &Accelerator,
        split: &Split,
    ) -> Self {
        let layers: u32 = model.layers.iter().map(|group| group.count).sum();
        // Layers plus embedding and head may divide where the layers alone do not.
        let depths = spec.pp.clone().unwrap_or_else(|| {
            let mut values = divisors(layers);
            values.extend(divisors(layers + 2));
            values.extend(DEPTHS);
            values
        });
        let mut pipelines = Vec::new();
        for pp in sorted(depths) {
            let chunks = spec.vpp.clone().unwrap_or_else(|| {
                if pp == 1 {
                    return vec![1];
                }
                let mut values = vec![1];
                for slots in [layers, layers + 2] {
                    if slots % pp == 0 {
                        values.extend(divisors(slots / pp));
                    }
                }
                values
            });
            for vpp in sorted(chunks) {
                let fits = u64::from(pp) * u64::from(vpp) <= u64::from(layers) + 2;
                if fits && (vpp == 1 || pp > 1) {
                    pipelines.push((pp, vpp));
                }
            }
        }
        let sharding = spec.sharding.clone().unwrap_or_else(|| {
            let mut values = vec![
                Sharding::Zero1,
                Sharding::Zero3,
                Sharding::Zero2,
                Sharding::Zero0,
            ];
            // Shards that stay inside the fast fabric.
            let room = (accelerator.scale_up.domain_chips / split.tp).max(1);
            let ranks = 1 << room.ilog2();
            if ranks > 1 {
                values.push(Sharding::Hybrid(ranks));
            }
            values
        });
        Self {
            pipelines,
            schedules: spec
                .schedule
                .clone()
                .unwrap_or_else(|| vec![Schedule::OneForwardOneBackward, Schedule::ZeroBubble]),
            recompute: spec.recompute.clone().unwrap_or_else(|| {
                let mut values = vec![Recompute::None, Recompute::Selective, Recompute::Full];
                values.extend((1..4).map(|quarter| Recompute::Blocks(quarter * layers / 4)));
                values
            }),
            sharding,
        }
    }

    /// Points of the product without sharding, legal or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pipelines.len() * self.schedules.len() * self.recompute.len()
    }

    /// Whether an axis is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 || self.sharding.is_empty()
    }

    /// Frames of the product, legal or not.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.len() * self.sharding.len()
    }

    /// The frame at `index` with the first sharding; None where it is no schedule of its own: zero bubble without a
    /// pipeline or with interleaving, blocks that round to none.
    #[must_use]
    pub fn decode(&self, index: usize) -> Option<Frame> {
        let mut rest = index;
        let mut place = |length: usize| {
            let value = rest % length;
            rest /= length;
            value
        };
        let recompute = self.recompute[place(self.recompute.len())];
        let schedule = self.schedules[place(self.schedules.len())];
        let (pp, vpp) = self.pipelines[place(self.pipelines.len())];
        if schedule == Schedule::ZeroBubble && (pp == 1 || vpp > 1) {
            return None;
        }
        // Blocks are counted per stage.
        let recompute = match recompute {
            Recompute::Blocks(layers) => {
                let blocks = layers / pp;
                if blocks == 0 {
                    return None;
                }
                Recompute::Blocks(blocks)
            }
            other => other,
        };
        Some(Frame {
            pp,
            vpp,
            sharding: *self.sharding.first()?,
            recompute,
            schedule,
        })
    }

    /// A frame with every sharding that goes with it; a pipeline keeps weights and gradients whole from the first
    /// micro-batch to the last, so that sharding them comes to sharding the optimizer state.
    pub fn shardings(&self, frame: Frame) -> impl Iterator<Item = Frame> + '_ {
        self.sharding
            .iter()
            .filter(move |sharding| {
                frame.pp == 1 || matches!(sharding, Sharding::Zero0 | Sharding::Zero1)
            })
            .map(move |sharding| Frame {
                sharding: *sharding,
                ..frame
            })
    }
}

impl Frame {
    /// The whole layout.
    #[must_use]
    pub fn layout(&self, split: &Split, dp: u32) -> TrainingLayout {
        layout_of(
            split,
            self.pp,
            self.vpp,
            dp,
            self.sharding,
            self.recompute,
            self.schedule,
        )
    }

    /// Whether `dp` ranks go with the split and sharding of this frame.
    #[must_use]
    pub fn allows(&self, split: &Split, dp: u32) -> bool {
        let ranks = u64::from(split.tp) * u64::from(split.cp) * u64::from(dp);
        let replicas = u64::from(split.cp) * u64::from(dp);
        let is_whole = ranks % (u64::from(split.ep) * u64::from(split.etp)) == 0;
        let is_sharded = match self.sharding {
            Sharding::Hybrid(group) => {
                replicas % u64::from(group) == 0 && replicas > u64::from(group)
            }
            Sharding::Zero0 => true,
            _ => replicas > 1 || self.sharding == Sharding::Zero1,
        };
        is_whole && is_sharded
    }
}

/// Whether a number has no prime factor above 7.
#[must_use]
pub fn is_smooth(number: u32) -> bool {
    let mut rest = number;
    for prime in [2, 3, 5, 7] {
        while rest > 1 && rest % prime == 0 {
            rest /= prime;
        }
    }
    rest == 1
}

/// Data-parallel degrees that a batch allows, and the batch each of them runs.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchRule {
    /// Sequences asked for.
    pub global_batch: f64,
    /// Share by which the batch may be rounded.
    pub tolerance: f64,
}

impl BatchRule {
    /// The batch nearest to what was asked that divides over `dp` ranks of `micro_batch` sequences (and into whole
    /// rounds of `rounds` micro-batches); None when it would be off by more than the tolerance.
    #[inline(always)]
    #[must_use]
    pub fn batch(&self, dp: u32, micro_batch: u32, rounds: u32) -> Option<f64> {
        let unit = f64::from(dp) * f64::from(micro_batch) * f64::from(rounds);
        let batch = (self.global_batch / unit).round().max(1.0) * unit;
        let is_near = (batch - self.global_batch).abs() <= self.tolerance * self.global_batch;
        is_near.then_some(batch)
    }

    /// Degrees worth trying for a micro-batch, ascending: the divisors of an exact batch; of a rounded batch, the degrees
    /// without prime factors above 7, which chips come in.
    #[must_use]
    pub fn degrees(&self, wanted: Option<&[u32]>, micro_batch: u32, most: u32) -> Vec<u32> {
        if let Some(values) = wanted {
            return sorted(values.to_vec())
                .into_iter()
                .filter(|dp| *dp <= most)
                .collect();
        }
        let largest = self.global_batch * (1.0 + self.tolerance) / f64::from(micro_batch);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most the chip limit"
        )]
        let largest = largest.floor().clamp(0.0, f64::from(most)) as u32;
        if self.tolerance > 0.0 {
            return (1..=largest).filter(|degree| is_smooth(*degree)).collect();
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "validated to be at most 1e8"
        )]
        let batch = self.global_batch as u32;
        if batch % micro_batch != 0 {
            return Vec::new();
        }
        divisors(batch / micro_batch)
            .into_iter()
            .filter(|dp| *dp <= largest)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_are_complete_and_ascending() {
        assert_eq!(divisors(126), [1, 2, 3, 6, 7, 9, 14, 18, 21, 42, 63, 126]);
        assert_eq!(divisors(64), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(divisors(1), [1]);
    }

    #[test]
    fn a_batch_is_rounded_to_what_divides_within_the_tolerance() {
        // 16e6 tokens of 8,192: 1,953.125 sequences; 128 ranks run 15 each, 1,920, 1.7 % less.
        let rule = BatchRule {
            global_batch: 1953.125,
            tolerance: 0.05,
        };
        assert_eq!(rule.batch(128, 1, 1), Some(1920.0));
        assert_eq!(rule.batch(128, 1, 16), Some(2048.0));
        assert_eq!(rule.batch(256, 2, 4), Some(2048.0));
        assert_eq!(rule.batch(1500, 1, 1), None);
        let exact = BatchRule {
            global_batch: 96.0,
            tolerance: 0.0,
        };
        assert_eq!(exact.batch(32, 1, 1), Some(96.0));
        assert_eq!(exact.batch(64, 1, 1), None);
        assert_eq!(exact.degrees(None, 2, 40), [1, 2, 3, 4, 6, 8, 12, 16, 24]);
    }
}
