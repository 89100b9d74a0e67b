"""Workers' resources that stopped trials left behind, given back to the cluster.

Ray Train frees a run's placement group when its controller ends in order, and has a helper for when it is killed. A
trial that is stopped while its training begins or ends falls between the two, and its group would be held for as long
as the sweep's own process lives.
"""

from __future__ import annotations

import time

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException

_LOOK_EVERY_S = 30.0
_IDLE_S = 90.0  # a group that was just made waits for its workers
_MOST = 10_000


class Leaks:
    """Finds groups of this process that nobody works in, and removes those that stay so."""

    def __init__(self) -> None:
        """Begin with none seen."""
        self._since: dict[str, float] = {}
        self._looked = time.monotonic()

    def look(self) -> int:
        """Remove what was left long enough, from time to time; how many groups."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return 0
        self._looked = now
        idle = idle_groups()
        self._since = {group: self._since.get(group, now) for group in idle}
        left = [group for group, since in self._since.items() if now - since >= _IDLE_S]
        remove(left)
        return len(left)


def idle_groups() -> list[str]:
    """Ids of the groups of this process that hold resources of workers while no actor lives in them."""
    context = ray.get_runtime_context()
    job = context.get_job_id()
    # Of this Ray, whatever others run on this machine: by itself Ray would refuse to choose.
    of_all = {"address": context.gcs_address, "detail": True, "limit": _MOST}
    try:
        groups = list_placement_groups(filters=[("creator_job_id", "=", job), ("state", "=", "CREATED")], **of_all)
        actors = list_actors(filters=[("job_id", "=", job), ("state", "!=", "DEAD")], **of_all)
    except RayStateApiException:
        return []  # the dashboard is busy: the next look will do
    used = {actor.placement_group_id for actor in actors}
    return [
        group.placement_group_id
        for group in groups
        # Ray Tune has a group for each trial's own process, which takes no CPU, and frees it itself.
        if group.placement_group_id not in used
        and any(bundle["unit_resources"].get("CPU") for bundle in group.bundles or ())
    ]


def remove(groups: list[str]) -> None:
    """Give back what groups hold."""
    for group in groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
