"""What the images are made of; scripts/check_containerfile.py runs their steps."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from pathlib import Path

import attrs
import pytest

from auxot.config import RouterConfig
from auxot.kinds import parse_duration

ROOT = Path(__file__).parent.parent
CHECK = runpy.run_path(str(ROOT / "scripts/check_containerfile.py"))
STAGES = CHECK["parse"]((ROOT / "Containerfile").read_text())
TARGETS = ("router", "worker", "worker-cuda")


def steps(name: str, word: str) -> list[str]:
    return [rest for step, rest in STAGES[name].steps if step == word]


@pytest.mark.parametrize("ignored", [".containerignore", ".dockerignore"])
def test_what_is_copied_is_sent(ignored):
    """A builder would not find a file, or keys and models would be sent to it."""
    lines = (ROOT / ignored).read_text().splitlines()
    assert lines[0] == "*"
    for name in STAGES:
        from_here = [rest.split()[:-1] for rest in steps(name, "COPY") if not rest.startswith("--from=")]
        for source in [word for words in from_here for word in words]:
            assert (ROOT / source).exists()
            assert f"!{source}" in lines


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_a_program_of_ours_as_nobody_special(target):
    """A fault in a daemon would be one of root, or an image would start nothing."""
    programs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (entry,) = steps(target, "ENTRYPOINT")
    assert json.loads(entry)[0] in programs
    (user,) = steps(target, "USER")
    assert int(user) > 0
    assert len(steps(target, "HEALTHCHECK")) == 1
    build_only = ("build-essential", "pip install")
    assert not any(word in rest for rest in steps(target, "RUN") for word in build_only)


def test_no_step_is_for_one_kind_of_processor():
    """An image could be built on one kind of machine only."""
    text = " ".join(f"{stage.base} {' '.join(rest for _, rest in stage.steps)}" for stage in STAGES.values())
    assert not re.search(r"x86|amd64|aarch64|arm64|--platform", text)


def test_the_step_that_a_check_may_pass_over_stands_alone():
    """A check with a llama-server from elsewhere would pass over more than its building."""
    checked = CHECK["BUILDS_LLAMA"]
    builds = [rest for stage in STAGES.values() for word, rest in stage.steps if "llama build" in rest]
    assert len(builds) == 2
    assert all(rest.startswith(checked) and "&&" not in rest and "--llama-cache-dir" in rest for rest in builds)


def test_fly_runs_the_router_of_the_containerfile():
    """A router on Fly.io would be stopped when nobody asks, cut its answers, or not be found by its port."""
    fly = tomllib.loads((ROOT / "fly.toml").read_text())
    assert (ROOT / fly["build"]["dockerfile"]).is_file()
    assert fly["build"]["build-target"] in STAGES
    assert fly["http_service"]["internal_port"] == int(fly["env"]["AUXOT_PORT"])
    assert fly["http_service"]["auto_stop_machines"] == "off"
    grace_s: float = attrs.fields_dict(RouterConfig)["shutdown_grace_s"].default or 0.0
    assert parse_duration(fly["kill_timeout"]) > grace_s + 5
