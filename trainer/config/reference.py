"""The keys of the training configuration as a page of Markdown, from the dataclasses and their docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

import yaml

from isodet.strict import described
from models.config.network import BACKBONES
from trainer.config.schema import BASE, Key, keys_of, parts_of
from trainer.config.train import TrainConfig

_HEAD = f"""# The training configuration

<!-- Written by `trainer show --markdown > docs/config.md`. -->

Every key of the YAML file that `trainer fit` takes. `trainer show my.yaml` prints them all with the values they have
for you, and every key can be set on the command line: `trainer fit my.yaml optim.lr=0.005 model.neck.channels=128`.
A meaning that begins with a value, as in *cosine: ...*, holds for that value only; others do not read the key.

{textwrap.fill(f"- `_base_`: {BASE} Mappings merge key by key, and lists replace.", 120, subsequent_indent="  ")}
- A key with the default *needed* has to be there. With `init`, `model` is the checkpoint's.
- Where the detectors (`model.detector`) have other defaults, all are listed.
- *package.module:Name* is a part of your own ([extending.md](extending.md)).
- Editors with the YAML language server complete keys and mark errors while you write. `trainer show --schema >
  config.schema.json` writes these keys as JSON Schema (draft 2020-12); put this line at the top of your file:
  `# yaml-language-server: $schema=config.schema.json`.
"""
_TYPES = {
    "model.backbone.name": f"one of {', '.join(BACKBONES)}, or timm:NAME, or package.module:Name of your own part",
    "model.classes": "a list of text, or the path of a text file",
}


def config_markdown() -> str:
    """The page, docs/config.md."""
    sections = list(_sections(TrainConfig, "").items())
    titles = {part: " and ".join(f"`{path}`" for path in paths) or "The file" for part, paths in sections}
    texts = [_HEAD]
    for part, paths in sections:
        rows = [_row(key, titles) for key in keys_of(part, paths[0] if paths else "")]
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
        about = (inspect.getdoc(part) or "").partition("\n\n")[0]
        texts.append(f"## {titles[part]}\n\n{about}\n\n{table}\n")
    return re.sub(r"\(docs/([\w/]+\.md)\)", r"([\1](\1))", "\n".join(texts))


def _sections(part: Any, path: str) -> dict[Any, list[str]]:
    """The dataclass `part` and those below it, in the order of the fields, with the dotted paths of each."""
    sections: dict[Any, list[str]] = {part: [path] if path else []}
    for key in keys_of(part, path):
        for below in parts_of(key.hint)[:1]:
            for kind, paths in _sections(below, key.key).items():
                sections.setdefault(kind, []).extend(paths)
    return sections


def _row(key: Key, titles: Mapping[Any, str]) -> str:
    name = key.key.rpartition(".")[2]
    parts = parts_of(key.hint)
    kind, default = _TYPES.get(key.key, described(key.hint)), _default(key)
    if parts:
        title = titles[parts[0]]
        anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        kind = kind.replace("a mapping of keys", f"[keys](#{anchor})", 1).replace("a mapping of keys", "such")
    return f"| `{name}` | {kind} | {default} | {key.text} |"


def _default(key: Key) -> str:
    if key.default is MISSING:
        return "*needed*"
    if parts_of(key.hint) and key.default is not None:
        return ""
    values = [_yaml(key.default), *(f"{preset} {_yaml(value)}" for preset, value in key.presets.items())]
    return ", ".join(values)


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"  # a scalar alone is followed by the end of a document
