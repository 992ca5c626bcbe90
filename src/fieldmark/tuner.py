"""Ray Tune and Optuna, told what the trials of a search came to.

In: a search. Out: Ray's `Tuner` of the trials that are left, which begins them in the search. Ray
Tune places the trainings, starts those again whose process was killed, and stops early what is
worse than half of the others; Optuna's TPE (Bergstra et al. 2011) says what to try next. Neither's
state is kept: both are told anew what lies in the folder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from fieldmark import space
from fieldmark.attempt import course
from fieldmark.run import is_run
from fieldmark.trials import Search

# After a quarter and half of a training the worse half of what has come so far is stopped.
FIRST_LOOK = 25  # hundredths
KEEP = 2
FAILURES = 3  # of a trial's process, before the trial is given up

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our own table is enough
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has no figure
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class Here:
    """A call into this process, which Ray would keep with its own state, and nobody reads."""

    def __init__(self, call: Callable[[int, str], None] | None = None) -> None:
        self.call = call

    def __call__(self, number: int, failure: str) -> None:
        """Call it."""
        if self.call is not None:
            self.call(number, failure)

    def __reduce__(self) -> tuple[Any, ...]:
        return Here, ()


def tuner(
    search: Search,
    work: Callable[[dict[str, Any]], None],
    *,
    resources: Mapping[str, float],
    count: int,
    at_once: int,
    ended: Callable[[int, str], None],
) -> Any:
    """Return Ray's `Tuner` of the trials that are left; `ended` hears of each that is over."""
    from ray import tune as ray_tune

    class Watcher(ray_tune.Callback):  # type: ignore[misc]
        """Hears of trials that are over."""

        def on_trial_complete(self, trial: Any, **_: Any) -> None:
            ended(trial.config["number"], trial.last_result.get("failure", ""))

        def on_trial_error(self, trial: Any, **_: Any) -> None:
            said = f"its process ended {FAILURES + 1} times"
            ended(trial.config["number"], said)

    return ray_tune.Tuner(
        ray_tune.with_resources(work, dict(resources)),
        tune_config=ray_tune.TuneConfig(
            search_alg=suggester(search),
            scheduler=scheduler(search),
            num_samples=count - len(search.ended),
            max_concurrent_trials=at_once,
        ),
        run_config=ray_tune.RunConfig(
            name=search.scratch.name,
            storage_path=str(search.scratch.parent),
            failure_config=ray_tune.FailureConfig(max_failures=FAILURES),
            callbacks=[Watcher()],
            verbose=0,
        ),
    )


def suggester(search: Search) -> Any:
    """Return Ray's wrapper of Optuna's search, told of what has been.

    The trials that were begun and not ended come first, with their numbers; the very first is the
    chosen recipe.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    plan = search.plan
    open_ones = deque(trial for trial in search.trials if trial.state == "begun")
    points = [dict(trial.values) for trial in open_ones]
    if not search.trials:
        points = [space.point(plan.space, plan.chosen)]

    class Suggester(OptunaSearch):  # type: ignore[misc]
        """Gives each point the number of its trial."""

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            values = super().suggest(trial_id)
            if values is None:
                return None
            if open_ones:
                trial = open_ones.popleft()
            else:
                trial = search.begin(space.rounded(plan.space, values))
            return {"number": trial.number, "values": dict(trial.values)}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if self.metric in result:  # not so of a trial that failed
                super().on_trial_result(trial_id, result)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = Suggester(
        space={name: distribution(axis) for name, axis in plan.space.items()},
        metric="value",
        mode="min" if plan.monitor == "loss" else "max",
        # Seeded anew where it is gone on with, or the same points would be drawn again.
        sampler=optuna.samplers.TPESampler(seed=plan.chosen.seed + len(search.trials)),
        points_to_evaluate=points,
    )
    for trial in search.ended:
        found.add_evaluated_point(
            dict(trial.values), trial.value, error=trial.state == "failed" or trial.value is None
        )
    return found


def distribution(axis: space.Span | space.Choices) -> Any:
    """Return what Optuna draws a field from."""
    from optuna import distributions

    if not isinstance(axis, space.Span):
        return distributions.CategoricalDistribution(axis)
    if axis.whole:
        return distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


def scheduler(search: Search) -> Any:
    """Return Ray's asynchronous halving (Li et al. 2020, arXiv:1810.05934), told of what has been.

    The chosen recipe is never stopped: all is compared with it.
    """
    from ray.tune.schedulers import ASHAScheduler

    class Halving(ASHAScheduler):  # type: ignore[misc]
        """Spares trial 0."""

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decided: str = super().on_trial_result(controller, trial, result)
            return self.CONTINUE if trial.config["number"] == 0 else decided

    found = Halving(
        time_attr="share",
        metric="value",
        mode="min" if search.plan.monitor == "loss" else "max",
        grace_period=FIRST_LOOK,
        reduction_factor=KEEP,
        max_t=101,  # what has come to its end is not stopped any more
    )
    for trial in search.ended:
        run = search.run(trial.number)
        if is_run(run.folder):
            like = SimpleNamespace(trial_id=str(trial.number), config={"number": trial.number})
            found.on_trial_add(None, like)
            for said in course(run.read_log(), run.read_recipe()):
                found.on_trial_result(None, like, said)
    return found
