"""Names of the catalogue as people write them: lvvit_s is LV-ViT-S; names of other families stay as they are.

Used by the figures.
"""

from __future__ import annotations

FAMILIES = {
    "lvvit": "LV-ViT",
    "deit": "DeiT",
    "t2t_vit": "T2T-ViT",
    "mixer": "Mixer",
    "volo": "VOLO",
    "efficientnet": "EfficientNet",
    "nfnet": "NFNet",
    "resnest": "ResNeSt",
}
SETTINGS = {
    ("train.supervision", "hard"): "hard labels",
    ("train.supervision", "relabel"): "ReLabel",
    ("train.supervision", "token"): "token labels",
}


def title_of(name: str) -> str:
    """A model's or annotator's name; the size, if it has one, in capitals after a hyphen."""
    for family, title in FAMILIES.items():
        size = name.removeprefix(family)
        if size == name:
            continue
        if size.startswith("_"):
            parts = [part.upper() if len(part) <= 3 else part.capitalize() for part in size[1:].split("_")]
            return "-".join([title, *parts])
        if size[:1].isdigit():
            return f"{title}-{size.upper()}"
    return name


def setting_title(differs: dict[str, object], leave_out: str) -> str:
    """What a row changes, in words: the keys of its `set` without one of them, "" where nothing is left."""
    parts = [
        SETTINGS.get((key, str(value)), f"{key.rsplit('.', 1)[-1].replace('_', ' ')} {value}")
        for key, value in differs.items()
        if key != leave_out
    ]
    return ", ".join(parts)
