//! The one way into the core: release the interpreter, watch for Ctrl-C, map errors.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use pyo3::prelude::*;
use tokenopt_core::error::CoreError;

use crate::convert::to_python;

/// How often a running computation looks for Ctrl-C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Runs `work` on its own thread without the interpreter; Ctrl-C raises its stop flag.
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&AtomicBool) -> Result<T, CoreError> + Send,
) -> PyResult<T> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let flag = &stop;
        scope.spawn(move || {
            // The receiver only goes away with this scope, so a failed send has nobody to tell.
            let _ = sender.send(work(flag));
        });
        let receiver = std::sync::Mutex::new(receiver);
        loop {
            let message = py.detach(|| {
                receiver
                    .lock()
                    .map_or(Err(mpsc::RecvTimeoutError::Disconnected), |channel| {
                        channel.recv_timeout(SIGNAL_INTERVAL)
                    })
            });
            match message {
                Ok(answer) => return answer.map_err(to_python),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Err(interrupt) = py.check_signals() {
                        stop.store(true, Ordering::Relaxed);
                        return Err(interrupt);
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    // The worker panicked: a bug, reported as such when the scope joins it.
                    return Err(pyo3::exceptions::PyRuntimeError::new_err(
                        "the core stopped unexpectedly; this is a bug",
                    ));
                }
            }
        }
    })
}
