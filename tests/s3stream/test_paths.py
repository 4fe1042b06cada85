"""Keys: where everything is, and what is taken for ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3stream.metadata import ObjectId
from s3stream.paths import Paths


def test_keys_of_a_cluster() -> None:
    paths = Paths("teams/one")
    assert paths.data_object(ObjectId(7)) == "teams/one/data/ca/7"
    assert paths.log_entry(12) == "teams/one/metadata/log/00000000000000000012"
    assert paths.snapshot(12) == "teams/one/metadata/snapshot/00000000000000000012"
    assert (paths.floor, paths.leader) == ("teams/one/metadata/floor", "teams/one/metadata/leader")
    assert paths.cluster == "teams/one/cluster"
    assert paths.probe("ab") == "teams/one/probe/ab"
    assert Paths().cluster == "cluster"


@given(st.integers(0, (1 << 63) - 1))
def test_a_data_key_tells_its_object(number: int) -> None:
    paths = Paths("p")
    key = paths.data_object(ObjectId(number))
    assert key.startswith(paths.data_prefix)
    assert paths.object_id(key) == number


def test_data_keys_are_spread() -> None:
    paths = Paths()
    folders = [paths.data_object(ObjectId(number)).split("/")[1] for number in range(2560)]
    assert len(set(folders)) == 256
    assert max(folders.count(folder) for folder in set(folders)) <= 20


@pytest.mark.parametrize(
    "key", ["p/data/00/7", "p/data/ca/x", "p/data/ca/7/8", "q/data/ca/7", "p/data/ca/07", "p/data/ca/²", ""]
)
def test_foreign_data_keys_are_not_ours(key: str) -> None:
    assert Paths("p").object_id(key) is None


@given(st.integers(0, 10**20 - 1), st.integers(0, 10**20 - 1))
def test_log_keys_sort_as_their_indexes(first: int, second: int) -> None:
    paths = Paths("p")
    assert (paths.log_entry(first) < paths.log_entry(second)) == (first < second)
    assert paths.log_index(paths.log_entry(first)) == first
    assert paths.snapshot_index(paths.snapshot(second)) == second


@pytest.mark.parametrize(
    "key", ["p/metadata/log/12", "p/metadata/snapshot/00000000000000000012", "00000000000000000012"]
)
def test_foreign_log_keys_are_not_ours(key: str) -> None:
    assert Paths("p").log_index(key) is None


@pytest.mark.parametrize("prefix", ["/a", "a/", "a//b", "..", "a/../b", ".hidden", "a b", "ä", "x" * 513, "a\n"])
def test_prefixes_that_cannot_be_keys_everywhere_are_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="key prefix"):
        Paths(prefix)
