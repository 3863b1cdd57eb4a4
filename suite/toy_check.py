"""The published toy check: what the repository keeps of the last full `make check-toy`."""

import json
import shutil
from pathlib import Path

from suite import project

PUBLISHED_FIGURES = {
    "toy_weights_and_norms_large": "Eighty features in twenty dimensions.",
    "toy_varied_density": "One feature of another density among equals.",
    "toy_learning_dynamics": "Features appear one after another and settle at half a dimension "
    "each.",
    "toy_adversarial": "Loss added by an attack: it grows with features per dimension on the same "
    "inputs for all models, but not on inputs of each model's own density.",
    "toy_privileged_basis": "A ReLU on the hidden layer gives it a privileged basis.",
    "toy_absolute_value": "Three absolute values through six neurons.",
}


def published_summary() -> dict:
    """The gates of the published check; empty where there is none."""
    path = project.published("toy") / "gates.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def copy_published_figures(folder: Path) -> dict[str, str]:
    """Put the published check's figures into `folder`, as `full_<name>.png`; returns their captions
    by name.
    """
    captions = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, caption in PUBLISHED_FIGURES.items():
        if (picture := project.published("toy") / "figures" / f"{name}.png").is_file():
            shutil.copy2(picture, folder / f"full_{name}.png")
            captions[f"full_{name}"] = caption
    return captions
