"""Rounds of chaos: in each, something dies at a random moment of a run in progress, then `up` goes on.

1. The undisturbed run of a place says how long a run takes and how much happens in its store; the digests of the first
   place count for all.
2. A round: while `up` runs, at a moment drawn from that (a time, or a certain change in the store), its victim dies.
   What is committed must be whole, then and always. `up` is started again where it ended.
3. When `up` ends with 0 the trial is over: equal digests, no stage begun that was finished, no step of training lost
   that a checkpoint had saved, nothing left running or lying about, and one more `up` reuses everything. The next round
   begins with an empty store.

Which victims die where, and when, follows from the seed; what the machine does meanwhile does not.

Azurite writes what it knows of its blobs every few seconds: its `kill -9` can make it forget what it has confirmed,
removals too. After one, what it still has must be whole and never be made again. What it has lost is counted, and made
again by one more `up`: a commit, or a file that a commit names, and then only where it was heard (by the proxy) that
Azurite had confirmed this very file. What it has brought back is let lie.
"""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.audit import Audit
from chaos.places import Place
from chaos.trial import EVERY, STAGES, Trial, Up
from chaos.victims import ENDING, strike

LONGEST = 300.0  # seconds that one `up` may take
IN_VAIN = 4  # times that `up` may end without a result for one cause


@dataclass(frozen=True)
class Measure:
    """An undisturbed run: its seconds, and how often something changed in its store."""

    seconds: float
    changes: int


@dataclass(frozen=True)
class Moment:
    """When a victim dies: after some seconds, or after some changes in the store, where those were measured."""

    seconds: float | None = None
    changes: int | None = None

    @staticmethod
    def draw(measure: Measure, draw: random.Random) -> Moment:
        if not measure.changes or draw.random() < 0.5:
            return Moment(seconds=draw.uniform(0, measure.seconds))
        return Moment(changes=draw.randint(1, measure.changes))

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s" if self.seconds is not None else f"change {self.changes}"


@dataclass
class Figures:
    """What was counted."""

    rounds: Counter[tuple[str, str]] = field(default_factory=Counter)  # place and victim
    trials: int = 0
    ups: int = 0
    attempts: int = 0
    continued: int = 0  # trainings that went on from a checkpoint
    most_lost: Counter[str] = field(default_factory=Counter)  # by place: steps of training made again after one death
    ended_by_forgetting: int = 0  # runs that met what Azurite had confirmed and forgotten, and said so
    swept: int = 0  # runs after which `gc` found something to remove
    over_an_interval: int = 0  # times that it was more than lies between two checkpoints
    forgotten: int = 0  # stage runs of which Azurite forgot the commit or a file
    remade: int = 0  # times that something had to be made again for that after `up` had ended well
    violations: list[str] = field(default_factory=list)


