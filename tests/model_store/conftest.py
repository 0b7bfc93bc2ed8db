"""Each kind of store, for every test that asks for `backend` or `store`."""

import pytest

from model_store import ModelStore, open_store
from tests.model_store.backends import BACKENDS, Backend


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request, monkeypatch) -> Backend:
    if request.param.name == "redis":
        monkeypatch.setenv("GOLDLINE_TEST_REDIS", request.getfixturevalue("redis_server"))
    return request.param


@pytest.fixture
def store(backend, tmp_path) -> ModelStore:
    return open_store(backend.url(tmp_path))
