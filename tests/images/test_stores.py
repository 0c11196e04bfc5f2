"""Every image reaches every object store: the drivers are there whole, with what a layer leaves out of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import STAGES

ON_HOST = ("--read-only", "--cap-drop", "ALL", "--network", "host", "--rm", "--interactive", "--entrypoint", "python3")
ROUND_TRIP = """
import fsspec, json, sys
fs, path = fsspec.core.url_to_fs(sys.argv[1])
fs.pipe_file(path, b"from inside")
print(json.dumps([fs.cat_file(path).decode(), fs.find(path)]))
"""
DRIVERS = """
import fsspec, json
kinds = [fsspec.get_filesystem_class(scheme) for scheme in ("abfs", "s3", "gs", "hf")]
print(json.dumps([kind.__module__.partition(".")[0] for kind in kinds]))
"""
CREDENTIALS = """
import botocore.session, json
session = botocore.session.get_session()
print(json.dumps([session.create_client(n, "eu-west-1").meta.endpoint_url for n in ("s3", "sts", "sso", "sso-oidc")]))
"""


def test_a_container_writes_and_reads(images: Callable[[str], Any], remote: Any):
    path = f"{remote.uri()}/file"
    variables = [option for name, value in remote.environment.items() for option in ("--env", f"{name}={value}")]
    image = images("merge")
    done = image.docker("run", *ON_HOST, *variables, image.name, "-", path, input=ROUND_TRIP)
    assert done.returncode == 0, done.stderr
    inside = path.partition("://")[2]
    assert json.loads(done.stdout) == ["from inside", [inside]]


@pytest.mark.parametrize("image", STAGES, indirect=True)
def test_every_image_has_all_drivers(image: Any):
    assert json.loads(image.python(DRIVERS)) == ["adlfs", "s3fs", "gcsfs", "huggingface_hub"]


@pytest.mark.parametrize("image", ["merge"], indirect=True)
def test_what_credentials_of_s3_come_from_is_kept(image: Any):
    assert len(json.loads(image.python(CREDENTIALS))) == 4
