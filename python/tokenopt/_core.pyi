"""The compiled core: JSON text in, JSON text out. Use the functions of `tokenopt`, not these."""

import numpy as np
from numpy.typing import NDArray

__version__: str

def search(problem_json: str) -> str:
    """Searches; see `SearchProblem` and `SearchAnswer` in the core."""

def continuous(problem_json: str, queries_json: str) -> str:
    """Cheapest configurations in the continuous limit; see `Query` and `Point` in the core."""

def explain(problem_json: str) -> str:
    """Breaks down the configuration in `point`."""

def train(problem_json: str) -> str:
    """Searches for a training run; see `TrainProblem` and `TrainAnswer` in the core."""

def simulate(problem_json: str, spec_json: str) -> str:
    """Simulates the configuration in `point`; see `SimulationSpec` and `SimulationAnswer` in the core."""

def posttrain(problem_json: str) -> str:
    """Searches for a post-training plan; see `PosttrainProblem` and `PosttrainAnswer` in the core."""

def posttraining_steps(works_json: str, switching: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of post-training steps whose work is known, under the software of each row."""

def count_model(model_json: str) -> str:
    """Counts parameters and bytes of an architecture."""

def serving_parameters() -> str:
    """Names, priors, bounds, units and meanings of the serving parameters."""

def tco(problem_json: str) -> str:
    """Cost of an owned chip-hour, term by term; see `TcoProblem` and `TcoAnswer` in the core."""

def price(problem_json: str) -> str:
    """Prices replicas whose throughput is known; see `PricingProblem` and `PricedFleet` in the core."""

def chip_hour(question_json: str) -> str:
    """What a chip-hour buys; see `ChipHour` in the core."""

def odds(problem_json: str) -> str:
    """Chances of being the cheapest; see `OddsProblem` and `Odds` in the core."""

def parameters_at(log_factors: list[list[float]]) -> list[list[float]]:
    """Values of all parameters where deviations from the priors add up to `log_factors`, one list a set."""

def log_factors_of(parameters: list[list[float]]) -> list[list[float]]:
    """The inverse of `parameters_at`."""

class ServingRows:
    """Operating points compiled once, predicted many times."""

    def __new__(cls, rows_json: str) -> ServingRows: ...
    def __len__(self) -> int: ...
    def predict(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows x (tpot_s, ttft_s, output_tps_per_chip, decode_step_s) for parameter sets x parameters."""

    def predict_jobs(
        self, rows: NDArray[np.int64], sets: NDArray[np.int64], parameters: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """As `predict`, one line a job: row `rows[i]` with set `sets[i]` of `parameters`."""

def training_parameters() -> str:
    """Names, priors, bounds, units and meanings of the training parameters."""

class TrainingRows:
    """Measured training steps compiled once, predicted many times."""

    def __new__(cls, rows_json: str) -> TrainingRows: ...
    def __len__(self) -> int: ...
    def resolve(self, parameters: NDArray[np.float64]) -> TrainingRows:
        """The same rows, open layouts and recomputation filled in."""

    def layouts(self) -> str:
        """Layout of every row as JSON; null where none was printed or found."""

    def predict(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows x (step_s, tokens_per_s_per_chip, printed rate, flops_per_s, utilisation, memory_ratio)."""

    def parts(self, index: int, parameters: NDArray[np.float64]) -> str:
        """Parts of the step of one row, seconds by name, as JSON; null without a layout."""
