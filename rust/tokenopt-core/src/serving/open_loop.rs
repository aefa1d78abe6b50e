//! Requests that arrive at their own rate, whatever the replica does.

use super::StepModel;

/// A replica under Poisson arrivals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpenLoop {
    /// Time per output token, s.
    pub tpot_s: f64,
    /// Time to first token, s.
    pub ttft_s: f64,
    /// Running requests per rank and slot.
    pub batch: f64,
    /// Share of time the prefill of arriving prompts takes.
    pub prefill_load: f64,
}

/// Arrivals at one attention rank and pipeline slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrivals {
    /// Requests per second.
    pub per_s: f64,
    /// Requests of the whole run; infinite for steady state.
    pub requests: f64,
    /// Most requests that run at once.
    pub most_running: f64,
    /// Squared coefficient of variation of output lengths.
    pub osl_cv2: f64,
}

impl OpenLoop {
    /// Latencies at a given rate.
    ///
    /// ```text
    /// tpot = T_d(b) + a T_m / osl        b = N f(S / D),  a = N g(S / D),  S = osl tpot,  D = N / rate
    /// ttft = T_1 + wait + T_d(b)         rho = rate T_m
    /// ```
    ///
    /// `b` is Little's law for a run of `N` requests: the mean number of requests that run beside one, `f = S / D - S^2 /
    /// 3 D^2` of the run when a request is shorter than the run and `1 - D / 3 S` when it is longer, less what answers of
    /// different lengths do not overlap; `a` are the prompts that arrive while one request decodes and interrupt it, `g =
    /// S / D - S^2 / 2 D^2`, at most half of the run. For a long run both are `rate S`. Prompts share the prefill like a processor, `T_1 rho / (1 - rho)`; in a run of finite length the
    /// queue cannot exceed what heavy traffic builds up, `0.63 T_m sqrt(N)`, plus, above saturation, half of what arrives
    /// in excess.
    ///
    /// Source: processor-sharing queue (Kleinrock, vol. II, 4.4); overlap of two uniform starts; heavy-traffic
    /// reflected random walk, mean `sqrt(pi N / 8)` times the service time.
    /// Assumes: decode slows with the batch, not with the age of a request; load generators that keep a rate sit beside the
    /// engine, so that the front end (HTTP, tokenisation) is not in the time to first token.
    #[must_use]
    pub fn new(step: &StepModel, chunk_tokens: f64, osl: f64, arrivals: &Arrivals) -> Self {
        const HALVINGS: u32 = 40;
        let prefill = step.prefill(chunk_tokens);
        let prompt_s = (prefill.marginal_s - step.prompt_overhead_s).max(0.0);
        let run_s = arrivals.requests / arrivals.per_s;
        // Requests that run beside one, and prompts that interrupt it, when a token takes `tpot_s`.
        let beside = |tpot_s: f64| {
            let service_s = osl * tpot_s;
            if arrivals.requests.is_finite() {
                let ratio = service_s / run_s;
                (
                    arrivals.requests * overlap(ratio, arrivals.osl_cv2),
                    arrivals.requests * interruptions(ratio),
                )
            } else {
                (arrivals.per_s * service_s, arrivals.per_s * service_s)
            }
        };
        let tpot = |batch: f64, interrupting: f64| {
            step.decode_step_s(batch) + interrupting.min(batch) * prompt_s / osl
        };
        // The batch that lasts: with more requests running than that, fewer come than go.
        let (mut low, mut high) = (0.0, arrivals.most_running.min(arrivals.requests));
        let mut tpot_s = tpot(1.0, 0.0);
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            let (_, interrupting) = beside(tpot(middle, middle));
            tpot_s = tpot(middle, interrupting);
            if beside(tpot_s).0 > middle {
                low = middle;
            } else {
                high = middle;
            }
        }
        // A request runs beside itself at least.
        let batch = high.max(1.0);
        if batch <= 1.0 {
            tpot_s = tpot(1.0, beside(tpot_s).1);
        }
        let prefill_load = arrivals.per_s * prompt_s;
        Self {
            tpot_s,
            ttft_s: prefill.alone_s
                + wait_s(prefill.alone_s, prompt_s, prefill_load, arrivals.requests)
                + step.decode_step_s(batch),
            batch,
            prefill_load,
        }
    }
}

/// Mean overlap of a request's life with that of another that starts anywhere in the run, over the run; `ratio` is life
/// over run, `cv2` the squared variation of lives.
///
/// Lives far longer than the run overlap for the shorter of the two: for a normal spread that is `1 - cv / sqrt(pi)` of the
/// mean. Lives far shorter overlap by their mean, however they vary.
fn overlap(ratio: f64, cv2: f64) -> f64 {
    let alike = if ratio >= 1.0 {
        1.0 - 1.0 / (3.0 * ratio)
    } else {
        ratio - ratio * ratio / 3.0
    };
    alike * (1.0 - alike * (cv2 / std::f64::consts::PI).sqrt())
}

/// Share of a run's requests that start while one of them runs; `ratio` is life over run.
fn interruptions(ratio: f64) -> f64 {
    if ratio >= 1.0 {
        0.5
    } else {
        ratio - 0.5 * ratio * ratio
    }
}

/// Mean wait of a prompt for the prefill of others, s.
fn wait_s(alone_s: f64, prompt_s: f64, load: f64, requests: f64) -> f64 {
    let heavy_traffic_s = if requests.is_finite() {
        0.63 * prompt_s * requests.sqrt()
    } else {
        f64::INFINITY
    };
    if load < 1.0 {
        (alone_s * load / (1.0 - load)).min(heavy_traffic_s)
    } else if requests.is_finite() {
        heavy_traffic_s + 0.5 * requests * prompt_s * (1.0 - 1.0 / load)
    } else {
        f64::INFINITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_requests_of_a_long_run_hardly_meet() {
        // A life of a tenth of the run: 0.1 - 0.01 / 3.
        assert!((overlap(0.1, 0.0) - 0.096_666_667).abs() < 1e-9);
        // Lives as long as the run: two uniform starts are a third of the run apart on average.
        assert!((overlap(1.0, 0.0) - 2.0 / 3.0).abs() < 1e-12);
        assert!((overlap(1e9, 0.0) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn half_of_a_burst_interrupts_a_request() {
        assert!((interruptions(0.1) - 0.095).abs() < 1e-12);
        assert!((interruptions(7.0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn prompts_share_the_prefill_like_a_processor() {
        // Half loaded: as long again.
        assert!((wait_s(0.2, 0.1, 0.5, f64::INFINITY) - 0.2).abs() < 1e-12);
        assert!(wait_s(0.2, 0.1, 1.0, f64::INFINITY).is_infinite());
        // 100 requests at twice the rate: 0.63 * 0.1 * 10 + 0.5 * 100 * 0.1 * 0.5
        assert!((wait_s(0.2, 0.1, 2.0, 100.0) - 3.13).abs() < 1e-9);
    }
}
