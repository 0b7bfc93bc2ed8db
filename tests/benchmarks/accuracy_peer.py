"""Anomalib's PatchCore on given pictures, run by the Python of the peers' environment: see `accuracy.py`.

Arguments: a .npz with `train` and `test` (N, 3, H, W) uint8, RGB; a folder with `resnetv2.py` and its weights; the
share of patches that the coreset keeps; how many seeds; and where the scores (seeds, N) of the test pictures go, as
.npy. Its backbone is the one given, everything else is its own. A seed draws the coreset, from the same features.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LAYERS = ("layer2a", "layer3a")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCH = 8


class _Extractor(nn.Module):
    """Pixels of 0 to 1 to the maps of its layers, as anomalib's own extractor answers."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        sys.path.insert(0, str(folder))
        from resnetv2 import resnet50v2  # noqa: PLC0415

        self.net = resnet50v2(folder / "resnet50v2.safetensors").eval()
        self.mean = nn.Buffer(torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(_STD).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to a map a layer."""
        maps = self.net((pictures - self.mean) / self.std)
        return {layer: maps[layer] for layer in LAYERS}


@torch.no_grad()
def main() -> None:
    """Fit, score, write."""
    warnings.simplefilter("ignore")
    pictures, folder, coreset, seeds, out = sys.argv[1:]
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel  # noqa: PLC0415

    with np.load(pictures, allow_pickle=False) as given:
        train, test = (torch.from_numpy(given[name]) for name in ("train", "test"))
    model: Any = PatchcoreModel(layers=("layer2", "layer3"), backbone="resnet18", pre_trained=False)
    model.layers, model.feature_extractor = LAYERS, _Extractor(Path(folder))
    scores = []
    for seed in range(int(seeds)):
        torch.manual_seed(seed)
        model.train()
        model.feature_extractor.eval()
        for part in torch.split(train, _BATCH):
            model(part / 255)
        model.subsample_embedding(float(coreset))
        model.eval()
        scores.append(np.concatenate([model(part / 255).pred_score.numpy() for part in torch.split(test, 1)]).ravel())
    np.save(out, np.stack(scores))


if __name__ == "__main__":
    main()