class Campaign:
    """The rounds, in some places. `say` takes the lines of the report."""

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None] = print) -> None:
        self.folder, self.say = folder, say
        self.draw = random.Random(seed)
        self.figures = Figures()
        self.expected: dict[str, str] = {}
        self.bad = False  # the present trial broke a rule: its folder is kept

    def run(self, places: Sequence[Place], rounds: int) -> Figures:
        """So many rounds, shared out among the places and their victims."""
        for n, place in enumerate(places):
            share = rounds // len(places) + (n < rounds % len(places))
            victims = list(place.victims)
            self.draw.shuffle(victims)
            plan = [victims[i % len(victims)] for i in range(share)]
            self.draw.shuffle(plan)
            self.disturb(place, plan, self.undisturbed(place))
        return self.figures

    def disturb(self, place: Place, victims: Sequence[str], measure: Measure) -> None:
        """A round for each of the victims, one after the other, and then to the end."""
        trial: Trial | None = None
        for victim in victims:
            trial = self._round(place, victim, measure, trial)
        while trial is not None:
            trial = self._ended(trial, self._go_on(trial))

    def undisturbed(self, place: Place) -> Measure:
        """A run in which nothing dies. The first one's digests count for all that follow."""
        trial = self._new(place)
        up, changes = trial.up(), 0
        trial.changed()
        while up.code is None:
            changes += trial.changed()
            time.sleep(0.01)
        seconds = time.monotonic() - up.began
        measure = Measure(seconds, changes)
        self._ended(trial, up)
        self.say(f"     {place.name}: undisturbed {seconds:.1f} s, {changes} changes")
        return measure

    def _new(self, place: Place) -> Trial:
        self.figures.trials += 1
        self.bad = False
        return Trial(place, self.folder / f"trial-{self.figures.trials}")

    # --- a round ---

    def _round(self, place: Place, victim: str, measure: Measure, trial: Trial | None) -> Trial | None:
        """One death; the trial as it stands afterwards, None where it is over."""
        while True:
            trial = trial or self._new(place)
            up, moment = self._running(trial), Moment.draw(measure, self.draw)
            if self._reached(trial, up, moment):
                at = time.monotonic() - up.began
                if strike(victim, trial, up, self.draw):
                    break
            trial = self._ended(trial, self._wait(trial, up)) if up.code is not None else trial
        self.figures.rounds[place.name, victim] += 1
        before = len(self.figures.violations)
        found = self._look(trial)
        new = self.figures.violations[before:]
        state = f"{len(found.commits)}/{STAGES} committed"
        number = sum(self.figures.rounds.values())
        self.say(f"{number:4} {place.name:30} {victim:18} at {at:5.1f} s ({moment}), {state}  {'; '.join(new) or 'ok'}")
        return trial

    def _running(self, trial: Trial) -> Up:
        """The `up` that runs, or a new one."""
        if trial.ups and trial.ups[-1].code is None:
            return trial.ups[-1]
        return self._go_on(trial, wait=False)

    def _go_on(self, trial: Trial, wait: bool = True) -> Up:
        if trial.ups and trial.ups[-1].code is None:
            return self._wait(trial, trial.ups[-1]) if wait else trial.ups[-1]
        if trial.ups:
            self._look(trial)
        if self.draw.random() < 0.3:
            trial.cache += 1  # as if another machine went on
        up = trial.up()
        self.figures.ups += 1
        return self._wait(trial, up) if wait else up

    def _reached(self, trial: Trial, up: Up, moment: Moment) -> bool:
        """Wait for a moment; False where the run ended before."""
        began, changes = time.monotonic(), 0
        trial.changed()
        while up.code is None:
            if moment.seconds is not None and time.monotonic() - began >= moment.seconds:
                return True
            if moment.changes is not None and (changes := changes + trial.changed()) >= moment.changes:
                return True
            if time.monotonic() - up.began > LONGEST:
                self._wait(trial, up)
            time.sleep(0.01)
        return False

    def _wait(self, trial: Trial, up: Up) -> Up:
        """Wait until it ends; what takes too long is ended and told."""
        while up.code is None:
            if time.monotonic() - up.began > LONGEST:
                self._violation(trial, f"`up` did not end within {LONGEST:.0f} s: {up.words()[-300:]!r}")
                trial.end_all()
            time.sleep(0.02)
        return up

    # --- what must hold ---

    def _violation(self, trial: Trial, what: str) -> None:
        self.bad = True
        self.figures.violations.append(f"{trial.place.name}: {what} [{trial.folder.name}, up {len(trial.ups)}]")

    def _look(self, trial: Trial) -> Audit:
        """What is committed is whole; no stage was begun that was finished before the last `up`."""
        found = trial.audit()
        lost = {run for run in trial.known if run not in found.commits}
        for wrong in found.wrong:
            if trial.forgot(wrong):
                lost.add(wrong.run)
            else:
                self._violation(trial, f"not whole: {wrong}")
        if lost and not trial.forgetful:
            self._violation(trial, f"a commit is gone: {sorted(lost)}")
        self.figures.forgotten += len(lost)
        if trial.ups and trial.ups[-1].code is None:
            return found
        for run, attempts in trial.started().items():
            self.figures.attempts += len(attempts)
            again = [a for a in attempts if a != trial.known.get(run)]
            if run in trial.known and run not in lost and again:
                self._violation(trial, f"{run[0]} was finished ({trial.known[run]}) and began again ({again})")
        trial.known = {run: attempt for run, attempt in found.commits.items() if run not in lost}
        return found

    def _ended(self, trial: Trial, up: Up) -> Trial | None:
        """`up` ended: the trial goes on, or is over (None)."""
        if "Traceback" in up.words():
            self._violation(trial, f"a traceback: {up.words()[-500:]!r}")
        if up.code == 0:
            self._complete(trial)
        else:
            excused = any(s in ENDING for s in up.strikes) and up.code != 2
            if trial.forgetful and up.code == 2:  # an input of a stage was among what the store forgot
                excused = True
                self.figures.ended_by_forgetting += 1
            if not excused:
                self._violation(trial, f"`up` ended with {up.code} after {up.strikes}: {up.words()[-500:]!r}")
            in_vain = sum(u.code != 0 and not u.strikes for u in trial.ups)
            if in_vain < IN_VAIN:
                return trial
            self._violation(trial, "it never ends well")
        trial.end_all()
        if not self.bad:
            shutil.rmtree(trial.folder)
        return None

    def _complete(self, trial: Trial) -> None:
        """`up` says that all is done: that must be so. What Azurite has forgotten is made once more before."""
        seen = self._look(trial)
        if trial.forgetful and (seen.wrong or set(seen.digests) < set(self.expected)):
            self.figures.remade += 1
            self._wait(trial, trial.up())
        end = time.monotonic() + 3
        while (running := [*trial.processes(), *trial.containers()]) and time.monotonic() < end:
            time.sleep(0.1)
        if running:
            self._violation(trial, f"left running: {running}")
        found = self._look(trial)
        self.expected = self.expected or found.digests
        if found.digests != self.expected:
            self._violation(trial, f"other digests: {found.digests}, not {self.expected}")
        if found.left and not trial.forgetful:
            self.figures.swept += 1
            trial.gc()
            found = self._look(trial)
            if found.left or found.digests != self.expected:
                self._violation(trial, f"left over after gc: {found.left}")
        if claims := trial.claims():
            self._violation(trial, f"claims left over: {claims}")
        self._training(trial)
        trial.cache += 1
        again = self._wait(trial, trial.up())
        if again.code != 0 or set(again.states().values()) != {"reused"}:
            self._violation(trial, f"one more `up` did not reuse everything: {again.words()[-500:]!r}")

    def _training(self, trial: Trial) -> None:
        """No step is trained again that a checkpoint had saved, and of the others no more than an interval."""
        attempts = trial.training()
        for before, after in itertools.pairwise(attempts):
            self.figures.continued += bool(after.resumed)
            if trial.forgetful:
                continue
            name, lost = trial.place.name, before.reached - after.resumed
            self.figures.most_lost[name] = max(self.figures.most_lost[name], lost)
            self.figures.over_an_interval += lost > EVERY
            if after.resumed < before.saved:
                self._violation(trial, f"step {before.saved} was saved, and training began at {after.resumed}")
            if lost > EVERY:
                self._violation(trial, f"{lost} steps were lost, of at most {EVERY}")
