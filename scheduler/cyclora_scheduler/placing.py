"""Which worker gets which model, and which ones give models up (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cyclora_core.placement import Action, Wish
from cyclora_core.waiting import HeldModel, Waiting, WaitingWish, WorkerState

_MAX_LET_GO = 32
"""Models that a worker gives up in one cycle: so many states are written while others wait."""


@dataclass(frozen=True, slots=True)
class Moves:
    """What one worker's next cycle does besides its operations."""

    homes: Mapping[str, str] = field(default_factory=dict[str, str])
    """The worker of each model that has no living one; of a model that must wait, none."""
    stays_away: frozenset[str] = frozenset()
    """Models of which nothing runs now: they are to be given up, or wait for their new worker."""
    loads: Sequence[WaitingWish] = ()
    """Models that come to this worker whether or not they have anything to run."""
    let_go: Sequence[HeldModel] = ()
    """Models that this worker brings to storage and gives up."""
    over: Sequence[tuple[WaitingWish, str]] = ()
    """Wishes that are fulfilled, with "", or cannot be, with the reason."""

    def wish_of(self, model_id: str) -> Wish | None:
        """What is fulfilled by a model's coming to this worker."""
        return next((each.wish for each in self.loads if each.model.model_id == model_id), None)


def plan_moves(
    waiting: Waiting,
    worker: WorkerState,
    workers: Sequence[WorkerState],
    held: Sequence[HeldModel] = (),
) -> Moves:
    """Choose what a free worker takes over and gives up.

    Args:
        waiting: all that waits for the base model.
        worker: the free one that is planned for.
        workers: the living ones of the base model, this one among them.
        held: the models of a worker that is draining.
    """
    alive = {each.worker_id: each for each in workers}
    wishes = _Wishes(worker, alive)
    for each in waiting.wishes:
        wishes.sort_in(each)
    if worker.is_draining:
        for model in held:
            wishes.give_up(model)
    models = [*waiting.models, *(each.model for each in wishes.wanted)]
    homeless = [model.model_id for model in models if model.worker_id not in alive]
    homes = {**_choose_homes(dict.fromkeys(homeless), workers), **wishes.homes}
    return Moves(
        homes,
        frozenset(wishes.stays_away),
        [each for each in wishes.wanted if _arrives(each, worker, homes)],
        list(wishes.let_go.values())[:_MAX_LET_GO],
        wishes.over,
    )


class _Wishes:
    """Each wish, by what has to happen next for it."""

    def __init__(self, worker: WorkerState, alive: Mapping[str, WorkerState]) -> None:
        self._worker = worker
        self._alive = alive
        self.homes: dict[str, str] = {}
        self.stays_away: set[str] = set()
        self.let_go: dict[str, HeldModel] = {}
        self.over: list[tuple[WaitingWish, str]] = []
        self.wanted: list[WaitingWish] = []
        """Those for which a worker is to take the model, perhaps this one."""

    def sort_in(self, each: WaitingWish) -> None:
        model, wish = each.model, each.wish
        holder = model.worker_id if model.worker_id in self._alive else None
        if each.has_ended:
            self.over.append((each, "the model has ended"))
        elif wish.action is Action.LOAD:
            self.wanted.append(each)
        elif wish.action is Action.UNLOAD:
            self._away(each, holder)
        else:
            self._move(each, holder)

    def _away(self, each: WaitingWish, holder: str | None) -> None:
        if holder is None:
            self.over.append((each, ""))
        else:
            self.give_up(each.model)

    def _move(self, each: WaitingWish, holder: str | None) -> None:
        target = self._alive.get(each.wish.worker_id)
        if target is None or target.is_draining:
            why = "has ended" if target is None else "is draining"
            self.over.append((each, f"worker {each.wish.worker_id} {why}"))
        elif holder in (None, target.worker_id):
            self.homes[each.model.model_id] = target.worker_id
            self.wanted.append(each)
        else:
            self.give_up(each.model)

    def give_up(self, model: HeldModel) -> None:
        """Nothing of the model runs until its worker has given it up."""
        self.stays_away.add(model.model_id)
        if model.worker_id == self._worker.worker_id:
            self.let_go[model.model_id] = model


def _arrives(each: WaitingWish, worker: WorkerState, homes: Mapping[str, str]) -> bool:
    if worker.is_draining:
        return False
    home = homes.get(each.model.model_id) or each.model.worker_id
    return home == worker.worker_id


def _choose_homes(model_ids: Iterable[str], workers: Sequence[WorkerState]) -> dict[str, str]:
    """The free worker with most room for each model; none where all are draining.

    Only free ones: a worker that is free while others are not has room by that alone.
    """
    candidates = [each for each in workers if each.is_free and not each.is_draining]
    if not candidates:
        return {}
    fastest = max(each.stats.tokens_per_s for each in candidates) or 1.0
    num_models = {each.worker_id: each.num_models for each in candidates}

    def load(each: WorkerState) -> tuple[bool, float, int, str]:
        """Less is better; a worker that has measured nothing yet counts as the fastest."""
        stats = each.stats
        is_full = stats.max_adapter_bytes > 0 and stats.free_adapter_bytes <= 0
        per_speed = (num_models[each.worker_id] + 1) / (stats.tokens_per_s or fastest)
        return is_full, per_speed, -stats.free_adapter_bytes, each.worker_id

    homes: dict[str, str] = {}
    for model_id in model_ids:
        chosen = min(candidates, key=load).worker_id
        num_models[chosen] += 1
        homes[model_id] = chosen
    return homes
