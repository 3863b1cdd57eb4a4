"""What SAELens saved opens here and reconstructs equally: `python read_back.py FOLDER`, after
`open_in_saelens.py`.
"""

import sys
from pathlib import Path

from safetensors.torch import load_file

from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.transcoder import Transcoder


def main(folder: Path) -> None:
    paths = sorted(folder.glob("*/saelens"))
    assert len(paths) == 8, f"{folder}: expected eight folders saved by SAELens, found {len(paths)}"
    for path in paths:
        kind = Transcoder if "transcoder" in path.parent.name else SparseAutoencoder
        ours = load_file(path.parent / "ours.safetensors")
        difference = (kind.load(path)(ours["x"]) - ours["reconstruction"]).abs().max().item()
        assert difference < 1e-3, f"{path}: largest difference {difference:.2g}"
        print(
            f"{path.parent.name}: what SAELens saved opens here, largest difference "
            f"{difference:.1e}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
