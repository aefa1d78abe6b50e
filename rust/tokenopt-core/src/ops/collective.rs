//! Collectives by topology: latency plus bytes over the links that a group can use.

use super::Pieces;
use crate::accelerator::{Accelerator, Topology};
use crate::parameters::EngineParameters;

/// A collective as the cheaper of two algorithms, each linear in rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Collective {
    /// Latency of the first algorithm, s.
    pub latency_a_s: f64,
    /// Transfer seconds per row of the first algorithm.
    pub seconds_per_row_a: f64,
    /// Latency of the second algorithm, s.
    pub latency_b_s: f64,
    /// Transfer seconds per row of the second algorithm.
    pub seconds_per_row_b: f64,
}

impl Collective {
    /// Seconds for `rows` rows.
    #[inline(always)]
    #[must_use]
    pub fn seconds(&self, rows: f64) -> f64 {
        (self.latency_a_s + self.seconds_per_row_a * rows)
            .min(self.latency_b_s + self.seconds_per_row_b * rows)
    }

    /// All of it is network time; latency is counted with the network it crosses.
    #[must_use]
    pub fn pieces(&self, rows: f64) -> Pieces {
        Pieces {
            network_s: self.seconds(rows),
            ..Pieces::default()
        }
    }

    fn single(latency_s: f64, seconds_per_row: f64) -> Self {
        Self {
            latency_a_s: latency_s,
            seconds_per_row_a: seconds_per_row,
            latency_b_s: latency_s,
            seconds_per_row_b: seconds_per_row,
        }
    }
}

/// Achieved rates and latencies of the fabric around one accelerator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fabric {
    topology: Topology,
    domain_chips: f64,
    link_bytes_per_s: f64,
    latency_s: f64,
    network_bytes_per_s: f64,
    network_latency_s: f64,
}

impl Fabric {
    /// Rates that collectives reach on this accelerator.
    #[must_use]
    pub fn new(accelerator: &Accelerator, parameters: &EngineParameters) -> Self {
        Self::with_rates(
            accelerator,
            accelerator.scale_up.bytes_per_s * parameters.link_efficiency,
            parameters.collective_latency_s,
            accelerator.scale_out_bytes_per_s * parameters.network_efficiency,
            parameters.network_latency_s,
        )
    }

    /// The fabric of an accelerator at given achieved rates (bytes/s per chip, one direction) and latencies (s).
    #[must_use]
    pub fn with_rates(
        accelerator: &Accelerator,
        link_bytes_per_s: f64,
        latency_s: f64,
        network_bytes_per_s: f64,
        network_latency_s: f64,
    ) -> Self {
        Self {
            topology: accelerator.scale_up.topology,
            domain_chips: f64::from(accelerator.scale_up.domain_chips),
            link_bytes_per_s,
            latency_s,
            network_bytes_per_s,
            network_latency_s,
        }
    }

    /// Whether a group of `chips` neighbours stays inside the scale-up domain.
    #[must_use]
    pub fn is_inside_domain(&self, chips: f64) -> bool {
        chips <= self.domain_chips
    }

    /// Bytes/s per chip that a group of `chips` can use inside the domain, one direction.
    ///
    /// A mesh links every pair: a group of n reaches n-1 of the domain's peers, so it has (n-1)/(m-1) of the rate. A
    /// torus slice smaller than the whole has no wrap-around: two chips share one link, four chips two, of the
    /// chip's links (counted as six in a domain above 256 chips, else four). A ring gives one neighbour half.
    ///
    /// Source: 7 links of a full mesh on 8-chip boards and 2D/3D torus descriptions in the vendors' documents.
    #[must_use]
    pub fn group_bytes_per_s(&self, chips: f64) -> f64 {
        let share = match self.topology {
            Topology::Switched | Topology::Pcie | Topology::Single => 1.0,
            Topology::Mesh => ((chips - 1.0) / (self.domain_chips - 1.0).max(1.0)).min(1.0),
            Topology::Torus => {
                let links = if self.domain_chips > 256.0 { 6.0 } else { 4.0 };
                ((chips.log2().ceil()).max(1.0) / links).min(1.0)
            }
            Topology::Ring => {
                if chips <= 2.0 {
                    0.5
                } else {
                    1.0
                }
            }
        };
        self.link_bytes_per_s * share
    }

