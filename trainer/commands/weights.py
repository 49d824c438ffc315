"""`trainer weights`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from json import dumps
from typing import TYPE_CHECKING, Annotated

from isodet.strict import ConfigError, nearest
from models.config.choices import BACKBONES
from runtime.commands.arguments import flag
from runtime.files.text_table import text_table

if TYPE_CHECKING:
    from models.backbones.weights import Published

_HEAD = ("backbone", "source", "license", "here", "file")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """List, fetch and check the ImageNet weights that backbones can start from.

    `model.backbone.weights: imagenet` takes them. They come with torchvision, with timm, or with a package that pip
    brings. None is part of isodet: each has the license of its publisher, and was trained on ImageNet-1k.

    names: only these backbones (default: all)
    fetch: download what torchvision and timm publish; for a package, say what to install
    check: compare files that are here with the SHA-256 in their names, and load them into their networks
    json: as JSON

    examples:
      trainer weights                             what there is, and what is on this machine
      trainer weights resnet18 --fetch            download it now, to train without a network later
      trainer weights efficientnet_lite0 --check  whether the file is whole and fits

    On a machine without a network, the column `file` says what to fetch elsewhere.
    """

    names: Annotated[tuple[str, ...], flag("names", metavar="BACKBONE", nargs="*")] = ()
    fetch: bool = False
    check: bool = False
    json: bool = False

    def run(self) -> int:
        from models.backbones.weights import published

        for name in self.names:
            if name not in BACKBONES:
                raise ConfigError(
                    f"expected a backbone of isodet's own, got {name!r}{nearest(name, BACKBONES)}", key="name"
                )
        listed = {name: published(name) for name in self.names or BACKBONES}
        problems = {name: _problem(weights, self.fetch, self.check) for name, weights in listed.items()}
        listed = {name: published(name) for name in listed}  # what was fetched is here now
        if self.json:
            print(dumps([_as_json(name, weights, problems[name]) for name, weights in listed.items()], indent=1))
        else:
            print("\n".join(text_table(_HEAD, [_row(name, weights) for name, weights in listed.items()], left=_HEAD)))
            for note in _notes([weights for weights in listed.values() if weights and not weights.here]):
                print(note)
            for name, problem in problems.items():
                if problem:
                    print(f"{name}: {problem}")
        return 1 if any(problems.values()) else 0


def _problem(weights: Published | None, fetch: bool, check: bool) -> str:
    """What failed of what was asked for, with the way out; "" where nothing did."""
    if weights is None:
        return "nobody publishes weights for it; train from scratch, or give a path" if fetch or check else ""
    if check and not fetch and not weights.here:
        return f"is not here; {weights.how}"
    if not (fetch or check):
        return ""
    from models.backbones import build_backbone
    from models.config.model import BackboneConfig

    try:
        build_backbone(BackboneConfig(name=weights.name, weights="imagenet"))  # which looks at the SHA-256
    except ConfigError as error:
        return str(error)
    return ""


def _row(name: str, weights: Published | None) -> tuple[str, ...]:
    if weights is None:
        return (name, "-", "-", "-", "-")
    source = weights.source if weights.url else "package"
    where = str(weights.path) if weights.here else weights.url or weights.how
    return (name, source, weights.license, "yes" if weights.here else "no", where)


def _notes(absent: Sequence[Published]) -> Iterator[str]:
    """What to do with the files that are not here, once for each source."""
    sources = {weights.source: weights for weights in absent}
    if weights := sources.get("torchvision"):
        assert weights.path is not None
        yield f"torchvision: --fetch downloads them; without a network, copy the files to {weights.path.parent}"
    if "timm" in sources:
        yield "timm: pip install 'isodet[timm]', then --fetch; without a network, set weights: path/to/the/file"


def _as_json(name: str, weights: Published | None, problem: str) -> dict[str, object]:
    facts: dict[str, object] = {"name": name} if weights is None else asdict(weights)
    if weights is not None:
        facts |= {"path": None if weights.path is None else str(weights.path), "here": weights.here, "how": weights.how}
    return facts | {"problem": problem}
