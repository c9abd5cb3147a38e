"""Write auxot/core/models/registry.json.

python scripts/registry.py import FACTS.csv      add the models of a table, and what registry_facts.py knows
python scripts/registry.py refresh [NAME ...]    ask Hugging Face for sizes, hashes and new quantizations

The table has the columns model, hugging_face_repo, kind, parameters, max_context, capabilities, vision_projector_file
and a last one with QUANTIZATION=first_file pairs. `refresh` takes HF_ENDPOINT and HF_TOKEN from the environment; what
the site no longer has stays, so that a moved repository is seen in the diff and not lost.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
import httpx
import orjson
from registry_facts import ACTIVE, ATTENTION, MORE_QUANTIZATIONS, WEIGHT_BITS, more_models

from auxot.core.models.rows import FORMAT, AttentionRow, FileRow, ModelRow, check_place, parse_rows, shards, write_rows

REGISTRY = Path(__file__).parent.parent / "auxot" / "core" / "models" / "registry.json"
TIMEOUT_S = 60.0
_UNITS = {"M": 10**6, "B": 10**9}
_QUANTIZATION = re.compile(
    r"[-.](UD-)?((?:I?Q[2-8](?:_[A-Z0-9]+)*|B?F16|MXFP4))(?:-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE
)
# Dynamic files have names of their own; of these one stands for each common name, as in the original registry.
_DYNAMIC = {"Q8_K_XL": "Q8_K", "Q3_K_S": "Q3_K_S", "Q4_K_S": "Q4_K_S", "Q5_K_S": "Q5_K_S", "Q6_K": "Q6_K"}
_PLAIN = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "IQ4_XS"}
V = TypeVar("V")


def imported(table: Iterable[Mapping[str, str]]) -> list[ModelRow]:
    """Turn a table of facts into models."""
    return [completed(_row(line)) for line in table]


def completed(row: ModelRow) -> ModelRow:
    """Add what registry_facts.py knows of a model."""
    figures = _find(ATTENTION, row.name)
    active = (_find(ACTIVE, row.name) or 0) * 10**6 or _active_in_name(row.name)
    return attrs.evolve(
        row,
        kind="MoE" if active else "dense",
        active=active,
        weight_bits=_find(WEIGHT_BITS, row.name) or 0.0,
        attention=_attention(figures) if figures else None,
        files=(*row.files, *_more_files(row)),
    )


def refreshed(row: ModelRow, siblings: Sequence[Mapping[str, Any]]) -> ModelRow:
    """Add what Hugging Face says of a model's files: sizes, hashes, quantizations that are new.

    Args:
        row: the model.
        siblings: of the answer to /api/models/REPO?blobs=true.
    """
    by_path = {str(one["rfilename"]): one for one in siblings}
    known = {file.file for file in row.files}
    quants = {file.quant for file in row.files}
    new = [file for file in _files_of(by_path) if file.file not in known and file.quant not in quants]
    projector = row.projector and _measured(row.projector, by_path)
    return attrs.evolve(row, projector=projector, files=tuple(_measured(one, by_path) for one in (*row.files, *new)))


def fetch_siblings(client: httpx.Client, repo: str) -> list[Mapping[str, Any]]:
    """Return the files of a repository, as Hugging Face lists them."""
    response = client.get(f"/api/models/{repo}", params={"blobs": "true"})
    response.raise_for_status()
    siblings: list[Mapping[str, Any]] = response.json()["siblings"]
    return siblings


def _files_of(by_path: Mapping[str, Any]) -> list[FileRow]:
    files = []
    for path in by_path:
        match = _QUANTIZATION.search(path)
        if match is None or "mmproj" in path or _is_later_part(path):
            continue
        word = match[2].upper()
        quant = _DYNAMIC.get(word) if match[1] else ("F16" if word == "BF16" else word)
        if quant in _PLAIN | {"F16", "Q8_K"}:
            files.append(FileRow(quant=str(quant), file=path))
    return list({file.quant: file for file in reversed(files)}.values())


def _is_later_part(path: str) -> bool:
    try:
        shards(path)
    except ValueError:
        return True
    return False


def _measured(file: FileRow, by_path: Mapping[str, Mapping[str, Any]]) -> FileRow:
    parts = [by_path.get(path) for path in shards(file.file)]
    if not all(part and part.get("lfs") for part in parts):
        print(f"{file.file}: not there as a whole", file=sys.stderr)
        return file
    lfs = [part["lfs"] for part in parts if part]
    return attrs.evolve(file, bytes=tuple(one["size"] for one in lfs), sha256=tuple(one["sha256"] for one in lfs))


def _row(line: Mapping[str, str]) -> ModelRow:
    *_, last = line.values()
    files = [FileRow(quant=quant, file=file) for quant, _, file in (pair.partition("=") for pair in last.split())]
    for file in files:
        check_place(line["hugging_face_repo"], file.file)
    projector = line["vision_projector_file"]
    return ModelRow(
        name=line["model"],
        repo=line["hugging_face_repo"],
        parameters=int(line["parameters"][:-1]) * _UNITS[line["parameters"][-1]],
        context=int(line["max_context"]),
        capabilities=_capabilities(line["model"], line["capabilities"].split(), has_projector=bool(projector)),
        projector=FileRow(quant="F16", file=projector) if projector else None,
        files=tuple(files),
    )


def _capabilities(name: str, told: Sequence[str], *, has_projector: bool) -> tuple[str, ...]:
    """Return what a model can do: what the table tells of it, and what its name and its files do."""
    if "image_generation" in told:
        return ("image_generation",)
    thinks = re.search(
        r"thinking|reasoning|deepseek-r1|gpt-oss|^qwen3-[\d.]+B(-A\d+B)?(-128K)?$|qwen3\.[56]", name, re.IGNORECASE
    )
    words = ["chat", *told, *["vision"] * has_projector, *["reasoning"] * bool(thinks)]
    return tuple(dict.fromkeys(words))


def _more_files(row: ModelRow) -> list[FileRow]:
    there = {file.quant for file in row.files}
    files = []
    for quant, pattern in MORE_QUANTIZATIONS.items():
        like = next((file for file in row.files if "/" not in file.file and f"-{file.quant}." in file.file), None)
        if quant not in there and like and re.fullmatch(pattern, row.name):
            files.append(FileRow(quant=quant, file=like.file.replace(like.quant, quant)))
    return files


def _attention(figures: Sequence[int]) -> AttentionRow:
    layers, kv_heads, *sizes = figures
    if len(sizes) == 1:
        return AttentionRow(layers=layers, kv_heads=kv_heads, head_size=sizes[0])
    return AttentionRow(layers=layers, kv_heads=kv_heads, key_size=sizes[0], value_size=sizes[1])


def _active_in_name(name: str) -> int:
    match = re.search(r"-A(\d+)B\b", name)
    return int(match[1]) * 10**9 if match else 0


def _find(table: Mapping[str, V], name: str) -> V | None:
    return next((value for pattern, value in table.items() if re.fullmatch(pattern, name)), None)


def _merge(old: Sequence[ModelRow], new: Sequence[ModelRow]) -> list[ModelRow]:
    """Replace models of the same name; sizes and hashes that are known stay with their files."""
    measured = {(row.repo, file.file): file for row in old for file in row.files if file.bytes}
    rows = {row.name: row for row in (*old, *new)}
    return [
        attrs.evolve(row, files=tuple(measured.get((row.repo, file.file), file) for file in row.files))
        for row in rows.values()
    ]


def _by_hand() -> list[ModelRow]:
    return [completed(row) for row in parse_rows(orjson.dumps({"format": FORMAT, "models": more_models()}))]


def _refresh(rows: Sequence[ModelRow], names: Sequence[str]) -> list[ModelRow]:
    token = os.environ.get("HF_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    base = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    with httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as client:
        return [
            refreshed(row, fetch_siblings(client, row.repo)) if not names or row.name in names else row for row in rows
        ]


def main() -> int:
    """Run the command line; return the exit code."""
    match sys.argv[1:]:
        case ["import", path]:
            with Path(path).open(encoding="utf-8", newline="") as stream:
                new = imported(csv.DictReader(stream))
            old = parse_rows(REGISTRY.read_bytes()) if REGISTRY.exists() else []
            rows = _merge(old, [*new, *_by_hand()])
        case ["refresh", *names]:
            rows = _refresh(parse_rows(REGISTRY.read_bytes()), names)
        case _:
            print(__doc__)
            return 2
    REGISTRY.write_bytes(write_rows(rows))
    print(f"{len(rows)} models, {sum(len(row.files) for row in rows)} quantizations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
