//! How fast the machine multiplies when nothing else limits it.

use std::sync::Barrier;
use std::time::Instant;

use crate::gemm::tile::Kernels;
use crate::{Kind, Level};

/// Rounds of which the best counts. They last long enough for the system to move threads that began on one core.
const ROUNDS: usize = 24;
/// Seconds that a round takes at least.
const ROUND_SECONDS: f64 = 0.02;

/// Giga products and sums per second (`GMAC/s`) of a kind on so many threads, out of registers: what a product of matrices
/// can reach at most. It is measured, in a fraction of a second, at the best level of this machine.
pub fn register_peak(kind: Kind, threads: usize) -> f64 {
    let kernels = Kernels::of(kind, Level::detected());
    let mut steps = 1 << 10;
    loop {
        let start = Instant::now();
        kernels.spin(steps);
        if start.elapsed().as_secs_f64() > ROUND_SECONDS {
            break;
        }
        steps *= 2;
    }
    let threads = threads.max(1);
    let mut best = 0.0_f64;
    for _ in 0..ROUNDS {
        let barrier = Barrier::new(threads);
        let seconds = std::thread::scope(|scope| {
            let timed = || {
                barrier.wait();
                let start = Instant::now();
                let products = kernels.spin(steps);
                (products, start.elapsed().as_secs_f64())
            };
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(timed)).collect();
            threads
                .into_iter()
                .filter_map(|t| t.join().ok())
                .map(|(n, s)| n as f64 / s)
                .sum::<f64>()
        });
        best = best.max(seconds);
    }
    best * 1e-9
}

#[cfg(test)]
mod tests {
    use crate::{Kind, register_peak};

    #[test]
    fn a_peak_is_positive() {
        let peak = register_peak(Kind::F32, 1);
        assert!(peak.is_finite() && peak > 0.0);
    }
}
