"""FindCoordinator while nobody coordinates: clients that need none go on, those that need one are told."""

from __future__ import annotations

import pytest

from protocol.messages.find_coordinator import FindCoordinatorRequest
from tests.broker.wire import Wire


@pytest.mark.parametrize("version", range(7))
async def test_a_group_has_no_coordinator_yet(wire: Wire, version: int) -> None:
    request = FindCoordinatorRequest(key="group", coordinator_keys=["group"])
    response = await wire.call("FindCoordinator", version, request)
    answer = response if version < 4 else response.coordinators[0]
    assert answer.error_code == 15  # COORDINATOR_NOT_AVAILABLE: tried again, without harm to an assigned consumer
    assert (answer.node_id, answer.port) == (-1, -1)


@pytest.mark.parametrize("version", range(1, 7))
async def test_a_transactional_id_is_refused_for_good(wire: Wire, version: int) -> None:
    request = FindCoordinatorRequest(key="tx", key_type=1, coordinator_keys=["tx"])
    response = await wire.call("FindCoordinator", version, request)
    answer = response if version < 4 else response.coordinators[0]
    assert answer.error_code == 53  # TRANSACTIONAL_ID_AUTHORIZATION_FAILED: final for every client
    assert "not served yet" in answer.error_message
