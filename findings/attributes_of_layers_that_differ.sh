#!/usr/bin/env bash
# Transformers 5.23.0 (no torch needed): on a configuration whose layers differ, such as Gemma 4's with `global_head_dim`, reading
# `head_dim` raises `AmbiguousGlobalPerLayerAttributeError`. `getattr(config, "head_dim", None)` and `hasattr(config, "head_dim")` raise it
# too, because it is a RuntimeError and not an AttributeError, so a default does not help. Code that sizes a cache of keys and values by the
# common `getattr(config, "head_dim", None) or hidden_size // num_attention_heads` therefore fails. `per_layer_config` gives the value
# layer by layer, also for configurations whose layers are all alike.
# Needs Python 3.10 to 3.14 and 300 MB in the temporary folder. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check transformers==5.23.0

cat >"$folder/heads.py" <<'PY'
import sys

from transformers import Gemma4TextConfig, MixtralConfig


def outcome(ask):
    try:
        return ask()
    except Exception as error:
        return type(error).__name__, isinstance(error, AttributeError)


config = Gemma4TextConfig(num_hidden_layers=6, head_dim=256, global_head_dim=512)
seen = {
    "config.head_dim": outcome(lambda: config.head_dim),
    "getattr with a default": outcome(lambda: getattr(config, "head_dim", None)),
    "hasattr": outcome(lambda: hasattr(config, "head_dim")),
    "its layers": sorted({layer.head_dim for layer in config.per_layer_config}),
    "layers that are alike": len(list(MixtralConfig(num_hidden_layers=3).per_layer_config)),
}
for question, answer in seen.items():
    print(f"{question}: {answer}")
raised = ("AmbiguousGlobalPerLayerAttributeError", False)
sys.exit(0 if list(seen.values()) == [raised, raised, raised, [256, 512], 3] else 1)
PY
"$folder/venv/bin/python" "$folder/heads.py" 2>"$folder/log" ||
    { tail -n 20 "$folder/log" && echo "changed; it was: no AttributeError, three times; 256 and 512; 3" && exit 1; }
