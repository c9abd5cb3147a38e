"""What `registry.py` adds by hand: figures from the models' own config.json, and a few more models and files.

Attention: (layers that keep keys and values, KV heads, size of a head); with a fourth figure the third is the size of
a key, the fourth that of a value (multi-head latent attention keeps one compressed key and value for all heads). Only
models whose figures are certain stand here; the KV cache of the others is not counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_LATENT = (61, 1, 576, 512)

# Pattern of the whole name -> attention. The first that matches holds.
ATTENTION: Mapping[str, tuple[int, ...]] = {
    r"DeepSeek-R1-Distill-Qwen-1\.5B": (28, 2, 128),
    r"DeepSeek-R1-Distill-Qwen-7B": (28, 4, 128),
    r"DeepSeek-R1-Distill-Qwen-14B": (48, 8, 128),
    r"DeepSeek-R1-Distill-Qwen-32B": (64, 8, 128),
    r"DeepSeek-R1-Distill-Llama-8B": (32, 8, 128),
    r"DeepSeek-R1-Distill-Llama-70B|Llama-3\.3-70B": (80, 8, 128),
    r"DeepSeek-R1-0528-Qwen3-8B": (36, 8, 128),
    r"(DeepSeek-(V3|R1)|Kimi-K2).*": _LATENT,
    r"Qwen3-Coder-480B.*": (62, 8, 128),
    r"Qwen3-Coder-Next": (12, 2, 256),
    r"Qwen3\.5-397B-A17B": (15, 2, 256),
    r"Qwen3\.5-122B-A10B": (12, 2, 256),
    r"Qwen3\.[56]-35B-A3B": (10, 2, 256),
    r"Qwen3\.5-27B": (16, 4, 256),
    r"Qwen3-(VL-)?235B.*": (94, 4, 128),
    r"Qwen3-(VL-|Coder-)?30B.*": (48, 4, 128),
    r"Qwen3-(VL-)?32B.*": (64, 8, 128),
    r"Qwen3-14B.*": (40, 8, 128),
    r"Qwen3-(VL-)?[48]B.*": (36, 8, 128),
    r"Qwen3-(VL-2B|1\.7B|0\.6B|Embedding-0\.6B).*": (28, 8, 128),
    r"Qwen2\.5-0\.5B.*": (24, 2, 64),
    r"Qwen2\.5-1\.5B.*": (28, 2, 128),
    r"Qwen2\.5-3B.*": (36, 2, 128),
    r"gpt-oss-(safeguard-)?120b": (36, 8, 64),
    r"gpt-oss-(safeguard-)?20b": (24, 8, 64),
    r"Llama-4-.*": (48, 8, 128),
    r"MiniMax-M2\.1": (62, 8, 128),
    r"Ministral-3-14B.*": (40, 8, 128),
    r"Ministral-3-8B.*": (34, 8, 128),
    r"Ministral-3-3B.*": (26, 8, 128),
    r"gemma-3-27b.*": (62, 16, 128),
    r"gemma-3-12b.*": (48, 8, 256),
    r"gemma-3-4b.*": (34, 4, 256),
    r"gemma-3-1b.*": (26, 1, 256),
    r"gemma-3-270m.*": (18, 1, 256),
    r"granite-4\.0-h-small": (4, 8, 128),
    r"granite-4\.0-h-tiny": (4, 4, 128),
}

# Pattern -> parameters that each token uses, in millions: mixtures of experts whose name does not tell (A3B does).
ACTIVE: Mapping[str, int] = {
    r"DeepSeek-(V3|R1-0528$|R1$|R1-Zero).*": 37_000,
    r"Kimi-K2.*": 32_000,
    r"Llama-4-.*": 17_000,
    r"gpt-oss-.*120b": 5_100,
    r"gpt-oss-.*20b": 3_600,
    r"MiniMax-M2\.1": 10_000,
    r"Qwen3-Coder-Next": 3_000,
    r"granite-4\.0-h-small": 9_000,
    r"granite-4\.0-h-tiny": 1_000,
}

# Trained with four-bit weights: no quantization of them is much larger.
WEIGHT_BITS: Mapping[str, float] = {r"gpt-oss-.*": 5.3}

# Names (patterns) whose repositories also have this quantization, named like the others there.
MORE_QUANTIZATIONS: Mapping[str, str] = {
    "Q4_K_M": (
        r"Qwen3-(0\.6B|1\.7B|4B|8B|14B|32B|30B-A3B)|Qwen3-(30B-A3B|4B)-(Instruct|Thinking)-2507|Qwen3-Coder-30B-A3B"
        r"|gemma-3-(1b|4b|12b|27b)-it|gpt-oss-20b|Llama-3\.3-70B|DeepSeek-R1-0528-Qwen3-8B|DeepSeek-R1-Distill-.*"
    ),
}

_QWEN25 = ("q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_0", "q5_k_m", "q6_k", "q8_0")


def more_models() -> list[dict[str, object]]:
    """Return models that no list of facts brings, as rows of the registry."""
    rows: list[dict[str, object]] = []
    for size, parameters in (("0.5B", 494_000_000), ("1.5B", 1_540_000_000), ("3B", 3_090_000_000)):
        name = f"Qwen2.5-{size}-Instruct"
        files = [{"quant": quant.upper(), "file": f"{name.lower()}-{quant}.gguf"} for quant in _QWEN25]
        rows.append(
            {"name": name, "repo": f"Qwen/{name}-GGUF", "parameters": parameters, "context": 32768, "files": files}
        )
    for name, repo, parameters, context, quants in (
        ("Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-0.6B-GGUF", 596_000_000, 32768, ("Q8_0-Q8_0", "F16-f16")),
        (
            "nomic-embed-text-v1.5",
            "nomic-ai/nomic-embed-text-v1.5-GGUF",
            137_000_000,
            2048,
            ("Q4_K_M.Q4_K_M", "Q8_0.Q8_0", "F16.f16"),
        ),
    ):
        found = [re.fullmatch(r"(\w+?)([-.]\w+)", one) for one in quants]
        files = [{"quant": match[1], "file": f"{name}{match[2]}.gguf"} for match in found if match]
        row = {"name": name, "repo": repo, "parameters": parameters, "context": context, "files": files}
        rows.append({**row, "capabilities": ["embedding"]})
    return rows