    /// Latency of one hop-synchronised collective among `chips`, s.
    ///
    /// Source: measured NVLink all-reduce latency grows with the logarithm of the group; a quarter per doubling.
    fn group_latency_s(&self, chips: f64) -> f64 {
        self.latency_s * (1.0 + 0.25 * (chips / 2.0).max(1.0).log2())
    }

    /// All-reduce of `bytes_per_row` among `chips`, the better of one-shot (everyone reads everyone) and two-shot
    /// (reduce-scatter then all-gather); hierarchical when the group leaves the scale-up domain.
    #[must_use]
    pub fn all_reduce(&self, chips: f64, bytes_per_row: f64) -> Collective {
        let inside = chips.min(self.domain_chips);
        let latency_s = self.group_latency_s(inside);
        let rate = self.group_bytes_per_s(inside);
        let two_shot_per_row = 2.0 * (inside - 1.0) / inside * bytes_per_row / rate;
        if self.is_inside_domain(chips) {
            return Collective {
                latency_a_s: latency_s,
                seconds_per_row_a: (inside - 1.0) * bytes_per_row / rate,
                latency_b_s: 2.0 * latency_s,
                seconds_per_row_b: two_shot_per_row,
            };
        }
        let domains = (chips / inside).ceil();
        let across_per_row = 2.0 * (domains - 1.0) / domains * bytes_per_row
            / inside
            / self.network_bytes_per_s.max(1.0);
        let local = if inside > 1.0 {
            (2.0 * latency_s, two_shot_per_row)
        } else {
            (0.0, 0.0)
        };
        Collective::single(
            local.0 + 2.0 * self.network_latency_s,
            local.1 + across_per_row,
        )
    }

    /// All-gather plus reduce-scatter among `ranks` of `chips_per_rank` chips each, one chip of every rank in a group, each
    /// contributing `bytes_per_row` per row of its own.
    #[must_use]
    pub fn gather_scatter(
        &self,
        ranks: f64,
        chips_per_rank: f64,
        bytes_per_row: f64,
    ) -> Collective {
        // The chips between two members of a group belong to other groups: a domain holds fewer members than chips.
        let inside = (self.domain_chips / chips_per_rank)
            .floor()
            .clamp(1.0, ranks);
        let moved = 2.0 * (ranks - 1.0) * bytes_per_row;
        let rate = self.group_bytes_per_s((inside * chips_per_rank).max(2.0));
        if inside >= ranks {
            return Collective::single(2.0 * self.group_latency_s(ranks), moved / rate);
        }
        let outside_share = (ranks - inside) / (ranks - 1.0);
        Collective::single(
            2.0 * self.group_latency_s(inside) + 2.0 * self.network_latency_s,
            moved * (1.0 - outside_share) / rate
                + moved * outside_share / self.network_bytes_per_s.max(1.0),
        )
    }

    /// Dispatch and combine all-to-all among `chips` that hold `ranks` expert-parallel ranks: each row goes as
    /// `dispatch_bytes` to every rank that holds one of its `top_k` experts and returns as `combine_bytes`.
    ///
    /// Over the network a row goes once to each other domain, is handed on there over the fast fabric, and its results are
    /// added up there before they return.
    ///
    /// Source: the published two-level kernels of expert parallelism across nodes (DeepEP).
    /// Assumes: routing is even over ranks and domains; the two levels follow each other, which overstates the time of
    /// kernels that overlap them.
    #[must_use]
    pub fn all_to_all(
        &self,
        chips: f64,
        ranks: f64,
        top_k: f64,
        dispatch_bytes: f64,
        combine_bytes: f64,
    ) -> Collective {
        // How many of `places` a row meets.
        let met = |places: f64| places * (1.0 - (1.0 - 1.0 / places).powf(top_k));
        let bytes = dispatch_bytes + combine_bytes;
        let inside = chips.min(self.domain_chips);
        let fabric_s =
            bytes * met(ranks) * (chips - 1.0) / chips / self.group_bytes_per_s(inside.max(2.0));
        if self.is_inside_domain(chips) {
            return Collective::single(2.0 * self.group_latency_s(chips), fabric_s);
        }
        let domains = (chips / inside).ceil();
        let network_bytes = bytes * met(domains) * (domains - 1.0) / domains;
        Collective::single(
            2.0 * self.group_latency_s(inside) + 2.0 * self.network_latency_s,
            // A domain of one chip has no fabric to hand rows on.
            if inside > 1.0 { fabric_s } else { 0.0 }
                + network_bytes / self.network_bytes_per_s.max(1.0),
        )
    }

