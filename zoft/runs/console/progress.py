"""How far a run is, how fast it goes and what it last said, from its events alone."""

from __future__ import annotations

from collections.abc import Sequence

from zoft.runs.metrics import Event

SMOOTH = 0.95  # of the loss that is shown: one batch's loss says little
PACE = 0.9  # of seconds and tokens per step: a minute of other work on the machine shows soon


class Smoothed:
    """An exponential mean that starts at its first value and ignores what is not finite."""

    def __init__(self, keep: float = SMOOTH) -> None:
        self._keep = keep
        self.mean: float | None = None

    def __call__(self, value: float | None) -> float | None:
        if value is not None:
            old = value if self.mean is None else self.mean
            self.mean = self._keep * old + (1 - self._keep) * value
        return self.mean


class Progress:
    """What the live line says, after every event that was added. `loss` is smoothed; `train` is the
    newest train event, `zero_shot` and `score` the first and the newest eval event."""

    def __init__(self, steps: int, eval_every: int = 0) -> None:
        self.steps, self._eval_every = steps, eval_every
        self.step = 0
        self.train: Event | None = None
        self.zero_shot: Event | None = None
        self.score: Event | None = None
        self._loss = Smoothed()
        self._seconds, self._tokens = Smoothed(PACE), Smoothed(PACE)
        self._timed = 0  # steps of this process

    def add(self, event: Event) -> None:
        match event["event"]:
            case "train":
                self._train(event)
            case "eval" | "tail":
                self.score = event
                if event["event"] == "eval" and event["step"] == 0:
                    self.zero_shot = event

    def resume(self, events: Sequence[Event]) -> None:
        """Take in what an earlier part of the run said. Its speed serves until there is a new one."""
        for event in events:
            self.add(event)
        self._timed = 0

    @property
    def loss(self) -> float | None:
        return self._loss.mean

    @property
    def steps_per_second(self) -> float | None:
        return 1 / self._seconds.mean if self._seconds.mean else None

    @property
    def tokens_per_second(self) -> float | None:
        """Useful tokens, without padding, of the examples: both passes of a step read them once."""
        if not self._seconds.mean or self._tokens.mean is None:
            return None
        return self._tokens.mean / self._seconds.mean

    @property
    def seconds_left(self) -> float | None:
        """Steps and evaluations that are still to come, as long as the last ones took."""
        if self._seconds.mean is None:
            return None
        left = self._seconds.mean * (self.steps - self.step)
        return left + self._evaluations_left() * (self.score["seconds"] if self.score else 0.0)

    def _train(self, event: Event) -> None:
        self.train, self.step = event, event["step"]
        self._loss(event["loss"])
        self._timed += 1
        if self._timed == 2:  # after a resume, the speed of before has served until now
            self._seconds, self._tokens = Smoothed(PACE), Smoothed(PACE)
        if self._timed > 1:  # the first step of a process compiles its kernels: it says little
            self._seconds(event["seconds"])
            self._tokens(event["tokens"])

    def _evaluations_left(self) -> int:
        every, done = self._eval_every, self.score["step"] if self.score else self.step
        between = (self.steps - 1) // every - done // every if every else 0
        return max(0, between) + (done < self.steps)


def clock(seconds: float) -> str:
    """0:07, 4:12, 1:03:20, 2 d 03:20"""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    if hours:
        return f"{hours}:{minutes:02}:{whole % 60:02}"
    return f"{minutes}:{whole % 60:02}"
