"""A short version of `make chaos`: eight deaths in five places, and nothing is wrong, lost or done twice.

What a round is and what must hold stands in campaign.py. A second engine, to be killed, is for the long version.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from chaos.campaign import Campaign, Measure
from chaos.places import BOTH, RUNNER, SPOILED, STAGE, STORE_KILLED, Place, places
from conftest import ENGINE, without_engine

SOCKET = "unix:///var/run/docker.sock"
ROUNDS = {
    "process, folder": (RUNNER, BOTH),
    "process, Azurite": (STORE_KILLED,),
    "process, bad network to Azurite": (SPOILED, STAGE),
    "docker, folder": (STAGE, BOTH),
    "docker, Azurite": (RUNNER,),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Measure]:
    """The digests of a run in which nothing dies, and how long it took; what happens in a store is not counted."""
    campaign = Campaign(tmp_path_factory.mktemp("undisturbed"), seed=0)
    measure = campaign.undisturbed(Place("process, folder"))
    assert campaign.figures.violations == []
    return campaign.expected, replace(measure, changes=0)


@pytest.mark.parametrize("name", ROUNDS)
def test_whatever_dies_nothing_is_wrong_lost_or_done_twice(
    name: str, undisturbed: tuple[dict[str, str], Measure], tmp_path: Path
):
    campaign = Campaign(tmp_path, seed=1)
    campaign.expected, measure = undisturbed
    with places(tmp_path, ENGINE or SOCKET, own_engine=False, wanted=(name,)) as (found, absent):
        for why in absent:
            if why.startswith("containers"):
                without_engine(why)
            if os.environ.get("MICROSTAGES_REQUIRE_STORES") == "1":
                pytest.fail(f"object stores are not tested: {why}")
            pytest.skip(f"OBJECT STORES NOT TESTED: {why}")
        (place,) = found
        campaign.disturb(place, ROUNDS[name], measure)
    assert campaign.figures.violations == []
    assert sum(campaign.figures.rounds.values()) == len(ROUNDS[name])