    /// Point-to-point send of `bytes_per_row` to the next pipeline stage, which may sit outside the domain.
    #[must_use]
    pub fn send(&self, inside_domain: bool, bytes_per_row: f64) -> Collective {
        if inside_domain {
            Collective::single(
                self.latency_s,
                bytes_per_row / self.group_bytes_per_s(self.domain_chips),
            )
        } else {
            Collective::single(
                self.network_latency_s,
                bytes_per_row / self.network_bytes_per_s.max(1.0),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fabric(topology: Topology) -> Fabric {
        Fabric {
            topology,
            domain_chips: 8.0,
            link_bytes_per_s: 400e9,
            latency_s: 10e-6,
            network_bytes_per_s: 25e9,
            network_latency_s: 30e-6,
        }
    }

    #[test]
    fn a_large_all_reduce_moves_twice_its_bytes() {
        let op = fabric(Topology::Switched).all_reduce(8.0, 1.0);
        // 1 GB: 2 * 7/8 / 400 GB/s = 4.375 ms, plus 2 * 10 us * 1.5
        assert!((op.seconds(1e9) - (4.375e-3 + 30e-6)).abs() < 1e-9);
    }

    #[test]
    fn a_small_all_reduce_takes_one_latency() {
        let op = fabric(Topology::Switched).all_reduce(2.0, 1.0);
        assert!((op.seconds(1.0) - 10e-6).abs() < 1e-9);
    }

    #[test]
    fn a_pair_on_a_mesh_has_one_of_seven_links() {
        let switched = fabric(Topology::Switched)
            .all_reduce(2.0, 1.0)
            .seconds_per_row_b;
        let mesh = fabric(Topology::Mesh)
            .all_reduce(2.0, 1.0)
            .seconds_per_row_b;
        assert!((mesh / switched - 7.0).abs() < 1e-9);
    }

    #[test]
    fn a_group_with_one_member_a_domain_meets_over_the_network() {
        // Ranks of 8 chips fill a domain: 2 x 3 other members' GB at 25 GB/s, plus latencies of both levels.
        let op = fabric(Topology::Switched).gather_scatter(4.0, 8.0, 1.0);
        assert!((op.seconds(1e9) - (6.0 / 25.0 + 2.0 * (10e-6 + 30e-6))).abs() < 1e-9);
        // Ranks of 2 chips fit four in a domain: no network.
        let inside = fabric(Topology::Switched).gather_scatter(4.0, 2.0, 1.0);
        assert!(inside.seconds(1e9) < 6.1 / 400.0);
    }

    #[test]
    fn a_row_crosses_the_network_once_a_domain() {
        // 16 chips in 2 domains, 8 of 16 ranks' worth of experts: 2 (1 - 2^-8) domains met, half of them another.
        let op = fabric(Topology::Switched).all_to_all(16.0, 16.0, 8.0, 1.0, 2.0);
        let network_s = 3.0 * (2.0 * (1.0 - 0.5_f64.powi(8))) * 0.5 / 25e9;
        let met = 16.0 * (1.0 - (15.0_f64 / 16.0).powi(8));
        let fabric_s = 3.0 * met * 15.0 / 16.0 / 400e9;
        assert!((op.seconds_per_row_a - (network_s + fabric_s)).abs() < 1e-18);
    }

    #[test]
    fn leaving_the_domain_costs_more() {
        let inside = fabric(Topology::Switched).all_reduce(8.0, 1.0);
        let outside = fabric(Topology::Switched).all_reduce(16.0, 1.0);
        assert!(outside.seconds(1e6) > inside.seconds(1e6));
    }
}
