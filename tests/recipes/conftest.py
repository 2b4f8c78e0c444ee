"""Pretrained models of a user, in local folders."""

import pytest
from journeys import assets


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    assets.save_models(folder)
    return folder
