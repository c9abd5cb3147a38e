from __future__ import annotations

import json
from pathlib import Path

import pytest

from auxot import cli
from auxot.config_models import ModelsConfig
from auxot.knobs import knobs_of


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for one in knobs_of(ModelsConfig).values():
        monkeypatch.delenv(one.variable or "AUXOT_X", raising=False)


def lines(capsys: pytest.CaptureFixture[str], *argv: str) -> list[list[str]]:
    """Return the cells of the table, without its head and its foot."""
    assert cli.run(cli.ROUTER, ["models", *argv]) == 0
    table, _, _ = capsys.readouterr().out.partition("\n\n")
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()[1:]]


def objects(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict]:
    assert cli.run(cli.ROUTER, ["models", "--json", *argv]) == 0
    found: list[dict] = json.loads(capsys.readouterr().out)
    return found


def test_every_model_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A model is in the registry, and nobody learns of it."""
    names = [cells[0] for cells in lines(capsys)]
    assert len(names) > 100
    assert len(lines(capsys, "--all")) >= 700
    (one,) = (cells for cells in lines(capsys, "--search", "qwen3-coder-30b") if cells[0] == "Qwen3-Coder-30B-A3B")
    assert one == ["Qwen3-Coder-30B-A3B", "MoE", "31B (3B active)", "262144", "chat, code", "Q4_K_S", "~45.1 GB"]


def test_filters_hold_together(capsys: pytest.CaptureFixture[str]) -> None:
    """A list for a GPU of 24 GB has models that do not fit it, or that cannot see."""
    found = objects(capsys, "--fits", "24GB", "--capability", "vision,reasoning", "--ctx-size", "32768")
    assert found
    for one in found:
        assert one["memory_bytes"]["total"] <= 24 * 10**9
        assert {"vision", "reasoning"} <= set(one["capabilities"])
    larger = objects(capsys, "--fits", "80GB", "--capability", "vision,reasoning", "--ctx-size", "32768")
    assert {one["name"] for one in found} < {one["name"] for one in larger}


def test_the_best_quantization_that_fits_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A user with a large GPU is shown the smallest file."""
    for size, quantization in (("10GB", "Q6_K"), ("18GB", "Q8_K"), ("80GB", "F16")):
        found = objects(capsys, "--fits", size, "--search", "Qwen3-8B", "--ctx-size", "8192", "--max-parallel", "1")
        assert next(one for one in found if one["name"] == "Qwen3-8B")["quantization"] == quantization


def test_memory_follows_context_slots_and_cache(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list shows the memory of another configuration than the router's."""

    def cache(*argv: str) -> int:
        found = objects(capsys, "--search", "Qwen3-Coder-30B-A3B", *argv)
        size: int = found[0]["memory_bytes"]["cache"]
        return size

    usual = cache()
    assert cache("--max-parallel", "4") == 2 * usual
    assert cache("--cache-type", "q8_0") == round(usual * 17 / 32)
    monkeypatch.setenv("AUXOT_CTX_SIZE", "65536")
    assert cache() == usual // 2


def test_a_search_without_a_result_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt search looks as if there were no such model."""
    assert cli.run(cli.ROUTER, ["models", "--search", "Qwen3-Codr-30B-A3B"]) == cli.EXIT_BAD_CONFIG
    assert "is Qwen3-Coder-30B-A3B or" in capsys.readouterr().err


def test_models_that_do_not_fit_are_not_called_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    """Who has less memory than a model takes is told that there is no such model, and its name as the nearest."""
    argv = ["models", "--search", "Qwen3-Coder-30B-A3B", "--fits", "8GB", "--ctx-size", "131072"]
    assert cli.run(cli.ROUTER, argv) == cli.EXIT_BAD_CONFIG
    said = capsys.readouterr().err
    assert "fits 8.0 GB with 2 slots of 131072 tokens" in said
    assert "meant" not in said


@pytest.mark.parametrize("argv", [["--fits", "much"], ["--cache-type", "f12"], ["--capability"]])
def test_a_wrong_value_is_one_line(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """A typing error is a traceback or another list."""
    assert cli.run(cli.ROUTER, ["models", *argv]) == cli.EXIT_BAD_CONFIG
    assert capsys.readouterr().err.count("\n") == 1


def test_a_registry_of_the_user_takes_the_place_of_ours(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """AUXOT_REGISTRY_FILE has no effect."""
    file = tmp_path / "mine.json"
    row = {"name": "Mine", "repo": "me/Mine-GGUF", "files": [{"quant": "Q8_0", "file": "mine-Q8_0.gguf", "bytes": [5]}]}
    file.write_text(json.dumps({"format": 1, "models": [row]}))
    (one,) = objects(capsys, "--registry-file", str(file))
    assert (one["name"], one["memory_bytes"]["weights"]) == ("Mine", 5)
